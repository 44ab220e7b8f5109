//! From which size on a batch is better lent than sent inline.

use std::time::Duration;

use thallus_protocol::message::InlineThreshold;

/// What a batch that is lent costs beyond what one inline does, besides its reads: it is described and announced, its lease is
/// opened, proven and given back, the endpoint is polled. On the machines that it was measured on, of both ends together.
const HANDLING: Duration = Duration::from_micros(12);
/// How many bytes inline, serialized, written, received and put together, cost a nanosecond more than the same bytes read. There
/// too: with [`HANDLING`] they make the two ways meet at 100 KiB through shared memory, where `bench` saw them meet.
const BYTES_PER_NANO: u64 = 8;
/// The data, then the lease word.
const READS: u32 = 2;
/// Whatever is observed, of a result's first batches this is inline, and
const LEAST: u64 = 32 << 10;
/// this is not: an inline batch holds up whatever comes behind it on the connection.
pub(crate) const MAX_THRESHOLD: u64 = 256 << 10;
/// Where batches follow each other, handling and reads of one overlap with those of the next: what a lent one costs beyond an
/// inline one is so much less. `bench` saw the ways meet at 20 KiB then.
const OVERLAP: u64 = 4;
/// An observation that is longer than what is known counts for one part in so many.
const WEIGHT: u32 = 64;

/// Follows how long a small one-sided read takes on a connection, and says from which size on reading is the faster way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Threshold {
    read: Option<Duration>,
}

impl Threshold {
    /// Nothing is known of reads yet.
    pub(super) fn new() -> Self {
        Threshold { read: None }
    }

    /// A read of eight bytes took so long, as the connection saw it. The shortest is the one that nothing held up, and tells how long
    /// a read takes; longer ones count little, but in the long run, for paths do change.
    pub(super) fn observe(&mut self, took: Duration) {
        self.read = Some(match self.read {
            Some(read) if took > read => {
                (read * (WEIGHT - 1) + took.min(read * 2 + Duration::from_nanos(WEIGHT.into()))) / WEIGHT
            }
            _ => took,
        });
    }

    /// Live bytes from which on batches are to be lent.
    pub(super) fn get(self) -> InlineThreshold {
        let extra = HANDLING + READS * self.read.unwrap_or_default().min(Duration::from_secs(1));
        let nanos = u64::try_from(extra.as_nanos()).unwrap_or(u64::MAX);
        let first = nanos.saturating_mul(BYTES_PER_NANO).clamp(LEAST, MAX_THRESHOLD);
        InlineThreshold { first, later: first / OVERLAP }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn micros(micros: u64) -> Duration {
        Duration::from_micros(micros)
    }

    fn after(observed: &[Duration]) -> Threshold {
        let mut threshold = Threshold::new();
        observed.iter().for_each(|&took| threshold.observe(took));
        threshold
    }

    #[test]
    fn slower_reads_have_larger_batches_inline_within_bounds() {
        let bytes = [0, 1, 5, 50, 1000].map(|read| after(&[micros(read)]).get().first);
        assert_eq!(bytes, [96_000, 112_000, 176_000, MAX_THRESHOLD, MAX_THRESHOLD]);
        assert_eq!(Threshold::new().get(), InlineThreshold { first: 96_000, later: 24_000 });
        assert_eq!(after(&[Duration::MAX]).get().first, MAX_THRESHOLD);
    }

    #[test]
    fn it_follows_a_path_that_changes() {
        let mut threshold = after(&[micros(1); 10]);
        (0..1000).for_each(|_| threshold.observe(micros(9)));
        let slow = threshold.get().first;
        assert!((238_000..=240_000).contains(&slow), "{slow}");
        threshold.observe(micros(1));
        assert_eq!(threshold.get().first, 112_000);
    }

    #[test]
    fn a_host_that_was_busy_once_does_not_matter() {
        let mut threshold = after(&[micros(2); 10]);
        let before = threshold.get().first;
        threshold.observe(Duration::from_millis(50));
        let after = threshold.get().first;
        assert!(after - before <= before / 200, "{before} -> {after}");
    }
}
