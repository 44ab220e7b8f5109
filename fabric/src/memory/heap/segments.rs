//! A region of the heap that is made of memory files, each of which goes back to the system once nothing lies in it.
//!
//! The allocator has the region's addresses permanently. It asks for memory at some of them (*commits* them) before it
//! uses them, and says which it does not use any more. The unit of the files is the allocator's own: no block of up to
//! this length lies in two of them.

use std::io;
use std::os::fd::AsFd;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicI32, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::memory::file::{FileMapping, Reserved};
use crate::memory::piece::FilePiece;
use crate::memory::{PAGE, RegisteredMemory, Trimmed};
use crate::{Fabric, FabricError};

/// Length of a segment: `MI_BCHUNK_BITS` slices of mimalloc.
pub(super) const SEGMENT: usize = 32 << 20;
/// The unit in which mimalloc commits memory.
const SLICE: usize = 64 << 10;
const SLICES: usize = SEGMENT / SLICE;

/// A region of segments. It is never freed.
pub(super) struct Segments {
    start: NonNull<u8>,
    fabric: Arc<dyn Fabric>,
    segments: Box<[Segment]>,
    /// The error of the last memory file that the system refused; 0 if there is none.
    refused: AtomicI32,
}

// SAFETY: an address; memory is accessed only as `RegisteredMemory` and the allocator allow.
unsafe impl Send for Segments {}
// SAFETY: as above.
unsafe impl Sync for Segments {}

#[derive(Default)]
struct Segment {
    /// The memory, as the allocator sees it. Code under this lock must not allocate or free memory of the heap: the
    /// allocator takes the lock too.
    used: Mutex<Used>,
    /// The memory as the fabric sees it, once something in it was lent.
    registered: Mutex<Option<Arc<RegisteredMemory>>>,
    /// The pieces that exist of the memory, each of which keeps it where it is.
    pieces: AtomicUsize,
    /// Since when nothing has lain in it, as far as [`Segments::trim`] has seen.
    empty: Mutex<Option<Empty>>,
}

#[derive(Default)]
struct Used {
    mapping: Option<FileMapping>,
    /// The slices that the allocator uses.
    slices: [u64; SLICES / 64],
    /// Calls that are about to use some.
    pins: usize,
    /// How often memory was asked for.
    commits: u64,
}

/// A segment that was seen empty.
#[derive(Clone, Copy)]
struct Empty {
    since: Instant,
    commits: u64,
}

impl Used {
    fn is_empty(&self) -> bool {
        self.mapping.is_some() && self.pins == 0 && self.slices == [0; SLICES / 64]
    }

    /// Marks the slices `from .. to` as used, or as unused.
    fn set(&mut self, from: usize, to: usize, used: bool) {
        for (word, bits) in self.slices.iter_mut().enumerate() {
            let (low, high) = (from.clamp(word * 64, word * 64 + 64), to.clamp(word * 64, word * 64 + 64));
            if low < high {
                let mask = (u64::MAX >> (64 - (high - low))) << (low % 64);
                *bits = if used { *bits | mask } else { *bits & !mask };
            }
        }
    }
}

/// The number of a system's error. Other errors stand for a lack of memory.
fn code(error: &io::Error) -> i32 {
    error.raw_os_error().unwrap_or(12)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // No code under these locks panics half way through a change.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Segments {
    /// A region of `len` bytes, a multiple of [`SEGMENT`], all of it without memory.
    ///
    /// # Errors
    /// [`FabricError::Registration`]: there is no address space left.
    pub(super) fn new(fabric: Arc<dyn Fabric>, len: usize) -> Result<Self, FabricError> {
        let reserved = Reserved::new(len, SEGMENT).map_err(|error| {
            let reason = format!("{error}; look at the limit of address space (`ulimit -v`)");
            FabricError::Registration { fabric: fabric.kind(), len, reason }
        })?;
        let start = reserved.start();
        // The place of a region is never given back.
        std::mem::forget(reserved);
        let segments = (0..len / SEGMENT).map(|_| Segment::default()).collect();
        Ok(Segments { start, fabric, segments, refused: AtomicI32::new(0) })
    }

    /// Whether regions can be made of segments: whether the fabric lends memory files that are not its own.
    pub(super) fn are_for(fabric: &dyn Fabric) -> bool {
        let Ok(mapping) = FileMapping::new(PAGE) else { return false };
        fabric.adopt(FilePiece::of(Box::leak(Box::new(mapping)))).is_ok()
    }

    pub(super) fn start(&self) -> NonNull<u8> {
        self.start
    }

    pub(super) fn len(&self) -> usize {
        self.segments.len() * SEGMENT
    }

    /// Bytes in memory files now, whether anything lies in them or not.
    pub(super) fn mapped(&self) -> usize {
        self.segments.iter().filter(|segment| lock(&segment.used).mapping.is_some()).count() * SEGMENT
    }

    /// Address of a segment.
    fn at(&self, index: usize) -> NonNull<u8> {
        // SAFETY: within the region.
        unsafe { self.start.add(index * SEGMENT) }
    }

    /// The segments of a range, each with its slices in the range. Addresses outside of the region are left out.
    fn parts(&self, address: usize, len: usize) -> impl Iterator<Item = (usize, usize, usize)> + use<'_> {
        let offset = address.saturating_sub(self.start.addr().get());
        let (from, to) = (offset / SLICE, offset.saturating_add(len).div_ceil(SLICE));
        (from / SLICES..to.div_ceil(SLICES).min(self.segments.len())).map(move |index| {
            let first = index * SLICES;
            (index, from.max(first) - first, to.min(first + SLICES) - first)
        })
    }

    /// The allocator is about to use a range. `false`: there is no memory for it. Allocates nothing on the heap.
    pub(super) fn commit(&self, address: usize, len: usize) -> bool {
        let mut pinned = 0;
        let all = self.parts(address, len).all(|(index, ..)| {
            let mut used = lock(&self.segments[index].used);
            if used.mapping.is_none() {
                // SAFETY: a segment within the region's reservation, which is never dropped; no memory is there yet.
                let mapping = unsafe { FileMapping::at(self.at(index), SEGMENT) };
                used.mapping = mapping.inspect_err(|error| self.refused.store(code(error), Ordering::Relaxed)).ok();
            }
            let mapped = used.mapping.is_some();
            used.pins += usize::from(mapped);
            used.commits += 1;
            pinned += usize::from(mapped);
            mapped
        });
        for (index, from, to) in self.parts(address, len).take(pinned) {
            let mut used = lock(&self.segments[index].used);
            used.pins -= 1;
            if all {
                used.set(from, to, true);
            }
        }
        all
    }

    /// Takes the error of the last memory file that the system refused.
    pub(super) fn take_refusal(&self) -> Option<io::Error> {
        let code = self.refused.swap(0, Ordering::Relaxed);
        (code != 0).then(|| io::Error::from_raw_os_error(code))
    }

    /// The allocator does not use a range any more. Allocates and frees nothing on the heap.
    pub(super) fn decommit(&self, address: usize, len: usize) {
        for (index, from, to) in self.parts(address, len) {
            lock(&self.segments[index].used).set(from, to, false);
        }
    }

    /// The registered memory of a used range, if it lies in one segment.
    pub(super) fn find(&self, address: usize, len: usize) -> Option<Arc<RegisteredMemory>> {
        let index = (address - self.start.addr().get()) / SEGMENT;
        let segment = self.segments.get(index)?;
        let is_within = address + len <= self.at(index).addr().get() + SEGMENT;
        let mut registered = is_within.then(|| lock(&segment.registered))?;
        if let Some(known) = &*registered {
            known.set_wanted_back(false);
            return Some(Arc::clone(known));
        }
        let piece = self.piece(index)?;
        // Allocates, and under this lock may.
        let new =
            self.fabric.adopt(piece).inspect_err(|error| tracing::debug!(%error, "a segment of the heap")).ok()?;
        let is_same = new.address() == self.at(index).addr().get() as u64 && new.len() == SEGMENT && new.claim();
        is_same.then(|| Arc::clone(registered.insert(new)))
    }

    fn piece(&self, index: usize) -> Option<FilePiece> {
        // The region lives as long as the process.
        let segment: *const Segment = self.segments.get(index)?;
        // SAFETY: regions are never freed or moved: their segments are boxed, and the table of regions is static.
        let segment: &'static Segment = unsafe { &*segment };
        let used = lock(&segment.used);
        let mapping = used.mapping.as_ref()?;
        // SAFETY: `give_back` unmaps and closes the file only while no piece of it exists, under the lock that is held
        // here. The kernel has zeroed the memory.
        Some(unsafe { FilePiece::new(mapping.start(), SEGMENT, mapping.as_fd(), &segment.pieces) })
    }

    /// Gives back the segments in which nothing has lain for `idle`.
    pub(super) fn trim(&self, idle: Duration, trimmed: &mut Trimmed) {
        let now = Instant::now();
        for segment in &self.segments {
            let (is_empty, commits) = {
                let used = lock(&segment.used);
                (used.is_empty(), used.commits)
            };
            let mut empty = lock(&segment.empty);
            if !is_empty {
                *empty = None;
                continue;
            }
            let known = empty.filter(|known| known.commits == commits);
            let since = empty.insert(known.unwrap_or(Empty { since: now, commits })).since;
            if now.duration_since(since) < idle || !segment.give_back(trimmed) {
                trimmed.left += SEGMENT;
            } else {
                trimmed.freed += SEGMENT;
                *empty = None;
            }
        }
    }
}

impl Segment {
    /// Returns whether the memory went back. If not, its holders have been asked to let go of it, or it is used again.
    fn give_back(&self, trimmed: &mut Trimmed) -> bool {
        let last = {
            let mut registered = lock(&self.registered);
            if let Some(memory) = &*registered {
                memory.set_wanted_back(true);
                if Arc::strong_count(memory) > 1 {
                    trimmed.held = true;
                    return false;
                }
            }
            registered.take()
        };
        drop(last);
        let mut used = lock(&self.used);
        // Only `find` makes a piece, of a segment in which something lies.
        if !used.is_empty() || self.pieces.load(Ordering::Acquire) > 0 {
            return false;
        }
        // Under the lock: after it, the allocator may have the next file mapped at this place.
        drop(used.mapping.take());
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::test_fabric::TestFabric;

    fn region(segments: usize) -> Segments {
        Segments::new(Arc::new(TestFabric::default()), segments * SEGMENT).unwrap()
    }

    fn mapped(region: &Segments) -> Vec<bool> {
        region.segments.iter().map(|segment| lock(&segment.used).mapping.is_some()).collect()
    }

    fn trim(region: &Segments, idle: Duration) -> Trimmed {
        let mut trimmed = Trimmed::default();
        region.trim(idle, &mut trimmed);
        trimmed
    }

    #[test]
    fn slices_are_marked_one_by_one_across_words() {
        for (from, to) in [(0, 1), (0, 64), (63, 65), (5, 200), (0, SLICES), (SLICES - 1, SLICES), (64, 128), (7, 7)] {
            let mut used = Used::default();
            used.set(from, to, true);
            let is_set = |used: &Used, at: usize| used.slices[at / 64] >> (at % 64) & 1 == 1;
            assert!((0..SLICES).all(|at| is_set(&used, at) == (from..to).contains(&at)), "{from}..{to}");
            used.set(0, SLICES, true);
            used.set(from, to, false);
            assert!((0..SLICES).all(|at| is_set(&used, at) != (from..to).contains(&at)), "{from}..{to}");
        }
    }

    #[test]
    fn memory_comes_where_it_is_committed_and_goes_where_nothing_is_left() {
        let region = region(4);
        let start = region.start().addr().get();
        assert!(start.is_multiple_of(SEGMENT) && region.mapped() == 0);
        // Across three segments.
        assert!(region.commit(start + SEGMENT - SLICE, SEGMENT + 2 * SLICE));
        assert_eq!(mapped(&region), [true, true, true, false]);
        for at in [SEGMENT - SLICE, SEGMENT, 2 * SEGMENT + SLICE - 1] {
            // SAFETY: committed, and only this test has the region.
            unsafe {
                assert_eq!(region.start().add(at).read(), 0);
                region.start().add(at).write(7);
            }
        }
        assert!(region.commit(start, SLICE));
        region.decommit(start + SEGMENT - SLICE, SEGMENT + 2 * SLICE);
        assert_eq!(trim(&region, Duration::from_secs(1000)), Trimmed { left: 2 * SEGMENT, ..Trimmed::default() });
        assert_eq!(trim(&region, Duration::ZERO), Trimmed { freed: 2 * SEGMENT, ..Trimmed::default() });
        assert_eq!((mapped(&region), region.mapped()), (vec![true, false, false, false], SEGMENT));
        // The next memory at the same place is another file.
        assert!(region.commit(start + SEGMENT, SLICE));
        // SAFETY: as above.
        assert_eq!(unsafe { region.start().add(SEGMENT).read() }, 0);
        // A fabric that lends no files leaves the memory to the heap.
        assert!(region.find(start + SEGMENT, 8).is_none());
        assert!(!Segments::are_for(&TestFabric::default()));
    }

    #[test]
    fn a_segment_that_was_used_between_two_looks_is_not_idle() {
        let region = region(1);
        let start = region.start().addr().get();
        assert!(region.commit(start, SLICE));
        region.decommit(start, SLICE);
        let idle = Duration::from_millis(20);
        assert_eq!(trim(&region, idle).left, SEGMENT);
        std::thread::sleep(idle);
        assert!(region.commit(start, SLICE));
        region.decommit(start, SLICE);
        assert_eq!(trim(&region, idle).freed, 0, "it was used");
        std::thread::sleep(idle);
        assert_eq!(trim(&region, idle).freed, SEGMENT);
    }
}
