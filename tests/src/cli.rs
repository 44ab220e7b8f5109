//! The command line `thallus` as a process.

use std::ffi::OsStr;
use std::fs;
use std::time::{Duration, Instant};

use tempfile::TempDir;

use crate::PATIENCE;
use crate::process::{Process, command};

/// A running `thallus`. Dropping it kills it.
#[derive(Debug)]
pub struct Cli {
    process: Process,
    scratch: TempDir,
    started: Instant,
}

/// How a `thallus` ended.
#[derive(Clone, Debug)]
pub struct Finished {
    /// The exit code; `None` if a signal ended it.
    pub code: Option<i32>,
    /// What it wrote to standard output.
    pub stdout: String,
    /// What it wrote to standard error.
    pub stderr: String,
    /// From start to end.
    pub took: Duration,
}

impl Cli {
    /// Starts it with these arguments.
    ///
    /// # Panics
    /// If it cannot be started.
    pub fn start<A: AsRef<OsStr>>(args: impl IntoIterator<Item = A>) -> Cli {
        Cli::start_with(args, [])
    }

    /// Starts it with these arguments and these variables in its environment.
    ///
    /// # Panics
    /// If it cannot be started.
    pub fn start_with<'a, A: AsRef<OsStr>>(
        args: impl IntoIterator<Item = A>,
        environment: impl IntoIterator<Item = (&'a str, &'a str)>,
    ) -> Cli {
        let scratch = tempfile::Builder::new().prefix("thallus-test-").tempdir().expect("a directory for a test");
        let file = |name| fs::File::create(scratch.path().join(name)).expect("a file for output");
        let mut command = command("thallus");
        // Files take what is written whether or not someone reads; pipes would fill up.
        command.args(args).envs(environment).stdout(file("stdout")).stderr(file("stderr"));
        let started = Instant::now();
        let process = Process::spawn("thallus", &mut command);
        Cli { process, scratch, started }
    }

    /// Its process.
    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }

    /// Waits for its end.
    ///
    /// # Panics
    /// If that takes longer than `limit`, or it panicked.
    pub fn finish(mut self, limit: Duration) -> Finished {
        let status = self.process.wait(limit);
        let took = self.started.elapsed();
        let text = |name| {
            let bytes = fs::read(self.scratch.path().join(name)).expect("what was written");
            String::from_utf8(bytes).expect("output in UTF-8")
        };
        let finished = Finished { code: status.code(), stdout: text("stdout"), stderr: text("stderr"), took };
        assert!(!finished.stderr.contains("panicked"), "{}", finished.stderr);
        finished
    }
}

/// Runs `thallus` to its end.
///
/// # Panics
/// If that takes too long, or it panicked.
pub fn thallus<A: AsRef<OsStr>>(args: impl IntoIterator<Item = A>) -> Finished {
    Cli::start(args).finish(PATIENCE)
}
