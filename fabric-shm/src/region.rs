//! Memory that this process lends: memory files, mapped for writing here and sealed against other processes.

use std::fmt;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use thallus_fabric::memory::{FileMapping, FilePiece, PAGE, RegisteredMemory, check_available};
use thallus_fabric::{FabricError, FabricKind, Touch};

use crate::audience::Audience;

/// This crate's side of a region: its memory file, and the users whom it may be shown to.
pub(crate) struct ShmRegistration {
    file: File,
    audience: Audience,
}

/// The file of a region, and the owner of its memory.
enum File {
    Own(FileMapping),
    OfTheHeap(FilePiece),
}

impl ShmRegistration {
    /// A descriptor for peers. It can be mapped for reading only.
    pub(crate) fn file(&self) -> BorrowedFd<'_> {
        match &self.file {
            File::Own(mapping) => mapping.as_fd(),
            File::OfTheHeap(piece) => piece.as_fd(),
        }
    }

    /// The users whom the region may be shown to.
    pub(crate) fn audience(&self) -> Audience {
        self.audience
    }
}

impl fmt::Debug for ShmRegistration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ShmRegistration({:?}, {:?})", self.file(), self.audience)
    }
}

/// New memory of `len` bytes, rounded up to whole pages, which peers of this audience may read.
pub(crate) fn allocate(len: usize, touch: Touch, audience: Audience) -> Result<Arc<RegisteredMemory>, FabricError> {
    let error = |reason: String| FabricError::Registration { fabric: FabricKind::SHM, len, reason };
    let len = len.checked_next_multiple_of(PAGE).filter(|&rounded| len > 0 && isize::try_from(rounded).is_ok());
    let len = len.ok_or_else(|| error("zero or too many bytes".to_owned()))?;
    check_available(len)?;
    let mapping = FileMapping::new(len).map_err(|refused| {
        error(format!("memory file: {refused}; look at the limits of memory, address space and open files"))
    })?;
    if touch == Touch::Now {
        mapping.populate();
    }
    let start = mapping.start();
    let registration = ShmRegistration { file: File::Own(mapping), audience };
    // SAFETY: `len` bytes that the kernel has zeroed, readable and writable until the registration unmaps them. No
    // other part of this process knows the mapping, and the seals keep other processes from writing.
    Ok(Arc::new(unsafe { RegisteredMemory::new(start, len, Box::new(registration)) }))
}

/// The memory of a piece of the heap, which peers of this audience may read.
pub(crate) fn adopt(piece: FilePiece, audience: Audience) -> Arc<RegisteredMemory> {
    let (start, len) = (piece.start(), piece.len());
    let registration = ShmRegistration { file: File::OfTheHeap(piece), audience };
    // SAFETY: the heap keeps the piece initialised and mapped until it is dropped with the registration. The heap
    // claims the memory: only its blocks lie there.
    Arc::new(unsafe { RegisteredMemory::new(start, len, Box::new(registration)) })
}

#[cfg(test)]
mod tests {
    use std::ptr;

    use rustix::fs::{Mode, OFlags, SealFlags};
    use rustix::mm::{MapFlags, ProtFlags};

    use super::*;

    fn region(len: usize) -> Arc<RegisteredMemory> {
        allocate(len, Touch::Now, Audience::SameUser).unwrap()
    }

    fn file(memory: &RegisteredMemory) -> BorrowedFd<'_> {
        memory.registration::<ShmRegistration>().unwrap().file()
    }

    #[test]
    fn lengths_are_whole_pages_and_the_memory_is_zeroed_and_writable() {
        for len in [1, PAGE, PAGE + 1, 3 << 20] {
            for touch in [Touch::Now, Touch::WhenUsed] {
                let memory = allocate(len, touch, Audience::SameUser).unwrap();
                assert_eq!(memory.len(), len.next_multiple_of(PAGE));
                assert!(memory.is_writable() && memory.address().is_multiple_of(PAGE as u64));
                assert_eq!(memory.copy_out(0, memory.len()), Some(vec![0; memory.len()]));
                // SAFETY: within the memory, which this test alone has.
                unsafe { memory.start().add(memory.len() - 1).write(7) };
                assert_eq!(memory.copy_out(memory.len() - 1, 1), Some(vec![7]));
            }
        }
        for len in [0, usize::MAX, isize::MAX as usize] {
            let refused = allocate(len, Touch::WhenUsed, Audience::SameUser);
            assert!(
                matches!(refused, Err(FabricError::Registration { .. } | FabricError::OutOfMemory { .. })),
                "{refused:?}"
            );
        }
    }

    /// Everything that the holder of the descriptor could try.
    #[test]
    fn a_descriptor_for_peers_allows_no_writing_no_resizing_and_no_new_seals() {
        use std::os::fd::AsRawFd;
        let memory = region(8192);
        let file = file(&memory);
        for (access, flags) in [
            (ProtFlags::WRITE, MapFlags::SHARED),
            (ProtFlags::READ | ProtFlags::WRITE, MapFlags::SHARED),
            (ProtFlags::READ | ProtFlags::WRITE, MapFlags::SHARED_VALIDATE),
        ] {
            // SAFETY: a new mapping at an address of the kernel's choice.
            let mapped = unsafe { rustix::mm::mmap(ptr::null_mut(), 8192, access, flags, file, 0) };
            assert!(mapped.is_err(), "{access:?}");
        }
        // SAFETY: as above.
        let reading = unsafe { rustix::mm::mmap(ptr::null_mut(), 8192, ProtFlags::READ, MapFlags::SHARED, file, 0) };
        let reading = reading.unwrap();
        // SAFETY: the mapping of the line above, which nothing refers to.
        let upgraded = unsafe { rustix::mm::mprotect(reading, 8192, rustix::mm::MprotectFlags::WRITE) };
        assert!(upgraded.is_err());
        // SAFETY: as above.
        unsafe { rustix::mm::munmap(reading, 8192) }.unwrap();
        assert!(rustix::io::write(file, b"x").is_err() && rustix::io::pwrite(file, b"x", 0).is_err());
        assert!(rustix::fs::ftruncate(file, 0).is_err() && rustix::fs::ftruncate(file, 1 << 20).is_err());
        let hole = rustix::fs::FallocateFlags::PUNCH_HOLE | rustix::fs::FallocateFlags::KEEP_SIZE;
        assert!(rustix::fs::fallocate(file, hole, 0, 4096).is_err());
        assert!(rustix::fs::fcntl_add_seals(file, SealFlags::WRITE).is_err());
        // A second opening for writing, as the owner's user could try: the seals hold there too.
        let path = format!("/proc/self/fd/{}", file.as_raw_fd());
        if let Ok(reopened) = rustix::fs::open(path, OFlags::RDWR, Mode::empty()) {
            assert!(rustix::io::pwrite(&reopened, b"x", 0).is_err() && rustix::fs::ftruncate(&reopened, 0).is_err());
            let flags = MapFlags::SHARED;
            // SAFETY: as above.
            let mapped = unsafe { rustix::mm::mmap(ptr::null_mut(), 8192, ProtFlags::WRITE, flags, &reopened, 0) };
            assert!(mapped.is_err());
        }
        assert_eq!(memory.copy_out(0, 8192), Some(vec![0; 8192]));
    }
}
