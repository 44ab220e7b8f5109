//! The comparison of Thallus with its rivals and with the machine's limits. `bench/README.md` says how to run it.

pub mod contender;
mod hex;
pub mod pair;
pub mod pieces;
mod query;
pub mod run;
pub mod serve;
pub mod tables;
pub mod thallus_config;
mod wire;
pub mod worker;

/// The allocator of all contenders in Rust: mimalloc, as in query engines. Only a Thallus server has it grow in
/// registered memory.
#[global_allocator]
static HEAP: thallus_fabric::memory::RegisteredHeap = thallus_fabric::memory::RegisteredHeap::new();
