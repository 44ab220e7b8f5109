//! Releases of leases: several in one message, or along with another message. A message for each release would wake the
//! lender for each batch, and the lender seldom needs the freed room at once.

use std::time::Duration;

use super::Borrower;
use super::loans::Loans;
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

impl Borrower {
    fn holds_releases_back(&self) -> bool {
        let Loans { pending_releases, pending_bytes, flush, .. } = &self.loans;
        (1..MOST_LEASES).contains(&pending_releases.len())
            && *pending_bytes < MOST_BYTES
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
        let Loans { held_bytes, pending_bytes, .. } = self.loans;
        let room = self.lender_limit;
        [held_bytes, pending_bytes].into_iter().fold(to_come, u64::saturating_add) <= room
    }

    /// Sets the time until which releases are held back. Call it after every other call.
    pub fn schedule_releases(&mut self, now: Timestamp) {
        if self.holds_releases_back() && !self.timers.is_set(Timer::Releases) {
            self.timers.set(Timer::Releases, now + RELEASED_WITHIN);
        }
    }

    /// Another message goes to the lender: lets the releases go in the same write.
    pub fn flush_releases(&mut self) {
        self.loans.flush_now();
    }

    /// Sends the releases, unless they are held back. Call it after all other messages are queued.
    pub fn send_due_releases(&mut self) {
        if !self.holds_releases_back() {
            self.send_all_releases();
        }
    }

    /// Sends all releases. Call it also before the connection ends: otherwise the lender would keep mapped batches
    /// until this process ends.
    pub fn send_all_releases(&mut self) {
        self.timers.clear(Timer::Releases);
        let pending_releases = std::mem::take(&mut self.loans.pending_releases);
        self.loans.pending_bytes = 0;
        // A release of this many leases always fits a frame.
        for leases in pending_releases.chunks(4096) {
            self.send(FromBorrower::Release { leases: leases.to_vec() });
        }
        self.loans.flush = false;
    }
}
