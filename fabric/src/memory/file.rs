//! Memory files (memfd_create(2)) that this process writes, and that every other process can only read.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::ptr::{self, NonNull};

use rustix::fs::{MemfdFlags, Mode, OFlags, SealFlags};
use rustix::io::Errno;
use rustix::mm::{Advice, MapFlags, ProtFlags};

/// The seals of a memory file. Its length is fixed, so that a reader never takes SIGBUS, and no process maps it for
/// writing from now on (fcntl(2), `F_SEAL_FUTURE_WRITE`, Linux 5.1). This process goes on writing through its older
/// mapping.
///
/// The seals also forbid to punch holes: memory goes back to the system only as a whole file.
pub const SEALS: SealFlags =
    SealFlags::SHRINK.union(SealFlags::GROW).union(SealFlags::FUTURE_WRITE).union(SealFlags::SEAL);

const HUGE_PAGE: usize = 2 << 20;

/// A sealed memory file, and its only writable mapping. Its drop unmaps and closes it; the memory is freed once no peer
/// has it open or mapped.
///
/// No function here allocates memory on the heap: the heap itself may be made of such files.
#[derive(Debug)]
pub struct FileMapping {
    start: NonNull<u8>,
    len: usize,
    /// Opened for reading only.
    file: OwnedFd,
    /// Whether the addresses stay reserved after the drop.
    reserved: bool,
}

// SAFETY: the mapping belongs to the process and not to a thread; this type only knows its address.
unsafe impl Send for FileMapping {}
// SAFETY: as above.
unsafe impl Sync for FileMapping {}

impl FileMapping {
    /// A new file of `len` zeroed bytes, whole pages, at an address of the kernel's choice.
    ///
    /// # Errors
    /// The error of the system call that failed.
    pub fn new(len: usize) -> io::Result<Self> {
        if len < HUGE_PAGE {
            // SAFETY: no place is given.
            return unsafe { Self::map(None, len) };
        }
        // Only an aligned mapping gets huge pages.
        let reserved = Reserved::new(len, HUGE_PAGE)?;
        // SAFETY: whole pages of a reservation, which the mapping takes over: it replaces all of it.
        let mut mapped = unsafe { Self::map(Some(reserved.start()), len) }?;
        std::mem::forget(reserved);
        mapped.reserved = false;
        Ok(mapped)
    }

    /// A new file at a place in address space that [`Reserved`] holds. The drop reserves the place again.
    ///
    /// # Safety
    /// `start .. start + len` are whole pages within a reservation that is never dropped, and nothing else is mapped
    /// there or uses the addresses.
    #[cfg(feature = "registered-heap")]
    pub(super) unsafe fn at(start: NonNull<u8>, len: usize) -> io::Result<Self> {
        // SAFETY: the caller's promise.
        unsafe { Self::map(Some(start), len) }
    }

    /// # Safety
    /// The caller owns the place, if there is one.
    unsafe fn map(place: Option<NonNull<u8>>, len: usize) -> io::Result<Self> {
        let file = create()?;
        // A process without a descriptor cannot open the file by `/proc/PID/fd` either, unless it is of this user.
        rustix::fs::fchmod(&file, Mode::RUSR)?;
        rustix::fs::ftruncate(&file, len as u64)?;
        let (access, flags) = (ProtFlags::READ | ProtFlags::WRITE, MapFlags::SHARED);
        let (at, flags) = place.map_or((ptr::null_mut(), flags), |place| (place.as_ptr(), flags | MapFlags::FIXED));
        // SAFETY: a new mapping at an address of the kernel's choice, or at a place that the caller owns.
        let address = unsafe { rustix::mm::mmap(at.cast(), len, access, flags, &file, 0) }?;
        let start = NonNull::new(address.cast::<u8>()).ok_or(io::ErrorKind::OutOfMemory)?;
        // From here on its drop cleans up.
        let mut mapping = FileMapping { start, len, file, reserved: place.is_some() };
        rustix::fs::fcntl_add_seals(&mapping.file, SEALS)?;
        if let Some(reading) = reading_only(&mapping.file)? {
            mapping.file = reading;
        }
        // SAFETY: advice on exactly the new mapping. Refusal costs speed only.
        _ = unsafe { rustix::mm::madvise(address, len, Advice::LinuxHugepage) };
        Ok(mapping)
    }

    /// Address of the first byte.
    #[must_use]
    pub fn start(&self) -> NonNull<u8> {
        self.start
    }

    /// Length in bytes.
    #[must_use]
    #[expect(clippy::len_without_is_empty, reason = "the kernel maps no empty file")]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Touches every page: the first touch of a page costs several times as much as copying it.
    pub fn populate(&self) {
        // SAFETY: the whole of this mapping. The advice changes no byte.
        let populated =
            unsafe { rustix::mm::madvise(self.start.as_ptr().cast(), self.len, Advice::LinuxPopulateWrite) };
        if populated.is_err() {
            // Linux before 5.14.
            for page in (0..self.len).step_by(super::PAGE) {
                // SAFETY: within the mapping. Adding zero atomically touches the page and changes no byte.
                let byte = unsafe { std::sync::atomic::AtomicU8::from_ptr(self.start.as_ptr().add(page)) };
                byte.fetch_add(0, std::sync::atomic::Ordering::Relaxed);
            }
        }
    }
}

impl AsFd for FileMapping {
    /// A descriptor for peers. It can be mapped for reading only.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

impl Drop for FileMapping {
    fn drop(&mut self) {
        // SAFETY: mapped by `map` at this length; code that could refer to it borrows `self`. Peers have mappings of
        // their own. A failure leaves the mapping in place, so that no address is ever handed out twice.
        unsafe {
            if self.reserved {
                _ = reserve_at(self.start, self.len);
            } else {
                _ = rustix::mm::munmap(self.start.as_ptr().cast(), self.len);
            }
        }
    }
}

/// An empty memory file that cannot be executed: others are refused under `vm.memfd_noexec=2`.
fn create() -> rustix::io::Result<OwnedFd> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    match rustix::fs::memfd_create(c"thallus", flags | MemfdFlags::NOEXEC_SEAL) {
        // Linux before 6.3 does not know the flag.
        Err(Errno::INVAL) => rustix::fs::memfd_create(c"thallus", flags),
        created => created,
    }
}

/// The same file, opened for reading only. `None` where `/proc` is not mounted: the seals forbid writing too.
fn reading_only(file: &OwnedFd) -> rustix::io::Result<Option<OwnedFd>> {
    const PREFIX: &[u8] = b"/proc/self/fd/";
    let mut path = [0; PREFIX.len() + 12];
    path[..PREFIX.len()].copy_from_slice(PREFIX);
    let number = file.as_raw_fd().unsigned_abs();
    let digits = number.checked_ilog10().unwrap_or(0) as usize + 1;
    let mut rest = number;
    for place in path[PREFIX.len()..PREFIX.len() + digits].iter_mut().rev() {
        *place = b'0' + (rest % 10) as u8;
        rest /= 10;
    }
    let Ok(path) = std::ffi::CStr::from_bytes_until_nul(&path) else { return Ok(None) };
    match rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()) {
        Ok(reading) => Ok(Some(reading)),
        Err(Errno::MFILE | Errno::NFILE) => Err(Errno::MFILE),
        Err(_) => Ok(None),
    }
}

/// Makes the addresses a reservation, whatever was mapped there.
///
/// # Safety
/// The caller owns the addresses, which are whole pages, and nothing uses what is mapped there.
unsafe fn reserve_at(start: NonNull<u8>, len: usize) -> rustix::io::Result<()> {
    let flags = MapFlags::PRIVATE | MapFlags::NORESERVE | MapFlags::FIXED;
    // SAFETY: the caller's promise.
    unsafe { rustix::mm::mmap_anonymous(start.as_ptr().cast(), len, ProtFlags::empty(), flags) }.map(drop)
}

/// Addresses without memory. Its drop gives them back.
#[derive(Debug)]
pub(super) struct Reserved {
    start: NonNull<u8>,
    len: usize,
}

impl Reserved {
    /// Reserves `len` bytes, which begin at a multiple of `align`, a power of two.
    pub(super) fn new(len: usize, align: usize) -> io::Result<Self> {
        let mapped = len.checked_add(align).ok_or(io::ErrorKind::OutOfMemory)?;
        let flags = MapFlags::PRIVATE | MapFlags::NORESERVE;
        // SAFETY: a new mapping at an address of the kernel's choice.
        let base = unsafe { rustix::mm::mmap_anonymous(ptr::null_mut(), mapped, ProtFlags::empty(), flags) }?;
        let before = base.addr().next_multiple_of(align) - base.addr();
        // SAFETY: within the new mapping; what is left of it on both sides is unmapped.
        let start = unsafe {
            let start = base.add(before);
            for (from, len) in [(base, before), (start.add(len), align - before)] {
                if len > 0 {
                    _ = rustix::mm::munmap(from, len);
                }
            }
            start
        };
        NonNull::new(start.cast()).map(|start| Reserved { start, len }).ok_or(io::ErrorKind::OutOfMemory.into())
    }

    pub(super) fn start(&self) -> NonNull<u8> {
        self.start
    }
}

impl Drop for Reserved {
    fn drop(&mut self) {
        // SAFETY: reserved by `new`; nothing was mapped there, or its owner has leaked this value.
        _ = unsafe { rustix::mm::munmap(self.start.as_ptr().cast(), self.len) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::PAGE;

    #[test]
    fn a_new_file_is_zeroed_writable_here_and_read_only_for_its_descriptor() {
        let mapping = FileMapping::new(3 * PAGE).unwrap();
        mapping.populate();
        // SAFETY: within the mapping, which this test alone has.
        unsafe {
            assert_eq!(mapping.start().add(3 * PAGE - 1).read(), 0);
            mapping.start().write(7);
        }
        mapping.populate();
        let mut first = [0];
        assert_eq!(rustix::io::pread(&mapping, &mut first, 0), Ok(1));
        assert_eq!(first, [7], "populating changes nothing");
        assert!(rustix::io::pwrite(&mapping, b"x", 0).is_err() && rustix::fs::ftruncate(&mapping, 0).is_err());
        assert!(rustix::fs::fcntl_get_seals(&mapping).unwrap().contains(SEALS));
        let flags = rustix::fs::fcntl_getfl(&mapping).unwrap();
        assert!(!flags.intersects(OFlags::RDWR | OFlags::WRONLY), "{flags:?}");
    }

    #[cfg(feature = "registered-heap")]
    #[test]
    fn a_place_is_reserved_again_after_its_file() {
        let reserved = Reserved::new(4 * PAGE, 1 << 20).unwrap();
        let start = reserved.start();
        assert!(start.addr().get().is_multiple_of(1 << 20));
        for round in 0..3 {
            // SAFETY: whole pages of the reservation, which outlives both files.
            let (one, other) = unsafe { (FileMapping::at(start, PAGE), FileMapping::at(start.add(PAGE), PAGE)) };
            let (one, other) = (one.unwrap(), other.unwrap());
            // SAFETY: within the two mappings, which this test alone has.
            unsafe {
                assert_eq!((one.start().read(), other.start().read()), (0, 0), "round {round}");
                one.start().write(1);
            }
            drop(one);
            // SAFETY: as above.
            unsafe { other.start().write(2) };
        }
    }
}
