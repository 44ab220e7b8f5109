//! Leases that this end holds, or is done with.

use std::collections::BTreeMap;

use crate::ids::LeaseId;

/// Leases of this end.
#[derive(Debug, Default)]
pub(super) struct Loans {
    /// Leases of batches that are being read or held, with the bytes of each.
    pub(super) held: BTreeMap<LeaseId, u64>,
    pub(super) held_bytes: u64,
    /// Leases that are done with, but whose release has not been sent.
    pub(super) pending_releases: Vec<LeaseId>,
    pub(super) pending_bytes: u64,
    /// The releases must be sent now.
    pub(super) flush: bool,
}

impl Loans {
    pub(super) fn has(&self, lease: LeaseId) -> bool {
        self.held.contains_key(&lease)
    }

    pub(super) fn take(&mut self, lease: LeaseId, bytes: u64) {
        self.held.insert(lease, bytes);
        self.held_bytes = self.held_bytes.saturating_add(bytes);
    }

    /// Marks a lease for release. The lease need not have been taken.
    pub(super) fn release(&mut self, lease: LeaseId) {
        if let Some(bytes) = self.held.remove(&lease) {
            self.held_bytes = self.held_bytes.saturating_sub(bytes);
            self.pending_bytes = self.pending_bytes.saturating_add(bytes);
        }
        self.pending_releases.push(lease);
    }

    /// Stops holding releases back.
    pub(super) fn flush_now(&mut self) {
        self.flush = true;
    }

    /// Drops the releases, because there is no lender any more.
    pub(super) fn forget_releases(&mut self) {
        self.pending_releases.clear();
        self.pending_bytes = 0;
    }
}
