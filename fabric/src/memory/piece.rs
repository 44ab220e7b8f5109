//! A piece of the heap that a fabric can lend: its memory, and the file that it lies in.

use std::fmt;
use std::os::fd::{AsFd, BorrowedFd, RawFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicUsize, Ordering};

/// A piece of this process's heap, which lies in a sealed memory file ([`FileMapping`](super::FileMapping)). While this
/// value exists, the heap leaves the memory where it is.
pub struct FilePiece {
    start: NonNull<u8>,
    len: usize,
    file: RawFd,
    /// The pieces that exist of the same memory.
    alive: &'static AtomicUsize,
}

// SAFETY: an address and a number; memory is accessed only as `RegisteredMemory` allows.
unsafe impl Send for FilePiece {}
// SAFETY: as above.
unsafe impl Sync for FilePiece {}

impl FilePiece {
    /// A piece of `len` bytes at `start`, which `alive` counts until it is dropped.
    ///
    /// # Safety
    /// While `alive` is not 0, the bytes are initialised and mapped for reading and writing, `file` is their open
    /// memory file, and nothing but the owner's blocks lies there.
    #[cfg(target_os = "linux")]
    pub(super) unsafe fn new(
        start: NonNull<u8>,
        len: usize,
        file: BorrowedFd<'_>,
        alive: &'static AtomicUsize,
    ) -> Self {
        use std::os::fd::AsRawFd;
        alive.fetch_add(1, Ordering::AcqRel);
        FilePiece { start, len, file: file.as_raw_fd(), alive }
    }

    /// The memory of a file that is never unmapped.
    #[cfg(target_os = "linux")]
    #[must_use]
    pub fn of(mapping: &'static super::FileMapping) -> Self {
        static ALIVE: AtomicUsize = AtomicUsize::new(0);
        // SAFETY: the kernel has zeroed the memory, which stays mapped, with its file open, for as long as the process.
        unsafe { FilePiece::new(mapping.start(), mapping.len(), mapping.as_fd(), &ALIVE) }
    }

    /// Address of the first byte.
    #[must_use]
    pub fn start(&self) -> NonNull<u8> {
        self.start
    }

    /// Length in bytes.
    #[must_use]
    #[expect(clippy::len_without_is_empty, reason = "a piece is not empty")]
    pub fn len(&self) -> usize {
        self.len
    }
}

impl AsFd for FilePiece {
    /// A descriptor for peers. It can be mapped for reading only.
    fn as_fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the heap keeps the file open while a piece exists.
        unsafe { BorrowedFd::borrow_raw(self.file) }
    }
}

impl fmt::Debug for FilePiece {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "FilePiece({:?}+{})", self.start, self.len)
    }
}

impl Drop for FilePiece {
    fn drop(&mut self) {
        self.alive.fetch_sub(1, Ordering::AcqRel);
    }
}
