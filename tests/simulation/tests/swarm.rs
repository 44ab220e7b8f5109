//! Tests of the simulation itself: a seed determines a run, new seeds and seeds of fixed bugs pass.

use std::sync::Mutex;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use thallus_simulation::options::Streams;
use thallus_simulation::swarm::{describe, swarm};
use thallus_simulation::world::Outcome;
use thallus_simulation::{panics, world};

fn threads() -> usize {
    std::thread::available_parallelism().map_or(1, Into::into)
}

fn all_pass(seeds: impl Iterator<Item = u64> + Send, budget: Option<Duration>) {
    panics::keep();
    let report = swarm(seeds, Streams::All, None, threads(), budget);
    println!("{}", report.summary());
    let failed =
        report.failures.iter().map(|outcome| describe(outcome, Streams::All, None)).collect::<Vec<_>>().join("\n");
    assert!(failed.is_empty(), "{failed}");
}

/// Seeds that found a bug in released code, by the bug's name. Options are drawn from the seed, so a change to the
/// drawing makes another run of the seed. The unit test that came with the fix remains valid.
const REGRESSIONS: [(&str, u64); 2] =
    [("spins-on-end-of-file", 0), ("what-the-next-batch-needs-is-not-said", 1_882_855_175_096_480)];

#[test]
fn seeds_that_found_bugs_pass() {
    all_pass(REGRESSIONS.into_iter().map(|(_, seed)| seed), None);
}

#[test]
fn fixed_seeds_pass() {
    all_pass(0..250, None);
}

#[test]
fn fresh_seeds_pass() {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| now.as_secs());
    let first = now << 20;
    println!("fresh seeds from {first} on: scripts/simulate.sh --from {first} 1000");
    all_pass(first.., Some(Duration::from_secs(30)));
}

/// The first difference between two runs of a seed.
fn difference(first: &Outcome, second: &Outcome) -> Option<String> {
    let (seed, mut lines) = (first.seed, first.lines.iter().zip(&second.lines).enumerate());
    if let Some((at, (first, second))) = lines.find(|(_, (first, second))| first != second) {
        return Some(format!("seed {seed}: two runs differ in line {at}:\n  {first}\n  {second}"));
    }
    let counts = first.counts.iter().find(|(what, times)| second.counts.get(what) != Some(times));
    let same = (first.hash, first.events, &first.counts) == (second.hash, second.events, &second.counts);
    (!same).then(|| format!("seed {seed}: two runs differ in their ends or figures: {counts:?}"))
}

/// Runs each seed alone, and again while others run: other work of the process must not change a run.
#[test]
fn a_seed_is_a_run_byte_for_byte() {
    panics::keep();
    let alone: Vec<_> = (0..300).map(|seed| world::run(seed, Streams::All, None, true)).collect();
    let (left, differences) = (Mutex::new(alone.iter()), Mutex::new(Vec::new()));
    std::thread::scope(|scope| {
        for _ in 0..2 * threads() {
            scope.spawn(|| {
                while let Some(first) = { left.lock().unwrap().next() } {
                    differences
                        .lock()
                        .unwrap()
                        .extend(difference(first, &world::run(first.seed, Streams::All, None, true)));
                }
            });
        }
    });
    let differences = differences.into_inner().unwrap();
    assert!(differences.is_empty(), "{}", differences.join("\n"));
    let empty = alone.iter().find(|outcome| outcome.events <= 20);
    assert!(empty.is_none(), "seed {:?}: nothing happened", empty.map(|outcome| outcome.seed));
}

#[test]
fn other_seeds_are_other_runs() {
    let hashes: std::collections::BTreeSet<_> =
        (0..20).map(|seed| world::run(seed, Streams::All, None, false).hash).collect();
    assert_eq!(hashes.len(), 20);
}
