//! What the whole-system tests and the demonstration share.
//!
//! The tests are in `tests/`; they run the real programs as processes of their own. [`server`] starts a server, [`cli`]
//! the command line, both as a [`process::Process`] that ends with the test; [`usage`] reads from `/proc` what a process
//! takes. Every wait has a deadline.

#![forbid(unsafe_code)]

pub mod cli;
pub mod process;
pub mod rdma;
pub mod server;
pub mod tpch;
pub mod usage;

use std::time::Duration;

/// How long a test waits for what should take a moment, on a machine that is busy with something else.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// A result of 16 bytes a row that does not end within anybody's lifetime, computed as fast as it is read.
pub const ENDLESS: &str = "SELECT value, value * 2 AS twice FROM generate_series(1, 1000000000000000)";

/// The fabric that is tested: `ucx`, unless `THALLUS_TEST_FABRIC` says otherwise.
#[must_use]
pub fn fabric() -> String {
    std::env::var("THALLUS_TEST_FABRIC").unwrap_or_else(|_| "ucx".into())
}

/// Runs a future to its end, on a runtime of two threads.
///
/// # Panics
/// If that takes longer than two minutes.
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
