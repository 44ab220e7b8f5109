//! The leases that this end has, and how they are given back: several in a message, or along with another message. One
//! by one they would wake the lender for each batch; and the room that they free is seldom needed at once.

use std::collections::BTreeMap;
use std::time::Duration;

use super::Borrower;
use crate::ids::LeaseId;
use crate::message::FromBorrower;
use crate::time::Timestamp;
use crate::timers::Timer;

/// Releases of this many leases are not held back.
const MOST_LEASES: usize = 8;
/// Releases of this many bytes are not held back.
const MOST_BYTES: u64 = 8 << 20;
/// With more leases than this none is held back: the lender may be short of leases.
const MANY_LEASES: usize = 128;
/// How long a release is held back at most: other connections may need the memory.
const RELEASED_WITHIN: Duration = Duration::from_millis(2);

/// Leases that this end has.
#[derive(Debug, Default)]
pub(super) struct Loans {
    /// Those of batches that are being read, or held to be, with their bytes.
    held: BTreeMap<LeaseId, u64>,
    held_bytes: u64,
    /// Those that are done with, and whose lender was not told.
    given_back: Vec<LeaseId>,
    given_back_bytes: u64,
    /// The lender is to be told now.
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

    /// This end is done with a lease. It may be one that was never taken.
    pub(super) fn give_back(&mut self, lease: LeaseId) {
        if let Some(bytes) = self.held.remove(&lease) {
            self.held_bytes = self.held_bytes.saturating_sub(bytes);
            self.given_back_bytes = self.given_back_bytes.saturating_add(bytes);
        }
        self.given_back.push(lease);
    }

    /// Releases are not held back any longer.
    pub(super) fn flush_now(&mut self) {
        self.flush = true;
    }

    /// There is no lender any more to be told.
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

    /// Whether the lender has room for everything that its credit lets it lend, releases held back left out: it does
    /// not wait.
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

    /// Sets the time until which releases are held back. To be called after every call.
    pub fn time_releases(&mut self, now: Timestamp) {
        if self.holds_releases_back() && !self.timers.is_set(Timer::Releases) {
            self.timers.set(Timer::Releases, now + RELEASED_WITHIN);
        }
    }

    /// Another message goes to the lender: releases go in the same write.
    pub fn flush_releases(&mut self) {
        self.loans.flush_now();
    }

    /// Says the releases that are not to be held back. To be called once there is nothing else to say.
    pub fn say_releases(&mut self) {
        if !self.holds_releases_back() {
            self.say_all_releases();
        }
    }

    /// Says all releases. Also before the connection ends: the lender would keep mapped batches until this process
    /// ends.
    pub fn say_all_releases(&mut self) {
        self.timers.clear(Timer::Releases);
        let given_back = std::mem::take(&mut self.loans.given_back);
        self.loans.given_back_bytes = 0;
        // A frame holds any release of this many leases.
        for leases in given_back.chunks(4096) {
            self.say(FromBorrower::Release { leases: leases.to_vec() });
        }
        self.loans.flush = false;
    }
}
