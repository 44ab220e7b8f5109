//! A slab: memory for the reads of one batch, which then becomes the batch's arrow buffer.

use std::collections::BTreeMap;
use std::fmt;
use std::panic::AssertUnwindSafe;
use std::ptr::NonNull;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use arrow_buffer::Buffer;

use super::chunks::Shared;
use super::{LocalRange, RegisteredMemory, copy};
use crate::FabricError;

/// A piece of a [`SlabPool`](super::SlabPool). No two slabs overlap.
///
/// Reads write to its [`Slab::range`]s. While any range is alive, a fabric may be writing, so the bytes are not
/// accessible. After all ranges are dropped, [`Slab::into_buffer`] makes an arrow buffer of the slab, in place. A
/// dropped slab returns to the pool together with its last range.
pub struct Slab {
    block: Arc<Block>,
    len: usize,
}

/// A slab's memory. It returns to the pool when its last holder drops it: the slab, a range, or the buffer made of it.
pub(super) struct Block {
    memory: Arc<RegisteredMemory>,
    pool: Arc<Shared>,
    chunk: u64,
    offset: usize,
    len: usize,
    ranges: Mutex<Ranges>,
}

/// The ranges of outstanding reads.
#[derive(Default)]
struct Ranges {
    /// Start and end of the non-empty ranges. They do not overlap.
    by_start: BTreeMap<usize, usize>,
    empty: usize,
}

impl Slab {
    pub(super) fn new(block: Block, len: usize) -> Self {
        Slab { block: Arc::new(block), len }
    }

    /// Length in bytes, as requested.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether the length is 0.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// A range of the slab as the target of a read. Ranges that are alive at the same time must not overlap.
    ///
    /// # Errors
    /// [`FabricError::Misuse`] if the range is not within the slab, or overlaps another.
    pub fn range(&self, offset: usize, len: usize) -> Result<LocalRange, FabricError> {
        let end = offset
            .checked_add(len)
            .filter(|&end| end <= self.len)
            .ok_or(FabricError::Misuse("a requested range is outside its slab"))?;
        self.block.ranges().insert(offset, end)?;
        let guard = RangeGuard { block: Arc::clone(&self.block), start: offset, end };
        // SAFETY: the block is this slab's alone, since the pool cuts disjoint blocks from writable memory that it has
        // claimed. Within the slab the range overlaps no other range that is alive. The bytes are accessible through
        // `into_buffer` only, which requires that no range is alive; `copy_in` requires the same. The guard counts
        // until the range is dropped, and keeps the block from the pool.
        Ok(unsafe {
            LocalRange::new(Arc::clone(&self.block.memory), self.block.offset + offset, len, Some(Box::new(guard)))
        })
    }

    /// Copies `bytes` to `offset`.
    ///
    /// # Errors
    /// [`FabricError::Misuse`] if they do not fit, or any range is alive.
    pub fn copy_in(&mut self, offset: usize, bytes: &[u8]) -> Result<(), FabricError> {
        if offset.checked_add(bytes.len()).is_none_or(|end| end > self.len) {
            return Err(FabricError::Misuse("bytes to be copied do not fit into the slab"));
        }
        if self.is_being_written() {
            return Err(FabricError::Misuse("bytes were copied to a slab while a read into it was outstanding"));
        }
        // SAFETY: within the block, checked above, which is writable and this slab's alone (see `range`). No range is
        // alive, and none can begin while the slab is borrowed mutably. Peers that read memory that was not lent to
        // them do so atomically.
        unsafe { copy::into(bytes, self.block.start().add(offset)) };
        Ok(())
    }

    /// Number of bytes that [`Slab::edit`] passes at a time.
    const EDITED: usize = 4096;

    /// Edits bytes in place, after they have been read. `edit` gets them piece by piece. The length of each piece but
    /// the last is a multiple of 64 bytes.
    ///
    /// # Errors
    /// [`FabricError::Misuse`] if the range is not within the slab, or any range of a read is alive.
    pub fn edit(&mut self, offset: usize, len: usize, mut edit: impl FnMut(&mut [u8])) -> Result<(), FabricError> {
        let end = offset.checked_add(len).filter(|&end| end <= self.len);
        let end = end.ok_or(FabricError::Misuse("bytes to be edited are outside the slab"))?;
        if self.is_being_written() {
            return Err(FabricError::Misuse("a slab was edited while a read into it was outstanding"));
        }
        // The copy is in the nearest cache. It is not edited in the slab, because peers may read the slab, and do so
        // atomically.
        let mut piece = [0; Self::EDITED];
        for start in (offset..end).step_by(Self::EDITED) {
            let piece = &mut piece[..Self::EDITED.min(end - start)];
            // SAFETY: within the block, checked above, which is initialised. It is not being written: no range is
            // alive, and none can begin while the slab is borrowed mutably.
            let bytes = unsafe { NonNull::slice_from_raw_parts(self.block.start().add(start), piece.len()).as_ref() };
            piece.copy_from_slice(bytes);
            edit(piece);
            self.copy_in(start, piece)?;
        }
        Ok(())
    }

    /// Whether any [`Slab::range`] is alive.
    #[must_use]
    pub fn is_being_written(&self) -> bool {
        let ranges = self.block.ranges();
        ranges.empty > 0 || !ranges.by_start.is_empty()
    }

    /// Makes an arrow buffer of the whole slab, without a copy. The drop of the last array over it returns the slab to
    /// the pool. Bytes that no read wrote contain data of an earlier slab: slice the buffer to the bytes that were
    /// read.
    ///
    /// # Errors
    /// The slab itself, while any [`Slab::range`] is alive.
    pub fn into_buffer(self) -> Result<Buffer, Slab> {
        if self.is_being_written() {
            return Err(self);
        }
        let (start, len) = (self.block.start(), self.len);
        // The pool's state is behind a lock that ignores poison, and a registration is only dropped: both stay
        // consistent even if a panic unwinds past them.
        let owner = Arc::new(AssertUnwindSafe(self.block));
        // SAFETY: `len` bytes from `start` lie within the block, initialised, and stay so until `owner` is dropped.
        // They are not written: no range is alive, none can be made without the slab, and the pool reuses the block
        // only after it is dropped.
        Ok(unsafe { Buffer::from_custom_allocation(start, len, owner) })
    }

    /// The registered memory that contains the slab.
    #[must_use]
    pub fn memory(&self) -> &Arc<RegisteredMemory> {
        &self.block.memory
    }

    /// Offset of the slab in [`Slab::memory`].
    #[must_use]
    pub fn offset(&self) -> usize {
        self.block.offset
    }
}

impl fmt::Debug for Slab {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Slab({:?}+{})", self.block.start(), self.len)
    }
}

impl Block {
    pub(super) fn new(memory: Arc<RegisteredMemory>, pool: Arc<Shared>, chunk: u64, offset: usize, len: usize) -> Self {
        // The unsafe code of `Slab` depends on this.
        assert!(offset.checked_add(len).is_some_and(|end| end <= memory.len()), "a block is outside its chunk");
        Block { memory, pool, chunk, offset, len, ranges: Mutex::default() }
    }

    fn start(&self) -> NonNull<u8> {
        // SAFETY: `new` checked that the offset lies within the memory.
        unsafe { self.memory.start().add(self.offset) }
    }

    fn ranges(&self) -> MutexGuard<'_, Ranges> {
        self.ranges.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        self.pool.give_back(self.chunk, self.offset, self.len);
    }
}

impl Ranges {
    fn insert(&mut self, start: usize, end: usize) -> Result<(), FabricError> {
        if start == end {
            self.empty += 1;
            return Ok(());
        }
        // Ranges that are alive do not overlap, so the last one that begins before `end` is also the one that reaches
        // farthest.
        if self.by_start.range(..end).next_back().is_some_and(|(_, &other_end)| other_end > start) {
            return Err(FabricError::Misuse("a requested range overlaps another range of its slab"));
        }
        self.by_start.insert(start, end);
        Ok(())
    }

    fn remove(&mut self, start: usize, end: usize) {
        if start == end {
            self.empty -= 1;
        } else {
            self.by_start.remove(&start);
        }
    }
}

/// Counts one range as alive, until the fabric drops it.
struct RangeGuard {
    block: Arc<Block>,
    start: usize,
    end: usize,
}

impl Drop for RangeGuard {
    fn drop(&mut self) {
        self.block.ranges().remove(self.start, self.end);
    }
}
