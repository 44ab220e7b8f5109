//! What a process takes of the machine, as Linux tells in `/proc` (proc(5)).

use std::fs;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use thallus_fabric::process::files_in_use;

use crate::PATIENCE;

/// Unit of times in `/proc/PID/stat`: 1/100 s on every architecture that Linux still has.
const TICK: Duration = Duration::from_millis(10);

fn read(pid: u32, file: &str) -> String {
    let path = format!("/proc/{pid}/{file}");
    fs::read_to_string(&path).unwrap_or_else(|e| panic!("cannot read {path}: {e}"))
}

fn status(pid: u32, key: &str) -> u64 {
    let status = read(pid, "status");
    // What has ended and has not been waited for has a status, but no memory.
    let Some(value) = status.lines().find_map(|line| line.strip_prefix(key)) else { return 0 };
    value
        .trim_matches([' ', '\t', ':'])
        .trim_end_matches(" kB")
        .parse()
        .unwrap_or_else(|e| panic!("{key} {value}: {e}"))
}

/// The most memory that it ever had resident, in bytes, shared memory included. Zero once it has ended.
///
/// # Panics
/// If there is no such process; so do all functions here.
#[must_use]
pub fn peak_rss(pid: u32) -> u64 {
    status(pid, "VmHWM") * 1024
}

/// Memory that it has resident, in bytes, shared memory included. Zero once it has ended.
#[must_use]
pub fn rss(pid: u32) -> u64 {
    status(pid, "VmRSS") * 1024
}

/// Computing time that it has taken, in user and kernel mode, all its threads together.
#[must_use]
pub fn cpu(pid: u32) -> Duration {
    let stat = read(pid, "stat");
    // The second field is the program's name in parentheses, which may contain anything.
    let fields: Vec<&str> = stat.rsplit_once(") ").map_or("", |(_, rest)| rest).split(' ').collect();
    let ticks = |field: usize| fields[field].parse::<u32>().unwrap_or_else(|e| panic!("{stat}: {e}"));
    // utime and stime are the 14th and 15th; what is left begins with the third.
    TICK * (ticks(11) + ticks(12))
}

/// File descriptors that it has open.
#[must_use]
pub fn descriptors(pid: u32) -> usize {
    fs::read_dir(format!("/proc/{pid}/fd")).unwrap_or_else(|e| panic!("cannot list descriptors of {pid}: {e}")).count()
}

/// Bytes of shared memory that it has mapped: POSIX, System V, and memory files.
#[must_use]
pub fn shared(pid: u32) -> u64 {
    let maps = read(pid, "maps");
    maps.lines().filter(|line| is_shared_memory(line)).filter_map(length).sum()
}

fn is_shared_memory(mapping: &str) -> bool {
    ["/dev/shm/", "/SYSV", "/memfd:"].iter().any(|mark| mapping.contains(mark))
}

fn length(mapping: &str) -> Option<u64> {
    let (from, to) = mapping.split_once(' ')?.0.split_once('-')?;
    Some(u64::from_str_radix(to, 16).ok()? - u64::from_str_radix(from, 16).ok()?)
}

/// Held by whoever kills processes as they start, and by whoever looks for what killed ones have left: the machine has one
/// table of shared memory, and nothing in it tells one test's processes from another's. (cargo runs one program of tests at a
/// time, and the tests of a program beside each other.)
static KILLS: Mutex<()> = Mutex::new(());

/// No test that looks for [`Orphans`] runs until this is dropped. For tests that kill a process at a moment when it may be making
/// shared memory: UCX gives a POSIX segment a name, writes all of it, and only then takes the name back, so that a kill
/// between leaves the segment for good.
pub fn kills_anywhere() -> MutexGuard<'static, ()> {
    // A test that failed meanwhile has left nothing half done here.
    KILLS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The shared memory that nobody had mapped at some moment: what was left before is not held against the test that looks now.
#[derive(Debug)]
pub struct Orphans {
    before: Vec<String>,
    _alone: MutexGuard<'static, ()>,
}

impl Orphans {
    /// What there is now. Only processes that this test kills are killed until this is dropped.
    #[must_use]
    pub fn now() -> Self {
        let alone = kills_anywhere();
        Orphans { before: orphaned_shared_memory(), _alone: alone }
    }

    /// Waits until there is nothing that was not there then.
    ///
    /// # Panics
    /// If there still is after a while.
    pub fn until_no_more(&self) {
        let start = Instant::now();
        loop {
            let mut left = orphaned_shared_memory();
            left.retain(|name| !self.before.contains(name));
            if left.is_empty() {
                return;
            }
            assert!(start.elapsed() < PATIENCE, "shared memory that nobody has mapped is still there: {left:?}");
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

/// Shared memory that nobody has mapped any more and that stays nevertheless, until someone removes it: names in `/dev/shm`
/// and ids of System V segments.
fn orphaned_shared_memory() -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir("/dev/shm")
        .into_iter()
        .flatten()
        .filter_map(|entry| Some(entry.ok()?.path().to_string_lossy().into_owned()))
        .filter(|name| name.contains("ucx") || name.contains("thallus"))
        .collect();
    let segments = fs::read_to_string("/proc/sysvipc/shm").unwrap_or_default();
    names.extend(segments.lines().skip(1).filter_map(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let field = |index: usize| fields.get(index).copied().unwrap_or("?");
        // Attached by nobody, and with pages. One without pages was made by a process that was killed between `shmget` and
        // `shmat`: an identifier is lost then, as it must be with System V, and no memory.
        (field(6) == "0" && field(14) != "0").then(|| format!("shmid {}", field(1)))
    }));
    if !names.is_empty() {
        let used = files_in_use();
        names.retain(|name| !used.contains(name.as_str()));
    }
    names
}
