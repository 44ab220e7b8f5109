//! Mapped batches: the borrower keeps them for as long as it likes, and nothing can take them back. So they may come to fill
//! what a connection may have on loan, and whoever waits for room among its loans could wait for ever.

use super::ServerConnection;
use crate::codes::StreamCode;
use crate::ids::StreamId;
use crate::time::Timestamp;
use crate::timers::Timer;

impl ServerConnection {
    /// Whether the next batch of a stream, if it is like the largest before, finds room only once something mapped is given
    /// back, which may be never: it had better travel inline. Who takes batches and drops them has no such stream: then credit,
    /// which is granted as they are taken, runs out before room does.
    pub(super) fn is_crowded(&self, stream: StreamId) -> bool {
        if self.leases.mapped() == 0 {
            return false;
        }
        let Some(open) = self.streams.get(&stream) else { return false };
        let room = self.config.limits.max_loan_bytes.saturating_sub(self.leases.bytes());
        let has_credit = open.credit.available() >= open.largest;
        !self.leases.has_room() || has_credit && open.largest > room
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
