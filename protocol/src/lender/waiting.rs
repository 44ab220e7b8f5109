//! The bound on batches that wait for credit. Such a batch occupies memory of the lender, and only the borrower can end
//! its wait. A stream has at most one: a borrower learns from it how much credit a batch needs. A borrower that has
//! granted nothing gets none, and a connection whose waiting batches use up the limit of bytes on loan gets no more.

use super::Lender;
use crate::ids::StreamId;

impl Lender {
    /// Bytes of batches that wait for credit.
    #[must_use]
    pub fn waiting_bytes(&self) -> u64 {
        self.streams.values().fold(0, |sum: u64, open| sum.saturating_add(open.waiting_cost()))
    }

    /// Returns whether the next batch of a stream may be prepared: its credit suffices for a batch as large as the
    /// largest so far, or it is the one batch that a stream may have ready before its credit. No batch is prepared
    /// before the first credit, and none without credit while the waiting batches use up the limit.
    ///
    /// A batch may be larger than all before it, so the waiting batches may exceed the limit by one batch of each
    /// stream. A stream does not fail for that: an honest borrower grants the credit as soon as it is requested.
    pub(super) fn may_prepare(&self, stream: StreamId) -> bool {
        let Some(open) = self.streams.get(&stream) else { return false };
        if open.has_credit_for(1) {
            return true;
        }
        let others = self.streams.values().fold(0, |sum: u64, open| sum.saturating_add(open.expected_waiting_cost()));
        open.credit.granted() > 0 && others.saturating_add(open.largest_cost) <= self.max_credit()
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
