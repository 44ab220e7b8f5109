//! Mapped batches: the borrower keeps them for as long as it likes, and nothing can take them back. So they may come to fill
//! what a connection may have on loan, and whoever waits for room among its loans could wait for ever.

use super::ServerConnection;
use crate::codes::StreamCode;
use crate::credit::batch_cost;
use crate::ids::StreamId;
use crate::time::Timestamp;
use crate::timers::Timer;

/// Whether there is room among the loans for one more batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Crowd {
    /// There is.
    None,
    /// There is not, and it may come.
    PerhapsNot,
    /// There is not, for as long as the borrower keeps what it has mapped.
    Full,
}

impl ServerConnection {
    /// How the next batch of a stream is to be asked for, if it is like the largest before.
    ///
    /// Who looks at batches and drops them gives back room and credit; who keeps them, credit only. So where room is short the
    /// answer waits for credit, and then tells the one from the other: one that keeps what it gets had better get the rest inline,
    /// for there may never be room again.
    pub(super) fn crowd(&self, stream: StreamId) -> Crowd {
        let Some(open) = self.streams.get(&stream).filter(|_| self.leases.mapped() > 0) else { return Crowd::None };
        let room = self.config.limits.max_loan_bytes.saturating_sub(self.leases.bytes());
        if self.leases.has_room() && open.largest <= room {
            Crowd::None
        } else if open.credit.available() < batch_cost(open.largest) {
            Crowd::PerhapsNot
        } else {
            Crowd::Full
        }
    }

    /// A batch is ready, and finds no room among the loans.
    pub(super) fn waits_for_room(&mut self, now: Timestamp, stream: StreamId) {
        // Others end by themselves, or by their timeout.
        if self.leases.mapped() > 0 && !self.timers.is_set(Timer::Room(stream)) {
            self.timers.set(Timer::Room(stream), now + self.config.lease_timeout);
        }
    }

    pub(super) fn found_no_room(&mut self, stream: StreamId) {
        if !self.streams.contains_key(&stream) {
            return;
        }
        let (leases, bytes) = (self.leases.mapped(), self.leases.bytes());
        let (waited, limit) = (self.config.lease_timeout, self.config.limits.max_loan_bytes);
        let message = format!(
            "a batch waited {waited:?} for room among {bytes} bytes on loan to this connection, {leases} batches of it mapped; the \
             limit is {limit} bytes: drop mapped batches, or ask for smaller ones, or for another delivery"
        );
        self.stop(stream, StreamCode::ResourcesExhausted, message);
    }
}
