//! Copies of buffers that cannot be lent in place.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::{PoolLimits, PoolStats, RegisteredMemory, Slab, SlabPool, Trimmed};
use crate::{Fabric, FabricError};

/// Alignment of every staged piece, in bytes: arrow's recommendation for buffers, and a cache line.
const ALIGNMENT: usize = 64;

/// Registered memory to which a lender copies buffers that are too small for a registration each, or that lie in memory
/// that the fabric cannot read. An arena is cheap to clone, and threads can share it.
///
/// ```
/// # use std::sync::Arc;
/// # use thallus_fabric::memory::{PoolLimits, StagingArena};
/// # use thallus_fabric_sim::{SimNetwork, SimOptions};
/// # let fabric = SimNetwork::new(1, SimOptions::default()).host();
/// let arena = StagingArena::new(fabric, PoolLimits::default());
/// let ranges = arena.stage(&[b"validity", b"offsets", b"values"])?;
/// assert_eq!(ranges[2].len(), 6);
/// assert!(Arc::ptr_eq(ranges[0].memory(), ranges[2].memory()), "one slab for all");
/// assert_eq!(arena.stats().bytes_copied, 21);
/// drop(ranges); // the lease has ended
/// assert_eq!(arena.stats().pool.bytes_in_use, 0);
/// # Ok::<(), thallus_fabric::FabricError>(())
/// ```
#[derive(Clone)]
pub struct StagingArena {
    pool: SlabPool,
    copied: Arc<AtomicU64>,
}

/// Figures of a [`StagingArena`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StagingStats {
    /// Figures of the arena's memory.
    pub pool: PoolStats,
    /// Bytes copied to the arena so far.
    pub bytes_copied: u64,
}

/// A staged buffer. The memory is recycled when the last range staged by the same call is dropped.
#[derive(Clone)]
pub struct StagedRange {
    slab: Arc<Slab>,
    offset: usize,
    len: usize,
}

impl StagingArena {
    /// An arena that allocates its memory from `fabric`, within `limits`.
    #[must_use]
    pub fn new(fabric: Arc<dyn Fabric>, limits: PoolLimits) -> Self {
        StagingArena { pool: SlabPool::new(fabric, limits), copied: Arc::default() }
    }

    /// Copies `pieces` side by side into one slab, each aligned to 64 bytes. Returns their ranges, in order.
    ///
    /// # Errors
    /// [`FabricError::OutOfMemory`] at the arena's limit, and the errors of [`Fabric::allocate`]. After an error,
    /// nothing is staged.
    pub fn stage(&self, pieces: &[&[u8]]) -> Result<Vec<StagedRange>, FabricError> {
        let mut total = 0_usize;
        let mut offsets = Vec::with_capacity(pieces.len());
        for piece in pieces {
            offsets.push(total);
            // The sum of the lengths of existing slices may exceed the address space, if they are the same slice many
            // times.
            let end = total.checked_add(piece.len()).and_then(|end| end.checked_next_multiple_of(ALIGNMENT));
            total = end.ok_or(FabricError::OutOfMemory {
                len: usize::MAX,
                available: self.pool.limits().max_bytes,
                limit: self.pool.limits().max_bytes,
            })?;
        }
        let mut slab = self.pool.take(total)?;
        let mut copied = 0;
        for (piece, &offset) in pieces.iter().zip(&offsets) {
            slab.copy_in(offset, piece)?;
            // The gaps between the pieces may be exposed to the borrower of the pieces, so bytes of earlier loans are
            // cleared there.
            let end = offset + piece.len();
            slab.copy_in(end, &[0; ALIGNMENT][..end.next_multiple_of(ALIGNMENT) - end])?;
            copied += piece.len() as u64;
        }
        self.copied.fetch_add(copied, Ordering::Relaxed);
        let slab = Arc::new(slab);
        let range =
            |(piece, offset): (&&[u8], usize)| StagedRange { slab: Arc::clone(&slab), offset, len: piece.len() };
        Ok(pieces.iter().zip(offsets).map(range).collect())
    }

    /// Frees idle memory; see [`SlabPool::trim`].
    pub fn trim(&self, idle: Duration) -> Trimmed {
        self.pool.trim(idle)
    }

    /// Current figures.
    #[must_use]
    pub fn stats(&self) -> StagingStats {
        StagingStats { pool: self.pool.stats(), bytes_copied: self.copied.load(Ordering::Relaxed) }
    }
}

impl fmt::Debug for StagingArena {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "StagingArena({:?})", self.stats())
    }
}

impl StagedRange {
    /// The registered memory that contains the range.
    #[must_use]
    pub fn memory(&self) -> &Arc<RegisteredMemory> {
        self.slab.memory()
    }

    /// Offset of the range in [`StagedRange::memory`].
    #[must_use]
    pub fn offset(&self) -> usize {
        self.slab.offset() + self.offset
    }

    /// Address of the first byte, for remote ranges.
    #[must_use]
    pub fn address(&self) -> u64 {
        self.memory().address() + self.offset() as u64
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
}

impl fmt::Debug for StagedRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "StagedRange({:#x}+{})", self.address(), self.len)
    }
}
