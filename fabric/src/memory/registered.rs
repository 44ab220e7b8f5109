//! Memory that a fabric has registered, and ranges of it.

use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::any::Any;
use std::fmt;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use arrow_buffer::Buffer;

use super::PAGE;

/// The fabric's own part of a registration: its handle, and the owner of the memory if the fabric allocated it. Its
/// drop deregisters the memory, and then frees it, in this order. A fabric gets its own type back from
/// [`RegisteredMemory::registration`].
pub trait Registration: Any + Send + Sync + fmt::Debug {}

impl<T: Any + Send + Sync + fmt::Debug> Registration for T {}

/// Memory that a fabric has registered. It stays valid, mapped and registered until this is dropped.
///
/// There are three constructors, by the owner of the bytes: [`RegisteredMemory::new`] for memory of the registration
/// itself (the library allocated it), [`RegisteredMemory::heap`] for memory of this process's heap,
/// [`RegisteredMemory::foreign`] for a buffer of another part of the program, which is lent in place.
pub struct RegisteredMemory {
    start: NonNull<u8>,
    len: usize,
    // Before `backing`: memory is deregistered before it is freed, and fields drop in order.
    registration: Box<dyn Registration>,
    backing: Backing,
    claimed: AtomicBool,
    wanted_back: AtomicBool,
}

enum Backing {
    /// The registration owns the bytes.
    Registration,
    /// The process's heap owns the bytes.
    Heap(#[expect(dead_code, reason = "held for its drop")] HeapPages),
    /// An immutable buffer of another part of the program, kept alive.
    Foreign(Buffer),
}

// SAFETY: the memory is owned through `registration` or `backing`, which are Send and Sync; `start` is only an address,
// and every access through it is atomic (see `copy`), or by the unsafe methods below and by fabrics, whose callers rule
// out data races.
unsafe impl Send for RegisteredMemory {}
// SAFETY: as above.
unsafe impl Sync for RegisteredMemory {}

impl RegisteredMemory {
    /// Memory that `registration` owns.
    ///
    /// # Safety
    /// `start .. start + len` is initialised and valid for reads and writes until `registration` is dropped, and no
    /// other part of this process has access to it. (A buffer that other code can read is
    /// [`RegisteredMemory::foreign`].)
    pub unsafe fn new(start: NonNull<u8>, len: usize, registration: Box<dyn Registration>) -> Self {
        RegisteredMemory {
            start,
            len,
            registration,
            backing: Backing::Registration,
            claimed: AtomicBool::new(false),
            wanted_back: AtomicBool::new(false),
        }
    }

    /// New zeroed pages from this process's heap, of `len` bytes rounded up to whole pages. `register` gets their
    /// address and length. For fabrics without special requirements on memory.
    ///
    /// # Errors
    /// `None` if the heap has no such memory, otherwise the error of `register`.
    pub fn heap<E>(
        len: usize,
        register: impl FnOnce(NonNull<u8>, usize) -> Result<Box<dyn Registration>, E>,
    ) -> Option<Result<Self, E>> {
        let pages = HeapPages::new(len)?;
        let (start, len) = (pages.start, pages.layout.size());
        Some(register(start, len).map(|registration| RegisteredMemory {
            start,
            len,
            registration,
            backing: Backing::Heap(pages),
            claimed: AtomicBool::new(false),
            wanted_back: AtomicBool::new(false),
        }))
    }

    /// A buffer of another part of the program, to be lent in place, under `registration`. It is kept alive, and cannot
    /// change: arrow's buffers are immutable while they are shared. Reads never write to it.
    #[must_use]
    pub fn foreign(buffer: Buffer, registration: Box<dyn Registration>) -> Self {
        // `Buffer::as_ptr` is never null, since the pointer of an empty buffer dangles.
        let start = NonNull::new(buffer.as_ptr().cast_mut()).unwrap_or(NonNull::dangling());
        RegisteredMemory {
            start,
            len: buffer.len(),
            registration,
            backing: Backing::Foreign(buffer),
            claimed: AtomicBool::new(false),
            wanted_back: AtomicBool::new(false),
        }
    }

    /// Address of the first byte, for remote ranges.
    #[must_use]
    pub fn address(&self) -> u64 {
        self.start.as_ptr() as u64
    }

    /// Pointer to the first byte.
    #[must_use]
    pub fn start(&self) -> NonNull<u8> {
        self.start
    }

    /// Length in bytes.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether the length is 0.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Whether reads may write to it. Foreign memory can only be lent.
    #[must_use]
    pub fn is_writable(&self) -> bool {
        !matches!(self.backing, Backing::Foreign(_))
    }

    /// Claims the right to decide which parts are written, by whom and when. Returns true at the first call, if the
    /// memory is writable. A [`super::SlabPool`] and [`super::LeaseWords`] claim their memory, so that two of them
    /// never share memory, even if a fabric returns the same memory twice.
    #[must_use]
    pub fn claim(&self) -> bool {
        self.is_writable() && !self.claimed.swap(true, Ordering::AcqRel)
    }

    /// The owner states whether it wants to free the memory. Nothing in it is in use then. A holder
    /// that keeps the memory only in order to use it later lets go of it.
    pub fn set_wanted_back(&self, wanted: bool) {
        self.wanted_back.store(wanted, Ordering::Release);
    }

    /// Whether the owner wants to free the memory.
    #[must_use]
    pub fn is_wanted_back(&self) -> bool {
        self.wanted_back.load(Ordering::Acquire)
    }

    /// The offset of `len` bytes at `address`, if they lie within this memory.
    #[must_use]
    pub fn offset_of(&self, address: u64, len: u64) -> Option<usize> {
        let offset = address.checked_sub(self.address())?;
        let end = offset.checked_add(len)?;
        if end > self.len as u64 {
            return None;
        }
        usize::try_from(offset).ok()
    }

    /// A copy of `len` bytes at `offset`, while other threads may be writing there. `None` outside the memory. For
    /// fabrics that check the content of loans.
    #[must_use]
    pub fn copy_out(&self, offset: usize, len: usize) -> Option<Vec<u8>> {
        let end = offset.checked_add(len).filter(|&end| end <= self.len)?;
        if let Backing::Foreign(buffer) = &self.backing {
            return Some(buffer[offset..end].to_vec());
        }
        let mut bytes = vec![0_u8; len];
        if let Some(to) = NonNull::new(bytes.as_mut_ptr()).filter(|_| len > 0) {
            // SAFETY: the source's range was checked and `self` is borrowed, so alive; it is not foreign, so all other
            // code accesses it atomically. The target is this function's own vector of that length.
            unsafe { super::copy::between(self.start.add(offset), to, len) };
        }
        Some(bytes)
    }

    /// The fabric's handle, if it is of type `T`. `None` for memory that another fabric registered.
    #[must_use]
    pub fn registration<T: Registration>(&self) -> Option<&T> {
        let registration: &dyn Any = &*self.registration;
        registration.downcast_ref()
    }
}

impl fmt::Debug for RegisteredMemory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RegisteredMemory({:?}+{}, {:?})", self.start, self.len, self.registration)
    }
}

/// Page-aligned zeroed memory of this process's heap.
struct HeapPages {
    start: NonNull<u8>,
    layout: Layout,
}

impl HeapPages {
    fn new(len: usize) -> Option<Self> {
        let len = len.max(1).checked_next_multiple_of(PAGE)?;
        let layout = Layout::from_size_align(len, PAGE).ok()?;
        // SAFETY: the layout's size is not zero.
        let start = NonNull::new(unsafe { alloc_zeroed(layout) })?;
        Some(HeapPages { start, layout })
    }
}

impl Drop for HeapPages {
    fn drop(&mut self) {
        // SAFETY: allocated in `new` with this layout, and reachable only through the owner that is being dropped.
        unsafe { dealloc(self.start.as_ptr(), self.layout) }
    }
}

// SAFETY: it owns its memory, like a box; the memory is accessed only as `RegisteredMemory` allows.
unsafe impl Send for HeapPages {}
// SAFETY: as above.
unsafe impl Sync for HeapPages {}

/// The target of a posted read: a range of registered memory that no other code accesses until this value is dropped. A
/// fabric keeps it in its table of operations until the completion has been polled.
pub struct LocalRange {
    memory: Arc<RegisteredMemory>,
    offset: usize,
    len: usize,
    /// A value whose drop reports to the range's owner that the operation is over.
    guard: Guard,
}

enum Guard {
    Own(Option<Box<dyn Any + Send>>),
    Held(RangeHold),
}

/// Keeps the owner of a [`LocalRange`] waiting, as the range itself does. For wrappers of fabrics that hold back a
/// completion which the fabric inside has delivered, after the fabric has dropped the range.
#[derive(Clone)]
pub struct RangeHold {
    // In a mutex, which is never locked, because the guard is not Sync.
    _guard: Arc<Mutex<Option<Box<dyn Any + Send>>>>,
    _memory: Arc<RegisteredMemory>,
}

impl fmt::Debug for RangeHold {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("RangeHold")
    }
}

impl LocalRange {
    /// A range of `memory` as the target of a read. `guard` is dropped when the operation is over.
    ///
    /// # Safety
    /// Until the value is dropped, only the fabric that receives it reads or writes the range, and the memory is
    /// writable.
    ///
    /// # Panics
    /// If the range is not within `memory`.
    pub unsafe fn new(
        memory: Arc<RegisteredMemory>,
        offset: usize,
        len: usize,
        guard: Option<Box<dyn Any + Send>>,
    ) -> Self {
        assert!(
            offset.checked_add(len).is_some_and(|end| end <= memory.len()),
            "range {offset}+{len} is outside registered memory of {} bytes",
            memory.len()
        );
        LocalRange { memory, offset, len, guard: Guard::Own(guard) }
    }

    /// The memory that contains the range, with the fabric's handle.
    #[must_use]
    pub fn memory(&self) -> &Arc<RegisteredMemory> {
        &self.memory
    }

    /// Pointer to the first byte.
    #[must_use]
    pub fn start(&self) -> NonNull<u8> {
        // SAFETY: `new` checked that the offset lies within the memory.
        unsafe { self.memory.start().add(self.offset) }
    }

    /// Offset of the first byte in its memory.
    #[must_use]
    pub fn offset(&self) -> usize {
        self.offset
    }

    /// Length in bytes.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether the length is 0.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// A handle that keeps the range's owner waiting until both it and the range are dropped.
    #[must_use]
    pub fn hold(&mut self) -> RangeHold {
        let own = match &mut self.guard {
            Guard::Held(hold) => return hold.clone(),
            Guard::Own(own) => own.take(),
        };
        let hold = RangeHold { _guard: Arc::new(Mutex::new(own)), _memory: Arc::clone(&self.memory) };
        self.guard = Guard::Held(hold.clone());
        hold
    }

    /// Copies `source[offset ..]` into the whole range, for a fabric without hardware: as a device would, also from
    /// memory that other threads may be writing. Aligned 8-byte words do not tear, so lease words are read whole.
    ///
    /// Returns whether the source has that many bytes at `offset`. If not, nothing is copied.
    #[must_use]
    pub fn fill_from(&mut self, source: &RegisteredMemory, offset: usize) -> bool {
        if offset.checked_add(self.len).is_none_or(|end| end > source.len()) {
            return false;
        }
        if let Backing::Foreign(buffer) = &source.backing {
            // Immutable and perhaps mapped read-only, so it is read as plain bytes.
            // SAFETY: `new` checked that the range lies within its memory, which is alive and writable, as the caller
            // of `new` guaranteed; other code accesses it by atomic operations only.
            unsafe { super::copy::into(&buffer[offset..offset + self.len], self.start()) };
        } else {
            // SAFETY: as above; the source's range was checked, `source` is borrowed, so alive, and is writable memory.
            unsafe { super::copy::between(source.start().add(offset), self.start(), self.len) };
        }
        true
    }
}

impl fmt::Debug for LocalRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "LocalRange({:?}+{})", self.start(), self.len)
    }
}
