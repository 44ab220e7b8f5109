//! The comparison of Thallus with its rivals and with the machine's limits. `bench/README.md` says how to run it.

pub mod contender;
mod hex;
pub mod pair;
pub mod pieces;
mod query;
pub mod run;
pub mod serve;
pub mod tables;
mod wire;
mod wiring;
pub mod worker;

/// For all contenders written in Rust: the allocator that engines use.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;
