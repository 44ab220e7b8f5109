//! The memory that this process may use: the host's memory, or less where control groups limit the process.
//!
//! A limit may be set on the process's own control group (a container, a systemd service) or on any group above it (a
//! slice); the smallest limit applies. Both versions are read: cgroup v2 (`memory.max`, Linux's cgroup-v2.rst) and v1
//! (`memory.limit_in_bytes`, cgroup-v1/memory.rst), also side by side. Inside a container the path in
//! `/proc/self/cgroup` may name a group that is not visible there. The visible groups count, down to the root of the
//! mount.

use std::fs;
use std::path::{Component, Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::FabricError;

/// The memory that this process may use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostMemory {
    /// The minimum of the host's memory and of all limits on the process, in bytes.
    pub limit: u64,
    /// Bytes that the process can allocate now before it exhausts the host's memory or a limit.
    pub available: u64,
    /// The file of the smallest limit; `None` if the host's memory is the minimum.
    pub limited_by: Option<PathBuf>,
}

impl HostMemory {
    /// The current memory of this host and process. `None` where `/proc/meminfo` does not exist.
    #[must_use]
    pub fn now() -> Option<Self> {
        Self::at(Path::new("/proc"), Path::new("/sys/fs/cgroup"))
    }

    /// The memory according to the files below `proc` and `cgroup`.
    fn at(proc: &Path, cgroup: &Path) -> Option<Self> {
        let meminfo = fs::read_to_string(proc.join("meminfo")).ok()?;
        let limit = meminfo_bytes(&meminfo, "MemTotal:")?;
        let available = meminfo_bytes(&meminfo, "MemAvailable:").unwrap_or(limit);
        let mut memory = HostMemory { limit, available, limited_by: None };
        for group in Group::all(proc, cgroup) {
            let Some((file, limit)) = group.limit() else { continue };
            if limit < memory.limit {
                memory.limit = limit;
                memory.limited_by = Some(file);
            }
            memory.available = memory.available.min(limit.saturating_sub(group.used()));
        }
        Some(memory)
    }
}

/// Refuses a length that this process cannot allocate. The kernel would promise the memory, and kill processes when it
/// is touched. UCX 1.13 (`uct_posix_test_mem`) tests a segment's size by writing it to `/dev/shm`, until every process
/// of the host is out of memory.
///
/// # Errors
/// [`FabricError::OutOfMemory`].
pub fn check_available(len: usize) -> Result<(), FabricError> {
    static LAST: Mutex<Option<Reading>> = Mutex::new(None);
    // The value is replaced in one step.
    let mut last = LAST.lock().unwrap_or_else(PoisonError::into_inner);
    let now = Instant::now();
    if last.as_mut().is_some_and(|last| last.has_room(len, now)) {
        return Ok(());
    }
    // A host without /proc/meminfo gets no check.
    let Some(HostMemory { limit, available, .. }) = HostMemory::now() else { return Ok(()) };
    let [limit, available] = [limit, available].map(|bytes| usize::try_from(bytes).unwrap_or(usize::MAX));
    if len > available {
        return Err(FabricError::OutOfMemory { len, available, limit });
    }
    *last = Some(Reading { at: now, left: available / PART });
    Ok(())
}

/// Time for which a reading of the host's memory is used. It takes some forty files, and as many times as long as to
/// allocate a page.
const FRESH: Duration = Duration::from_secs(1);
/// The part of the available memory that may be allocated without another reading.
const PART: usize = 64;

/// The memory that was available at some time.
struct Reading {
    at: Instant,
    /// Bytes that may be allocated before the next reading.
    left: usize,
}

impl Reading {
    /// Takes `len` bytes of what is left, if that is possible.
    fn has_room(&mut self, len: usize, now: Instant) -> bool {
        let left = self.left.checked_sub(len).filter(|_| now.duration_since(self.at) < FRESH);
        left.map(|left| self.left = left).is_some()
    }
}

/// The content of a file of the process's own control group, or of the nearest group above it that has such a file
/// (cgroup v2).
pub(crate) fn cgroup_file(name: &str) -> Option<String> {
    let groups = Group::all(Path::new("/proc"), Path::new("/sys/fs/cgroup"));
    groups.iter().filter(|group| !group.is_v1).find_map(|group| fs::read_to_string(group.dir.join(name)).ok())
}

/// The value of a line of `/proc/meminfo`, which is in KiB, in bytes.
fn meminfo_bytes(meminfo: &str, name: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix(name))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

/// A control group that limits this process.
#[derive(Debug)]
struct Group {
    dir: PathBuf,
    is_v1: bool,
}

impl Group {
    /// The process's own groups and the groups above them, each list from the own group to the root.
    fn all(proc: &Path, cgroup: &Path) -> Vec<Group> {
        let own = fs::read_to_string(proc.join("self/cgroup")).unwrap_or_default();
        let mut groups = Vec::new();
        // "ID:CONTROLLERS:PATH", where v2 has the id 0 and no controllers (cgroups(7)).
        for line in own.lines() {
            let mut fields = line.splitn(3, ':').skip(1);
            let (Some(controllers), Some(path)) = (fields.next(), fields.next()) else { continue };
            let (mounts, is_v1) = match controllers {
                // On hosts with v1, v2 is mounted at `unified`.
                "" => (vec![cgroup.to_owned(), cgroup.join("unified")], false),
                _ if controllers.split(',').any(|controller| controller == "memory") => {
                    (vec![cgroup.join("memory"), cgroup.join(controllers)], true)
                }
                _ => continue,
            };
            for mount in mounts {
                let ancestors = visible(path).ancestors().map(Path::to_owned).collect::<Vec<_>>();
                groups.extend(ancestors.into_iter().map(|path| Group { dir: mount.join(path), is_v1 }));
            }
        }
        groups
    }

    fn limit(&self) -> Option<(PathBuf, u64)> {
        let file = self.dir.join(if self.is_v1 { "memory.limit_in_bytes" } else { "memory.max" });
        // "max" does not parse. v1 writes a number beyond all memory instead.
        let limit = number(&file)?;
        Some((file, limit))
    }

    /// Bytes in use that the kernel cannot reclaim at once: without file pages that have not been used lately.
    fn used(&self) -> u64 {
        let (usage, cached) = if self.is_v1 {
            ("memory.usage_in_bytes", "total_inactive_file ")
        } else {
            ("memory.current", "inactive_file ")
        };
        let stat = fs::read_to_string(self.dir.join("memory.stat")).unwrap_or_default();
        let cached = stat.lines().find_map(|line| line.strip_prefix(cached)?.trim().parse::<u64>().ok());
        number(&self.dir.join(usage)).unwrap_or(0).saturating_sub(cached.unwrap_or(0))
    }
}

fn number(file: &Path) -> Option<u64> {
    fs::read_to_string(file).ok()?.trim().parse().ok()
}

/// The part of a group's path that can be below the mount: a group outside the namespace's root has `..` in its path.
fn visible(path: &str) -> PathBuf {
    let relative = Path::new(path.trim_start_matches('/'));
    let is_plain = relative.components().all(|component| matches!(component, Component::Normal(_)));
    if is_plain { relative.to_owned() } else { PathBuf::new() }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MB: u64 = 1_000_000;
    const MEMINFO: &str = "MemTotal:        8000000 kB\nMemFree:         100 kB\nMemAvailable:    6000000 kB\n";
    const HOST: HostMemory = HostMemory { limit: 8_000_000 << 10, available: 6_000_000 << 10, limited_by: None };

    /// The result with these files below `/sys/fs/cgroup`, and this `/proc/self/cgroup`. The path of the limit's file
    /// is relative to that directory.
    fn found(own: &str, files: &[(&str, &str)]) -> HostMemory {
        let root = tempfile::tempdir().unwrap();
        let (proc, cgroup) = (root.path().join("proc"), root.path().join("cgroup"));
        let all = [(proc.join("meminfo"), MEMINFO), (proc.join("self/cgroup"), own)];
        let below = files.iter().map(|(path, content)| (cgroup.join(path), *content));
        for (path, content) in all.into_iter().chain(below) {
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, content).unwrap();
        }
        let mut memory = HostMemory::at(&proc, &cgroup).unwrap();
        memory.limited_by = memory.limited_by.map(|file| file.strip_prefix(&cgroup).unwrap().to_owned());
        memory
    }

    fn limited(file: &str, limit: u64, available: u64) -> HostMemory {
        HostMemory { limit, available, limited_by: Some(file.into()) }
    }

    #[test]
    fn without_limits_it_is_the_hosts() {
        assert_eq!(found("", &[]), HOST);
        assert_eq!(found("0::/\n", &[]), HOST);
        assert_eq!(found("0::/a.slice/b.service\n", &[("a.slice/b.service/memory.max", "max\n")]), HOST);
        assert_eq!(found("nonsense\n1:\n", &[("memory.max", "1\n")]), HOST);
        // A limit above the host's memory does not count.
        let more = found("0::/\n", &[("memory.max", "9000000000000\n")]);
        assert_eq!((more.limit, more.limited_by), (HOST.limit, None));
    }

    #[test]
    fn a_container_with_its_own_namespace_is_limited_at_the_root() {
        let files = [("memory.max", "600000000\n"), ("memory.current", "100000000\n")];
        assert_eq!(found("0::/\n", &files), limited("memory.max", 600 * MB, 500 * MB));
        // The path of a group outside of the namespace.
        assert_eq!(found("0::/../other.scope\n", &files), limited("memory.max", 600 * MB, 500 * MB));
    }

    #[test]
    fn the_least_limit_of_all_ancestors_applies() {
        let own = "0::/machine.slice/pod/x.scope\n";
        let files = [
            ("machine.slice/memory.max", "600000000\n"),
            ("machine.slice/memory.current", "550000000\n"),
            ("machine.slice/pod/memory.max", "max\n"),
            ("machine.slice/pod/x.scope/memory.max", "700000000\n"),
            ("machine.slice/pod/x.scope/memory.current", "10000000\n"),
            ("other.slice/memory.max", "1000\n"),
        ];
        assert_eq!(found(own, &files), limited("machine.slice/memory.max", 600 * MB, 50 * MB));
        assert_eq!(
            found("0::/system.slice/t.service\n", &[("system.slice/t.service/memory.max", "600000000")]),
            limited("system.slice/t.service/memory.max", 600 * MB, 600 * MB)
        );
    }

    #[test]
    fn less_may_be_available_below_a_higher_limit() {
        let files = [
            ("a/memory.max", "700000000"),
            ("a/memory.current", "690000000"),
            ("a/b/memory.max", "600000000"),
            ("a/b/memory.current", "10000000"),
        ];
        assert_eq!(found("0::/a/b\n", &files), limited("a/b/memory.max", 600 * MB, 10 * MB));
    }

    #[test]
    fn version_1_is_read_in_a_container_and_outside() {
        let own = "12:cpu,cpuacct:/other\n4:memory:/docker/abc\n0::/\n";
        let inside = [("memory/memory.limit_in_bytes", "600000000\n"), ("memory/memory.usage_in_bytes", "50000000\n")];
        assert_eq!(found(own, &inside), limited("memory/memory.limit_in_bytes", 600 * MB, 550 * MB));
        let outside = [
            ("memory/docker/abc/memory.limit_in_bytes", "600000000\n"),
            ("memory/memory.limit_in_bytes", "9223372036854771712\n"),
        ];
        assert_eq!(found(own, &outside), limited("memory/docker/abc/memory.limit_in_bytes", 600 * MB, 600 * MB));
        let joined = [("cpu,memory/x/memory.limit_in_bytes", "600000000\n")];
        assert_eq!(found("4:cpu,memory:/x\n", &joined).limit, 600 * MB);
        // Version 2 together with version 1.
        let unified = [("unified/x/memory.max", "600000000\n")];
        assert_eq!(found("4:memory:/\n0::/x\n", &unified).limit, 600 * MB);
    }

    #[test]
    fn pages_of_files_that_are_not_in_use_are_available() {
        let v2 = [
            ("memory.max", "600000000"),
            ("memory.current", "500000000"),
            ("memory.stat", "anon 1\ninactive_file 300000000\nactive_file 7\n"),
        ];
        assert_eq!(found("0::/\n", &v2).available, 400 * MB);
        let v1 = [
            ("memory/memory.limit_in_bytes", "600000000"),
            ("memory/memory.usage_in_bytes", "500000000"),
            ("memory/memory.stat", "inactive_file 1\ntotal_inactive_file 300000000\n"),
        ];
        assert_eq!(found("4:memory:/\n", &v1).available, 400 * MB);
    }

    #[test]
    fn more_than_the_process_can_have_is_refused() {
        let refused = check_available(1 << 50);
        assert!(
            matches!(refused, Err(FabricError::OutOfMemory { available, limit, .. }) if available <= limit),
            "{refused:?}"
        );
        assert_eq!(check_available(4096), Ok(()));
        assert!(check_available(1 << 50).is_err(), "after a reading, too");
    }

    #[test]
    fn a_reading_answers_for_a_part_of_the_memory_and_for_a_while() {
        let at = Instant::now();
        let mut reading = Reading { at, left: 10_000 };
        assert!(reading.has_room(4096, at) && reading.has_room(4096, at));
        assert!(!reading.has_room(4096, at), "two thousand are left");
        assert!(reading.has_room(1000, at + FRESH / 2) && !reading.has_room(1, at + FRESH));
    }
}
