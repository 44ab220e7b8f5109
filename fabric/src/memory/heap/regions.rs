//! The heap's regions. They are looked up during allocations: without a lock, and without allocating.

use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};

use super::segments::Segments;
use crate::memory::RegisteredMemory;

/// Maximum number of regions. With regions that double up to 4 GiB, this is half a terabyte.
const MAX: usize = 128;

/// Addresses that the allocator has permanently.
pub(super) enum Region {
    /// Memory of the fabric, for ever.
    Whole(Arc<RegisteredMemory>),
    /// Memory files, which go back to the system.
    Segments(Segments),
}

impl Region {
    pub(super) fn start(&self) -> usize {
        match self {
            Region::Whole(memory) => memory.start().addr().get(),
            Region::Segments(segments) => segments.start().addr().get(),
        }
    }

    pub(super) fn len(&self) -> usize {
        match self {
            Region::Whole(memory) => memory.len(),
            Region::Segments(segments) => segments.len(),
        }
    }

    fn contains(&self, address: usize, len: usize) -> bool {
        let offset = address.checked_sub(self.start());
        offset.and_then(|offset| offset.checked_add(len)).is_some_and(|end| end <= self.len())
    }

    /// Takes the error of the last memory file that the system refused.
    pub(super) fn take_refusal(&self) -> Option<io::Error> {
        match self {
            Region::Whole(_) => None,
            Region::Segments(segments) => segments.take_refusal(),
        }
    }

    /// Bytes of it that are memory now.
    pub(super) fn mapped(&self) -> usize {
        match self {
            Region::Whole(memory) => memory.len(),
            Region::Segments(segments) => segments.mapped(),
        }
    }
}

/// A table of regions. Regions are added and never removed.
pub(super) struct Regions {
    slots: [OnceLock<Region>; MAX],
    len: AtomicUsize,
}

impl Regions {
    pub(super) const fn new() -> Self {
        Regions { slots: [const { OnceLock::new() }; MAX], len: AtomicUsize::new(0) }
    }

    /// Adds a region permanently. Callers exclude each other by a lock. `None` if the table is full.
    pub(super) fn insert(&self, region: Region) -> Option<&Region> {
        let at = self.len.load(Ordering::Relaxed);
        let region = self.slots.get(at)?.get_or_init(|| region);
        self.len.store(at + 1, Ordering::Release);
        Some(region)
    }

    pub(super) fn len(&self) -> usize {
        self.len.load(Ordering::Acquire)
    }

    /// All regions. The latest are the largest, and come first.
    pub(super) fn all(&self) -> impl Iterator<Item = &Region> {
        self.slots[..self.len()].iter().rev().filter_map(OnceLock::get)
    }

    /// The region that contains `len` bytes at `address`. `None` also for zero bytes.
    fn region(&self, address: usize, len: usize) -> Option<&Region> {
        self.all().find(|region| len > 0 && region.contains(address, len))
    }

    /// The memory that contains `len` bytes at `address`, and their offset in it.
    pub(super) fn find(&self, address: usize, len: usize) -> Option<(Arc<RegisteredMemory>, usize)> {
        let memory = match self.region(address, len)? {
            Region::Whole(memory) => Arc::clone(memory),
            Region::Segments(segments) => segments.find(address, len)?,
        };
        let offset = memory.offset_of(address as u64, len as u64)?;
        Some((memory, offset))
    }

    pub(super) fn contains(&self, address: usize, len: usize) -> bool {
        self.region(address, len).is_some()
    }
}
