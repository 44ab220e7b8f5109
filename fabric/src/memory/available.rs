//! What the host has left.

use std::ffi::CString;
use std::mem::MaybeUninit;

use crate::FabricError;

/// Refuses what the host does not have. The kernel would promise it and kill processes when it is touched; and UCX 1.13
/// (`uct_posix_test_mem`) tries a segment's size by writing it to `/dev/shm`, until every process of the host is out of memory.
///
/// # Errors
/// [`FabricError::OutOfMemory`].
pub fn check_available(len: usize) -> Result<(), FabricError> {
    // A host without /proc/meminfo gets no check.
    let Ok(meminfo) = std::fs::read_to_string("/proc/meminfo") else { return Ok(()) };
    let (Some(limit), Some(available)) =
        (meminfo_bytes(&meminfo, "MemTotal:"), meminfo_bytes(&meminfo, "MemAvailable:"))
    else {
        return Ok(());
    };
    if len > available { Err(FabricError::OutOfMemory { len, available, limit }) } else { Ok(()) }
}

/// A line of `/proc/meminfo`, which is in KiB.
fn meminfo_bytes(meminfo: &str, name: &str) -> Option<usize> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix(name))?;
    line.trim().strip_suffix("kB")?.trim().parse::<usize>().ok()?.checked_mul(1024)
}

/// Bytes that the file system at `path` has left for this process; `None` if there is none.
pub(crate) fn room_in(path: &str) -> Option<u64> {
    let path = CString::new(path).ok()?;
    let mut found = MaybeUninit::<libc::statvfs>::uninit();
    // SAFETY: a C string, and room for the result.
    if unsafe { libc::statvfs(path.as_ptr(), found.as_mut_ptr()) } != 0 {
        return None;
    }
    // SAFETY: filled in by the successful call.
    let found = unsafe { found.assume_init() };
    found.f_bavail.checked_mul(found.f_frsize)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_system_says_what_it_has_left() {
        assert!(room_in("/").is_some());
        assert_eq!(room_in("/nowhere/at/all"), None);
        assert_eq!(room_in("with\0nul"), None);
    }

    #[test]
    fn more_than_the_host_has_is_refused() {
        let refused = check_available(1 << 50);
        assert!(
            matches!(refused, Err(FabricError::OutOfMemory { available, limit, .. }) if available <= limit),
            "{refused:?}"
        );
        assert_eq!(check_available(4096), Ok(()));
    }

    #[test]
    fn meminfo_is_read_in_bytes() {
        let text = "MemTotal:       24123456 kB\nMemFree:        1 kB\n";
        assert_eq!(meminfo_bytes(text, "MemTotal:"), Some(24_123_456 << 10));
        assert_eq!(meminfo_bytes(text, "MemAvailable:"), None);
    }
}
