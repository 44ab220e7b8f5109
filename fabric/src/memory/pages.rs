//! Anonymous memory: zeroed, touched, on huge pages where the kernel has them.

use std::io;
use std::ptr::{self, NonNull};
use std::sync::Arc;

use arrow_buffer::Buffer;

use super::PAGE;

const HUGE_PAGE: usize = 2 << 20;

/// A private anonymous mapping. Its drop unmaps it.
#[derive(Debug)]
pub struct Pages {
    start: NonNull<u8>,
    len: usize,
}

// SAFETY: the mapping belongs to the process, not to a thread; this type only holds its address.
unsafe impl Send for Pages {}
// SAFETY: as above.
unsafe impl Sync for Pages {}

impl Pages {
    /// Maps `len` bytes, a multiple of the page size, and touches them.
    ///
    /// # Errors
    /// The error of mmap(2).
    pub fn new(len: usize) -> io::Result<Self> {
        let align = if len >= HUGE_PAGE { HUGE_PAGE } else { 1 };
        let mapped = len.checked_add(align - 1).ok_or(io::ErrorKind::OutOfMemory)?;
        // SAFETY: a new mapping at an address of the kernel's choice.
        let address = unsafe {
            libc::mmap(
                ptr::null_mut(),
                mapped,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
                -1,
                0,
            )
        };
        if address == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let base = address as usize;
        let start = base.next_multiple_of(align);
        // Only an aligned mapping gets huge pages throughout. The parts outside of the alignment are unmapped.
        for (from, to) in [(base, start), (start + len, (base + mapped).next_multiple_of(PAGE))] {
            if to > from {
                // SAFETY: within the new mapping, and outside of the part that is kept.
                unsafe { libc::munmap(from as *mut _, to - from) };
            }
        }
        let start = NonNull::new(start as *mut u8).ok_or(io::ErrorKind::OutOfMemory)?;
        let pages = Pages { start, len };
        // SAFETY: exactly the mapping that is kept. This is advice only: a refusal costs speed.
        unsafe { libc::madvise(start.as_ptr().cast(), len, libc::MADV_HUGEPAGE) };
        // The first touch of a fresh page is by far the largest cost of a copy, so it happens here.
        // SAFETY: `len` bytes that are readable and writable, of a mapping that no other code can access yet.
        unsafe { start.write_bytes(0, len) };
        Ok(pages)
    }

    /// Address of the first byte.
    #[must_use]
    pub fn start(&self) -> NonNull<u8> {
        self.start
    }

    /// The pages as an arrow buffer, which owns them.
    #[must_use]
    pub fn into_buffer(self) -> Buffer {
        let (start, len) = (self.start, self.len);
        // SAFETY: `len` initialised bytes that stay mapped until `self` is dropped, which the buffer owns; no other
        // code has the address to write to.
        unsafe { Buffer::from_custom_allocation(start, len, Arc::new(self)) }
    }
}

impl Drop for Pages {
    fn drop(&mut self) {
        // SAFETY: mapped by `new`, unmapped once.
        unsafe { libc::munmap(self.start.as_ptr().cast(), self.len) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_are_zeroed_writable_and_aligned() {
        for len in [4096, 12288, HUGE_PAGE, 3 * HUGE_PAGE + 4096] {
            let pages = Pages::new(len).unwrap();
            let start = pages.start();
            assert!(len < HUGE_PAGE || start.addr().get().is_multiple_of(HUGE_PAGE));
            // SAFETY: within the mapping.
            let last = unsafe { start.add(len - 1) };
            // SAFETY: as above; no other code can access the mapping.
            unsafe {
                assert_eq!((start.read(), last.read()), (0, 0));
                last.write(7);
                assert_eq!(last.read(), 7);
            }
        }
    }

    #[test]
    fn a_buffer_keeps_them() {
        let buffer = Pages::new(8192).unwrap().into_buffer();
        let end = buffer.slice(8191);
        drop(buffer);
        assert_eq!(end.as_slice(), [0]);
    }

    #[test]
    fn too_much_is_an_error() {
        assert!(Pages::new(1 << 60).is_err());
    }
}
