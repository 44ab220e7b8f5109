//! A series of runs.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::options::{Options, Streams};
use crate::planted::Bug;
use crate::trace::Counts;
use crate::world::{Outcome, run};

/// Result of a series of runs.
#[derive(Debug, Default)]
pub struct Report {
    /// Number of runs.
    pub runs: u64,
    /// Failed runs.
    pub failures: Vec<Outcome>,
    /// Number of occurrences of each event, over all runs.
    pub counts: Counts,
    /// Number of trace lines of all runs.
    pub events: u64,
    /// Simulated time of all runs.
    pub simulated: Duration,
    /// Real time of the series.
    pub real: Duration,
}

/// Runs seeds on `threads` threads until no seed is left, a run fails, or the time budget is used up.
#[must_use]
pub fn swarm(
    seeds: impl Iterator<Item = u64> + Send,
    streams: Streams,
    bug: Option<Bug>,
    threads: usize,
    budget: Option<Duration>,
) -> Report {
    let started = Instant::now();
    let seeds = Mutex::new(seeds);
    let report = Mutex::new(Report::default());
    let stop = AtomicBool::new(false);
    let done = AtomicU64::new(0);
    std::thread::scope(|scope| {
        for _ in 0..threads.max(1) {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) && budget.is_none_or(|budget| started.elapsed() < budget) {
                    let Some(seed) = seeds.lock().unwrap_or_else(PoisonError::into_inner).next() else { return };
                    let outcome = run(seed, streams, bug, false);
                    done.fetch_add(1, Ordering::Relaxed);
                    let mut report = report.lock().unwrap_or_else(PoisonError::into_inner);
                    report.add(outcome);
                    if !report.failures.is_empty() {
                        stop.store(true, Ordering::Relaxed);
                    }
                }
            });
        }
    });
    let mut report = report.into_inner().unwrap_or_else(PoisonError::into_inner);
    report.real = started.elapsed();
    report
}

impl Report {
    fn add(&mut self, outcome: Outcome) {
        self.runs += 1;
        self.events += outcome.events;
        self.simulated += outcome.simulated;
        for (what, times) in &outcome.counts {
            *self.counts.entry(what.clone()).or_default() += times;
        }
        if outcome.failure.is_some() {
            self.failures.push(outcome);
        }
    }

    /// The figures in one line.
    #[must_use]
    pub fn summary(&self) -> String {
        let real = self.real.as_secs_f64().max(1e-9);
        format!(
            "{} seeds in {:.1} s: {:.0} simulated seconds, {:.1} per real second; {} events, {:.0} per second",
            self.runs,
            self.real.as_secs_f64(),
            self.simulated.as_secs_f64(),
            self.simulated.as_secs_f64() / real,
            self.events,
            self.events as f64 / real,
        )
    }

    /// The number of occurrences of each event, as a table.
    #[must_use]
    pub fn table(&self) -> String {
        let mut by_kind: BTreeMap<&str, Vec<(&str, u64)>> = BTreeMap::new();
        for ((kind, what), times) in &self.counts {
            by_kind.entry(kind).or_default().push((what, *times));
        }
        let mut table = String::new();
        for (kind, whats) in by_kind {
            let _infallible = writeln!(table, "{kind}");
            for (what, times) in whats {
                let _infallible = writeln!(table, "  {times:>10}  {what}");
            }
        }
        table
    }
}

/// A failed run, with the command that repeats it.
#[must_use]
pub fn describe(outcome: &Outcome, streams: Streams, bug: Option<Bug>) -> String {
    let bug = bug.map_or(String::new(), |bug| format!(" --bug {bug}"));
    let only = match streams {
        Streams::All => "",
        Streams::Results => " --streams results",
        Streams::Uploads => " --streams uploads",
    };
    format!(
        "seed {} FAILED: {}\noptions: {:?}\nlast events:\n{}\nreproduce: scripts/simulate.sh --seed {}{only}{bug}\n",
        outcome.seed,
        outcome.failure.as_deref().unwrap_or("nothing"),
        Options::draw(outcome.seed, streams),
        outcome.lines.join("\n"),
        outcome.seed,
    )
}
