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

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use bytes::Bytes;

    use super::*;
    use crate::codec::FrameLimits;
    use crate::lender::{LendOptions, LenderCommand, LenderConfig, LenderOutput, LenderTask};
    use crate::message::{FromBorrower, FromLender, Thresholds};
    use crate::time::Timestamp;

    /// A lender with a limit of 1000 bytes on loan, and streams with this credit.
    fn lender(streams: u32, credit: u64) -> Lender {
        let mut lender = Lender::new(LenderConfig {
            max_loan_bytes: 1000,
            max_leases: 4,
            word_nonce: 1,
            lease_timeout: Duration::from_secs(1),
            thresholds: Thresholds::uniform(1 << 20),
            frame: FrameLimits::default(),
        });
        for stream in (1..=streams).map(StreamId) {
            lender.open(Timestamp::ZERO, stream, LendOptions { credit, ..LendOptions::default() }).unwrap();
            let (schema, order) = (Bytes::from_static(b"schema"), Vec::new());
            run(&mut lender, LenderCommand::Schema { stream, schema, order });
        }
        lender
    }

    fn run(lender: &mut Lender, command: LenderCommand) {
        lender.command(Timestamp::ZERO, command).unwrap();
        lender.pump(Timestamp::ZERO);
    }

    fn batch(lender: &mut Lender, stream: u32, bytes: usize) {
        let (stream, ipc) = (StreamId(stream), Bytes::from(vec![0; bytes]));
        run(lender, LenderCommand::Inline { stream, ipc, rows: 1 });
    }

    fn grant(lender: &mut Lender, stream: u32, total: u64) {
        lender.receive(FromBorrower::Credit { stream: StreamId(stream), total }).unwrap();
        lender.pump(Timestamp::ZERO);
    }

    /// The outputs, in short.
    fn outputs(lender: &mut Lender) -> Vec<String> {
        let short = |output| match output {
            LenderOutput::Send(FromLender::CreditWanted { stream, bytes }, _) => format!("{} wants {bytes}", stream.0),
            LenderOutput::Send(FromLender::Failed { stream, failure, .. }, _) => {
                format!("{} fails: {:?}", stream.0, failure.code)
            }
            LenderOutput::Send(message, _) => message.name().to_owned(),
            LenderOutput::Task(LenderTask::Pull { stream, ahead, .. }) => format!("pull {} {ahead}", stream.0),
            LenderOutput::Task(_) => "task".to_owned(),
        };
        std::iter::from_fn(|| lender.poll()).map(short).collect()
    }

    #[test]
    fn no_batch_is_pulled_before_the_first_credit() {
        let mut lender = lender(1, 0);
        assert_eq!(outputs(&mut lender), ["schema", "1 wants 256"]);
        grant(&mut lender, 1, 1);
        assert_eq!(outputs(&mut lender), ["pull 1 false"], "one batch may be ready before its credit");
        batch(&mut lender, 1, 100);
        assert_eq!(outputs(&mut lender), ["1 wants 356"]);
    }

    #[test]
    fn a_source_works_ahead_only_with_credit_for_another_batch() {
        let mut lender = lender(1, 1256);
        assert_eq!(outputs(&mut lender), ["schema", "pull 1 false"], "the size of a batch is not known yet");
        for ahead in [true, false] {
            batch(&mut lender, 1, 100);
            assert_eq!(outputs(&mut lender), ["inline".to_owned(), format!("pull 1 {ahead}")]);
        }
    }

    #[test]
    fn batches_that_wait_for_credit_are_bounded() {
        let mut lender = lender(3, 257);
        outputs(&mut lender);
        batch(&mut lender, 1, 600);
        batch(&mut lender, 2, 100);
        assert_eq!(outputs(&mut lender), ["1 wants 856", "2 wants 356"]);
        assert_eq!(lender.waiting_bytes(), 1212);
        batch(&mut lender, 3, 100);
        assert_eq!(outputs(&mut lender), ["task", "3 fails: ResourcesExhausted"]);
        assert_eq!(lender.waiting_bytes(), 1212);
        // The other streams continue.
        grant(&mut lender, 2, 357);
        assert_eq!(outputs(&mut lender), ["inline", "pull 2 false"], "856 + 356 bytes are within the limit");
        batch(&mut lender, 2, 390);
        assert_eq!(outputs(&mut lender), ["task", "2 fails: ResourcesExhausted"]);
    }

    #[test]
    fn a_stream_without_credit_is_not_pulled_while_the_limit_is_used_up() {
        let mut lender = lender(2, 700);
        outputs(&mut lender);
        batch(&mut lender, 2, 400);
        assert_eq!(outputs(&mut lender), ["inline", "pull 2 false"]);
        batch(&mut lender, 1, 700);
        assert_eq!(outputs(&mut lender), ["1 wants 956"]);
        batch(&mut lender, 2, 10);
        assert_eq!(outputs(&mut lender), ["2 wants 266"], "956 + 266 bytes are within the limit");
        grant(&mut lender, 2, 922);
        assert_eq!(outputs(&mut lender), ["inline", "2 wants 656"], "956 + 656 bytes are not");
        grant(&mut lender, 2, 922 + 656);
        assert_eq!(outputs(&mut lender), ["pull 2 false"]);
    }
}
