//! A slab: where the reads of one batch land, and what then becomes its arrow buffer.

use std::collections::BTreeMap;
use std::fmt;
use std::panic::AssertUnwindSafe;
use std::ptr::NonNull;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use arrow_buffer::Buffer;

use super::pool::Shared;
use super::{LocalRange, RegisteredMemory, copy};
use crate::FabricError;

/// A piece of a [`SlabPool`](super::SlabPool), unique.
///
/// Reads land in its [`Slab::range`]s. While any of them is alive a fabric may be writing, so the bytes cannot be seen;
/// once all are gone, [`Slab::into_buffer`] makes an arrow buffer of it, in place. Dropped, it goes back to the pool as
/// soon as the last range does.
pub struct Slab {
    block: Arc<Block>,
    len: usize,
}

/// A slab's memory. It goes back to the pool when its last holder drops it: the slab, a range, or the buffer made of
/// it.
pub(super) struct Block {
    memory: Arc<RegisteredMemory>,
    pool: Arc<Shared>,
    chunk: u64,
    offset: usize,
    len: usize,
    ranges: Mutex<Ranges>,
}

/// The ranges under a read.
#[derive(Default)]
struct Ranges {
    /// Start and end of those that are not empty. They do not overlap.
    by_start: BTreeMap<usize, usize>,
    empty: usize,
}

impl Slab {
    pub(super) fn new(block: Block, len: usize) -> Self {
        Slab { block: Arc::new(block), len }
    }

    /// Length in bytes, as it was asked for.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether it was taken with length 0.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// A range of the slab for a read to land in. Ranges that are alive at the same time must not overlap.
    ///
    /// # Errors
    /// [`FabricError::Misuse`] if the range is not within the slab, or overlaps another.
    pub fn range(&self, offset: usize, len: usize) -> Result<LocalRange, FabricError> {
        let end = offset
            .checked_add(len)
            .filter(|&end| end <= self.len)
            .ok_or(FabricError::Misuse("a range outside its slab was asked for"))?;
        self.block.ranges().insert(offset, end)?;
        let guard = RangeGuard { block: Arc::clone(&self.block), start: offset, end };
        // SAFETY: the block is this slab's alone, since the pool cuts disjoint blocks from writable memory that it
        // has claimed. Within the slab the range overlaps no other
        // that is alive. The bytes are seen through `into_buffer` only, which wants no range alive; `copy_in` wants the
        // same. The guard counts until the range is dropped, and keeps the block from the pool.
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
            return Err(FabricError::Misuse("bytes were copied to outside their slab"));
        }
        if self.is_being_written() {
            return Err(FabricError::Misuse("bytes were copied to a slab while a read of it was outstanding"));
        }
        // SAFETY: within the block, checked above, which is writable and this slab's alone (see `range`). No range is
        // alive, and none can begin while the slab is borrowed mutably. Peers that read memory that they were not lent
        // do so atomically.
        unsafe { copy::into(bytes, self.block.start().add(offset)) };
        Ok(())
    }

    /// Bytes that [`Slab::edit`] shows at a time.
    const EDITED: usize = 4096;

    /// Changes bytes where they lie, once they have been read. `edit` sees them piece by piece, each a multiple of 64
    /// bytes long but for the last.
    ///
    /// # Errors
    /// [`FabricError::Misuse`] if the range is not within the slab, or any range of a read is alive.
    pub fn edit(&mut self, offset: usize, len: usize, mut edit: impl FnMut(&mut [u8])) -> Result<(), FabricError> {
        let end = offset.checked_add(len).filter(|&end| end <= self.len);
        let end = end.ok_or(FabricError::Misuse("bytes outside their slab were to be changed"))?;
        if self.is_being_written() {
            return Err(FabricError::Misuse("a slab was to be changed while a read of it was outstanding"));
        }
        // In the nearest cache. Not in the slab itself, for the sake of those who may read it, and do so atomically.
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

    /// Makes an arrow buffer of the whole slab, without a copy. The last array over it gives the slab back to the pool.
    /// Bytes that no read wrote hold what an earlier slab left: slice the buffer to what was read.
    ///
    /// # Errors
    /// The slab itself, while any [`Slab::range`] is alive.
    pub fn into_buffer(self) -> Result<Buffer, Slab> {
        if self.is_being_written() {
            return Err(self);
        }
        let (start, len) = (self.block.start(), self.len);
        // The pool's state is behind a lock that heeds no poison, and a registration is only dropped: both stand
        // whatever unwinds past them.
        let owner = Arc::new(AssertUnwindSafe(self.block));
        // SAFETY: `len` bytes from `start` lie within the block, initialised, and stay so until `owner` is dropped.
        // They are not written: no range is alive, none can be made without the slab, and the pool gives the block
        // away only after it is dropped.
        Ok(unsafe { Buffer::from_custom_allocation(start, len, owner) })
    }

    /// The registered memory that it is cut from.
    #[must_use]
    pub fn memory(&self) -> &Arc<RegisteredMemory> {
        &self.block.memory
    }

    /// Where in [`Slab::memory`] it begins.
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
        // The unsafe code of `Slab` rests on this.
        assert!(offset.checked_add(len).is_some_and(|end| end <= memory.len()), "a block outside its chunk");
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
        // Those alive do not overlap, so the last that begins before `end` is also the one that reaches farthest.
        if self.by_start.range(..end).next_back().is_some_and(|(_, &other_end)| other_end > start) {
            return Err(FabricError::Misuse("a range that overlaps another of its slab was asked for"));
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
