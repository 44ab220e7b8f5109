//! The pool of slabs.

use std::fmt;
use std::sync::{Arc, Weak};
use std::time::Duration;

use super::chunks::{PoolLimits, PoolStats, Shared, State};
use super::extents::{FreeExtents, block_len};
use super::slab::{Block, Slab};
use super::{PAGE, RegisteredMemory, Trimmed};
use crate::{Fabric, FabricError, Touch};

/// Slabs of registered, already touched memory, recycled.
///
/// Registering memory and touching fresh pages cost more than the reads into them (the paper's authors measured 30 us
/// of pinning to 18 us of reading per call), so memory is allocated from the fabric in chunks and kept. A slab returns
/// to its pool by itself: when it is dropped, or when the last array over the buffer made of it is dropped. A pool is
/// cheap to clone, and threads can share it. No memory is kept longer than necessary: once every handle of the pool is
/// dropped, each chunk is freed with its last slab.
///
/// ```
/// use std::sync::Arc;
/// use thallus_fabric::Fabric;
/// use thallus_fabric::memory::{PoolLimits, SlabPool};
/// # use thallus_fabric_sim::{SimNetwork, SimOptions};
/// # let fabric: Arc<dyn Fabric> = SimNetwork::new(1, SimOptions::default()).host();
///
/// let pool = SlabPool::new(fabric, PoolLimits { max_bytes: 1 << 20, ..PoolLimits::default() });
/// let slab = pool.take(100_000)?;
///
/// // Reads land in ranges of the slab. While one is outstanding, the bytes cannot be seen.
/// let range = slab.range(0, 50_000)?;
/// let slab = slab.into_buffer().unwrap_err();
/// drop(range); // the fabric does this when the read's completion has been polled
///
/// // Then the slab becomes an arrow buffer, in place, and its last slice returns it to the pool.
/// let column = slab.into_buffer().unwrap().slice_with_length(0, 50_000);
/// assert!(pool.stats().bytes_in_use >= 100_000);
/// drop(column);
/// assert_eq!(pool.stats().bytes_in_use, 0);
/// assert_eq!(pool.stats().registrations, 1);
/// # Ok::<(), thallus_fabric::FabricError>(())
/// ```
#[derive(Clone)]
pub struct SlabPool {
    handle: Arc<Handle>,
}

/// A handle that does not keep the pool alive.
#[derive(Clone)]
pub struct WeakPool(Weak<Handle>);

impl WeakPool {
    /// The pool, if a handle of it is left.
    #[must_use]
    pub fn upgrade(&self) -> Option<SlabPool> {
        self.0.upgrade().map(|handle| SlabPool { handle })
    }

    /// Whether the last handle of the pool was dropped.
    #[must_use]
    pub fn is_gone(&self) -> bool {
        self.0.strong_count() == 0
    }
}

impl fmt::Debug for WeakPool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "WeakPool({:?})", self.upgrade())
    }
}

/// The state that every clone of the pool shares. Slabs do not hold it. Its drop closes the pool.
struct Handle {
    fabric: Arc<dyn Fabric>,
    shared: Arc<Shared>,
}

impl Drop for Handle {
    fn drop(&mut self) {
        let idle = self.shared.lock().close();
        // Deregistration may take long, so it does not happen under the lock, here and below.
        drop(idle);
    }
}

impl SlabPool {
    /// A pool that allocates its memory from `fabric`. Nothing is allocated yet.
    #[must_use]
    pub fn new(fabric: Arc<dyn Fabric>, limits: PoolLimits) -> Self {
        SlabPool { handle: Arc::new(Handle { fabric, shared: Arc::new(Shared::new(limits)) }) }
    }

    /// A slab of `len` bytes, aligned to a [`PAGE`]. It contains the bytes of earlier slabs.
    ///
    /// Never waits for slabs to return. Allocates from the fabric only if no block of the pool fits. If the limit then
    /// prevents it, idle chunks are freed first.
    ///
    /// # Errors
    /// [`FabricError::OutOfMemory`] at the pool's limit; the errors of [`Fabric::allocate`].
    pub fn take(&self, len: usize) -> Result<Slab, FabricError> {
        let shared = &self.handle.shared;
        let limits = shared.limits;
        let out_of_memory = |available| FabricError::OutOfMemory { len, available, limit: limits.max_bytes };
        let block = block_len(len).ok_or_else(|| out_of_memory(limits.max_bytes))?;

        let (new_len, evicted) = {
            let mut state = shared.lock();
            if let Some((id, offset)) = state.take_block(block, limits.chunk_bytes) {
                return Ok(slab(shared, &mut state, (id, offset), block, len));
            }
            state.make_room(block, &limits).map_err(out_of_memory)?
        };
        drop(evicted);

        let memory = self
            .handle
            .fabric
            .allocate(new_len, Touch::Now)
            .and_then(|memory| fit_for_slabs(memory, new_len, &*self.handle.fabric));
        let mut state = shared.lock();
        let memory = memory.inspect_err(|_| state.stats.bytes_total -= new_len)?;
        state.stats.registrations += 1;
        let mut free = FreeExtents::whole(new_len);
        let offset = free.take(block).ok_or_else(|| out_of_memory(new_len))?;
        let id = state.add(memory, free);
        Ok(slab(shared, &mut state, (id, offset), block, len))
    }

    /// Frees the chunks that have had no slab for at least `idle` ([`Duration::ZERO`]: all chunks without a slab).
    /// Chunks with other holders, such as an endpoint, are [wanted back](RegisteredMemory::is_wanted_back), and kept
    /// until a later call.
    pub fn trim(&self, idle: Duration) -> Trimmed {
        let (removed, held) = {
            let mut state = self.handle.shared.lock();
            (state.remove_idle(Some(idle)), state.want_back(idle))
        };
        let freed = removed.iter().map(|chunk| chunk.free.capacity()).sum();
        Trimmed { freed, left: held, held: held > 0 }
    }

    /// A handle that does not keep the pool alive.
    #[must_use]
    pub fn downgrade(&self) -> WeakPool {
        WeakPool(Arc::downgrade(&self.handle))
    }

    /// Current figures.
    #[must_use]
    pub fn stats(&self) -> PoolStats {
        self.handle.shared.lock().stats
    }

    /// The limits of the pool.
    #[must_use]
    pub fn limits(&self) -> PoolLimits {
        self.handle.shared.limits
    }
}

impl fmt::Debug for SlabPool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SlabPool({:?}, {:?})", self.limits(), self.stats())
    }
}

/// A slab of a block, which was just cut from the chunk with this id, at this offset.
fn slab(shared: &Arc<Shared>, state: &mut State, (chunk, offset): (u64, usize), block: usize, len: usize) -> Slab {
    let memory = state.use_block(chunk, block);
    Slab::new(Block::new(memory, Arc::clone(shared), chunk, offset, block), len)
}

/// Checks the properties that the safety of slabs depends on, since [`Fabric`] is a safe trait and may be implemented
/// wrongly.
fn fit_for_slabs(
    memory: Arc<RegisteredMemory>,
    len: usize,
    fabric: &dyn Fabric,
) -> Result<Arc<RegisteredMemory>, FabricError> {
    let reason = if memory.len() < len {
        "the fabric allocated less than requested"
    } else if !(memory.address() as usize).is_multiple_of(PAGE) {
        "the fabric's memory does not begin at a page"
    } else if !memory.claim() {
        "the fabric's memory is read-only or in use already"
    } else {
        return Ok(memory);
    };
    Err(FabricError::Registration { fabric: fabric.kind(), len, reason: reason.to_owned() })
}
