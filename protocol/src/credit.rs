//! Byte credits: the borrower grants, the lender spends.
//!
//! A batch costs its bytes, laid out as in the borrower's slab, plus a small constant, so that a stream of empty
//! batches is bounded too. Grants are cumulative, so that a repeated or reordered grant does no harm.

use crate::misbehaviour::PeerMisbehaved;

/// Credit that a batch costs beyond its bytes.
pub const BATCH_OVERHEAD: u64 = 256;

/// Credit that a batch of `bytes` costs.
#[must_use]
pub const fn batch_cost(bytes: u64) -> u64 {
    bytes.saturating_add(BATCH_OVERHEAD)
}

/// The account of a stream's credit. Both ends keep the same account.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Credit {
    granted: u64,
    spent: u64,
}

impl Credit {
    pub(crate) fn new(granted: u64) -> Self {
        Credit { granted, spent: 0 }
    }

    /// Bytes granted since the stream began.
    #[must_use]
    pub fn granted(self) -> u64 {
        self.granted
    }

    /// Bytes spent since the stream began.
    #[must_use]
    pub fn spent(self) -> u64 {
        self.spent
    }

    /// Bytes that may still be spent.
    #[must_use]
    pub fn available(self) -> u64 {
        self.granted - self.spent
    }

    /// For the lender: records the borrower's new total. A total that shrinks, or that leaves more than `limit`
    /// unspent, is misbehaviour: the lender sets the limit of bytes in flight.
    pub(crate) fn grant(&mut self, total: u64, limit: u64) -> Result<(), PeerMisbehaved> {
        if total < self.granted {
            return Err(PeerMisbehaved::CreditShrank { from: self.granted, to: total });
        }
        let value = total - self.spent;
        if value > limit {
            return Err(PeerMisbehaved::Limit { what: "unspent credit", value, limit });
        }
        self.granted = total;
        Ok(())
    }

    /// For the borrower: grants `more` and returns the new total.
    pub(crate) fn extend(&mut self, more: u64) -> u64 {
        self.granted = self.granted.saturating_add(more);
        self.granted
    }

    /// For either end: spends `cost`, if there is enough.
    pub(crate) fn spend(&mut self, cost: u64) -> Result<(), PeerMisbehaved> {
        if cost > self.available() {
            return Err(PeerMisbehaved::CreditExceeded { cost, available: self.available() });
        }
        self.spent += cost;
        Ok(())
    }
}
