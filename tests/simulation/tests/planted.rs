//! That planted bugs are found.

use thallus_simulation::options::Streams;
use thallus_simulation::panics;
use thallus_simulation::planted::{self, Bug};
use thallus_simulation::swarm::swarm;

fn threads() -> usize {
    std::thread::available_parallelism().map_or(1, Into::into)
}

/// In how many seeds each planted bug must be found; most are in a few.
const PATIENCE: u64 = 1500;

/// Bugs of what only results have: reads on demand, cancels because the application wants no more, an engine's work,
/// and a peer's hostile places.
const NOT_OF_UPLOADS: [Bug; 4] =
    ["cancel-lost", "cancel-waits-for-engine", "lazy-lease-not-held", "places-not-checked"];

#[test]
fn every_planted_bug_is_found() {
    panics::install_hook();
    println!("{:<8} {:<26} {:>6}  found by", "in", "planted bug", "seeds");
    let mut missed = Vec::new();
    for streams in [Streams::Results, Streams::Uploads] {
        for &bug in planted::ALL {
            if streams == Streams::Uploads && NOT_OF_UPLOADS.contains(&bug) {
                continue;
            }
            // On all processors, and yet the first seed that fails, whichever is run first.
            let report = swarm(0..PATIENCE, streams, Some(bug), threads(), None);
            match report.failures.iter().min_by_key(|outcome| outcome.seed) {
                Some(outcome) => {
                    let how = outcome.failure.as_deref().unwrap_or_default();
                    let how = how.split(':').next().unwrap_or_default();
                    println!("{:<8} {:<26} {:>6}  {how}", format!("{streams:?}"), bug, outcome.seed + 1);
                }
                None => missed.push((streams, bug)),
            }
        }
    }
    assert!(missed.is_empty(), "not found within {PATIENCE} seeds: {missed:?}");
}
