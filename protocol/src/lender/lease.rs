//! The lender's ledger: the leases that stand, their streams, and their words.

use std::collections::{BTreeMap, BTreeSet};

use crate::error::ApiMisuse;
use crate::ids::{LeaseId, StreamId};
use crate::misbehaviour::PeerMisbehaved;

/// How a lease ended. Each ends in exactly one of these ways.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum LeaseEnd {
    /// The borrower gave it back.
    Released,
    /// The batch was never sent: its stream ended before credit came.
    Withdrawn,
    /// The borrower kept it beyond its deadline, and the lender fenced it.
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
    /// The borrower has it mapped, and keeps it for as long as it likes.
    pub(crate) mapped: bool,
    /// The borrower has been told of it.
    announced: bool,
}

/// All leases of a connection.
#[derive(Debug)]
pub(crate) struct LeaseTable {
    live: BTreeMap<LeaseId, Lease>,
    /// Revoked, and the borrower, who could not know it yet, will still release them.
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

    /// Whether one more lease may be opened, fenced by a word or not.
    pub(crate) fn has_room(&self) -> bool {
        self.live.len() < self.limit
    }

    pub(crate) fn is_live(&self, lease: LeaseId) -> bool {
        self.live.contains_key(&lease)
    }

    /// Checks that the driver numbers its leases upwards.
    pub(crate) fn reserve(&mut self, lease: LeaseId) -> Result<(), ApiMisuse> {
        if self.last.is_some_and(|last| lease <= last) {
            return Err(ApiMisuse::LeaseReused(lease));
        }
        self.last = Some(lease);
        Ok(())
    }

    /// Opens a reserved lease and says which slot its word has.
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

    /// The borrower is told of an open lease.
    pub(crate) fn announce(&mut self, lease: LeaseId) {
        if let Some(open) = self.live.get_mut(&lease) {
            open.announced = true;
        }
    }

    /// Ends a lease that the borrower was never told of.
    pub(crate) fn withdraw(&mut self, lease: LeaseId) -> Option<Lease> {
        self.live.get(&lease).filter(|open| !open.announced)?;
        self.end(lease)
    }

    /// Leases of mapped batches.
    pub(crate) fn mapped(&self) -> usize {
        self.mapped
    }

    /// The borrower gave a lease back. `None` if it had been revoked before.
    pub(crate) fn release(&mut self, lease: LeaseId) -> Result<Option<Lease>, PeerMisbehaved> {
        if self.revoked.remove(&lease) {
            return Ok(None);
        }
        let told = self.live.get(&lease).is_some_and(|open| open.announced);
        let ended = if told { self.end(lease) } else { None };
        ended.map(Some).ok_or(PeerMisbehaved::UnknownLease(lease))
    }

    /// The lender takes a lease back; the borrower's release is still to come.
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

    /// Ends the next lease of all, when the connection is torn down.
    pub(crate) fn pop(&mut self) -> Option<(LeaseId, Lease)> {
        let (&lease, _) = self.live.first_key_value()?;
        self.end(lease).map(|ended| (lease, ended))
    }

    /// Leases that a borrower keeps without release grow the revoked set: this bounds it.
    pub(crate) fn revoked(&self) -> usize {
        self.revoked.len()
    }
}
