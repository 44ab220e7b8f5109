//! A `thallus-server` process.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use tempfile::TempDir;

use crate::PATIENCE;
use crate::process::{Process, Signal, command, until};

/// A server on a port of its own. Dropping it kills it, and checks that it never panicked.
#[derive(Debug)]
pub struct TestServer {
    process: Process,
    scratch: TempDir,
    address: String,
}

/// Names the UCX library of servers, where that is not to be the clients': a path, or `system`.
pub const SERVER_UCX: &str = "THALLUS_TEST_SERVER_UCX";

/// Starts a server that logs to a file.
fn prepare<'a, A: AsRef<OsStr>>(
    scratch: &Path,
    toml: &str,
    args: impl IntoIterator<Item = A>,
    environment: impl IntoIterator<Item = (&'a str, &'a str)>,
) -> Process {
    let config = scratch.join("server.toml");
    // In the file, where flags win over it.
    let settings = format!("listen = \"127.0.0.1:0\"\n{toml}\n[log]\nfilter = \"info,thallus_server=debug\"\n");
    fs::write(&config, settings).expect("a configuration file");
    let log = fs::File::create(log_path(scratch)).expect("a log file");
    let mut command = command("thallus-server");
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
    /// If it does not listen soon.
    pub fn start<A: AsRef<OsStr>>(args: impl IntoIterator<Item = A>) -> TestServer {
        Self::configured("", args)
    }

    /// Starts a server with these flags, and a configuration file with these sections besides `log`.
    ///
    /// # Panics
    /// If it does not listen soon.
    pub fn configured<A: AsRef<OsStr>>(toml: &str, args: impl IntoIterator<Item = A>) -> TestServer {
        Self::prepared(toml, args, [])
    }

    /// Starts a server with these flags, and these variables in its environment.
    ///
    /// # Panics
    /// If it does not listen soon.
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
        let address = until("the server to listen", PATIENCE, || {
            let log = read_log(scratch.path());
            assert!(process.ended().is_none(), "the server has ended: {log}");
            let (_, after) = log.split_once("listening address=")?;
            // A line that is there to its end.
            after.split_once('\n').map(|(address, _)| address.trim().to_owned())
        });
        TestServer { process, scratch, address }
    }

    /// Starts a server that cannot work, and gives what it says. Its exit code must be 1.
    ///
    /// # Panics
    /// If it does not end soon, or otherwise.
    #[must_use]
    pub fn refusal(args: &[&str]) -> String {
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

    /// The URL, with options as in `fabric=none&window=1MiB`.
    #[must_use]
    pub fn url(&self, options: &str) -> String {
        format!("thallus://{}?{options}", self.address)
    }

    /// Its process.
    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }

    /// Its process's id.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.process.id()
    }

    /// What it has logged, from `debug` up.
    #[must_use]
    pub fn log(&self) -> String {
        read_log(self.scratch.path())
    }

    /// Waits until it has logged something.
    ///
    /// # Panics
    /// If it does not.
    pub fn logs(&self, text: &str) {
        until(&format!("the server to log {text:?}"), PATIENCE, || self.log().contains(text).then_some(()));
    }

    /// Connections open, by its log.
    #[must_use]
    pub fn connections(&self) -> usize {
        let log = self.log();
        let begun = log.lines().filter(|line| line.ends_with(": connected")).count();
        begun - log.lines().filter(|line| line.contains(": connection ended ")).count()
    }

    /// Connections so far, by its log.
    #[must_use]
    pub fn accepted(&self) -> usize {
        self.log().matches(": connected\n").count()
    }

    /// Waits until every connection so far has had its data plane, and there were as many as `least`. Before that, an end that is
    /// killed may be making shared memory, which it leaves behind.
    ///
    /// # Panics
    /// If that does not come about.
    pub fn has_data_planes(&self, least: usize) {
        until("the data planes", PATIENCE, || {
            let log = self.log();
            let count = |what: &str| log.matches(what).count();
            let connections = count(": connected\n");
            (connections >= least && count(": data plane is up ") == connections).then_some(())
        });
    }

    /// Waits until no connection is open, and nothing is computed.
    ///
    /// # Panics
    /// If that does not come about.
    pub fn is_at_rest(&self) {
        until("the server's connections to end", PATIENCE, || (self.connections() == 0).then_some(()));
        until("the server's queries to end", PATIENCE, || {
            (self.process.load(Duration::from_millis(200)) < 0.1).then_some(())
        });
    }

    /// Ends it by SIGTERM.
    ///
    /// # Panics
    /// If it does not end soon and with exit code 0.
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
            eprintln!("the server's log ended so:\n{}", lines[lines.len().saturating_sub(40)..].join("\n"));
        } else {
            assert!(!log.contains("panicked"), "the server panicked:\n{log}");
            assert!(!log.contains("bug:"), "the server noticed a bug:\n{log}");
        }
    }
}
