//! Memory that this process lends: memory files, mapped for writing here and sealed against other processes.

use std::fmt;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::ptr::{self, NonNull};
use std::sync::Arc;

use rustix::fs::{MemfdFlags, Mode, OFlags, SealFlags};
use rustix::mm::{Advice, MapFlags, ProtFlags};
use thallus_fabric::memory::{PAGE, RegisteredMemory, check_available};
use thallus_fabric::{FabricError, FabricKind, Touch};

use crate::audience::Audience;

/// The seals of a region. Its length is fixed, so that a reader never takes SIGBUS, and no process maps it for writing
/// from now on (fcntl(2), `F_SEAL_FUTURE_WRITE`, Linux 5.1). This process goes on writing through its older mapping.
///
/// The seals also forbid to punch holes: memory goes back to the system only as a whole region.
pub(crate) const SEALS: SealFlags =
    SealFlags::SHRINK.union(SealFlags::GROW).union(SealFlags::FUTURE_WRITE).union(SealFlags::SEAL);

/// This crate's side of a region: its memory file, its mapping, and the users whom it may be shown to.
pub(crate) struct ShmRegistration {
    start: NonNull<u8>,
    len: usize,
    /// Read-only.
    file: OwnedFd,
    audience: Audience,
}

// SAFETY: the mapping belongs to the process and not to a thread; this type only knows its address.
unsafe impl Send for ShmRegistration {}
// SAFETY: as above.
unsafe impl Sync for ShmRegistration {}

impl ShmRegistration {
    /// A descriptor for peers. It can be mapped for reading only.
    pub(crate) fn file(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    /// The users whom the region may be shown to.
    pub(crate) fn audience(&self) -> Audience {
        self.audience
    }
}

impl Drop for ShmRegistration {
    fn drop(&mut self) {
        // SAFETY: mapped by `allocate` at this length, unmapped once; the owner of the memory is being dropped, so no
        // other code of this process refers to it. Peers have mappings of their own.
        if let Err(error) = unsafe { rustix::mm::munmap(self.start.as_ptr().cast(), self.len) } {
            tracing::error!(%error, "a region of shared memory could not be unmapped");
        }
    }
}

impl fmt::Debug for ShmRegistration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ShmRegistration({:?}, {:?})", self.file, self.audience)
    }
}

/// New memory of `len` bytes, rounded up to whole pages, which peers of this audience may read.
pub(crate) fn allocate(len: usize, touch: Touch, audience: Audience) -> Result<Arc<RegisteredMemory>, FabricError> {
    let error = |reason: String| FabricError::Registration { fabric: FabricKind::SHM, len, reason };
    let len = len.checked_next_multiple_of(PAGE).filter(|&rounded| len > 0 && isize::try_from(rounded).is_ok());
    let len = len.ok_or_else(|| error("zero or too many bytes".to_owned()))?;
    check_available(len)?;
    let (start, file) = map(len).map_err(|refused| {
        error(format!("memory file: {refused}; look at the limits of memory, address space and open files"))
    })?;
    let registration = ShmRegistration { start, len, file, audience };
    if touch == Touch::Now {
        populate(start, len);
    }
    // SAFETY: `len` bytes that the kernel has zeroed, readable and writable until the registration unmaps them. No
    // other part of this process knows the mapping, and the seals keep other processes from writing.
    Ok(Arc::new(unsafe { RegisteredMemory::new(start, len, Box::new(registration)) }))
}

/// A sealed memory file of `len` bytes: mapped for writing, and a descriptor for reading only.
fn map(len: usize) -> io::Result<(NonNull<u8>, OwnedFd)> {
    let file = rustix::fs::memfd_create("thallus", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
    // A process without a descriptor cannot open the file by `/proc/PID/fd` either, unless it is of this user.
    rustix::fs::fchmod(&file, Mode::RUSR)?;
    rustix::fs::ftruncate(&file, len as u64)?;
    let (access, flags) = (ProtFlags::READ | ProtFlags::WRITE, MapFlags::SHARED);
    // SAFETY: a new mapping at an address of the kernel's choice.
    let address = unsafe { rustix::mm::mmap(ptr::null_mut(), len, access, flags, &file, 0) }?;
    let sealed = rustix::fs::fcntl_add_seals(&file, SEALS).and_then(|()| reading_only(file));
    // SAFETY: advice on exactly the new mapping. Refusal costs speed only.
    _ = unsafe { rustix::mm::madvise(address, len, Advice::LinuxHugepage) };
    match (NonNull::new(address.cast::<u8>()), sealed) {
        (Some(start), Ok(file)) => Ok((start, file)),
        (_, sealed) => {
            // SAFETY: mapped above, and no other code knows it.
            unsafe { rustix::mm::munmap(address, len) }?;
            Err(sealed.err().map_or(io::ErrorKind::OutOfMemory.into(), io::Error::from))
        }
    }
}

/// The same file, opened for reading only. Where `/proc` is not mounted the descriptor stays as it is: its seals forbid
/// writing too.
fn reading_only(file: OwnedFd) -> rustix::io::Result<OwnedFd> {
    use std::os::fd::AsRawFd;
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    match rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()) {
        Ok(reading) => Ok(reading),
        Err(rustix::io::Errno::MFILE | rustix::io::Errno::NFILE) => Err(rustix::io::Errno::MFILE),
        Err(_) => Ok(file),
    }
}

/// Touches every page: the first touch of a page costs several times as much as copying it.
fn populate(start: NonNull<u8>, len: usize) {
    // SAFETY: the whole of a mapping that no other code knows yet. The advice changes no byte.
    let populated = unsafe { rustix::mm::madvise(start.as_ptr().cast(), len, Advice::LinuxPopulateWrite) };
    if populated.is_err() {
        // Linux before 5.14.
        // SAFETY: `len` writable bytes that no other code knows.
        unsafe { start.write_bytes(0, len) };
    }
}

#[cfg(test)]
mod tests {
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
