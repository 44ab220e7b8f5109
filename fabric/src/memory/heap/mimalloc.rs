//! The functions of mimalloc 3 that the registered heap uses.

use std::alloc::Layout;
use std::ffi::{c_int, c_long, c_void};
use std::ptr;

use libmimalloc_sys as sys;

use super::regions::{Region, Regions};
use super::segments::Segments;

/// `mi_option_arena_reserve`, in KiB: the address space that mimalloc reserves from the system when its arenas are
/// full. With 0 it allocates single blocks from the system, and returns them when they are freed.
const ARENA_RESERVE: c_int = 23;
/// The default of mimalloc on 64-bit machines.
const USUAL_RESERVE: c_long = 1 << 20;

/// Stops mimalloc from reserving arenas from the system. It gets regions instead.
pub(super) fn wait_for_regions() {
    // SAFETY: sets a number. mimalloc calls it unsafe for threads; the first allocation of a process comes before its
    // threads.
    unsafe { sys::mi_option_set(ARENA_RESERVE, 0) }
}

/// Lets mimalloc reserve arenas from the system again.
pub(super) fn use_system_arenas() {
    // SAFETY: sets a number that other threads may be reading: an aligned word, of which they see the old or the new
    // value.
    unsafe { sys::mi_option_set(ARENA_RESERVE, USUAL_RESERVE) }
}

type CommitFunction = unsafe extern "C" fn(bool, *mut c_void, usize, *mut bool, *mut c_void) -> bool;

unsafe extern "C" {
    /// The bindings lack it. As [`sys::mi_manage_os_memory_ex`], with a function that commits memory and decommits it.
    fn mi_manage_memory(
        start: *mut c_void,
        size: usize,
        is_committed: bool,
        is_pinned: bool,
        is_zero: bool,
        numa_node: c_int,
        exclusive: bool,
        commit: Option<CommitFunction>,
        argument: *mut c_void,
        arena: *mut sys::mi_arena_id_t,
    ) -> bool;
}

/// Gives a region to the allocator permanently.
pub(super) fn manage(region: &'static Region) -> bool {
    let mut arena = ptr::null_mut();
    match region {
        // SAFETY: the region lives as long as the process, is readable and writable, and has no other owner: the caller
        // has claimed it. It is passed as pinned, so that it is never purged: a device may have its pages.
        Region::Whole(memory) => unsafe {
            let (start, len) = (memory.start().as_ptr().cast(), memory.len());
            sys::mi_manage_os_memory_ex(start, len, true, true, false, -1, false, &mut arena)
        },
        // SAFETY: the addresses belong to the region as long as the process lives, and no other code has them. The
        // allocator uses only what it has committed, which `commit` maps. Memory that was never used is zero.
        Region::Segments(segments) => unsafe {
            let (start, len) = (segments.start().as_ptr().cast(), segments.len());
            let argument = ptr::from_ref(segments).cast_mut().cast();
            mi_manage_memory(start, len, false, false, true, -1, false, Some(commit), argument, &mut arena)
        },
    }
}

/// Commits or decommits memory of a region of segments.
///
/// # Safety
/// `argument` is the region, and `is_zero` is null or valid for a write.
unsafe extern "C" fn commit(
    commit: bool,
    start: *mut c_void,
    size: usize,
    is_zero: *mut bool,
    argument: *mut c_void,
) -> bool {
    // SAFETY: `manage` has passed a region that lives as long as the process.
    let segments = unsafe { &*argument.cast::<Segments>() };
    if !is_zero.is_null() {
        // SAFETY: the caller's promise. It may have been used before.
        unsafe { is_zero.write(false) };
    }
    if commit {
        segments.commit(start.addr(), size)
    } else {
        segments.decommit(start.addr(), size);
        true
    }
}

/// Lets the allocator decommit what has been free for a while, and what this thread keeps for itself.
pub(super) fn collect() {
    // SAFETY: frees nothing that is in use.
    unsafe { sys::mi_collect(true) }
}

/// Whether an allocation of `size` bytes would lie in one of the regions.
pub(super) fn has_room(size: usize, regions: &Regions) -> bool {
    // SAFETY: the block is freed immediately.
    unsafe {
        let block = sys::mi_malloc(size);
        let inside = regions.contains(block.addr(), size);
        sys::mi_free(block);
        inside
    }
}

pub(super) fn alloc(layout: Layout) -> *mut u8 {
    // SAFETY: any size and any power of two are allowed.
    unsafe { sys::mi_malloc_aligned(layout.size(), layout.align()).cast() }
}

pub(super) fn alloc_zeroed(layout: Layout) -> *mut u8 {
    // SAFETY: as above.
    unsafe { sys::mi_zalloc_aligned(layout.size(), layout.align()).cast() }
}

/// # Safety
/// `start` is null, or a block of this allocator that the caller owns.
pub(super) unsafe fn free(start: *mut u8) {
    // SAFETY: the caller's promise.
    unsafe { sys::mi_free(start.cast()) }
}

/// # Safety
/// `start` is a block of this allocator that the caller owns. The caller gives it up if another block is returned.
pub(super) unsafe fn realloc(start: *mut u8, size: usize, align: usize) -> *mut u8 {
    // SAFETY: the caller's promise.
    unsafe { sys::mi_realloc_aligned(start.cast(), size, align).cast() }
}
