//! The chunks of a pool: memory from the fabric, and the blocks of it that are in use.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use super::extents::FreeExtents;
use super::{PAGE, RegisteredMemory};

/// The limits of a [`SlabPool`](super::SlabPool).
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
    /// 1 GiB at most, in chunks of 2 to 64 MiB, all of it kept until [`SlabPool::trim`](super::SlabPool::trim) finds it
    /// idle.
    fn default() -> Self {
        PoolLimits { max_bytes: 1 << 30, first_chunk_bytes: 2 << 20, chunk_bytes: 64 << 20, keep_bytes: usize::MAX }
    }
}

/// Figures of a [`SlabPool`](super::SlabPool).
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

/// The state that slabs need for their return.
pub(super) struct Shared {
    pub(super) limits: PoolLimits,
    state: Mutex<State>,
}

#[derive(Default)]
pub(super) struct State {
    chunks: BTreeMap<u64, Chunk>,
    next_chunk: u64,
    /// No pool handle is left, so chunks are not kept for later.
    closed: bool,
    pub(super) stats: PoolStats,
}

/// One allocation from the fabric.
pub(super) struct Chunk {
    memory: Arc<RegisteredMemory>,
    pub(super) free: FreeExtents,
    /// The time at which its last slab returned, if it has no slab now.
    idle_since: Option<Instant>,
}

impl Shared {
    pub(super) fn new(limits: PoolLimits) -> Self {
        Shared { limits, state: Mutex::default() }
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
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
    pub(super) fn take_block(&mut self, block: usize, chunk_bytes: usize) -> Option<(u64, usize)> {
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
    pub(super) fn make_room(&mut self, block: usize, limits: &PoolLimits) -> Result<(usize, Vec<Chunk>), usize> {
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

    /// Adds a chunk. Returns its id.
    pub(super) fn add(&mut self, memory: Arc<RegisteredMemory>, free: FreeExtents) -> u64 {
        let id = self.next_chunk;
        self.next_chunk += 1;
        self.chunks.insert(id, Chunk { memory, free, idle_since: None });
        id
    }

    /// Counts a block as in use, which was just cut from this chunk. Returns the chunk's memory.
    pub(super) fn use_block(&mut self, chunk_id: u64, block: usize) -> Arc<RegisteredMemory> {
        let chunk = self.chunks.get_mut(&chunk_id).expect("the block was just cut from this chunk");
        chunk.idle_since = None;
        chunk.memory.set_wanted_back(false);
        let memory = Arc::clone(&chunk.memory);
        self.stats.bytes_in_use += block;
        self.stats.high_water = self.stats.high_water.max(self.stats.bytes_in_use);
        self.stats.slabs_in_use += 1;
        memory
    }

    /// Keeps no chunk for later from now on. Returns the chunks without a slab.
    pub(super) fn close(&mut self) -> Vec<Chunk> {
        self.closed = true;
        self.remove_idle(None)
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
    pub(super) fn remove_idle(&mut self, idle: Option<Duration>) -> Vec<Chunk> {
        let ids: Vec<u64> = match idle {
            Some(_) => self.chunks.iter().filter(|(_, chunk)| chunk.can_go(idle)).map(|(&id, _)| id).collect(),
            None => self.chunks.iter().filter(|(_, chunk)| chunk.free.is_whole()).map(|(&id, _)| id).collect(),
        };
        ids.into_iter().filter_map(|id| self.remove(id)).collect()
    }

    /// Wants those chunks back that could go but for their other holders. Returns the number of their bytes.
    pub(super) fn want_back(&self, idle: Duration) -> usize {
        let held = self.chunks.values().filter(|chunk| chunk.is_idle(idle) && Arc::strong_count(&chunk.memory) > 1);
        held.inspect(|chunk| chunk.memory.set_wanted_back(true)).map(|chunk| chunk.free.capacity()).sum()
    }
}

impl Chunk {
    /// Whether removing the chunk would free its memory and, if `idle` is given, the chunk has had no slab for that
    /// long.
    fn can_go(&self, idle: Option<Duration>) -> bool {
        self.free.is_whole() && Arc::strong_count(&self.memory) == 1 && idle.is_none_or(|idle| self.is_idle(idle))
    }

    /// Whether it has had no slab for at least `idle`.
    fn is_idle(&self, idle: Duration) -> bool {
        self.free.is_whole() && self.idle_since.is_some_and(|since| since.elapsed() >= idle)
    }
}
