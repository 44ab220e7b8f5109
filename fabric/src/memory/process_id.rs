//! The id of this process, without a system call.

use std::ptr;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};

use super::PAGE;

/// The id of this process, as [`std::process::id`], at the cost of a load: for code that must notice at each call that
/// it runs in a forked child.
#[must_use]
pub fn process_id() -> u32 {
    let Some(known) = known() else { return std::process::id() };
    match known.load(Ordering::Relaxed) {
        // The first call in this process, or in this child.
        0 => {
            let id = std::process::id();
            known.store(id, Ordering::Relaxed);
            id
        }
        id => id,
    }
}

/// A word that the kernel clears in a forked child (madvise(2), `MADV_WIPEONFORK`, Linux 4.14). `None` if the kernel
/// does not.
fn known() -> Option<&'static AtomicU32> {
    static WORD: OnceLock<Option<&'static AtomicU32>> = OnceLock::new();
    *WORD.get_or_init(|| {
        let access = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: a new mapping at an address of the kernel's choice.
        let page = unsafe { libc::mmap(ptr::null_mut(), PAGE, access, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, -1, 0) };
        if page == libc::MAP_FAILED {
            return None;
        }
        // SAFETY: exactly the new mapping, which no other code knows.
        if unsafe { libc::madvise(page, PAGE, wipe_on_fork()) } != 0 {
            // SAFETY: as above.
            unsafe { libc::munmap(page, PAGE) };
            return None;
        }
        // SAFETY: the mapping is zeroed, aligned and writable, and stays for as long as the process and its children;
        // this word is only accessed as an atomic.
        Some(unsafe { AtomicU32::from_ptr(page.cast()) })
    })
}

#[cfg(target_os = "linux")]
fn wipe_on_fork() -> libc::c_int {
    libc::MADV_WIPEONFORK
}

/// Advice that no kernel knows.
#[cfg(not(target_os = "linux"))]
fn wipe_on_fork() -> libc::c_int {
    -1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_forked_child_has_an_id_of_its_own() {
        let own = process_id();
        assert_eq!((own, process_id()), (std::process::id(), own));
        // SAFETY: the child only compares numbers and ends without exit handlers.
        let child = unsafe { libc::fork() };
        assert!(child >= 0);
        if child == 0 {
            let is_new = process_id() != own && process_id() == std::process::id();
            // SAFETY: as above.
            unsafe { libc::_exit(i32::from(!is_new)) };
        }
        let mut status = 0;
        // SAFETY: a child of this process, and room for its status.
        assert_eq!(unsafe { libc::waitpid(child, &raw mut status, 0) }, child);
        assert_eq!((status, process_id()), (0, own));
    }
}
