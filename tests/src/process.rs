//! Processes that do not outlive the test that started them.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus};
use std::time::{Duration, Instant};

use crate::usage;

/// Kills its child when the parent is killed, which a guard in the parent cannot.
const SETPRIV: &str = "/usr/bin/setpriv";

/// What can be sent to a process, besides the end by [`Process::kill`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signal {
    /// As Ctrl-C.
    Interrupt,
    /// As service managers end a process.
    Terminate,
    /// Stand still.
    Stop,
}

/// Where cargo put a program of this workspace: beside the running test.
///
/// # Panics
/// If it is not there.
#[must_use]
pub fn program(name: &str) -> PathBuf {
    let test = std::env::current_exe().expect("the path of this program");
    let profile = test.parent().and_then(Path::parent).expect("target/PROFILE/deps/TEST");
    let path = profile.join(name);
    assert!(path.is_file(), "{} is missing: test with --workspace, which builds it", path.display());
    path
}

/// A command for a program of this workspace, without settings from this process's environment. Its process ends with the
/// thread that spawns it, if the system has setpriv(1).
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
    /// If it cannot be started.
    pub fn spawn(name: &str, command: &mut Command) -> Process {
        let child = command.spawn().unwrap_or_else(|e| panic!("cannot start {name}: {e}"));
        Process { child, name: name.to_owned(), status: None }
    }

    /// Its id.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Sends a signal.
    ///
    /// # Panics
    /// If it has ended.
    pub fn signal(&mut self, signal: Signal) {
        assert!(self.ended().is_none(), "{} has ended: no signal reaches it", self.name);
        let name = match signal {
            Signal::Interrupt => "INT",
            Signal::Terminate => "TERM",
            Signal::Stop => "STOP",
        };
        // The shell's own `kill`: there may be no program of that name.
        let sent = Command::new("sh").args(["-c", &format!("kill -{name} {}", self.id())]).status();
        assert!(sent.is_ok_and(|status| status.success()), "cannot send {signal:?} to {}", self.name);
    }

    /// Ends it with SIGKILL, and waits until it is gone.
    pub fn kill(&mut self) {
        if self.status.is_none() {
            // What has just ended by itself cannot be killed, and is gone all the same.
            let _ = self.child.kill();
            self.status = self.child.wait().ok();
        }
    }

    /// How it ended, if it has.
    ///
    /// # Panics
    /// If the system does not say.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        if self.status.is_none() {
            self.status = self.child.try_wait().expect("the status of a child");
        }
        self.status
    }

    /// Waits for its end.
    ///
    /// # Panics
    /// If that takes longer than `limit`.
    pub fn wait(&mut self, limit: Duration) -> ExitStatus {
        let name = self.name.clone();
        until(&format!("{name} to end"), limit, || self.ended())
    }

    /// Computing time that it takes in a period from now, as a share of one core.
    ///
    /// # Panics
    /// If it ends.
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

/// Waits until a probe gives something.
///
/// # Panics
/// If that takes longer than `limit`.
pub fn until<T>(what: &str, limit: Duration, mut probe: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(found) = probe() {
            return found;
        }
        assert!(start.elapsed() < limit, "waited {limit:?} for {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}
