//! Counts page faults, to check code that must cause none.

use std::mem::MaybeUninit;

/// Number of minor page faults of this thread so far (getrusage(2), `RUSAGE_THREAD`). Each fault mapped a page, and
/// zeroed it if it was fresh. Zero where the system does not report it.
#[must_use]
pub fn thread_page_faults() -> u64 {
    let mut usage = MaybeUninit::<libc::rusage>::uninit();
    // SAFETY: the pointer is to a whole `rusage`, which the call writes and does not keep.
    let said = unsafe { libc::getrusage(libc::RUSAGE_THREAD, usage.as_mut_ptr()) };
    if said != 0 {
        return 0;
    }
    // SAFETY: the call succeeded, so it has written all of it.
    let usage = unsafe { usage.assume_init() };
    u64::try_from(usage.ru_minflt).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::{PAGE, Pages};

    #[test]
    fn touching_fresh_pages_counts_and_touching_them_again_does_not() {
        const COUNT: usize = 64;
        // Less than a huge page, so that each page causes a fault of its own.
        let before = thread_page_faults();
        let pages = Pages::new(COUNT * PAGE).unwrap();
        let fresh = thread_page_faults() - before;
        assert!(fresh >= COUNT as u64, "{fresh} faults for {COUNT} fresh pages");
        let start = pages.start();
        let before = thread_page_faults();
        for page in 0..COUNT {
            // SAFETY: within the mapping, which is readable and this test's own.
            std::hint::black_box(unsafe { start.add(page * PAGE).read_volatile() });
        }
        let again = thread_page_faults() - before;
        assert!(again < COUNT as u64 / 4, "{again} faults for pages that are mapped already");
    }
}
