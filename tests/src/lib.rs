//! Code shared by the whole-system tests and the demonstration.
//!
//! The tests are in `tests/`. They run the real programs as separate processes. [`server`] starts a server, [`cli`]
//! starts the command line. Both are a [`process::Process`] that ends with the test. [`usage`] reads the resource usage
//! of a process from `/proc`. Every wait has a deadline.

#![forbid(unsafe_code)]

pub mod cli;
pub mod process;
pub mod rdma;
pub mod server;
pub mod tpch;
pub mod usage;

use std::time::Duration;

/// Time limit for an operation that takes a moment on an idle machine. It allows for a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// A query whose result never ends: 16 bytes a row, computed as fast as the client reads.
pub const ENDLESS: &str = "SELECT value, value * 2 AS twice FROM generate_series(1, 1000000000000000)";

/// The fabric under test: `THALLUS_TEST_FABRIC`, by default `shm`.
#[must_use]
pub fn fabric() -> String {
    std::env::var("THALLUS_TEST_FABRIC").unwrap_or_else(|_| "shm".into())
}

/// Runs a future to its end, on a runtime of two threads.
///
/// # Panics
/// If the future takes longer than two minutes.
pub fn block_on<T>(test: impl Future<Output = T>) -> T {
    const LIMIT: Duration = Duration::from_secs(120);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let runtime = runtime.expect("threads for a runtime");
    runtime.block_on(async {
        tokio::time::timeout(LIMIT, test).await.unwrap_or_else(|_| panic!("the test took longer than {LIMIT:?}"))
    })
}

/// The examples of README.md compile.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
