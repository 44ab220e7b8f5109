//! The table of the leases that stand, with their streams and their words.

use std::collections::{BTreeMap, BTreeSet};

use crate::error::ApiMisuse;
use crate::ids::{LeaseId, StreamId};
use crate::misbehaviour::PeerMisbehaved;

/// How a lease ended. Each lease ends in exactly one of these ways.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum LeaseEnd {
    /// The borrower released it.
    Released,
    /// The batch was never sent: its stream ended before credit came.
    Withdrawn,
    /// The borrower kept it beyond its deadline, and the lender revoked it.
    Revoked,
    /// The connection ended, and the data plane has been shut.
    TornDown,
}

/// A lease that stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Lease {
    pub(crate) stream: StreamId,
    pub(crate) bytes: u64,
    pub(crate) slot: Option<u32>,
    /// The borrower maps the batch, so that the lease has no timeout.
    pub(crate) mapped: bool,
    /// The lease was announced to the borrower.
    announced: bool,
}

/// All leases of a connection.
#[derive(Debug)]
pub(crate) struct LeaseTable {
    live: BTreeMap<LeaseId, Lease>,
    /// Revoked leases whose releases are still to arrive: the borrower could not know of the revocation.
    revoked: BTreeSet<LeaseId>,
    last: Option<LeaseId>,
    limit: usize,
    free_slots: Vec<u32>,
    bytes: u64,
    mapped: usize,
}

impl LeaseTable {
    pub(crate) fn new(slots: u32) -> Self {
        LeaseTable {
            live: BTreeMap::new(),
            revoked: BTreeSet::new(),
            last: None,
            limit: slots as usize,
            free_slots: (0..slots).rev().collect(),
            bytes: 0,
            mapped: 0,
        }
    }

    /// Bytes on loan.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    pub(crate) fn len(&self) -> usize {
        self.live.len()
    }

    /// Whether one more lease may be opened, with a lease word or without.
    pub(crate) fn has_room(&self) -> bool {
        self.live.len() < self.limit
    }

    pub(crate) fn is_live(&self, lease: LeaseId) -> bool {
        self.live.contains_key(&lease)
    }

    /// Checks that the driver numbers its leases in ascending order.
    pub(crate) fn reserve(&mut self, lease: LeaseId) -> Result<(), ApiMisuse> {
        if self.last.is_some_and(|last| lease <= last) {
            return Err(ApiMisuse::LeaseReused(lease));
        }
        self.last = Some(lease);
        Ok(())
    }

    /// Opens a reserved lease. Returns the slot of its word.
    pub(crate) fn open(
        &mut self,
        lease: LeaseId,
        stream: StreamId,
        bytes: u64,
        fenced_by_word: bool,
        mapped: bool,
    ) -> Option<u32> {
        let slot = if fenced_by_word { self.free_slots.pop() } else { None };
        self.live.insert(lease, Lease { stream, bytes, slot, mapped, announced: false });
        self.bytes += bytes;
        self.mapped += usize::from(mapped);
        slot
    }

    /// Records that an open lease is announced to the borrower.
    pub(crate) fn announce(&mut self, lease: LeaseId) {
        if let Some(open) = self.live.get_mut(&lease) {
            open.announced = true;
        }
    }

    /// Ends a lease that was never announced to the borrower.
    pub(crate) fn withdraw(&mut self, lease: LeaseId) -> Option<Lease> {
        self.live.get(&lease).filter(|open| !open.announced)?;
        self.end(lease)
    }

    /// Number of leases of mapped batches.
    pub(crate) fn mapped(&self) -> usize {
        self.mapped
    }

    /// The borrower released a lease. `None` if the lender had revoked it before.
    pub(crate) fn release(&mut self, lease: LeaseId) -> Result<Option<Lease>, PeerMisbehaved> {
        if self.revoked.remove(&lease) {
            return Ok(None);
        }
        let told = self.live.get(&lease).is_some_and(|open| open.announced);
        let ended = if told { self.end(lease) } else { None };
        ended.map(Some).ok_or(PeerMisbehaved::UnknownLease(lease))
    }

    /// Revokes a lease. The borrower's release is still to arrive.
    pub(crate) fn revoke(&mut self, lease: LeaseId) -> Option<Lease> {
        let ended = self.end(lease)?;
        self.revoked.insert(lease);
        Some(ended)
    }

    fn end(&mut self, lease: LeaseId) -> Option<Lease> {
        let ended = self.live.remove(&lease)?;
        self.bytes -= ended.bytes;
        self.mapped -= usize::from(ended.mapped);
        self.free_slots.extend(ended.slot);
        Some(ended)
    }

    /// Ends any one lease, for the teardown of the connection.
    pub(crate) fn pop(&mut self) -> Option<(LeaseId, Lease)> {
        let (&lease, _) = self.live.first_key_value()?;
        self.end(lease).map(|ended| (lease, ended))
    }

    /// Number of revoked leases whose release has not arrived. The lender limits it, because a borrower may never
    /// release.
    pub(crate) fn revoked(&self) -> usize {
        self.revoked.len()
    }
}
