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

/// The end of a `thallus` process.
#[derive(Clone, Debug)]
pub struct Finished {
    /// The exit code; `None` if a signal ended it.
    pub code: Option<i32>,
    /// Text on standard output.
    pub stdout: String,
    /// Text on standard error.
    pub stderr: String,
    /// Time from start to end.
    pub took: Duration,
}

impl Cli {
    /// Starts `thallus` with these arguments.
    ///
    /// # Panics
    /// If the process cannot be started.
    pub fn start<A: AsRef<OsStr>>(args: impl IntoIterator<Item = A>) -> Cli {
        Cli::start_with(args, [])
    }

    /// Starts `thallus` with these arguments and these additional environment variables.
    ///
    /// # Panics
    /// If the process cannot be started.
    pub fn start_with<'a, A: AsRef<OsStr>>(
        args: impl IntoIterator<Item = A>,
        environment: impl IntoIterator<Item = (&'a str, &'a str)>,
    ) -> Cli {
        let scratch = tempfile::Builder::new().prefix("thallus-test-").tempdir().expect("a directory for a test");
        let file = |name| fs::File::create(scratch.path().join(name)).expect("a file for output");
        let mut command = command("thallus");
        // Output goes to files: a pipe that the test does not read would fill up.
        command.args(args).envs(environment).stdout(file("stdout")).stderr(file("stderr"));
        let started = Instant::now();
        let process = Process::spawn("thallus", &mut command);
        Cli { process, scratch, started }
    }

    /// The process.
    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }

    /// Waits for the end of the process.
    ///
    /// # Panics
    /// If the process runs for longer than `limit`, or panicked.
    pub fn finish(mut self, limit: Duration) -> Finished {
        let status = self.process.wait(limit);
        let took = self.started.elapsed();
        let text = |name| {
            let bytes = fs::read(self.scratch.path().join(name)).expect("the output file");
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
/// If the process runs for longer than [`PATIENCE`], or panicked.
pub fn thallus<A: AsRef<OsStr>>(args: impl IntoIterator<Item = A>) -> Finished {
    Cli::start(args).finish(PATIENCE)
}
