//! Leases that this end holds, and their release: several in one message, or along with another message. A message for
//! each release would wake the lender for each batch, and the lender seldom needs the freed room at once.

use std::collections::BTreeMap;
use std::time::Duration;

use super::Borrower;
use crate::ids::LeaseId;
use crate::message::FromBorrower;
use crate::time::Timestamp;
use crate::timers::Timer;

/// This many releases are not held back.
const MOST_LEASES: usize = 8;
/// Releases of this many bytes in total are not held back.
const MOST_BYTES: u64 = 8 << 20;
/// With at least this many leases held, no release is held back: the lender may run out of leases.
const MANY_LEASES: usize = 128;
/// Maximum time for which a release is held back: other connections may need the memory.
const RELEASED_WITHIN: Duration = Duration::from_millis(2);

/// Leases of this end.
#[derive(Debug, Default)]
pub(super) struct Loans {
    /// Leases of batches that are being read or held, with the bytes of each.
    held: BTreeMap<LeaseId, u64>,
    held_bytes: u64,
    /// Leases that are done with, but whose release has not been sent.
    given_back: Vec<LeaseId>,
    given_back_bytes: u64,
    /// The releases must be sent now.
    flush: bool,
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
    pub(super) fn give_back(&mut self, lease: LeaseId) {
        if let Some(bytes) = self.held.remove(&lease) {
            self.held_bytes = self.held_bytes.saturating_sub(bytes);
            self.given_back_bytes = self.given_back_bytes.saturating_add(bytes);
        }
        self.given_back.push(lease);
    }

    /// Stops holding releases back.
    pub(super) fn flush_now(&mut self) {
        self.flush = true;
    }

    /// Drops the releases, because there is no lender any more.
    pub(super) fn forget_releases(&mut self) {
        self.given_back.clear();
        self.given_back_bytes = 0;
    }
}

impl Borrower {
    fn holds_releases_back(&self) -> bool {
        let Loans { given_back, given_back_bytes, flush, .. } = &self.loans;
        (1..MOST_LEASES).contains(&given_back.len())
            && *given_back_bytes < MOST_BYTES
            && !flush
            && self.ended_by.is_none()
            && (!self.reads.is_empty() || self.has_room())
    }

    /// Whether the lender has room for everything that its credit allows it to lend, even without the held-back
    /// releases. If so, it does not wait for them.
    fn has_room(&self) -> bool {
        if self.loans.held.len() >= MANY_LEASES {
            return false;
        }
        let open = self.streams.values().filter(|open| !open.remote_done);
        let to_come = open.fold(0_u64, |sum, open| sum.saturating_add(open.window()));
        let Loans { held_bytes, given_back_bytes, .. } = self.loans;
        let room = self.lender_limit;
        [held_bytes, given_back_bytes].into_iter().fold(to_come, u64::saturating_add) <= room
    }

    /// Sets the time until which releases are held back. Call it after every other call.
    pub fn time_releases(&mut self, now: Timestamp) {
        if self.holds_releases_back() && !self.timers.is_set(Timer::Releases) {
            self.timers.set(Timer::Releases, now + RELEASED_WITHIN);
        }
    }

    /// Another message goes to the lender: lets the releases go in the same write.
    pub fn flush_releases(&mut self) {
        self.loans.flush_now();
    }

    /// Sends the releases, unless they are held back. Call it after all other messages are queued.
    pub fn say_releases(&mut self) {
        if !self.holds_releases_back() {
            self.say_all_releases();
        }
    }

    /// Sends all releases. Call it also before the connection ends: otherwise the lender would keep mapped batches
    /// until this process ends.
    pub fn say_all_releases(&mut self) {
        self.timers.clear(Timer::Releases);
        let given_back = std::mem::take(&mut self.loans.given_back);
        self.loans.given_back_bytes = 0;
        // A release of this many leases always fits a frame.
        for leases in given_back.chunks(4096) {
            self.say(FromBorrower::Release { leases: leases.to_vec() });
        }
        self.loans.flush = false;
    }
}
