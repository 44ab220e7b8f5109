//! The process's heap in registered memory, so that whatever the program computes can be lent from where it lies.
//!
//! A program makes [`RegisteredHeap`] its allocator and, first thing, lets it [grow](RegisteredHeap::grow_in) in memory
//! of a fabric. The allocator is mimalloc; it is given memory of the fabric, which it uses and never
//! hands back to the system. A region grows the heap when an allocation found no room: the first is small, each further
//! one is as large as all before, up to a limit. What does not fit any more lies in ordinary memory.
//!
//! Memory that is registered is never unregistered: the process ends with it. A program with such a heap must not
//! `fork` and go on in the child, which would share it with its parent.

mod mimalloc;
mod regions;

use std::alloc::{GlobalAlloc, Layout};
use std::cell::Cell;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::ptr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use thiserror::Error;

use super::{RegisteredMemory, RegisteredSpace};
use crate::{Fabric, FabricError, Touch};
use regions::Regions;

/// The first region. mimalloc takes no less than 32 MiB, and keeps a part of it for itself.
const FIRST_REGION: usize = 64 << 20;
/// The longest region, lest one allocation wait for a device to pin a whole host's memory.
const LONGEST_REGION: usize = 4 << 30;
/// The share of a region that mimalloc may need for itself, and the grain in which it takes memory.
const GRAIN: usize = 32 << 20;
/// Allocations from here on are looked at, and may grow the heap.
const LARGE: usize = 32 << 10;
/// Twice what mimalloc takes at once to put allocations of one size side by side: where there is room for this, there
/// is for any.
const PROBE: usize = 8 << 20;

/// The process's allocator.
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

/// Why the heap does not lie in registered memory.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum HeapError {
    /// The program has another allocator.
    #[error("this program's allocator is not the registered heap: its memory cannot be given regions")]
    NotTheAllocator,
    /// [`RegisteredHeap::grow_in`] was called before.
    #[error("the heap grows in registered memory already")]
    Already,
    /// The limit is below what the allocator can use at all.
    #[error("a registered heap of {limit} bytes is too small: it takes at least {FIRST_REGION}")]
    TooSmall {
        /// The requested limit.
        limit: usize,
    },
    /// The fabric gave no memory.
    #[error("no registered memory for the heap: {0}")]
    Fabric(#[from] FabricError),
    /// The allocator did not take a region.
    #[error("the allocator cannot use a region of {len} bytes")]
    Refused {
        /// Length of the region.
        len: usize,
    },
}

/// Figures of the heap in registered memory.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HeapStats {
    /// Regions, each a registration.
    pub regions: usize,
    /// Bytes in them.
    pub bytes: usize,
    /// Bytes that they may grow to.
    pub limit: usize,
    /// Why it does not grow any more.
    pub full: Option<String>,
}

/// How the heap grows.
struct Growth {
    fabric: Arc<dyn Fabric>,
    limit: usize,
    bytes: usize,
    full: Option<String>,
}

static REGIONS: Regions = Regions::new();
static GROWTH: Mutex<Option<Growth>> = Mutex::new(None);
/// Whether allocations that find no room are to grow the heap. Only a hint for those who do not hold the lock.
static GROWS: AtomicBool = AtomicBool::new(false);
/// Whether the allocator has been told to wait for regions.
static PREPARED: AtomicBool = AtomicBool::new(false);

thread_local! {
    /// Whether this thread is growing the heap: what it allocates meanwhile does not grow it again.
    static GROWING: Cell<bool> = const { Cell::new(false) };
}

fn growth() -> MutexGuard<'static, Option<Growth>> {
    // A panic under this lock leaves a consistent state: a region is booked in one step, when it is there.
    GROWTH.lock().unwrap_or_else(PoisonError::into_inner)
}

impl RegisteredHeap {
    /// The allocator, for a `static`.
    #[must_use]
    #[expect(clippy::new_without_default, reason = "a static needs a const fn, and nobody else makes one")]
    pub const fn new() -> Self {
        RegisteredHeap { _only_by_new: () }
    }

    /// Lets the heap of this process grow in memory of `fabric`, to `limit` bytes. Called first thing in `main`: what
    /// is allocated before lies elsewhere. Returns how to find out what lies there.
    ///
    /// # Errors
    /// [`HeapError`]. The heap is ordinary memory then.
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
        let mut growth = Growth { fabric, limit, bytes: 0, full: None };
        growth.grow(0).inspect_err(|_| mimalloc::use_system_arenas())?;
        *state = Some(growth);
        GROWS.store(true, Ordering::Release);
        Ok(HeapMemory(()))
    }

    /// Lets the heap be ordinary memory. For programs that have no fabric to [grow in](RegisteredHeap::grow_in).
    pub fn stay_ordinary() {
        if growth().is_none() {
            mimalloc::use_system_arenas();
        }
    }
}

impl Growth {
    /// One more region, with room for an allocation of `wanted` bytes. `false`: one so long is beyond the limit.
    ///
    /// # Errors
    /// There will be no further region.
    fn grow(&mut self, wanted: usize) -> Result<bool, HeapError> {
        let least = wanted.checked_next_multiple_of(GRAIN).unwrap_or(usize::MAX).saturating_add(GRAIN);
        let usual = self.bytes.clamp(FIRST_REGION, LONGEST_REGION).max(least);
        let left = (self.limit - self.bytes) / GRAIN * GRAIN;
        let len = usual.min(left);
        if len < least {
            let nothing_fits = FabricError::OutOfMemory { len: wanted, available: left, limit: self.limit };
            return if left < FIRST_REGION { Err(nothing_fits.into()) } else { Ok(false) };
        }
        let memory = self.fabric.allocate(len, Touch::WhenUsed)?;
        if !memory.claim() {
            return Err(HeapError::Refused { len });
        }
        // The allocator may hand it out from now on, so that it must be known first.
        let Some(slot) = REGIONS.insert(memory) else { return Err(HeapError::Refused { len }) };
        if !mimalloc::manage(slot) {
            return Err(HeapError::Refused { len });
        }
        self.bytes += len;
        Ok(true)
    }
}

/// Grows the heap because an allocation of `size` bytes found no room in it. Whether there is room now.
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
            // Another thread has grown it meanwhile; or it had room, and the allocator preferred an old page elsewhere.
            return true;
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

/// Whether an allocation that came to lie at `start` should rather be made again, in a region that has been added.
fn is_worth_moving(start: *mut u8, layout: Layout) -> bool {
    layout.size() >= LARGE
        && layout.align() <= super::PAGE
        && GROWS.load(Ordering::Relaxed)
        && !start.is_null()
        && !REGIONS.contains(start.addr(), layout.size())
        && grow_for(layout.size())
}

/// Allocates again, until it is in a region, what came to lie elsewhere at `start`. The allocator may go on for a while
/// with a page that it took from the system before there was room.
///
/// # Safety
/// The block at `start` is the caller's to give up.
#[cold]
unsafe fn again(start: *mut u8, layout: Layout, alloc: fn(Layout) -> *mut u8) -> *mut u8 {
    /// As many as a page holds of those that are large.
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
        // SAFETY: null, the caller's, or allocated above and not handed out.
        unsafe { mimalloc::free(block) };
    }
    block
}

// SAFETY: mimalloc's functions, which are an allocator's; what is done beside them keeps to their contract: a block
// that is given up for another one was not handed out yet, or has been copied. Nothing unwinds.
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
        // SAFETY: allocated by the functions above, and given up by the caller.
        unsafe { mimalloc::free(start) }
    }

    unsafe fn realloc(&self, start: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        // SAFETY: as in `dealloc`; the caller vouches for the layout.
        let moved = unsafe { mimalloc::realloc(start, new_size, layout.align()) };
        // SAFETY: the caller vouches that the new size makes a layout.
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
        // SAFETY: two blocks, of which the new one has `new_size` bytes and the old one, by `realloc`, too; whatever of
        // them was never written is copied as it is. Then no pointer to the old one is left.
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
    /// Its figures now.
    #[must_use]
    pub fn stats(&self) -> HeapStats {
        let state = growth();
        let Some(Growth { limit, bytes, full, .. }) = &*state else { return HeapStats::default() };
        HeapStats { regions: REGIONS.len(), bytes: *bytes, limit: *limit, full: full.clone() }
    }
}

impl RegisteredSpace for HeapMemory {
    fn find(&self, bytes: &[u8]) -> Option<(&Arc<RegisteredMemory>, usize)> {
        REGIONS.find(bytes.as_ptr().addr(), bytes.len())
    }
}

impl fmt::Debug for HeapMemory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "HeapMemory({:?})", self.stats())
    }
}
