//! Room for mapped batches. The borrower may keep them without limit, and the lender cannot revoke them. So they may
//! use up the limit of bytes on loan of a connection, and a batch could wait for room forever.

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
    /// There is room.
    Available,
    /// There is no room now, but there may be room later.
    MayFreeUp,
    /// There is no room as long as the borrower keeps the batches that it has mapped.
    Exhausted,
}

impl Lender {
    /// Whether the next batch of a stream would have room if it is as large as the largest one before.
    ///
    /// A borrower that drops batches returns room and credit; one that keeps them returns credit only. So while there
    /// is no room the lender waits for credit. If credit comes without room, the borrower keeps its batches; it gets
    /// the others inline, because there may never be room again.
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

    /// Sets the time limit of a ready batch that has no room among the loans.
    pub(super) fn waits_for_room(&mut self, now: Timestamp, stream: StreamId) {
        // Other loans end by release or by their timeout, so without mapped batches no limit is needed.
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
            "a batch waited {waited:?} for room: {bytes} bytes are on loan to this connection, mapped batches: \
             {leases}, limit: {limit} bytes; drop mapped batches, request smaller ones, or read instead of mapping"
        );
        self.stop(stream, Failure::new(StreamCode::ResourcesExhausted, message));
    }
}
