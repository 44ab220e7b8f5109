//! The time budget of a query in its connection's task, before it is spawned into its own task.

use std::time::Duration;

/// An engine call that takes longer than this stalls its connection. Much longer than a wake-up.
const STALL: Duration = Duration::from_millis(1);
/// A stall longer than this always counts. A host with too few cores may suspend a thread for some ms, but not for this
/// long.
const STALL_ALWAYS_COUNTS: Duration = Duration::from_millis(20);

/// Time that a batch may take in its connection's task, in the engine and to be packed, in ns. A spawned query wakes
/// two tasks, and often threads, for each batch, which takes about as long. With half of this value, `bench`'s filter
/// that keeps one row in ten thousand took half as long again.
const BUDGET_PER_BATCH_NS: i64 = 40_000;
/// Initial budget of a query, in batches: the first batches of a result take longer.
const INITIAL_BUDGET_BATCHES: i64 = 4;
/// Unused budget accumulates up to this many batches. The same number of batches must pass between two tolerated
/// stalls.
const MAX_SAVED_BATCHES: u32 = 256;

/// The budget of one query. Each batch adds its share, and its time is subtracted.
#[derive(Clone, Copy, Debug)]
pub(super) struct Allowance {
    batches: u32,
    /// The budget for later batches, in ns.
    budget_ns: i64,
    /// Batches since the last stall.
    batches_since_stall: u32,
    held_up: bool,
}

impl Allowance {
    pub(super) fn new() -> Self {
        Allowance {
            batches: 0,
            budget_ns: BUDGET_PER_BATCH_NS * INITIAL_BUDGET_BATCHES,
            batches_since_stall: MAX_SAVED_BATCHES,
            held_up: false,
        }
    }

    /// Records a call of the engine that planned for `took`.
    pub(super) fn planned(&mut self, took: Duration) {
        self.held_up |= took > STALL;
    }

    /// Records a call of the engine for the next batch that took `took`.
    pub(super) fn searched(&mut self, took: Duration) {
        if took <= STALL {
            return self.spend(took);
        }
        self.held_up |= self.batches == 0 || self.batches_since_stall < MAX_SAVED_BATCHES || took > STALL_ALWAYS_COUNTS;
        self.batches_since_stall = 0;
    }

    /// Records the packing of a batch, which took `took`.
    pub(super) fn handed_over(&mut self, took: Duration) {
        self.spend(took.min(STALL));
        self.budget_ns = (self.budget_ns + BUDGET_PER_BATCH_NS).min(BUDGET_PER_BATCH_NS * i64::from(MAX_SAVED_BATCHES));
        self.batches = self.batches.saturating_add(1);
        self.batches_since_stall = self.batches_since_stall.saturating_add(1);
    }

    fn spend(&mut self, took: Duration) {
        // At most `STALL`.
        self.budget_ns -= took.as_nanos() as i64;
    }

    /// Whether the query has stalled its connection.
    pub(super) fn has_held_up(&self) -> bool {
        self.held_up
    }

    /// Whether the query has used up its budget. Never before the second batch: a result of one batch is not worth a
    /// task.
    pub(super) fn is_overdrawn(&self) -> bool {
        self.batches > 0 && self.budget_ns < 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn us(us: u64) -> Duration {
        Duration::from_micros(us)
    }

    fn batch(account: &mut Allowance, took: u64) {
        account.searched(us(took - took / 2));
        account.handed_over(us(took / 2));
    }

    #[test]
    fn cheap_batches_stay_within_the_budget_and_slow_ones_do_not() {
        let mut account = Allowance::new();
        for _ in 0..10_000 {
            batch(&mut account, 40);
            assert!(!account.is_overdrawn() && !account.has_held_up());
        }
        let mut account = Allowance::new();
        account.searched(us(900));
        assert!(!account.is_overdrawn(), "the first batch never overdraws");
        account.handed_over(us(1));
        assert!(account.is_overdrawn());
    }

    /// The savings of a long result are bounded.
    #[test]
    fn a_result_that_becomes_slow_is_detected_soon() {
        let mut account = Allowance::new();
        (0..1_000_000).for_each(|_| batch(&mut account, 10));
        let dear = (1..).find(|_| {
            batch(&mut account, 1000);
            account.is_overdrawn()
        });
        assert_eq!(dear, Some(11), "about ten ms of work");
    }

    #[test]
    fn a_rare_stall_is_tolerated() {
        let mut account = Allowance::new();
        batch(&mut account, 10);
        account.searched(us(3000));
        assert!(!account.has_held_up());
        let mut again = account;
        for _ in 0..MAX_SAVED_BATCHES {
            batch(&mut account, 10);
        }
        account.searched(us(3000));
        assert!(!account.has_held_up() && !account.is_overdrawn(), "one stall in 256 batches");
        batch(&mut again, 10);
        again.searched(us(3000));
        assert!(again.has_held_up(), "two stalls in two batches");
    }

    #[test]
    fn some_stalls_count_immediately() {
        let with = |account: &dyn Fn(&mut Allowance)| {
            let mut new = Allowance::new();
            account(&mut new);
            new.has_held_up()
        };
        assert!(with(&|account| account.planned(us(1001))));
        assert!(!with(&|account| account.planned(us(1000))));
        assert!(with(&|account| account.searched(us(1001))), "a stall before the first batch");
        assert!(with(&|account| {
            batch(account, 10);
            account.searched(us(20_001));
        }));
    }
}
