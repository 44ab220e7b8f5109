//! Servers and clients as processes, and their resource usage.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use crate::wire::{Answer, Request};

/// A process that the harness controls through its standard streams. Dropping it kills the process.
pub(super) struct Process {
    child: Child,
    stdin: ChildStdin,
    stdout: BufReader<ChildStdout>,
    name: String,
}

impl Process {
    pub(super) fn start(name: &str, command: &mut Command) -> Result<Self, String> {
        let command = command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().map_err(|e| format!("cannot start {name}: {e}"))?;
        let (Some(stdin), Some(stdout)) = (child.stdin.take(), child.stdout.take()) else {
            return Err(format!("{name} has no standard streams"));
        };
        Ok(Process { child, stdin, stdout: BufReader::new(stdout), name: name.to_owned() })
    }

    fn line(&mut self) -> Result<String, String> {
        let mut line = String::new();
        match self.stdout.read_line(&mut line) {
            Ok(0) => Err(format!("{} has ended: {:?}", self.name, self.child.wait())),
            Ok(_) => Ok(line),
            Err(error) => Err(format!("{}: {error}", self.name)),
        }
    }

    /// Reads the server's port from its standard output.
    pub(super) fn port(&mut self) -> Result<u16, String> {
        let line = self.line()?;
        let port = line.trim().strip_prefix("ready ").and_then(|port| port.parse().ok());
        port.ok_or_else(|| format!("{} printed {line:?}", self.name))
    }

    /// Sends a request to a client, and returns the answer.
    pub(super) fn ask(&mut self, request: &Request) -> Result<Answer, String> {
        let line = serde_json::to_string(request).map_err(|e| e.to_string())?;
        writeln!(self.stdin, "{line}").and_then(|()| self.stdin.flush()).map_err(|e| format!("{}: {e}", self.name))?;
        let answer: Answer = serde_json::from_str(&self.line()?).map_err(|e| format!("{}: {e}", self.name))?;
        match answer.error {
            Some(error) => Err(format!("{}: {}: {error}", self.name, request.query)),
            None => Ok(answer),
        }
    }

    /// Resource usage so far.
    pub(super) fn usage(&self) -> Usage {
        Usage::of(self.child.id()).unwrap_or_default()
    }

    /// Resets the peak of resident memory.
    pub(super) fn forget_peak(&self) {
        // If the kernel does not allow this, the peak is that of the whole run.
        let _refused = fs::write(format!("/proc/{}/clear_refs", self.child.id()), "5");
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _gone = self.child.kill();
        let _reaped = self.child.wait();
    }
}

/// Resource usage of a process.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Usage {
    /// CPU time of its threads, in seconds.
    pub(super) cpu: f64,
    /// Page faults that needed no disk.
    pub(super) faults: u64,
    /// Peak of resident memory, in bytes.
    pub(super) peak: u64,
}

impl Usage {
    fn of(pid: u32) -> Option<Usage> {
        // `stat` counts CPU time in ticks of 10 ms; this is in nanoseconds.
        let nanos = |path: &std::path::Path| -> Option<u64> {
            fs::read_to_string(path.join("schedstat")).ok()?.split(' ').next()?.parse().ok()
        };
        let tasks = fs::read_dir(format!("/proc/{pid}/task")).ok()?;
        let cpu: u64 = tasks.filter_map(|task| nanos(&task.ok()?.path())).sum();
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // After the name, which may contain any character: the state, and minflt as the eighth field.
        let faults = stat.rsplit_once(')')?.1.split_whitespace().nth(7)?.parse().ok()?;
        let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
        let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
        let peak: u64 = peak.trim().trim_end_matches(" kB").parse().ok()?;
        Some(Usage { cpu: cpu as f64 / 1e9, faults, peak: peak * 1024 })
    }
}
