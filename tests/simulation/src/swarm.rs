//! Many runs.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::options::{Options, Streams};
use crate::planted::Bug;
use crate::trace::Counts;
use crate::world::{Outcome, run};

/// What came of many runs.
#[derive(Debug, Default)]
pub struct Report {
    /// Runs made.
    pub runs: u64,
    /// Those that failed.
    pub failures: Vec<Outcome>,
    /// How often what happened, in all of them.
    pub counts: Counts,
    /// Events in all.
    pub events: u64,
    /// Simulated time in all.
    pub simulated: Duration,
    /// Real time.
    pub real: Duration,
}

/// Runs seeds on so many threads until there are no more, one fails, or the time is over.
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

    /// In figures.
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

    /// How often what happened, as a table.
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

/// A failure, with all that is needed to see it again.
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
