//! One table of all deadlines, each with the reason for it.

use std::collections::{BTreeMap, BTreeSet};

use crate::ids::{LeaseId, ReadId, StreamId};
use crate::time::Timestamp;

/// Why a deadline exists.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Timer {
    /// The peer's hello, or its answer to this end's hello, is due.
    Handshake,
    /// No sign of life came for a while: send a ping.
    KeepAlive,
    /// No sign of life came for too long: the connection ends.
    Idle,
    /// The drain timeout has passed, even if streams still run.
    Drain,
    /// A stream's deadline.
    Stream(StreamId),
    /// A batch's reads are due.
    Read(ReadId),
    /// The release of a lease is due.
    Lease(LeaseId),
    /// The time limit of a batch that waits for room among mapped loans.
    Room(StreamId),
    /// Releases that were held back, to be sent together, are due.
    Releases,
    /// The answer to an upload that has ended is due.
    Answer(StreamId),
}

/// Deadlines by reason.
#[derive(Debug, Default)]
pub(crate) struct Timers {
    by_timer: BTreeMap<Timer, Timestamp>,
    by_time: BTreeSet<(Timestamp, Timer)>,
}

impl Timers {
    /// Sets or moves a deadline.
    pub(crate) fn set(&mut self, timer: Timer, at: Timestamp) {
        if let Some(old) = self.by_timer.insert(timer, at) {
            self.by_time.remove(&(old, timer));
        }
        self.by_time.insert((at, timer));
    }

    pub(crate) fn is_set(&self, timer: Timer) -> bool {
        self.by_timer.contains_key(&timer)
    }

    pub(crate) fn clear(&mut self, timer: Timer) {
        if let Some(old) = self.by_timer.remove(&timer) {
            self.by_time.remove(&(old, timer));
        }
    }

    pub(crate) fn clear_all(&mut self) {
        *self = Timers::default();
    }

    /// Removes and returns the next deadline that has passed.
    pub(crate) fn expired(&mut self, now: Timestamp) -> Option<Timer> {
        let &(at, timer) = self.by_time.first()?;
        if at > now {
            return None;
        }
        self.clear(timer);
        Some(timer)
    }

    /// The next deadline and its reason.
    pub(crate) fn next(&self) -> Option<(Timestamp, Timer)> {
        self.by_time.first().copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_moved_deadline_fires_once_at_its_new_time() {
        let mut timers = Timers::default();
        timers.set(Timer::Idle, Timestamp::from_nanos(10));
        timers.set(Timer::KeepAlive, Timestamp::from_nanos(15));
        timers.set(Timer::Idle, Timestamp::from_nanos(20));
        assert_eq!(timers.next(), Some((Timestamp::from_nanos(15), Timer::KeepAlive)));
        assert_eq!(timers.expired(Timestamp::from_nanos(14)), None);
        assert_eq!(timers.expired(Timestamp::from_nanos(20)), Some(Timer::KeepAlive));
        assert_eq!(timers.expired(Timestamp::from_nanos(20)), Some(Timer::Idle));
        assert_eq!(timers.expired(Timestamp::from_nanos(u64::MAX)), None);
        assert_eq!(timers.next(), None);
    }
}
