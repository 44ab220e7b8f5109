//! The bound on batches that wait for credit. Such a batch occupies memory of the lender, and only the borrower can end
//! its wait. So without a bound, a borrower that requests and never grants would fill the lender's memory.

use super::Lender;
use crate::codes::StreamCode;
use crate::ids::StreamId;
use crate::message::Failure;

impl Lender {
    /// Bytes of batches that wait for credit.
    #[must_use]
    pub fn waiting_bytes(&self) -> u64 {
        self.streams.values().fold(0, |sum: u64, open| sum.saturating_add(open.waiting_cost()))
    }

    /// Whether the next batch of a stream may be prepared: its credit suffices for a batch as large as the largest so
    /// far, or it is the one batch that a stream may have ready before its credit. No batch is prepared before the
    /// first credit, and none without credit while the waiting batches use up the limit.
    pub(super) fn may_prepare(&self, stream: StreamId) -> bool {
        let Some(open) = self.streams.get(&stream) else { return false };
        if open.has_credit_for(1) {
            return true;
        }
        open.credit.granted() > 0 && self.waiting_bytes().saturating_add(open.largest_cost) <= self.max_credit()
    }

    /// Ends a stream whose new batch has to wait for credit, if all waiting batches together exceed the limit. Streams
    /// whose batches keep their size do not get here: see [`Lender::may_prepare`].
    pub(super) fn limit_waiting(&mut self, stream: StreamId) {
        let cost = self.streams.get(&stream).map_or(0, |open| open.waiting_cost());
        let (waiting, limit) = (self.waiting_bytes(), self.max_credit());
        if cost == 0 || waiting <= limit {
            return;
        }
        let message = format!(
            "{waiting} bytes of batches wait for credit on this connection, the limit is {limit} bytes; read the other \
             streams first, run fewer on a connection, or raise the lender's limit of bytes on loan \
             (limits.max_bytes_on_loan_per_connection at a server, max_upload_loans at a client)"
        );
        self.stop(stream, Failure::new(StreamCode::ResourcesExhausted, message));
    }
}
