//! Limits of memory: bytes on loan over all fabrics, and bytes that one peer makes a connection keep.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Bytes per permit. A semaphore counts in 32 bits.
const UNIT: u64 = 4096;

/// The bytes that may be on loan at a time. Cheap to clone: all clones are the same budget, so the pools of several
/// fabrics can share one.
#[derive(Clone, Debug)]
pub struct LoanBudget {
    bytes: u64,
    /// Permits of the whole budget.
    permits: usize,
    free: Arc<Semaphore>,
}

/// A part of the budget that is in use. Returned to the budget when dropped.
#[derive(Debug)]
pub(crate) struct Spent {
    _permit: OwnedSemaphorePermit,
}

impl LoanBudget {
    /// A budget of this many bytes, rounded down to pages.
    #[must_use]
    pub fn new(bytes: u64) -> Self {
        let permits = usize::try_from(bytes / UNIT).unwrap_or(usize::MAX).clamp(1, Semaphore::MAX_PERMITS);
        LoanBudget { bytes, permits, free: Arc::new(Semaphore::new(permits)) }
    }

    /// The whole budget, in bytes.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Bytes used by loans and by batches that are about to be lent, each batch rounded up to pages.
    #[must_use]
    pub fn bytes_on_loan(&self) -> u64 {
        self.permits.saturating_sub(self.free.available_permits()) as u64 * UNIT
    }

    /// Takes bytes out of the budget. `None`: not enough are free now.
    pub(crate) fn spend(&self, bytes: u64) -> Option<Spent> {
        let units = u32::try_from(bytes.div_ceil(UNIT)).unwrap_or(u32::MAX);
        let permit = Arc::clone(&self.free).try_acquire_many_owned(units).ok()?;
        Some(Spent { _permit: permit })
    }
}

/// Limits of the bytes that wait to be written to one peer. A peer that never reads reaches them. All are bytes of
/// memory: a short message takes more memory than bytes on the wire.
///
/// The protocol limits everything else that a peer makes a connection keep: bytes on loan, batches that wait for
/// credit, and a frame that has not arrived completely.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PeerBudget {
    /// Messages. With more, the connection reads nothing from the peer, since what it reads may cause more of them.
    pub messages: usize,
    /// Messages and batches. With more, no batch is requested from a source.
    pub unsent: usize,
}

impl PeerBudget {
    /// The budget of one client at a server.
    pub const SERVER: PeerBudget = PeerBudget { messages: 1 << 20, unsent: 16 << 20 };
    /// The budget of a server at a client. It is so large that an honest server never reaches it: if both ends stopped
    /// reading, neither could ever write.
    pub const CLIENT: PeerBudget = PeerBudget { messages: 256 << 20, unsent: usize::MAX };
}
