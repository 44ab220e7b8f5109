//! Hunts for bugs: `scripts/simulate.sh 10000`.

#![forbid(unsafe_code)]

use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use thallus_simulation::coverage::missing;
use thallus_simulation::options::Streams;
use thallus_simulation::planted::{self, Bug};
use thallus_simulation::swarm::{describe, swarm};
use thallus_simulation::{panics, world};

/// Runs server and clients under faults, from seeds.
#[derive(Debug, Parser)]
struct Args {
    /// Number of seeds.
    #[arg(default_value_t = 100)]
    seeds: u64,
    /// Run only this seed, and print its whole trace.
    #[arg(long)]
    seed: Option<u64>,
    /// The first seed.
    #[arg(long, default_value_t = 0)]
    from: u64,
    /// Stop after this time, in seconds.
    #[arg(long)]
    seconds: Option<u64>,
    /// Number of threads. Default: one for each processor.
    #[arg(long)]
    threads: Option<usize>,
    /// Kinds of streams in the runs.
    #[arg(long, value_enum, default_value = "all")]
    streams: Streams,
    /// Plant a bug.
    #[arg(long, value_parser = bug)]
    bug: Option<Bug>,
    /// Print the number of occurrences of each event.
    #[arg(long)]
    table: bool,
}

fn bug(name: &str) -> Result<Bug, String> {
    planted::ALL.iter().copied().find(|&bug| bug == name).ok_or_else(|| format!("one of {}", planted::ALL.join(", ")))
}

fn main() -> ExitCode {
    let args = Args::parse();
    panics::keep();
    if let Some(seed) = args.seed {
        let outcome = world::run(seed, args.streams, args.bug, true);
        println!("{}", outcome.lines.join("\n"));
        println!("trace {:016x}, {} events, {:?} simulated", outcome.hash, outcome.events, outcome.simulated);
        return match outcome.failure {
            Some(failure) => {
                println!("FAILED: {failure}");
                ExitCode::FAILURE
            }
            None => ExitCode::SUCCESS,
        };
    }
    let threads = args.threads.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, Into::into));
    let seeds = args.from..args.from.saturating_add(args.seeds);
    let report = swarm(seeds, args.streams, args.bug, threads, args.seconds.map(Duration::from_secs));
    if args.table {
        println!("{}", report.table());
    }
    for outcome in &report.failures {
        println!("{}", describe(outcome, args.streams, args.bug));
    }
    println!("{}", report.summary());
    let missing = missing(&report.counts);
    if args.table && !missing.is_empty() {
        println!("did not occur in these runs: {}", missing.join("; "));
    }
    // In this number of runs every expected event must have occurred.
    if report.runs >= 10_000 && !missing.is_empty() {
        return ExitCode::FAILURE;
    }
    if report.failures.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
