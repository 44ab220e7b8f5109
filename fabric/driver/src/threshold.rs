//! From which size on a batch is better lent than sent inline.

use std::time::Duration;

use thallus_protocol::message::Thresholds;

/// The cost of a lent batch beyond that of an inline one, its reads left out: it is described and announced, its lease
/// is opened, proven and given back, the endpoint is polled. Both ends together. Measured: bench/results/README.md.
const HANDLING: Duration = Duration::from_micros(12);
/// Inline bytes that cost a nanosecond more than the same bytes read: they are serialized, written, received and
/// assembled. With [`HANDLING`] the two ways meet at 100 KiB through shared memory. Measured: bench/results/README.md.
const BYTES_PER_NANO: u64 = 8;
/// The data, then the lease word.
const READS: u32 = 2;
/// Lower bound of the threshold for the first batches of a stream, whatever is observed.
const LEAST: u64 = 32 << 10;
/// Upper bound: a larger inline batch delays every message behind it on the connection.
pub const MAX_THRESHOLD: u64 = 256 << 10;
/// Where batches follow each other, handling and reads of one overlap with those of the next: the extra cost of a lent
/// batch is divided by this. The ways meet at 20 KiB then. Measured: bench/results/README.md.
const OVERLAP: u64 = 4;
/// An observation that is longer than the known time counts for one part in this many.
const WEIGHT: u32 = 64;

/// Follows how long a small one-sided read takes on a connection, and says from which size on reading is the faster
/// way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Threshold {
    read: Option<Duration>,
}

impl Threshold {
    /// Nothing is known of reads yet.
    #[must_use]
    pub fn new() -> Self {
        Threshold { read: None }
    }

    /// Takes in how long a read of eight bytes took, as the connection saw it. The shortest was not held up by
    /// anything, and tells how long a read takes; longer ones count little, except in the long run, because paths
    /// change.
    pub fn observe(&mut self, took: Duration) {
        self.read = Some(match self.read {
            Some(read) if took > read => {
                (read * (WEIGHT - 1) + took.min(read * 2 + Duration::from_nanos(WEIGHT.into()))) / WEIGHT
            }
            _ => took,
        });
    }

    /// Live bytes from which on batches are to be lent.
    #[must_use]
    pub fn get(self) -> Thresholds {
        let extra = HANDLING + READS * self.read.unwrap_or_default().min(Duration::from_secs(1));
        let nanos = u64::try_from(extra.as_nanos()).unwrap_or(u64::MAX);
        let first = nanos.saturating_mul(BYTES_PER_NANO).clamp(LEAST, MAX_THRESHOLD);
        Thresholds { first, later: first / OVERLAP }
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
        assert_eq!(Threshold::new().get(), Thresholds { first: 96_000, later: 24_000 });
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
