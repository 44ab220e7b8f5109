//! Whether a process still runs, from Linux's `/proc/PID/stat` (proc(5)).
//!
//! Memory that a peer has mapped cannot be revoked. Its lender keeps it until the peer releases it, or the peer's
//! process has ended. A process is identified by its id and its start time, since ids are reused.

mod sockets;

use std::fs;
use std::io;
use std::sync::{Arc, OnceLock};

use thallus_protocol::message::ProcessId;

pub use sockets::{TcpEnds, holds_peer_end};

/// Positions of fields of `/proc/PID/stat`, counted after the program's name, which may contain any character.
const STATE: usize = 0;
const THREADS: usize = 17;
const STARTED: usize = 19;

/// This process.
///
/// # Errors
/// `/proc` is missing, or has an unknown format.
pub fn current() -> io::Result<ProcessId> {
    static CURRENT: OnceLock<ProcessId> = OnceLock::new();
    // After a fork, the stored value is that of the parent process.
    match CURRENT.get().filter(|known| known.pid == std::process::id()) {
        Some(known) => Ok(*known),
        None => look_up().inspect(|found| _ = CURRENT.set(*found)),
    }
}

fn look_up() -> io::Result<ProcessId> {
    let pid = std::process::id();
    let stat = fs::read_to_string("/proc/self/stat")?;
    // If this process is in another PID namespace than `/proc`, the two ids differ, and a server would not find this
    // process.
    let same = stat.split_once(' ').is_some_and(|(named, _)| named.parse() == Ok(pid));
    match fields(&stat).filter(|_| same) {
        Some(Fields { started, .. }) => Ok(ProcessId { pid, started }),
        None => Err(io::Error::new(io::ErrorKind::InvalidData, "/proc/self/stat does not describe this process")),
    }
}

/// The state of a process, as far as it is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Presence {
    /// The process is on the same host, in the same PID namespace, and still has memory.
    Running,
    /// There is no process with that id and start time, or it has no memory any more.
    Ended,
    /// The check failed, for example for want of descriptors. Nothing follows from this.
    Unknown,
}

/// Tells whether one process is still there, for as long as the probe is held.
pub type PresenceProbe = Arc<dyn Fn() -> Presence + Send + Sync>;

/// The state of this process, as far as the calling process can see it.
#[must_use]
pub fn presence(process: ProcessId) -> Presence {
    match fs::read_to_string(format!("/proc/{}/stat", process.pid)) {
        Ok(stat) => presence_by(process, &stat),
        // The process ended before the file was opened, or before it was read.
        Err(error) if error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(libc::ESRCH) => {
            Presence::Ended
        }
        Err(_) => Presence::Unknown,
    }
}

fn presence_by(process: ProcessId, stat: &str) -> Presence {
    let Some(found) = fields(stat) else { return Presence::Unknown };
    // A zombie, whose parent has not waited for it, has no memory any more, unless only its first thread has ended.
    let is_dead = matches!(found.state, 'Z' | 'X' | 'x') && found.threads <= 1;
    if found.started == process.started && !is_dead { Presence::Running } else { Presence::Ended }
}

/// The mapped and open files of all processes that this process may inspect: their `/proc/PID/maps`, and a line for
/// each descriptor.
#[must_use]
pub fn files_in_use() -> String {
    let mut used = String::new();
    for process in fs::read_dir("/proc").into_iter().flatten().flatten() {
        // Processes that end meanwhile use no files any more.
        used += &fs::read_to_string(process.path().join("maps")).unwrap_or_default();
        for descriptor in fs::read_dir(process.path().join("fd")).into_iter().flatten().flatten() {
            if let Ok(target) = fs::read_link(descriptor.path()) {
                used += &target.to_string_lossy();
                used.push('\n');
            }
        }
    }
    used
}

struct Fields {
    state: char,
    threads: u64,
    started: u64,
}

fn fields(stat: &str) -> Option<Fields> {
    let fields: Vec<&str> = stat.rsplit_once(") ")?.1.split_ascii_whitespace().collect();
    let number = |at: usize| fields.get(at)?.parse().ok();
    Some(Fields { state: fields.get(STATE)?.chars().next()?, threads: number(THREADS)?, started: number(STARTED)? })
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;

    #[test]
    fn this_process_is_alive_and_no_other_of_its_id_was() {
        let this = current().unwrap();
        assert_eq!(this.pid, std::process::id());
        assert_eq!(presence(this), Presence::Running);
        assert_eq!(presence(ProcessId { started: this.started + 1, ..this }), Presence::Ended);
        assert_eq!(presence(ProcessId { pid: u32::MAX, ..this }), Presence::Ended);
    }

    #[test]
    fn a_process_is_gone_when_it_has_ended_even_if_nobody_waits_for_it() {
        let mut child = Command::new("cat").stdin(Stdio::piped()).spawn().unwrap();
        let stat = fs::read_to_string(format!("/proc/{}/stat", child.id())).unwrap();
        let process = ProcessId { pid: child.id(), started: fields(&stat).unwrap().started };
        assert_eq!(presence(process), Presence::Running);
        drop(child.stdin.take());
        let begun = std::time::Instant::now();
        while presence(process) != Presence::Ended {
            assert!(begun.elapsed().as_secs() < 30, "{process:?} is a zombie by now");
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
        child.wait().unwrap();
        assert_eq!(presence(process), Presence::Ended);
    }

    #[test]
    fn names_of_programs_and_dead_first_threads_do_not_mislead() {
        let stat =
            |state, threads| format!("7 (a) Z (b)) {state} 1 7 7 0 -1 4 0 0 0 0 0 0 0 0 20 0 {threads} 0 4711 0 0");
        let process = ProcessId { pid: 7, started: 4711 };
        assert_eq!(presence_by(process, &stat('S', 1)), Presence::Running);
        assert_eq!(presence_by(process, &stat('Z', 2)), Presence::Running);
        assert_eq!(presence_by(process, &stat('Z', 1)), Presence::Ended);
        for garbage in ["", "7 (a) S", "7 a S 1 2", "7 (a) S 1 7 7 0 -1 4 0 0 0 0 0 0 0 0 20 0 x 0 4711"] {
            assert_eq!(presence_by(process, garbage), Presence::Unknown, "{garbage}");
        }
    }
}
