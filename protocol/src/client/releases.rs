//! What is on loan here, and how it is given back: several leases in a message, or along with another message. One by one they
//! would wake the lender, which has other things to do, for each batch; and what they free is seldom wanted at once.

use std::collections::BTreeMap;
use std::time::Duration;

use super::ClientConnection;
use crate::ids::LeaseId;
use crate::message::ToServer;
use crate::time::Timestamp;
use crate::timers::Timer;

/// So many leases are given back at once.
const MOST_LEASES: usize = 8;
/// So many bytes are given back at once.
const MOST_BYTES: u64 = 8 << 20;
/// With more on loan here none is held back: the lender may be short of leases.
const MANY_LEASES: usize = 128;
/// How long the first of them is held back at most: what they free, other connections may be in need of.
const RELEASED_WITHIN: Duration = Duration::from_millis(2);

/// Leases that this end has.
#[derive(Debug, Default)]
pub(super) struct Loans {
    /// Of what is being read, or held to be, with its bytes.
    held: BTreeMap<LeaseId, u64>,
    held_bytes: u64,
    /// Those that nobody needs any more, and whose lender was not told.
    given_back: Vec<LeaseId>,
    given_back_bytes: u64,
    /// It is to be told now.
    hurry: bool,
}

impl Loans {
    pub(super) fn has(&self, lease: LeaseId) -> bool {
        self.held.contains_key(&lease)
    }

    pub(super) fn take(&mut self, lease: LeaseId, bytes: u64) {
        self.held.insert(lease, bytes);
        self.held_bytes = self.held_bytes.saturating_add(bytes);
    }

    /// Nobody needs it any more. It may be one that was never taken.
    pub(super) fn give_back(&mut self, lease: LeaseId) {
        if let Some(bytes) = self.held.remove(&lease) {
            self.held_bytes = self.held_bytes.saturating_sub(bytes);
            self.given_back_bytes = self.given_back_bytes.saturating_add(bytes);
        }
        self.given_back.push(lease);
    }

    /// What was given back is not held back.
    pub(super) fn hurry(&mut self) {
        self.hurry = true;
    }

    /// Nobody is there to be told.
    pub(super) fn forget_releases(&mut self) {
        self.given_back.clear();
        self.given_back_bytes = 0;
    }

    #[cfg(feature = "planted-bugs")]
    pub(super) fn give_back_early(&mut self, lease: LeaseId) {
        self.given_back.push(lease);
    }

    #[cfg(feature = "planted-bugs")]
    pub(super) fn keep_the_last(&mut self) {
        self.given_back.pop();
    }
}

impl ClientConnection {
    fn holds_releases_back(&self) -> bool {
        let Loans { given_back, given_back_bytes, hurry, .. } = &self.loans;
        (1..MOST_LEASES).contains(&given_back.len())
            && *given_back_bytes < MOST_BYTES
            && !hurry
            && self.ended_by.is_none()
            && (!self.reads.is_empty() || self.has_room())
    }

    /// Whether the lender has room for all that it may lend by the credit that it has, without what is held back: it does not wait.
    fn has_room(&self) -> bool {
        if self.loans.held.len() >= MANY_LEASES {
            return false;
        }
        let open = self.streams.values().filter(|open| !open.remote_done);
        let to_come = open.fold(0_u64, |sum, open| sum.saturating_add(open.window()));
        let Loans { held_bytes, given_back_bytes, .. } = self.loans;
        let room = self.limits.as_ref().map_or(0, |limits| limits.max_loan_bytes);
        [held_bytes, given_back_bytes].into_iter().fold(to_come, u64::saturating_add) <= room
    }

    /// Sees to it that none is held back for too long.
    pub(super) fn time_releases(&mut self, now: Timestamp) {
        if self.holds_releases_back() && !self.timers.is_set(Timer::Releases) {
            self.timers.set(Timer::Releases, now + RELEASED_WITHIN);
        }
    }

    /// Gives back what is not to be held back.
    pub(super) fn say_releases(&mut self) {
        if !self.holds_releases_back() {
            self.say_all_releases();
        }
    }

    /// Gives all back that nobody needs. Before the connection ends, too: of what is mapped the lender would wait for this process's end.
    pub(super) fn say_all_releases(&mut self) {
        self.timers.clear(Timer::Releases);
        let given_back = std::mem::take(&mut self.loans.given_back);
        self.loans.given_back_bytes = 0;
        // A frame holds any release of this many leases.
        for leases in given_back.chunks(4096) {
            self.transmit(&ToServer::Release { leases: leases.to_vec() });
        }
        self.loans.hurry = false;
    }
}
