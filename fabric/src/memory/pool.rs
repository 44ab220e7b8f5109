//! The pool of slabs.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use tokio::time::Instant;

use super::extents::{FreeExtents, block_len};
use super::slab::{Block, Slab};
use super::{PAGE, RegisteredMemory};
use crate::{Fabric, FabricError, Touch};

/// The limits of a [`SlabPool`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PoolLimits {
    /// Maximum number of bytes that the pool may have allocated at once, used or unused.
    pub max_bytes: usize,
    /// Length of the first allocation from the fabric. Each further allocation is as large as all before together, up
    /// to [`PoolLimits::chunk_bytes`]. So a short query does not wait for the pinning of megabytes that it never uses.
    pub first_chunk_bytes: usize,
    /// Length of the longest allocation that slabs share. A longer slab gets an allocation of its own.
    pub chunk_bytes: usize,
    /// Maximum number of bytes that are kept without a slab in them. Above this limit, an allocation is freed when its
    /// last slab returns.
    pub keep_bytes: usize,
}

impl Default for PoolLimits {
    /// 1 GiB at most, in chunks of 2 to 64 MiB, all of it kept until [`SlabPool::trim`] finds it idle.
    fn default() -> Self {
        PoolLimits { max_bytes: 1 << 30, first_chunk_bytes: 2 << 20, chunk_bytes: 64 << 20, keep_bytes: usize::MAX }
    }
}

/// Figures of a [`SlabPool`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PoolStats {
    /// Bytes allocated from the fabric and not freed.
    pub bytes_total: usize,
    /// Bytes of these in slabs in use, or in buffers made of slabs, with rounding.
    pub bytes_in_use: usize,
    /// Maximum of [`PoolStats::bytes_in_use`] so far.
    pub high_water: usize,
    /// Number of slabs in use, with those that were made into buffers.
    pub slabs_in_use: usize,
    /// Number of allocations from the fabric so far, each a registration. Constant in steady state.
    pub registrations: u64,
}

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
        let idle = {
            let mut state = self.shared.lock();
            state.closed = true;
            state.remove_idle(None)
        };
        // Deregistration may take long, so it does not happen under the lock, here and below.
        drop(idle);
    }
}

/// The state that slabs need for their return.
pub(super) struct Shared {
    limits: PoolLimits,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    chunks: BTreeMap<u64, Chunk>,
    next_chunk: u64,
    /// No pool handle is left, so chunks are not kept for later.
    closed: bool,
    stats: PoolStats,
}

/// One allocation from the fabric.
struct Chunk {
    memory: Arc<RegisteredMemory>,
    free: FreeExtents,
    /// The time at which its last slab returned, if it has no slab now.
    idle_since: Option<Instant>,
}

impl SlabPool {
    /// A pool that allocates its memory from `fabric`. Nothing is allocated yet.
    #[must_use]
    pub fn new(fabric: Arc<dyn Fabric>, limits: PoolLimits) -> Self {
        let shared = Arc::new(Shared { limits, state: Mutex::default() });
        SlabPool { handle: Arc::new(Handle { fabric, shared }) }
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
                return Ok(state.slab(shared, id, offset, block, len));
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
        let id = state.next_chunk;
        state.next_chunk += 1;
        state.stats.registrations += 1;
        let mut free = FreeExtents::whole(new_len);
        let offset = free.take(block).ok_or_else(|| out_of_memory(new_len))?;
        state.chunks.insert(id, Chunk { memory, free, idle_since: None });
        Ok(state.slab(shared, id, offset, block, len))
    }

    /// Frees the chunks that have had no slab for at least `idle` ([`Duration::ZERO`]: all chunks without a slab).
    /// Returns the number of freed bytes. Chunks with other holders, such as an endpoint, are kept.
    pub fn trim(&self, idle: Duration) -> usize {
        let removed = self.handle.shared.lock().remove_idle(Some(idle));
        removed.iter().map(|chunk| chunk.free.capacity()).sum()
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

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        // No code that can panic under the lock leaves the state half changed.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns a slab's block to the pool.
    pub(super) fn give_back(&self, chunk_id: u64, offset: usize, block: usize) {
        let gone = {
            let mut state = self.lock();
            state.stats.bytes_in_use -= block;
            state.stats.slabs_in_use -= 1;
            let Some(chunk) = state.chunks.get_mut(&chunk_id) else {
                debug_assert!(false, "the chunk of a slab does not exist");
                return;
            };
            chunk.free.give(offset, block);
            if chunk.free.is_whole() {
                chunk.idle_since = Some(Instant::now());
                // Other holders than the chunk and the returned block.
                let held = Arc::strong_count(&chunk.memory) > 2;
                let superfluous = !held && state.idle_bytes() > self.limits.keep_bytes;
                if state.closed || superfluous { state.remove(chunk_id) } else { None }
            } else {
                None
            }
        };
        drop(gone);
    }
}

impl State {
    /// A block of the existing chunks: of the oldest with room, so that later chunks become empty and can be freed.
    fn take_block(&mut self, block: usize, chunk_bytes: usize) -> Option<(u64, usize)> {
        if block <= chunk_bytes {
            let shared = self.chunks.iter_mut().filter(|(_, chunk)| chunk.free.capacity() <= chunk_bytes);
            return shared.into_iter().find_map(|(&id, chunk)| Some((id, chunk.free.take(block)?)));
        }
        // A chunk for a single slab, which may be one size class too large.
        let (_, id) = self
            .chunks
            .iter()
            .filter(|(_, chunk)| chunk.free.is_whole())
            .map(|(&id, chunk)| (chunk.free.capacity(), id))
            .filter(|&(capacity, _)| (block..=block + block / 4).contains(&capacity))
            .min()?;
        let chunk = self.chunks.get_mut(&id)?;
        let offset = chunk.free.take(block)?;
        Some((id, offset))
    }

    /// Reserves the bytes of a new chunk that holds `block`, and removes idle chunks if the limit requires it. Returns
    /// the length of the chunk, and the removed chunks.
    ///
    /// # Errors Length of the longest block for which there would have been room.
    fn make_room(&mut self, block: usize, limits: &PoolLimits) -> Result<(usize, Vec<Chunk>), usize> {
        let usual = if block > limits.chunk_bytes {
            block
        } else {
            let grown =
                self.stats.bytes_total.clamp(limits.first_chunk_bytes.min(limits.chunk_bytes), limits.chunk_bytes);
            grown.next_multiple_of(PAGE).min(limits.chunk_bytes).max(block)
        };
        let mut room = limits.max_bytes.saturating_sub(self.stats.bytes_total);
        let mut evicted = Vec::new();
        if room < block {
            let mut idle: Vec<_> = self.chunks.iter().filter(|(_, chunk)| chunk.can_go(None)).collect();
            let reachable = room + idle.iter().map(|(_, chunk)| chunk.free.capacity()).sum::<usize>();
            if reachable < block {
                // Other slabs cannot use the rest of a chunk with a single slab.
                let shared = self.chunks.values().filter(|chunk| chunk.free.capacity() <= limits.chunk_bytes);
                let largest = shared.map(|chunk| chunk.free.largest()).max().unwrap_or(0);
                return Err(reachable.max(largest));
            }
            idle.sort_by_key(|(id, chunk)| (chunk.idle_since, **id));
            let ids: Vec<u64> = idle.into_iter().map(|(&id, _)| id).collect();
            for id in ids {
                if room >= block {
                    break;
                }
                if let Some(chunk) = self.remove(id) {
                    room += chunk.free.capacity();
                    evicted.push(chunk);
                }
            }
        }
        let len = if usual <= room { usual } else { block };
        self.stats.bytes_total += len;
        Ok((len, evicted))
    }

    fn slab(&mut self, shared: &Arc<Shared>, chunk_id: u64, offset: usize, block: usize, len: usize) -> Slab {
        let chunk = self.chunks.get_mut(&chunk_id).expect("the block was just cut from this chunk");
        chunk.idle_since = None;
        let memory = Arc::clone(&chunk.memory);
        self.stats.bytes_in_use += block;
        self.stats.high_water = self.stats.high_water.max(self.stats.bytes_in_use);
        self.stats.slabs_in_use += 1;
        Slab::new(Block::new(memory, Arc::clone(shared), chunk_id, offset, block), len)
    }

    /// Bytes of chunks without a slab.
    fn idle_bytes(&self) -> usize {
        self.chunks.values().filter(|chunk| chunk.free.is_whole()).map(|chunk| chunk.free.capacity()).sum()
    }

    fn remove(&mut self, id: u64) -> Option<Chunk> {
        let chunk = self.chunks.remove(&id)?;
        self.stats.bytes_total -= chunk.free.capacity();
        Some(chunk)
    }

    /// Removes the chunks that have been idle for at least `idle`, or, if `None`, all chunks without a slab, even with
    /// other holders.
    fn remove_idle(&mut self, idle: Option<Duration>) -> Vec<Chunk> {
        let ids: Vec<u64> = match idle {
            Some(_) => self.chunks.iter().filter(|(_, chunk)| chunk.can_go(idle)).map(|(&id, _)| id).collect(),
            None => self.chunks.iter().filter(|(_, chunk)| chunk.free.is_whole()).map(|(&id, _)| id).collect(),
        };
        ids.into_iter().filter_map(|id| self.remove(id)).collect()
    }
}

impl Chunk {
    /// Whether removing the chunk would free its memory and, if `idle` is given, the chunk has had no slab for that
    /// long.
    fn can_go(&self, idle: Option<Duration>) -> bool {
        self.free.is_whole()
            && Arc::strong_count(&self.memory) == 1
            && idle.is_none_or(|idle| self.idle_since.is_some_and(|since| since.elapsed() >= idle))
    }
}
