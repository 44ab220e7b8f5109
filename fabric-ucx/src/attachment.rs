//! Shared-memory segments that a peer's remote key names. This crate attaches them itself: for reading only, and for as
//! long as they are needed, even after the end of the peer and its endpoint.
//!
//! UCX could attach them too (`ucp_ep_rkey_unpack`, `ucp_rkey_ptr`), but for writing, at the length that the peer
//! announces, and bound to a worker and its thread. UCX before 1.19 crashes if the segment is gone: its error path
//! releases entries that it had not unpacked yet (`ucp_ep_rkey_unpack_internal`, `err_destroy`). A System V segment
//! cannot be shortened, so a length that was checked stays true. A POSIX segment can: reading a part that its owner has
//! cut off raises SIGBUS.

use std::ffi::c_void;
use std::fs::File;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::AsRawFd;
use std::ptr::{self, NonNull};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use crate::domains::{POSIX, PROCFS, SYSTEM_V, number};
use crate::envelope;
use thallus_fabric::memory::copying::Prefault;

/// Flags of a POSIX segment that has another kind of name, other pages, or another PID namespace.
const OTHERWISE: u64 = 0b111 << 60;

/// A segment, as a key names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Segment {
    name: Name,
    /// Address of its first byte in the owner's address space.
    owner: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Name {
    Sysv { id: i32 },
    Posix { pid: u32, fd: u32 },
}

/// The segment that `key` names. The key is of a peer in the namespaces of this process. At most one of its memory
/// domains has allocated the memory.
pub(crate) fn segment(key: &[u8]) -> Option<Segment> {
    envelope::entries(key).find_map(|(_, entry)| match entry.len() {
        SYSTEM_V => {
            let id = i32::from_ne_bytes(*entry.first_chunk()?);
            Some(Segment { name: Name::Sysv { id }, owner: number(entry, 4)? })
        }
        POSIX => {
            let file = number(entry, 0).filter(|file| file & PROCFS != 0 && file & OTHERWISE == 0)?;
            let (pid, fd) = ((file >> 30) & 0x3fff_ffff, file & 0x3fff_ffff);
            Some(Segment { name: Name::Posix { pid: pid as u32, fd: fd as u32 }, owner: number(entry, 8)? })
        }
        _ => None,
    })
}

/// A segment that is attached, for reading, until this is dropped.
#[derive(Debug)]
pub(crate) struct Attachment {
    segment: Segment,
    start: NonNull<u8>,
    len: usize,
    mapping: Option<Prefault>,
}

/// The System V segments that this process has attached. Connections to one server share them, and so share page tables
/// and the first touch of the pages. While a segment is attached, no other segment has its id.
static ATTACHED: Mutex<Vec<(Segment, Weak<Attachment>)>> = Mutex::new(Vec::new());

// SAFETY: it is memory that this process only reads, and an address for detaching it, which any thread may do.
unsafe impl Send for Attachment {}
// SAFETY: as above.
unsafe impl Sync for Attachment {}

impl Attachment {
    pub(crate) fn new(segment: Segment) -> Result<Self, String> {
        let attached = match segment.name {
            Name::Sysv { id } => attach(id),
            Name::Posix { pid, fd } => map_file(&format!("/proc/{pid}/fd/{fd}")),
        };
        let (start, len) = attached.map_err(|refused| {
            format!("its shared memory cannot be attached: {refused}; the peer is gone, or of another host or user")
        })?;
        Ok(Attachment { segment, start, len, mapping: Prefault::new(start.addr().get(), len) })
    }

    /// As [`Attachment::new`], but returns an existing attachment if that is certain to be of the same segment.
    pub(crate) fn shared(segment: Segment) -> Result<Arc<Self>, String> {
        // A file descriptor of another process may refer to one file now, and to another later.
        if matches!(segment.name, Name::Posix { .. }) {
            return Attachment::new(segment).map(Arc::new);
        }
        let mut attached = ATTACHED.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) =
            attached.iter().filter(|(other, _)| *other == segment).find_map(|(_, known)| known.upgrade())
        {
            return Ok(known);
        }
        attached.retain(|(_, known)| known.strong_count() > 0);
        let new = Arc::new(Attachment::new(segment)?);
        attached.push((segment, Arc::downgrade(&new)));
        Ok(new)
    }

    /// Touches the pages of a range that is about to be read for the first time.
    pub(crate) fn prefault(&self, address: u64, len: u64) {
        if let Some(mapping) = &self.mapping {
            mapping.prefault(address.saturating_sub(self.segment.owner), len);
        }
    }

    /// The address in this process of `len` bytes at `address` in the owner's address space.
    pub(crate) fn find(&self, address: u64, len: u64) -> Option<(NonNull<u8>, usize)> {
        let offset = usize::try_from(address.checked_sub(self.segment.owner)?).ok()?;
        let len = usize::try_from(len).ok()?;
        if offset.checked_add(len)? > self.len {
            return None;
        }
        // SAFETY: the offset lies within the attached memory.
        Some((unsafe { self.start.add(offset) }, len))
    }
}

impl Drop for Attachment {
    fn drop(&mut self) {
        let start = self.start.as_ptr().cast::<c_void>();
        match self.segment.name {
            // SAFETY: attached by `new`, detached once; every reader holds `self`.
            Name::Sysv { .. } => unsafe { libc::shmdt(start) },
            // SAFETY: as above, with the length of the mapping.
            Name::Posix { .. } => unsafe { libc::munmap(start, self.len) },
        };
    }
}

fn attach(id: i32) -> io::Result<(NonNull<u8>, usize)> {
    // SAFETY: no address is requested, so that nothing is mapped over; read-only.
    let start = unsafe { libc::shmat(id, ptr::null(), libc::SHM_RDONLY) };
    if start.addr() == usize::MAX {
        return Err(io::Error::last_os_error());
    }
    let mut status = MaybeUninit::<libc::shmid_ds>::zeroed();
    // Queried after attaching: the id belongs to this segment while it is attached.
    // SAFETY: room for the status that the call fills in.
    let asked = unsafe { libc::shmctl(id, libc::IPC_STAT, status.as_mut_ptr()) };
    let refused = io::Error::last_os_error();
    // SAFETY: zeroed is a valid `shmid_ds`, and the call has filled it or left it so.
    let len = unsafe { status.assume_init() }.shm_segsz;
    match NonNull::new(start.cast()) {
        Some(start) if asked == 0 => Ok((start, len)),
        _ => {
            // SAFETY: attached above, and no other code has the address.
            unsafe { libc::shmdt(start) };
            Err(refused)
        }
    }
}

fn map_file(path: &str) -> io::Result<(NonNull<u8>, usize)> {
    let file = File::open(path)?;
    let len = usize::try_from(file.metadata()?.len()).unwrap_or(0);
    if len == 0 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    // SAFETY: no address is requested, so that nothing is mapped over; an open descriptor; read-only. The mapping stays
    // valid after the descriptor is closed.
    let start = unsafe { libc::mmap(ptr::null_mut(), len, libc::PROT_READ, libc::MAP_SHARED, file.as_raw_fd(), 0) };
    if start == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    NonNull::new(start.cast()).map(|start| (start, len)).ok_or_else(|| io::ErrorKind::OutOfMemory.into())
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    /// A key with one entry, for domain 1, as UCX packs it.
    fn key(packed: &[u8]) -> Vec<u8> {
        let mut key = 0b10_u64.to_ne_bytes().to_vec();
        key.push(0);
        key.push(packed.len() as u8);
        key.extend_from_slice(packed);
        key
    }

    #[test]
    fn a_segment_is_read_where_it_lies_and_no_further_even_when_its_owner_has_let_go() {
        // SAFETY: a new segment of this process's own.
        let id = unsafe { libc::shmget(libc::IPC_PRIVATE, 8192, libc::IPC_CREAT | 0o600) };
        assert!(id >= 0, "{}", io::Error::last_os_error());
        // SAFETY: at an address of the kernel's choice, for writing.
        let own = unsafe { libc::shmat(id, ptr::null(), 0) };
        // SAFETY: 8192 bytes that no other code uses.
        unsafe { own.cast::<u8>().add(5000).write_bytes(7, 100) };
        // SAFETY: marks the segment for removal with its last attachment, as UCX does.
        unsafe { libc::shmctl(id, libc::IPC_RMID, ptr::null_mut()) };
        let mut packed = id.to_ne_bytes().to_vec();
        packed.extend(0x10_0000_u64.to_ne_bytes());
        let key = key(&packed);
        let segment = segment(&key).unwrap();
        let attached = Attachment::new(segment).unwrap();
        // SAFETY: attached above, detached once.
        unsafe { libc::shmdt(own) };
        let (start, len) = attached.find(0x10_0000 + 5000, 100).unwrap();
        // SAFETY: within the attachment, which is alive, and which no code writes any more.
        assert_eq!(unsafe { std::slice::from_raw_parts(start.as_ptr(), len) }, [7; 100]);
        assert!(attached.find(0x10_0000, 8192).is_some());
        for (address, len) in
            [(0x10_0000, 8193), (0x10_0001, 8192), (0x0f_ffff, 1), (u64::MAX, 1), (0x10_0000, u64::MAX)]
        {
            assert!(attached.find(address, len).is_none(), "{address:#x} {len}");
        }
        // Existing attachments of the segment are shared. A segment with the same id later is another segment.
        let shared = [segment, segment].map(|segment| Attachment::shared(segment).unwrap());
        assert!(Arc::ptr_eq(&shared[0], &shared[1]));
        let elsewhere = Segment { owner: 0x20_0000, ..segment };
        assert!(!Arc::ptr_eq(&shared[0], &Attachment::shared(elsewhere).unwrap()));
        shared[0].prefault(0x10_0000 + 5000, 100);
        drop((attached, shared));
        assert!(Attachment::new(segment).unwrap_err().contains("the peer is gone"));
        assert!(Attachment::shared(segment).unwrap_err().contains("the peer is gone"));
    }

    #[test]
    fn a_file_of_shared_memory_is_read_where_it_lies() {
        let mut shared = File::from(rustix::fs::memfd_create("segment", rustix::fs::MemfdFlags::empty()).unwrap());
        let fd = shared.as_raw_fd();
        shared.write_all(&[9; 4096]).unwrap();
        let (pid, file) = (u64::from(std::process::id()), fd as u64);
        let numbers = [PROCFS | pid << 30 | file, 0x20_0000, 4096];
        let packed: Vec<u8> = numbers.iter().flat_map(|number| number.to_ne_bytes()).collect();
        let key = key(&packed);
        let segment = segment(&key).unwrap();
        let attached = Attachment::new(segment).unwrap();
        let (start, len) = attached.find(0x20_0000, 4096).unwrap();
        // SAFETY: as above.
        assert_eq!(unsafe { std::slice::from_raw_parts(start.as_ptr(), len) }, [9; 4096]);
        assert!(attached.find(0x20_0000, 4097).is_none());
        assert!(!Arc::ptr_eq(&Attachment::shared(segment).unwrap(), &Attachment::shared(segment).unwrap()));
        drop(shared);
        assert!(Attachment::new(segment).is_err());
    }

    #[test]
    fn what_is_named_otherwise_is_not_found() {
        for packed in [&[][..], &[0; 11], &[0; 13], &[0; 24], &[0xFF; 24], &[0; 30]] {
            assert_eq!(segment(&key(packed)), None, "{packed:?}");
        }
    }
}
