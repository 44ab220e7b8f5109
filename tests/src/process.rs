//! Processes that do not outlive the test that started them.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus};
use std::time::{Duration, Instant};

use crate::usage;

/// setpriv(1) kills the child when the parent is killed. A guard in the parent cannot do that.
const SETPRIV: &str = "/usr/bin/setpriv";

/// Signals for a process, besides SIGKILL by [`Process::kill`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signal {
    /// SIGINT, as Ctrl-C.
    Interrupt,
    /// SIGTERM, as service managers send.
    Terminate,
    /// SIGHUP, as sent to the programs of a terminal that closes.
    Hangup,
    /// SIGSTOP: suspends the process.
    Stop,
}

/// Path of a program of this workspace, in the directory where cargo put the running test.
///
/// # Panics
/// If the program is not there.
#[must_use]
pub fn program(name: &str) -> PathBuf {
    let test = std::env::current_exe().expect("the path of this program");
    let profile = test.parent().and_then(Path::parent).expect("target/PROFILE/deps/TEST");
    let path = profile.join(name);
    assert!(path.is_file(), "{} is missing: test with --workspace, which builds it", path.display());
    path
}

/// A command for a program of this workspace. Variables that configure Thallus are removed from its environment.
/// The process ends with the thread that spawns it, if the system has setpriv(1).
#[must_use]
pub fn command(name: &str) -> Command {
    let mut command = if Path::new(SETPRIV).is_file() {
        let mut command = Command::new(SETPRIV);
        command.args(["--pdeathsig", "KILL", "--"]).arg(program(name));
        command
    } else {
        Command::new(program(name))
    };
    for variable in ["THALLUS_CONFIG", "THALLUS_LOG", "THALLUS_URL"] {
        command.env_remove(variable);
    }
    command.stdin(std::process::Stdio::null());
    command
}

/// A running process. Dropping it kills it.
#[derive(Debug)]
pub struct Process {
    child: Child,
    name: String,
    status: Option<ExitStatus>,
}

impl Process {
    /// Starts a command.
    ///
    /// # Panics
    /// If the command cannot be started.
    pub fn spawn(name: &str, command: &mut Command) -> Process {
        let child = command.spawn().unwrap_or_else(|e| panic!("cannot start {name}: {e}"));
        Process { child, name: name.to_owned(), status: None }
    }

    /// Process id.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Sends a signal.
    ///
    /// # Panics
    /// If the process has ended.
    pub fn signal(&mut self, signal: Signal) {
        assert!(self.exit_status().is_none(), "no signal reaches {}, which has ended", self.name);
        let name = match signal {
            Signal::Interrupt => "INT",
            Signal::Terminate => "TERM",
            Signal::Hangup => "HUP",
            Signal::Stop => "STOP",
        };
        // The shell's built-in `kill`: a program of that name may be missing.
        let sent = Command::new("sh").args(["-c", &format!("kill -{name} {}", self.id())]).status();
        assert!(sent.is_ok_and(|status| status.success()), "cannot send {signal:?} to {}", self.name);
    }

    /// Ends the process with SIGKILL, and waits for its end.
    pub fn kill(&mut self) {
        if self.status.is_none() {
            // This fails for a process that has just ended, which is as good.
            let _ = self.child.kill();
            self.status = self.child.wait().ok();
        }
    }

    /// Exit status, if the process has ended.
    ///
    /// # Panics
    /// If the system does not report the status.
    pub fn exit_status(&mut self) -> Option<ExitStatus> {
        if self.status.is_none() {
            self.status = self.child.try_wait().expect("the status of a child");
        }
        self.status
    }

    /// Waits for the end of the process.
    ///
    /// # Panics
    /// If the process runs for longer than `limit`.
    pub fn wait(&mut self, limit: Duration) -> ExitStatus {
        let name = self.name.clone();
        wait_for(&format!("{name} to end"), limit, || self.exit_status())
    }

    /// CPU time that the process takes during the next `period`, as a share of one core.
    ///
    /// # Panics
    /// If the process ends.
    #[must_use]
    pub fn load(&self, period: Duration) -> f64 {
        let (before, began) = (usage::cpu(self.id()), Instant::now());
        std::thread::sleep(period);
        (usage::cpu(self.id()) - before).as_secs_f64() / began.elapsed().as_secs_f64()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Polls a probe until it returns a value. `what` names the awaited condition in the failure message.
///
/// # Panics
/// If the probe returns none within `limit`.
pub fn wait_for<T>(what: &str, limit: Duration, mut probe: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(found) = probe() {
            return found;
        }
        assert!(start.elapsed() < limit, "waited {limit:?} for {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}
