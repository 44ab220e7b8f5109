//! Mapped batches: the borrower keeps them for as long as it likes, and nothing can take them back. So they may come to
//! fill what a connection may have on loan, and a batch that waits for room among the loans could wait for ever.

use super::Lender;
use crate::codes::StreamCode;
use crate::credit::batch_cost;
use crate::ids::StreamId;
use crate::message::Failure;
use crate::time::Timestamp;
use crate::timers::Timer;

/// Whether there is room among the loans for one more batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum LoanRoom {
    /// There is.
    Available,
    /// There is none now, and there may be some later.
    MayFreeUp,
    /// There is none for as long as the borrower keeps what it has mapped.
    Exhausted,
}

impl Lender {
    /// Whether the next batch of a stream would find room, if it is like the largest before.
    ///
    /// A borrower that drops batches gives back room and credit; one that keeps them gives back credit only. So where
    /// room is short the lender waits for credit, which tells the one from the other: a borrower that keeps batches
    /// gets the rest inline, for there may never be room again.
    pub(super) fn loan_room(&self, stream: StreamId) -> LoanRoom {
        let Some(open) = self.streams.get(&stream).filter(|_| self.leases.mapped() > 0) else {
            return LoanRoom::Available;
        };
        let room = self.config.max_loan_bytes.saturating_sub(self.leases.bytes());
        if self.leases.has_room() && open.largest <= room {
            LoanRoom::Available
        } else if open.credit.available() < batch_cost(open.largest) {
            LoanRoom::MayFreeUp
        } else {
            LoanRoom::Exhausted
        }
    }

    /// A batch is ready, and finds no room among the loans.
    pub(super) fn waits_for_room(&mut self, now: Timestamp, stream: StreamId) {
        // Other loans end by themselves, or by their timeout.
        if self.leases.mapped() > 0 && !self.timers.is_set(Timer::Room(stream)) {
            self.timers.set(Timer::Room(stream), now + self.config.lease_timeout);
        }
    }

    pub(super) fn found_no_room(&mut self, stream: StreamId) {
        if !self.streams.contains_key(&stream) {
            return;
        }
        let (leases, bytes) = (self.leases.mapped(), self.leases.bytes());
        let (waited, limit) = (self.config.lease_timeout, self.config.max_loan_bytes);
        let message = format!(
            "a batch waited {waited:?} for room among {bytes} bytes on loan to this connection, {leases} batches of \
             it mapped; the limit is {limit} bytes: drop mapped batches, ask for smaller ones, or read instead of \
             mapping"
        );
        self.stop(stream, Failure::new(StreamCode::ResourcesExhausted, message));
    }
}
