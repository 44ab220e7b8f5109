//! The size from which a batch is better lent than sent inline.

use std::time::Duration;

use thallus_protocol::message::Thresholds;

/// The cost of a lent batch beyond the cost of an inline batch, without its reads: the batch is described and
/// announced, its lease is opened, proven and released, and the endpoint is polled. Both ends together. Measured:
/// bench/results/README.md.
const HANDLING: Duration = Duration::from_micros(12);
/// Inline bytes that cost one nanosecond more than the same bytes read: they are serialized, written, received and
/// assembled. With [`HANDLING`], both ways cost the same at 100 KiB through shared memory. Measured:
/// bench/results/README.md.
const BYTES_PER_NANO: u64 = 8;
/// Two reads, one after the other: the data and the lease word.
const READS: u32 = 2;
/// Lower bound of the threshold for the first batches of a stream, independent of observations.
const LEAST: u64 = 32 << 10;
/// Upper bound: a larger inline batch delays every message behind it on the connection.
pub const MAX_THRESHOLD: u64 = 256 << 10;
/// Where batches follow each other, the handling and reads of one batch overlap with those of the next: the extra cost
/// of a lent batch is divided by this. Both ways then cost the same at 20 KiB. Measured: bench/results/README.md.
const OVERLAP: u64 = 4;
/// Weight of an observation that is longer than the known time: one part in this many.
const WEIGHT: u32 = 64;

/// Tracks the time of a small one-sided read on a connection, and computes the size from which a read is the faster
/// way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Threshold {
    read: Option<Duration>,
}

impl Threshold {
    /// A threshold without any observation.
    #[must_use]
    pub fn new() -> Self {
        Threshold { read: None }
    }

    /// Records the time of a read of eight bytes, as the connection measured it. The shortest read was not delayed by
    /// other work, so it shows how long a read takes. Longer reads count little, but they count in the long run,
    /// because paths change.
    pub fn observe(&mut self, took: Duration) {
        self.read = Some(match self.read {
            Some(read) if took > read => {
                (read * (WEIGHT - 1) + took.min(read * 2 + Duration::from_nanos(WEIGHT.into()))) / WEIGHT
            }
            _ => took,
        });
    }

    /// Live bytes from which batches are to be lent.
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
