//! Memory of a peer, mapped for reading.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::ptr::{self, NonNull};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use rustix::fs::SealFlags;
use rustix::mm::{MapFlags, ProtFlags};

use thallus_fabric::memory::copying::Prefault;

/// A region of a peer, readable in this process until it is dropped, whatever becomes of the peer.
#[derive(Debug)]
pub(crate) struct Attachment {
    start: NonNull<u8>,
    len: usize,
    prefault: Option<Prefault>,
}

// SAFETY: it is memory that this process only reads, and an address to unmap it by, from any thread.
unsafe impl Send for Attachment {}
// SAFETY: as above.
unsafe impl Sync for Attachment {}

impl Attachment {
    /// Maps the memory file of a peer, which is untrusted: only what can never get shorter is mapped, so that no read
    /// of it raises SIGBUS.
    pub(crate) fn new(file: &OwnedFd, len: u64) -> Result<Self, String> {
        let found = rustix::fs::fstat(file).map_err(|error| format!("fstat: {error}"))?.st_size;
        let len = usize::try_from(len).ok().filter(|&len| len > 0 && u64::try_from(found) == Ok(len as u64));
        let len = len.ok_or_else(|| format!("its memory file has {found} bytes, and not as many as its peer says"))?;
        let start = map(file, len).map_err(|error| {
            format!("mapping {len} bytes: {error}; look at the limit of address space (`ulimit -v`)")
        })?;
        Ok(Attachment { start, len, prefault: Prefault::new(start.addr().get(), len) })
    }

    /// Bytes in it.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Where `len` bytes at `offset` are.
    pub(crate) fn find(&self, offset: u64, len: u64) -> Option<NonNull<u8>> {
        let offset = usize::try_from(offset).ok()?;
        let end = offset.checked_add(usize::try_from(len).ok()?)?;
        // SAFETY: the offset lies within the mapping.
        (end <= self.len).then(|| unsafe { self.start.add(offset) })
    }

    /// Maps the pages of a range that is about to be read for the first time.
    pub(crate) fn prefault(&self, offset: u64, len: u64) {
        if let Some(prefault) = &self.prefault {
            prefault.prefault(offset, len);
        }
    }
}

impl Drop for Attachment {
    fn drop(&mut self) {
        // SAFETY: mapped by `new` at this length, unmapped once; every reader holds `self`.
        if let Err(error) = unsafe { rustix::mm::munmap(self.start.as_ptr().cast(), self.len) } {
            tracing::error!(%error, "a peer's memory could not be unmapped");
        }
    }
}

/// Maps `len` bytes of a file for reading. Huge pages of the file need an address that is a multiple of their size. The
/// kernel does not always choose such an address by itself.
fn map(file: &OwnedFd, len: usize) -> rustix::io::Result<NonNull<u8>> {
    const HUGE_PAGE: usize = 2 << 20;
    let (access, flags) = (ProtFlags::READ, MapFlags::SHARED);
    let spare = if len >= HUGE_PAGE { HUGE_PAGE } else { 0 };
    let reserved = len.checked_add(spare).ok_or(rustix::io::Errno::NOMEM)?;
    let nothing = MapFlags::PRIVATE | MapFlags::NORESERVE;
    // SAFETY: a new mapping at an address of the kernel's choice, of which the file then replaces a part, and the rest
    // is unmapped. No other code knows it.
    unsafe {
        let base = rustix::mm::mmap_anonymous(ptr::null_mut(), reserved, ProtFlags::empty(), nothing)?;
        let before = if spare > 0 { base.addr().next_multiple_of(HUGE_PAGE) - base.addr() } else { 0 };
        let start = base.add(before);
        let mapped = rustix::mm::mmap(start, len, access, flags | MapFlags::FIXED, file, 0);
        let end = len.next_multiple_of(thallus_fabric::memory::PAGE);
        let rest = if mapped.is_ok() {
            [(base, before), (start.add(end), reserved.saturating_sub(before + end))]
        } else {
            [(base, reserved), (base, 0)]
        };
        for (from, len) in rest.into_iter().filter(|&(_, len)| len > 0) {
            _ = rustix::mm::munmap(from, len);
        }
        NonNull::new(mapped?.cast::<u8>()).ok_or(rustix::io::Errno::NOMEM)
    }
}

/// Checks that a descriptor of a peer is a memory file that never gets shorter and from which no page can vanish. Huge
/// pages could: a hole that is punched into them may not be filled again.
pub(crate) fn check(file: &OwnedFd) -> Result<(), String> {
    // First of all: it fails for everything that is not a memory file, and never waits for a file system.
    let seals = rustix::fs::fcntl_get_seals(file).map_err(|error| format!("it is no memory file: {error}"))?;
    if !seals.contains(SealFlags::SHRINK) {
        return Err("its memory file is not sealed against shrinking".to_owned());
    }
    if !seals.intersects(SealFlags::WRITE | SealFlags::FUTURE_WRITE) {
        return Err("its memory file is not sealed against holes".to_owned());
    }
    match rustix::fs::fstatfs(file) {
        Ok(found) if found.f_type == TMPFS_MAGIC => Ok(()),
        Ok(found) => Err(format!("its memory file is of another kind of memory ({:#x})", found.f_type)),
        Err(error) => Err(format!("fstatfs: {error}")),
    }
}

/// `TMPFS_MAGIC` of Linux's magic.h: ordinary shared memory.
const TMPFS_MAGIC: rustix::fs::FsWord = 0x0102_1994;

/// Most bytes and regions of peers that a fabric maps at a time. Address space and the kernel's table of mappings
/// (`vm.max_map_count`) have an end, and the process needs some of both itself.
const MAX_BYTES: u64 = 16 << 40;
const MAX_ATTACHMENTS: usize = 8192;

/// The attachments of a fabric: connections to one server share the mapping of its heap, its page tables, and its first
/// touch.
#[derive(Debug, Default)]
pub(crate) struct Attachments(Mutex<Vec<(FileId, Weak<Attachment>)>>);

/// The device and inode of a memory file. While the file is mapped here no other has them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct FileId(u64, u64);

impl Attachments {
    /// The attachment of this file: the one that another endpoint has, or a new one.
    pub(crate) fn attach(&self, file: &OwnedFd, len: u64) -> Result<Arc<Attachment>, String> {
        check(file)?;
        let id = identify(file).map_err(|error| format!("fstat: {error}"))?;
        let mut attached = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let known = attached.iter().filter(|(other, _)| *other == id).find_map(|(_, known)| known.upgrade());
        if let Some(known) = known.filter(|known| known.len() as u64 == len) {
            return Ok(known);
        }
        attached.retain(|(_, known)| known.strong_count() > 0);
        let bytes: u64 = attached.iter().filter_map(|(_, known)| Some(known.upgrade()?.len() as u64)).sum();
        if attached.len() >= MAX_ATTACHMENTS || bytes.saturating_add(len) > MAX_BYTES {
            return Err(format!("{} regions of {bytes} bytes are mapped already", attached.len()));
        }
        let new = Arc::new(Attachment::new(file, len)?);
        attached.push((id, Arc::downgrade(&new)));
        Ok(new)
    }
}

fn identify(file: &OwnedFd) -> io::Result<FileId> {
    let stat = rustix::fs::fstat(file.as_fd())?;
    Ok(FileId(stat.st_dev, stat.st_ino))
}

#[cfg(test)]
mod tests {
    use rustix::fs::MemfdFlags;

    use super::*;

    const SEALED: SealFlags = SealFlags::SHRINK.union(SealFlags::FUTURE_WRITE);

    fn memory_file(len: u64, seals: SealFlags) -> OwnedFd {
        let file = rustix::fs::memfd_create("x", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING).unwrap();
        rustix::fs::ftruncate(&file, len).unwrap();
        rustix::io::pwrite(&file, &[9; 4096], 0).unwrap();
        rustix::fs::fcntl_add_seals(&file, seals).unwrap();
        file
    }

    #[test]
    fn a_file_is_mapped_once_and_read_no_further_than_it_reaches() {
        let (attachments, file) = (Attachments::default(), memory_file(8192, SEALED));
        let attached = attachments.attach(&file, 8192).unwrap();
        assert!(Arc::ptr_eq(&attached, &attachments.attach(&file.try_clone().unwrap(), 8192).unwrap()));
        let other = attachments.attach(&memory_file(8192, SEALED), 8192).unwrap();
        assert!(!Arc::ptr_eq(&attached, &other));
        drop(file);
        let start = attached.find(4000, 96).unwrap();
        // SAFETY: within the mapping, which is alive, and which no process writes any more.
        assert_eq!(unsafe { std::slice::from_raw_parts(start.as_ptr(), 96) }, [9; 96]);
        assert!(attached.find(0, 8192).is_some() && attached.find(8192, 0).is_some());
        for (offset, len) in [(0, 8193), (8192, 1), (u64::MAX, 1), (1, u64::MAX)] {
            assert!(attached.find(offset, len).is_none(), "{offset} {len}");
        }
        attached.prefault(4096, 1);
    }

    #[test]
    fn a_file_that_could_get_shorter_or_is_no_memory_is_refused() {
        let attachments = Attachments::default();
        let refused = |file: &OwnedFd, len| attachments.attach(file, len).unwrap_err();
        assert!(refused(&memory_file(4096, SealFlags::GROW), 4096).contains("shrinking"));
        assert!(refused(&memory_file(4096, SealFlags::SHRINK), 4096).contains("holes"));
        assert!(refused(&memory_file(4096, SEALED), 8192).contains("4096 bytes"));
        assert!(refused(&memory_file(4096, SEALED), 0).contains("4096 bytes"));
        assert!(refused(&tempfile::tempfile().unwrap().into(), 4096).contains("no memory file"));
    }
}
