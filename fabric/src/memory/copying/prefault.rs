//! Page tables of shared memory that is about to be read.

use std::ptr;
use std::sync::{Mutex, PoisonError};

use crate::memory::PAGE;

/// Memory of the peer in this process's address space. The first touch of each page costs a page fault, and several
/// times as much as copying the page. This type touches many pages by one system call instead.
#[derive(Debug)]
pub struct Prefault {
    start: usize,
    len: usize,
    /// Which blocks have been touched.
    touched: Mutex<Vec<bool>>,
}

impl Prefault {
    /// The lender may have memory around what it lends that it has never touched. Touching it here would allocate it,
    /// so blocks are short.
    const BLOCK: usize = 64 << 10;

    /// A mapping of `len` bytes at `start`; `None` if that is not whole pages.
    pub fn new(start: usize, len: usize) -> Option<Self> {
        let whole = start.is_multiple_of(PAGE) && len > 0 && start.checked_add(len).is_some();
        whole.then(|| Prefault { start, len, touched: Mutex::new(vec![false; len.div_ceil(Self::BLOCK)]) })
    }

    /// Maps the pages around `offset .. offset + len` that no read has touched yet.
    pub fn prefault(&self, offset: u64, len: u64) {
        let (Ok(first), Ok(last)) = (usize::try_from(offset), usize::try_from(offset.saturating_add(len.max(1)) - 1))
        else {
            return;
        };
        let mut block = first / Self::BLOCK;
        while block <= last / Self::BLOCK {
            let (from, to) = {
                let mut touched = self.touched.lock().unwrap_or_else(PoisonError::into_inner);
                let end = touched.len().min(last / Self::BLOCK + 1);
                let Some(from) = (block..end).find(|&block| !touched[block]) else { return };
                let to = (from..end).find(|&block| touched[block]).unwrap_or(end);
                touched[from..to].fill(true);
                (from * Self::BLOCK, to * Self::BLOCK)
                // Other connections' reads need not wait for the call below.
            };
            block = to / Self::BLOCK;
            // SAFETY: fills page tables for reading, as reads would, and changes no byte. Where the range is not
            // mapped, or is not what the peer said it is, the kernel answers with an error, as an older kernel does;
            // that only costs speed.
            unsafe {
                let start = ptr::without_provenance_mut(self.start + from);
                libc::madvise(start, self.len.min(to) - from, libc::MADV_POPULATE_READ);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::memory::Pages;

    use super::*;

    fn touched(mapping: &Prefault) -> Vec<bool> {
        mapping.touched.lock().unwrap().clone()
    }

    #[test]
    fn blocks_are_readied_once_and_only_where_something_is_read() {
        let len = 3 * Prefault::BLOCK + PAGE;
        let pages = Pages::new(len).unwrap();
        let mapped = Prefault::new(pages.start().addr().get(), len).unwrap();
        mapped.prefault(Prefault::BLOCK as u64 - 1, 1);
        assert_eq!(touched(&mapped), [true, false, false, false]);
        mapped.prefault(Prefault::BLOCK as u64 * 2 - 1, 2);
        assert_eq!(touched(&mapped), [true, true, true, false]);
        mapped.prefault(len as u64 - 1, 1);
        assert_eq!(touched(&mapped), [true; 4]);
        // Nothing to be read, and ranges that `post_read` refuses before.
        mapped.prefault(0, 0);
        mapped.prefault(u64::MAX, u64::MAX);
    }

    #[test]
    fn what_is_not_mapped_is_left_alone() {
        let gone = {
            let pages = Pages::new(Prefault::BLOCK).unwrap();
            pages.start().addr().get()
        };
        Prefault::new(gone, Prefault::BLOCK).unwrap().prefault(0, 1);
        Prefault::new(usize::MAX - PAGE + 1, PAGE - 1).unwrap().prefault(0, 1);
        for (start, len) in [(1, PAGE), (0, 0), (usize::MAX - PAGE + 1, PAGE)] {
            assert!(Prefault::new(start, len).is_none(), "{start:#x} {len}");
        }
    }
}
