//! From which size on a batch is better lent than sent inline.

use std::time::Duration;

/// What a batch that is lent costs beyond what one inline does, besides its reads: it is described and announced, its lease is
/// opened, proven and given back, the endpoint is polled. On the machines that it was measured on, of both ends together.
const HANDLING: Duration = Duration::from_micros(12);
/// How many bytes inline, serialized, written, received and put together, cost a nanosecond more than the same bytes read. There
/// too: with [`HANDLING`] they make the two ways meet at 100 KiB through shared memory, where `bench` saw them meet.
const BYTES_PER_NANO: u64 = 8;
/// The data, then the lease word.
const READS: u32 = 2;
/// Whatever is observed, this is inline, and
const LEAST: u64 = 32 << 10;
/// this is not: an inline batch holds up whatever comes behind it on the connection.
pub(crate) const MAX_THRESHOLD: u64 = 1 << 20;
/// A new observation counts for one part in so many.
const WEIGHT: u32 = 8;

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

    /// A read of eight bytes took so long, as the connection saw it. A read that a busy host held up says nothing of reads: no
    /// observation moves the average by more than an eighth, but that shorter ones do by what they are shorter.
    pub(super) fn observe(&mut self, took: Duration) {
        self.read = Some(match self.read {
            None => took,
            Some(read) => (read * (WEIGHT - 1) + took.min(read * 2 + Duration::from_nanos(WEIGHT.into()))) / WEIGHT,
        });
    }

    /// Live bytes from which on a batch is to be lent.
    pub(super) fn bytes(self) -> u64 {
        let extra = HANDLING + READS * self.read.unwrap_or_default().min(Duration::from_secs(1));
        let nanos = u64::try_from(extra.as_nanos()).unwrap_or(u64::MAX);
        nanos.saturating_mul(BYTES_PER_NANO).clamp(LEAST, MAX_THRESHOLD)
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
        let bytes = [0, 1, 5, 50, 1000].map(|read| after(&[micros(read)]).bytes());
        assert_eq!(bytes, [96_000, 112_000, 176_000, 896_000, MAX_THRESHOLD]);
        assert_eq!(Threshold::new().bytes(), 96_000);
        assert_eq!(after(&[Duration::MAX]).bytes(), MAX_THRESHOLD);
    }

    #[test]
    fn it_follows_a_path_that_changes() {
        let mut threshold = after(&[micros(1); 10]);
        (0..200).for_each(|_| threshold.observe(micros(20)));
        let slow = threshold.bytes();
        assert!((400_000..=416_000).contains(&slow), "{slow}");
        (0..200).for_each(|_| threshold.observe(micros(1)));
        let fast = threshold.bytes();
        assert!((111_000..=113_000).contains(&fast), "{fast}");
    }

    #[test]
    fn a_host_that_was_busy_once_does_not_matter() {
        let mut threshold = after(&[micros(2); 10]);
        let before = threshold.bytes();
        threshold.observe(Duration::from_millis(50));
        assert!(threshold.bytes() - before <= before / 20, "{before} -> {}", threshold.bytes());
    }
}
