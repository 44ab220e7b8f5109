//! Resource usage of a process, from Linux's `/proc` (proc(5)).

use std::fs;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use thallus_fabric::process::files_in_use;

use crate::PATIENCE;

/// Unit of times in `/proc/PID/stat`: 1/100 s on every architecture that Linux supports.
const TICK: Duration = Duration::from_millis(10);

fn read(pid: u32, file: &str) -> String {
    let path = format!("/proc/{pid}/{file}");
    fs::read_to_string(&path).unwrap_or_else(|e| panic!("cannot read {path}: {e}"))
}

fn status(pid: u32, key: &str) -> u64 {
    let status = read(pid, "status");
    // A process that has ended and was not waited for has a status without memory.
    let Some(value) = status.lines().find_map(|line| line.strip_prefix(key)) else { return 0 };
    value
        .trim_matches([' ', '\t', ':'])
        .trim_end_matches(" kB")
        .parse()
        .unwrap_or_else(|e| panic!("{key} {value}: {e}"))
}

/// Peak resident memory of the process in bytes, with shared memory. Zero once the process has ended.
///
/// # Panics
/// If the process does not exist. All functions of this module panic then.
#[must_use]
pub fn peak_rss(pid: u32) -> u64 {
    status(pid, "VmHWM") * 1024
}

/// Resident memory of the process in bytes, with shared memory. Zero once the process has ended.
#[must_use]
pub fn rss(pid: u32) -> u64 {
    status(pid, "VmRSS") * 1024
}

/// CPU time of all threads of the process, in user and kernel mode.
#[must_use]
pub fn cpu(pid: u32) -> Duration {
    let stat = read(pid, "stat");
    // The second field is the program's name in parentheses, which may contain any character.
    let fields: Vec<&str> = stat.rsplit_once(") ").map_or("", |(_, rest)| rest).split(' ').collect();
    let ticks = |field: usize| fields[field].parse::<u32>().unwrap_or_else(|e| panic!("{stat}: {e}"));
    // utime and stime are fields 14 and 15; `fields` begins with field 3.
    TICK * (ticks(11) + ticks(12))
}

/// Number of open file descriptors of the process, without those of memory files: the heap has one for each of its
/// segments, and [`shared`] measures them.
#[must_use]
pub fn descriptors(pid: u32) -> usize {
    let entries = fs::read_dir(format!("/proc/{pid}/fd"));
    let entries = entries.unwrap_or_else(|e| panic!("cannot list descriptors of {pid}: {e}"));
    let is_memory = |target: &std::path::Path| target.to_string_lossy().starts_with("/memfd:");
    // A descriptor that is closed meanwhile has no target.
    let targets = entries.flatten().filter_map(|entry| fs::read_link(entry.path()).ok());
    targets.filter(|target| !is_memory(target)).count()
}

/// Bytes of shared memory that the process has mapped: POSIX, System V, and memory files.
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

/// Held by a test that kills processes during their start, and by a test that looks for orphaned shared memory. The
/// machine has one table of shared memory, which does not tell the processes of two tests apart. cargo runs one test
/// program at a time, and the tests of a program in parallel.
static KILLS: Mutex<()> = Mutex::new(());

/// Prevents tests with [`Orphans`] from running until the guard is dropped. For tests that may kill a process while it
/// creates shared memory: UCX names a POSIX segment, writes all of it, and then removes the name. A kill in between
/// leaves the segment.
pub fn lock_out_orphan_checks() -> MutexGuard<'static, ()> {
    // A failed test leaves no inconsistent state behind this lock.
    KILLS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Orphaned shared memory at one moment. A test does not fail for segments that were there before.
#[derive(Debug)]
pub struct Orphans {
    before: Vec<String>,
    _guard: MutexGuard<'static, ()>,
}

impl Orphans {
    /// Records the current orphans. Until this value is dropped, only this test kills processes.
    #[must_use]
    pub fn now() -> Self {
        let guard = lock_out_orphan_checks();
        Orphans { before: orphaned_shared_memory(), _guard: guard }
    }

    /// Waits until all orphans that appeared since [`now`](Self::now) are gone.
    ///
    /// # Panics
    /// If some remain after [`PATIENCE`].
    pub fn wait_until_gone(&self) {
        let start = Instant::now();
        loop {
            let mut left = orphaned_shared_memory();
            left.retain(|name| !self.before.contains(name));
            if left.is_empty() {
                return;
            }
            assert!(start.elapsed() < PATIENCE, "shared memory that no process has mapped remains: {left:?}");
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

/// Shared memory that no process has mapped and that remains until it is removed: names in `/dev/shm` and ids of System
/// V segments.
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
        // No attachment, but pages. A segment without pages was created by a process that was killed between `shmget`
        // and `shmat`. System V cannot prevent that; an id is lost, and no memory.
        (field(6) == "0" && field(14) != "0").then(|| format!("shmid {}", field(1)))
    }));
    if !names.is_empty() {
        let used = files_in_use();
        names.retain(|name| !used.contains(name.as_str()));
    }
    names
}
