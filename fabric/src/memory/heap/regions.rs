//! The heap's regions. They are looked up during allocations: without a lock, and without allocating.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};

use crate::memory::RegisteredMemory;

/// Maximum number of regions. With regions that double up to 4 GiB, this is half a terabyte.
const MAX: usize = 128;

/// A table of regions. Regions are added and never removed.
pub(super) struct Regions {
    slots: [OnceLock<Arc<RegisteredMemory>>; MAX],
    len: AtomicUsize,
}

impl Regions {
    pub(super) const fn new() -> Self {
        Regions { slots: [const { OnceLock::new() }; MAX], len: AtomicUsize::new(0) }
    }

    /// Adds a region permanently. Callers exclude each other by a lock. `None` if the table is full.
    pub(super) fn insert(&self, memory: Arc<RegisteredMemory>) -> Option<&Arc<RegisteredMemory>> {
        let at = self.len.load(Ordering::Relaxed);
        let slot = self.slots.get(at)?;
        let memory = slot.get_or_init(|| memory);
        self.len.store(at + 1, Ordering::Release);
        Some(memory)
    }

    pub(super) fn len(&self) -> usize {
        self.len.load(Ordering::Acquire)
    }

    /// The region that contains `len` bytes at `address`, and their offset in it. `None` also for zero bytes.
    pub(super) fn find(&self, address: usize, len: usize) -> Option<(&Arc<RegisteredMemory>, usize)> {
        if len == 0 {
            return None;
        }
        // Later regions are larger.
        let regions = self.slots[..self.len()].iter().rev().filter_map(OnceLock::get);
        regions.into_iter().find_map(|memory| Some((memory, memory.offset_of(address as u64, len as u64)?)))
    }

    pub(super) fn contains(&self, address: usize, len: usize) -> bool {
        self.find(address, len).is_some()
    }
}
