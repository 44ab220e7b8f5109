//! Runs one piece of a batch's path several times, so that `instructions.sh` can count its instructions; or lists the
//! pieces.
//!
//! `instructions` lists the pieces. `instructions PIECE N` runs one N times, after a warm-up.

use std::process::ExitCode;

use thallus_bench::pieces::pieces;
use thallus_fabric::memory::RegisteredHeap;
use thallus_fabric_sim::{SimNetwork, SimOptions};

fn main() -> ExitCode {
    RegisteredHeap::stay_ordinary();
    let fabric = SimNetwork::new(1, SimOptions::default()).host();
    let args: Vec<String> = std::env::args().skip(1).collect();
    let pieces = match pieces(fabric, |piece| args.first().is_none_or(|name| name == piece)) {
        Ok(pieces) => pieces,
        Err(error) => {
            eprintln!("instructions: {error}");
            return ExitCode::FAILURE;
        }
    };
    let [name, times] = &args[..] else {
        pieces.iter().for_each(|piece| println!("{}", piece.name));
        return ExitCode::SUCCESS;
    };
    let (Some(mut piece), Ok(times)) = (pieces.into_iter().next(), times.parse::<u64>()) else {
        eprintln!("instructions: no piece {name:?}, or no number {times:?}");
        return ExitCode::FAILURE;
    };
    for _ in 0..3 {
        (piece.run)();
    }
    for _ in 0..times {
        measured(&mut piece.run);
    }
    println!("{}", times * piece.batches);
    ExitCode::SUCCESS
}

/// The function within which callgrind counts, by its name.
#[inline(never)]
fn measured(run: &mut dyn FnMut()) {
    run();
}
