//! The functions of mimalloc 3 that the registered heap uses.

use std::alloc::Layout;
use std::ffi::{c_int, c_long, c_void};
use std::ptr;

use libmimalloc_sys as sys;

use super::Regions;
use crate::memory::RegisteredMemory;

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

/// Gives a region to the allocator permanently.
pub(super) fn manage(memory: &'static RegisteredMemory) -> bool {
    let mut arena = ptr::null_mut();
    // SAFETY: the region lives as long as the process, is readable and writable, and has no other owner: the caller has
    // claimed it. It is passed as large (`is_pinned` in the library), so that it is never purged: a device may have its
    // pages.
    unsafe {
        sys::mi_manage_os_memory_ex(
            memory.start().as_ptr().cast::<c_void>(),
            memory.len(),
            true,
            true,
            false,
            -1,
            false,
            &mut arena,
        )
    }
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
