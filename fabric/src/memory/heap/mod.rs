//! The process's heap in registered memory, so that all data that the program computes can be lent in place.
//!
//! A program declares [`RegisteredHeap`] as its allocator and, at its very start, lets it
//! [grow](RegisteredHeap::grow_in) in memory of a fabric. The allocator is mimalloc. It gets regions, and keeps their
//! addresses for ever. A region is added when an allocation found no room: the first region is small, each further
//! region is as large as all before together, up to a limit. Allocations beyond the limit lie in ordinary memory.
//!
//! Over a fabric that lends memory files ([`Fabric::adopt`]), there is one region. It is made of segments, and an empty
//! segment [goes back](RegisteredSpace::trim) to the system. Over other fabrics a region is registered as a whole, and
//! stays registered until the process ends.
//!
//! A program with such a heap must not `fork` and continue in the child, which would share the heap with its parent.

mod mimalloc;
mod regions;
#[cfg(target_os = "linux")]
mod segments;
#[cfg(not(target_os = "linux"))]
#[path = "no_segments.rs"]
mod segments;

use std::alloc::{GlobalAlloc, Layout};
use std::cell::Cell;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use thiserror::Error;

use super::{RegisteredMemory, RegisteredSpace, Trimmed, check_available};
use crate::{Fabric, FabricError, Touch};
use regions::{Region, Regions};
use segments::Segments;

/// Length of the first region. mimalloc accepts no less than 32 MiB, and uses a part of it for itself.
const FIRST_REGION: usize = 64 << 20;
/// Length of the longest region, so that no allocation waits until a device has pinned a whole host's memory.
const LONGEST_REGION: usize = 4 << 30;
/// The part of a region that mimalloc may need for itself, and the unit in which it accepts memory.
const GRAIN: usize = 32 << 20;
/// Allocations of at least this size are checked, and may grow the heap.
const LARGE: usize = 32 << 10;
/// Twice the memory that mimalloc takes at once for allocations of one size: with room for this, there is room for any
/// such allocation.
const PROBE: usize = 8 << 20;

/// The global allocator of the process.
///
/// ```no_run
/// use thallus_fabric::memory::RegisteredHeap;
///
/// #[global_allocator]
/// static HEAP: RegisteredHeap = RegisteredHeap::new();
/// ```
#[derive(Debug)]
pub struct RegisteredHeap {
    _only_by_new: (),
}

/// The reason why the heap does not lie in registered memory.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum HeapError {
    /// The program has another allocator.
    #[error("this program's allocator is not the registered heap: its memory cannot be given regions")]
    NotTheAllocator,
    /// [`RegisteredHeap::grow_in`] was called before.
    #[error("the heap grows in registered memory already")]
    Already,
    /// The limit is below the minimum of the allocator.
    #[error("a registered heap of {limit} bytes is too small: it takes at least {FIRST_REGION}")]
    TooSmall {
        /// The requested limit.
        limit: usize,
    },
    /// The fabric could not allocate memory.
    #[error("no registered memory for the heap: {0}")]
    Fabric(#[from] FabricError),
    /// The allocator refused a region.
    #[error("the allocator cannot use a region of {len} bytes")]
    Refused {
        /// Length of the region.
        len: usize,
    },
}

/// Figures of the heap in registered memory.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HeapStats {
    /// Number of regions.
    pub regions: usize,
    /// Bytes in the regions.
    pub bytes: usize,
    /// Bytes of these that are memory now, used or not.
    pub mapped: usize,
    /// Maximum bytes in the regions.
    pub limit: usize,
    /// The reason why the heap cannot grow any more.
    pub full: Option<String>,
}

/// The growth of the heap.
struct Growth {
    fabric: Arc<dyn Fabric>,
    /// Whether regions are made of segments.
    by_segments: bool,
    limit: usize,
    bytes: usize,
    full: Option<String>,
}

static REGIONS: Regions = Regions::new();
static GROWTH: Mutex<Option<Growth>> = Mutex::new(None);
/// Whether allocations that find no room should grow the heap. Without the lock, the value is only a hint.
static GROWS: AtomicBool = AtomicBool::new(false);
/// Whether a log line has reported that the system refuses memory files.
static REFUSED: AtomicBool = AtomicBool::new(false);
/// Whether the allocator was configured to wait for regions.
static PREPARED: AtomicBool = AtomicBool::new(false);

/// Counts the trims. A thread that frees memory after a trim gives back what the allocator keeps for it: one page of
/// the allocator for each size, each of which could hold up a segment.
static TRIMS: AtomicUsize = AtomicUsize::new(0);

thread_local! {
    /// The trims that this thread has followed.
    static FOLLOWED: Cell<usize> = const { Cell::new(0) };
    /// Whether this thread is growing the heap. Its own allocations meanwhile do not grow the heap again.
    static GROWING: Cell<bool> = const { Cell::new(false) };
}

fn growth() -> MutexGuard<'static, Option<Growth>> {
    // A panic under this lock leaves a consistent state: a finished region is recorded in one step.
    GROWTH.lock().unwrap_or_else(PoisonError::into_inner)
}

impl RegisteredHeap {
    /// The allocator, for a `static`.
    #[must_use]
    #[expect(clippy::new_without_default, reason = "a static needs a const fn, and there is no other use")]
    pub const fn new() -> Self {
        RegisteredHeap { _only_by_new: () }
    }

    /// Lets the heap of this process grow in memory of `fabric`, to `limit` bytes. Call it first in `main`: earlier
    /// allocations lie elsewhere. Returns a handle that finds the registrations of allocations.
    ///
    /// # Errors
    /// [`HeapError`]. The heap is then ordinary memory.
    pub fn grow_in(fabric: Arc<dyn Fabric>, limit: usize) -> Result<HeapMemory, HeapError> {
        if !PREPARED.load(Ordering::Relaxed) {
            return Err(HeapError::NotTheAllocator);
        }
        let mut state = growth();
        if state.is_some() {
            return Err(HeapError::Already);
        }
        if limit < FIRST_REGION {
            return Err(HeapError::TooSmall { limit });
        }
        let by_segments = Segments::are_for(&*fabric);
        let mut growth = Growth { fabric, by_segments, limit, bytes: 0, full: None };
        growth.grow(0).inspect_err(|_| mimalloc::use_system_arenas())?;
        *state = Some(growth);
        GROWS.store(true, Ordering::Release);
        Ok(HeapMemory(()))
    }

    /// Keeps the heap in ordinary memory. For programs that have no fabric to [grow in](RegisteredHeap::grow_in).
    pub fn stay_ordinary() {
        if growth().is_none() {
            mimalloc::use_system_arenas();
        }
    }
}

impl Growth {
    /// Adds a region with room for an allocation of `wanted` bytes. `false`: such a region would exceed the limit.
    ///
    /// # Errors
    /// No further region can be added.
    fn grow(&mut self, wanted: usize) -> Result<bool, HeapError> {
        let least = wanted.checked_next_multiple_of(GRAIN).unwrap_or(usize::MAX).saturating_add(GRAIN);
        let usual = self.bytes.clamp(FIRST_REGION, LONGEST_REGION).max(least);
        let left = (self.limit - self.bytes) / GRAIN * GRAIN;
        // A region of segments is no more than addresses, and the allocator keeps some memory at its beginning.
        let len = if self.by_segments { left } else { usual.min(left) };
        if len < least {
            let nothing_fits = FabricError::OutOfMemory { len: wanted, available: left, limit: self.limit };
            return if left < FIRST_REGION { Err(nothing_fits.into()) } else { Ok(false) };
        }
        let region = if self.by_segments {
            check_available(least)?;
            Region::Segments(Segments::new(Arc::clone(&self.fabric), len)?)
        } else {
            let memory = self.fabric.allocate(len, Touch::WhenUsed)?;
            if !memory.claim() {
                return Err(HeapError::Refused { len });
            }
            Region::Whole(memory)
        };
        // The allocator may use the region from now on, so the region must be in the table first.
        let Some(slot) = REGIONS.insert(region) else { return Err(HeapError::Refused { len }) };
        if !mimalloc::manage(slot) {
            return Err(HeapError::Refused { len });
        }
        self.bytes += len;
        Ok(true)
    }
}

/// Grows the heap after an allocation of `size` bytes found no room in it. Returns whether there is room now.
#[cold]
fn grow_for(size: usize) -> bool {
    if GROWING.replace(true) {
        return false;
    }
    // An allocator must not unwind.
    let grown = catch_unwind(AssertUnwindSafe(|| {
        let mut state = growth();
        let Some(growth) = state.as_mut().filter(|growth| growth.full.is_none()) else { return false };
        if mimalloc::has_room(size.max(PROBE), &REGIONS) {
            // Another thread has grown the heap meanwhile, or the heap had room and the allocator preferred an old page
            // elsewhere.
            return true;
        }
        if let Some(error) = REGIONS.all().find_map(Region::take_refusal) {
            // Not for ever: there may be room for more open files, or memory, later.
            if !REFUSED.swap(true, Ordering::Relaxed) {
                tracing::warn!(%error, "the heap gets no memory file; results are copied before they are lent");
            }
            return false;
        }
        growth.grow(size).unwrap_or_else(|error| {
            growth.full = Some(error.to_string());
            GROWS.store(false, Ordering::Release);
            mimalloc::use_system_arenas();
            false
        })
    }));
    GROWING.set(false);
    grown.unwrap_or(false)
}

/// Whether an allocation at `start` lies outside the regions and should be repeated, because a region was added.
fn is_worth_moving(start: *mut u8, layout: Layout) -> bool {
    layout.size() >= LARGE
        && layout.align() <= super::PAGE
        && GROWS.load(Ordering::Relaxed)
        && !start.is_null()
        && !REGIONS.contains(start.addr(), layout.size())
        && grow_for(layout.size())
}

/// Repeats an allocation that lies outside the regions at `start`, until it lies in a region. The allocator may keep
/// using a page for a while that it took from the system before there was room.
///
/// # Safety
/// The caller owns the block at `start` and gives it up.
#[cold]
unsafe fn again(start: *mut u8, layout: Layout, alloc: fn(Layout) -> *mut u8) -> *mut u8 {
    /// The maximum number of large blocks in one page of the allocator.
    const TRIES: usize = 64;
    let mut aside = [ptr::null_mut(); TRIES];
    let mut block = start;
    for place in &mut aside {
        if block.is_null() || REGIONS.contains(block.addr(), layout.size()) {
            break;
        }
        *place = block;
        block = alloc(layout);
    }
    for block in aside {
        // SAFETY: null, the caller's block, or allocated above and not handed out.
        unsafe { mimalloc::free(block) };
    }
    block
}

// SAFETY: the functions are mimalloc's, which is an allocator. The other operations keep to its contract: a block that
// is replaced by another one was not handed out yet, or has been copied. No function unwinds.
unsafe impl GlobalAlloc for RegisteredHeap {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if !PREPARED.load(Ordering::Relaxed) {
            PREPARED.store(true, Ordering::Relaxed);
            mimalloc::wait_for_regions();
        }
        let start = mimalloc::alloc(layout);
        if is_worth_moving(start, layout) {
            // SAFETY: allocated just now, and not handed out.
            return unsafe { again(start, layout, mimalloc::alloc) };
        }
        start
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        if !PREPARED.load(Ordering::Relaxed) {
            PREPARED.store(true, Ordering::Relaxed);
            mimalloc::wait_for_regions();
        }
        let start = mimalloc::alloc_zeroed(layout);
        if is_worth_moving(start, layout) {
            // SAFETY: as in `alloc`.
            return unsafe { again(start, layout, mimalloc::alloc_zeroed) };
        }
        start
    }

    unsafe fn dealloc(&self, start: *mut u8, _layout: Layout) {
        // SAFETY: allocated by the functions above; the caller gives it up.
        unsafe { mimalloc::free(start) }
        let trims = TRIMS.load(Ordering::Relaxed);
        if FOLLOWED.get() != trims {
            FOLLOWED.set(trims);
            mimalloc::collect();
        }
    }

    unsafe fn realloc(&self, start: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        // SAFETY: as in `dealloc`; the caller guarantees the layout.
        let moved = unsafe { mimalloc::realloc(start, new_size, layout.align()) };
        // SAFETY: the caller guarantees that the new size makes a layout.
        let new_layout = unsafe { Layout::from_size_align_unchecked(new_size, layout.align()) };
        if !is_worth_moving(moved, new_layout) {
            return moved;
        }
        let elsewhere = mimalloc::alloc(new_layout);
        // SAFETY: allocated just now, and not handed out.
        let better = unsafe { again(elsewhere, new_layout, mimalloc::alloc) };
        if better.is_null() {
            return moved;
        }
        // SAFETY: two blocks. The new one has `new_size` bytes, and by `realloc` the old one has too; bytes that were
        // never written are copied as they are. After that no pointer to the old block is left.
        unsafe {
            ptr::copy_nonoverlapping(moved, better, new_size);
            mimalloc::free(moved);
        }
        better
    }
}

/// The heap's registered memory: see [`RegisteredHeap::grow_in`].
#[derive(Clone)]
pub struct HeapMemory(());

impl HeapMemory {
    /// Current figures.
    #[must_use]
    pub fn stats(&self) -> HeapStats {
        let state = growth();
        let Some(Growth { limit, bytes, full, .. }) = &*state else { return HeapStats::default() };
        let mapped = REGIONS.all().map(Region::mapped).sum();
        HeapStats { regions: REGIONS.len(), bytes: *bytes, mapped, limit: *limit, full: full.clone() }
    }
}

impl RegisteredSpace for HeapMemory {
    fn find(&self, bytes: &[u8]) -> Option<(Arc<RegisteredMemory>, usize)> {
        REGIONS.find(bytes.as_ptr().addr(), bytes.len())
    }

    fn trim(&self, idle: Duration) -> Trimmed {
        TRIMS.fetch_add(1, Ordering::Relaxed);
        mimalloc::collect();
        let mut trimmed = Trimmed::default();
        for region in REGIONS.all() {
            if let Region::Segments(segments) = region {
                segments.trim(idle, &mut trimmed);
            }
        }
        trimmed
    }
}

impl fmt::Debug for HeapMemory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "HeapMemory({:?})", self.stats())
    }
}
