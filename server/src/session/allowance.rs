//! What a query may cost its connection's task before it is sent away to one of its own.

use std::time::Duration;

/// An engine that does not come back within this time holds its connection up. Much more than being woken costs.
const HELD_UP: Duration = Duration::from_millis(1);
/// A host with too few cores for what it does takes a thread away for some ms; who takes longer than this has much to do.
const MUCH_TOO_LONG: Duration = Duration::from_millis(20);

/// What a batch may take in its connection's task, in the engine and to be made ready, in ns. A query that is sent away wakes two
/// tasks, and often threads, for each batch, which takes about as long: with half of this `bench`'s filter that keeps one row in ten
/// thousand took half as long again.
const CHEAP: i64 = 40_000;
/// The first of a result are dearer.
const DEARER_ONES: i64 = 4;
/// So many batches' allowance is kept at most, and so many pass from one that held its connection up to the next that may.
const KEPT: u32 = 256;

/// The account of one query: each batch is allowed its share, and takes what it takes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Allowance {
    batches: u32,
    /// What is left for later batches, in ns.
    left: i64,
    /// Batches since the connection was last held up.
    since_long: u32,
    held_up: bool,
}

impl Allowance {
    pub(super) fn new() -> Self {
        Allowance { batches: 0, left: CHEAP * DEARER_ONES, since_long: KEPT, held_up: false }
    }

    /// The query is being planned, and was at it for so long without a pause.
    pub(super) fn planned(&mut self, took: Duration) {
        self.held_up |= took > HELD_UP;
    }

    /// The engine was at the next batch for so long without a pause.
    pub(super) fn searched(&mut self, took: Duration) {
        if took <= HELD_UP {
            return self.spend(took);
        }
        self.held_up |= self.batches == 0 || self.since_long < KEPT || took > MUCH_TOO_LONG;
        self.since_long = 0;
    }

    /// A batch was made ready to travel, within this time.
    pub(super) fn handed_over(&mut self, took: Duration) {
        self.spend(took.min(HELD_UP));
        self.left = (self.left + CHEAP).min(CHEAP * i64::from(KEPT));
        self.batches = self.batches.saturating_add(1);
        self.since_long = self.since_long.saturating_add(1);
    }

    fn spend(&mut self, took: Duration) {
        // No more than `HELD_UP`.
        self.left -= took.as_nanos() as i64;
    }

    /// Whether the query has held its connection up.
    pub(super) fn has_held_up(&self) -> bool {
        self.held_up
    }

    /// Whether its batches take too long. Not before there is a second one: the first is not worth a task, however dear it was.
    pub(super) fn is_overdrawn(&self) -> bool {
        self.batches > 0 && self.left < 0
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
    fn cheap_batches_may_go_on_for_ever_and_dear_ones_may_not() {
        let mut account = Allowance::new();
        for _ in 0..10_000 {
            batch(&mut account, 40);
            assert!(!account.is_overdrawn() && !account.has_held_up());
        }
        let mut account = Allowance::new();
        account.searched(us(900));
        assert!(!account.is_overdrawn(), "it would be the only one");
        account.handed_over(us(1));
        assert!(account.is_overdrawn());
    }

    /// What a long result has saved is bounded.
    #[test]
    fn a_result_that_becomes_dear_is_found_out_soon() {
        let mut account = Allowance::new();
        (0..1_000_000).for_each(|_| batch(&mut account, 10));
        let dear = (1..).find(|_| {
            batch(&mut account, 1000);
            account.is_overdrawn()
        });
        assert_eq!(dear, Some(11), "some ten ms of work");
    }

    #[test]
    fn what_holds_its_connection_up_may_do_so_once_in_a_while() {
        let mut account = Allowance::new();
        batch(&mut account, 10);
        account.searched(us(3000));
        assert!(!account.has_held_up());
        let mut again = account;
        for _ in 0..KEPT {
            batch(&mut account, 10);
        }
        account.searched(us(3000));
        assert!(!account.has_held_up() && !account.is_overdrawn(), "once in 256 batches");
        batch(&mut again, 10);
        again.searched(us(3000));
        assert!(again.has_held_up(), "twice in two");
    }

    #[test]
    fn some_hold_it_up_at_once() {
        let with = |account: &dyn Fn(&mut Allowance)| {
            let mut new = Allowance::new();
            account(&mut new);
            new.has_held_up()
        };
        assert!(with(&|account| account.planned(us(1001))));
        assert!(!with(&|account| account.planned(us(1000))));
        assert!(with(&|account| account.searched(us(1001))), "before the first batch");
        assert!(with(&|account| {
            batch(account, 10);
            account.searched(us(20_001));
        }));
    }
}
