//! A range of memory that a fabric has registered.

use std::any::Any;
use std::fmt;
use std::ptr::NonNull;
use std::sync::Arc;

/// The fabric's own side of a registration: its handle, and whatever keeps the memory alive. Dropping it deregisters,
/// and then frees or lets go of the memory, in this order.
pub trait Registration: Any + Send + Sync + fmt::Debug {
    /// For the fabric to find its own type again.
    fn as_any(&self) -> &dyn Any;
}

/// Memory that a fabric has registered. It stays valid, mapped and registered until this is dropped.
#[derive(Debug)]
pub struct RegisteredMemory {
    start: NonNull<u8>,
    len: usize,
    registration: Box<dyn Registration>,
}

// SAFETY: the memory is owned through `registration`, which is Send and Sync; `start` is only an address, and every
// access through it is by the unsafe methods below and by fabrics, whose callers rule out data races.
unsafe impl Send for RegisteredMemory {}
// SAFETY: as above.
unsafe impl Sync for RegisteredMemory {}

impl RegisteredMemory {
    /// Takes over registered memory.
    ///
    /// # Safety
    /// `start .. start + len` is valid for reads until `registration` is dropped, and for writes too unless it is foreign
    /// memory that is only ever lent (then nobody asks for a [`LocalRange`] of it).
    pub unsafe fn new(start: NonNull<u8>, len: usize, registration: Box<dyn Registration>) -> Self {
        RegisteredMemory { start, len, registration }
    }

    /// Address of the first byte, as remote ranges name it.
    #[must_use]
    pub fn address(&self) -> u64 {
        self.start.as_ptr() as u64
    }

    /// First byte.
    #[must_use]
    pub fn start(&self) -> NonNull<u8> {
        self.start
    }

    /// Length in bytes.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there is nothing in it.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The fabric's handle.
    #[must_use]
    pub fn registration(&self) -> &dyn Registration {
        &*self.registration
    }
}

/// Where a posted read lands: a range of registered memory that nobody else accesses until this value is dropped. A
/// fabric keeps it in its table of operations until the completion was polled.
pub struct LocalRange {
    memory: Arc<RegisteredMemory>,
    offset: usize,
    len: usize,
    /// Whatever tells the range's owner, by its drop, that the operation is over.
    _guard: Option<Box<dyn Any + Send>>,
}

impl LocalRange {
    /// A range of `memory` as the target of a read. `guard` is dropped when the operation is over.
    ///
    /// # Safety
    /// Until the value is dropped nobody reads or writes the range but the fabric that it is given to, and the memory is
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
        LocalRange { memory, offset, len, _guard: guard }
    }

    /// The memory it lies in, with the fabric's handle.
    #[must_use]
    pub fn memory(&self) -> &Arc<RegisteredMemory> {
        &self.memory
    }

    /// First byte.
    #[must_use]
    pub fn start(&self) -> NonNull<u8> {
        // SAFETY: `new` checked that the offset lies within the memory.
        unsafe { self.memory.start().add(self.offset) }
    }

    /// Length in bytes.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there is nothing in it.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }
}

impl fmt::Debug for LocalRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "LocalRange({:?}+{})", self.start(), self.len)
    }
}
