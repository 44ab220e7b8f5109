//! A `thallus-server` process.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use tempfile::TempDir;

use crate::PATIENCE;
use crate::process::{Process, Signal, command, wait_for};

/// A server on a free port. Dropping it kills the process, and checks that it did not panic.
#[derive(Debug)]
pub struct TestServer {
    process: Process,
    scratch: TempDir,
    address: String,
}

/// Environment variable: the fabric of servers that a test starts without `--fabric`. All that work, if it is not set.
pub const FABRIC: &str = "THALLUS_TEST_SERVER_FABRIC";
/// Environment variable: UCX library of the servers, if it differs from the clients'. A path, or `system`.
pub const SERVER_UCX: &str = "THALLUS_TEST_SERVER_UCX";

/// Starts a server that logs to a file.
fn prepare<'a, A: AsRef<OsStr>>(
    scratch: &Path,
    toml: &str,
    args: impl IntoIterator<Item = A>,
    environment: impl IntoIterator<Item = (&'a str, &'a str)>,
) -> Process {
    let config = scratch.join("server.toml");
    // In the file, since flags take precedence over it.
    let settings = format!("listen = \"127.0.0.1:0\"\n{toml}\n[log]\nfilter = \"info,thallus_server=debug\"\n");
    fs::write(&config, settings).expect("a configuration file");
    let log = fs::File::create(log_path(scratch)).expect("a log file");
    let mut command = command("thallus-server");
    let args: Vec<_> = args.into_iter().map(|arg| arg.as_ref().to_owned()).collect();
    if let Some(fabric) = std::env::var_os(FABRIC).filter(|_| !args.iter().any(|arg| arg == "--fabric")) {
        command.arg("--fabric").arg(fabric);
    }
    command.arg("--config").arg(config).args(args).stdout(Stdio::null()).stderr(log);
    match std::env::var(SERVER_UCX) {
        Ok(system) if system == "system" => command.env_remove("THALLUS_UCX_LIBRARY"),
        Ok(library) => command.env("THALLUS_UCX_LIBRARY", library),
        Err(_) => &mut command,
    };
    Process::spawn("thallus-server", command.envs(environment))
}

fn log_path(scratch: &Path) -> PathBuf {
    scratch.join("server.log")
}

fn read_log(scratch: &Path) -> String {
    String::from_utf8_lossy(&fs::read(log_path(scratch)).expect("the server's log")).into_owned()
}

fn scratch() -> TempDir {
    tempfile::Builder::new().prefix("thallus-test-").tempdir().expect("a directory for a test")
}

impl TestServer {
    /// Starts a server with these flags.
    ///
    /// # Panics
    /// If the server does not listen in time.
    pub fn start<A: AsRef<OsStr>>(args: impl IntoIterator<Item = A>) -> TestServer {
        Self::configured("", args)
    }

    /// Starts a server with these flags and a configuration file with these sections besides `log`.
    ///
    /// # Panics
    /// If the server does not listen in time.
    pub fn configured<A: AsRef<OsStr>>(toml: &str, args: impl IntoIterator<Item = A>) -> TestServer {
        Self::prepared(toml, args, [])
    }

    /// Starts a server with these flags and these additional environment variables.
    ///
    /// # Panics
    /// If the server does not listen in time.
    pub fn start_with<'a, A: AsRef<OsStr>>(
        args: impl IntoIterator<Item = A>,
        environment: impl IntoIterator<Item = (&'a str, &'a str)>,
    ) -> TestServer {
        Self::prepared("", args, environment)
    }

    fn prepared<'a, A: AsRef<OsStr>>(
        toml: &str,
        args: impl IntoIterator<Item = A>,
        environment: impl IntoIterator<Item = (&'a str, &'a str)>,
    ) -> TestServer {
        let scratch = scratch();
        let mut process = prepare(scratch.path(), toml, args, environment);
        let address = wait_for("the server to listen", PATIENCE, || {
            let log = read_log(scratch.path());
            assert!(process.exit_status().is_none(), "the server has ended: {log}");
            let (_, after) = log.split_once("listening address=")?;
            // Only a complete line.
            after.split_once('\n').map(|(address, _)| address.trim().to_owned())
        });
        TestServer { process, scratch, address }
    }

    /// Starts a server that cannot start, and returns its log. Its exit code must be 1.
    ///
    /// # Panics
    /// If the process does not end in time, or ends otherwise.
    #[must_use]
    pub fn start_error(args: &[&str]) -> String {
        let scratch = scratch();
        let mut process = prepare(scratch.path(), "", args, []);
        let status = process.wait(PATIENCE);
        let log = read_log(scratch.path());
        assert_eq!(status.code(), Some(1), "{log}");
        assert!(!log.contains("panicked"), "{log}");
        log
    }

    /// `127.0.0.1:PORT`.
    #[must_use]
    pub fn address(&self) -> &str {
        &self.address
    }

    /// URL of the server with these options, for example `fabric=none&window=1MiB`.
    #[must_use]
    pub fn url(&self, options: &str) -> String {
        format!("thallus://{}?{options}", self.address)
    }

    /// The process.
    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }

    /// Process id.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.process.id()
    }

    /// The log so far, from level `debug` up.
    #[must_use]
    pub fn log(&self) -> String {
        read_log(self.scratch.path())
    }

    /// Waits until the log contains `text`.
    ///
    /// # Panics
    /// If that does not happen in time.
    pub fn wait_for_log(&self, text: &str) {
        wait_for(&format!("the server to log {text:?}"), PATIENCE, || self.log().contains(text).then_some(()));
    }

    /// Number of open connections, from the log.
    #[must_use]
    pub fn connections(&self) -> usize {
        let log = self.log();
        let begun = log.lines().filter(|line| line.ends_with(": connected")).count();
        begun - log.lines().filter(|line| line.contains(": connection ended ")).count()
    }

    /// Number of data planes that came up so far.
    #[must_use]
    pub fn data_planes(&self) -> usize {
        self.log().matches(": data plane is up ").count()
    }

    /// Waits until at least `least` data planes came up, and every connection had one or shared no fabric with the
    /// server. An end that is killed before that may be creating shared memory, which then remains.
    ///
    /// # Panics
    /// If that does not happen in time.
    pub fn wait_for_data_planes(&self, least: usize) {
        wait_for("the data planes", PATIENCE, || {
            let log = self.log();
            let count = |what: &str| log.matches(what).count();
            let connections = count(": connected\n");
            // A client on this host tries shared memory first. If the server lacks it, the client connects again.
            let (up, refused) = (count(": data plane is up "), count("no fabric in common"));
            (up >= least && up + refused == connections).then_some(())
        });
    }

    /// Waits until no connection is open and no query runs.
    ///
    /// # Panics
    /// If that does not happen in time.
    pub fn wait_until_idle(&self) {
        wait_for("the server's connections to end", PATIENCE, || (self.connections() == 0).then_some(()));
        wait_for("the server's queries to end", PATIENCE, || {
            (self.process.load(Duration::from_millis(200)) < 0.1).then_some(())
        });
    }

    /// Ends the server by SIGTERM.
    ///
    /// # Panics
    /// If the server does not end in time with exit code 0.
    pub fn stop(mut self) {
        self.process.signal(Signal::Terminate);
        let status = self.process.wait(PATIENCE);
        assert_eq!(status.code(), Some(0), "{}", self.log());
    }
}

impl Drop for TestServer {
    fn drop(&mut self) {
        self.process.kill();
        let log = self.log();
        if std::thread::panicking() {
            let lines: Vec<_> = log.lines().collect();
            eprintln!("end of the server's log:\n{}", lines[lines.len().saturating_sub(40)..].join("\n"));
        } else {
            assert!(!log.contains("panicked"), "the server panicked:\n{log}");
            assert!(!log.contains("bug:"), "the server logged a bug:\n{log}");
        }
    }
}
