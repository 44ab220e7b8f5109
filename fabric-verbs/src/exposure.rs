//! The memory that is exposed to the peer of one endpoint, and its revocation.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use ibverbs_sys as sys;
use sys::ibv_access_flags as Access;

use crate::address::Key;
use crate::library::{check, last_error};
use crate::memory::{Pinned, Region};
use crate::queue::Domain;

/// Number of unbound windows that are kept for the next loans.
const SPARE_WINDOWS: usize = 64;

/// The way in which memory is exposed, as decided from the options and the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Scope {
    Windows,
    Registrations,
    Whole,
}

impl Scope {
    /// The access rights of regions of the fabric's domain, besides local use.
    pub(crate) fn access(self) -> Access {
        match self {
            Scope::Windows => Access::IBV_ACCESS_MW_BIND,
            Scope::Registrations => Access(0),
            Scope::Whole => Access::IBV_ACCESS_REMOTE_READ,
        }
    }
}

/// A memory window of type 2.
pub(crate) struct Window {
    domain: Arc<Domain>,
    handle: *mut sys::ibv_mw,
}

// SAFETY: libibverbs is thread safe; the handle is used by its owner only.
unsafe impl Send for Window {}

impl Window {
    pub(crate) fn new(domain: &Arc<Domain>) -> Result<Self, String> {
        let alloc = domain.device.operations().alloc_mw.ok_or("the provider has no memory windows")?;
        // SAFETY: an open domain.
        let handle = unsafe { alloc(domain.handle, sys::IBV_MW_TYPE_2) };
        if handle.is_null() {
            return Err(last_error("ibv_alloc_mw"));
        }
        // `ibv_alloc_mw` of verbs.h does the same: providers do not set these fields.
        // SAFETY: allocated just now, and no other code has it.
        unsafe {
            (*handle).pd = domain.handle;
            (*handle).type_ = sys::IBV_MW_TYPE_2;
        }
        Ok(Window { domain: Arc::clone(domain), handle })
    }

    /// The key of the next binding: the low byte belongs to the caller, and must change (`ibv_inc_rkey`).
    pub(crate) fn next_key(&self) -> u32 {
        let key = self.key();
        (key & !0xFF) | (key.wrapping_add(1) & 0xFF)
    }

    /// The key of the current binding.
    pub(crate) fn key(&self) -> u32 {
        // SAFETY: an allocated window.
        unsafe { (*self.handle).rkey }
    }

    /// Records a binding that has completed.
    pub(crate) fn bound(&mut self, key: u32) {
        // For windows of type 2 the caller maintains the key (`man ibv_post_send`).
        // SAFETY: an allocated window, which is ours alone.
        unsafe { (*self.handle).rkey = key };
    }

    /// The work request that exposes `range` of `memory` to the peer of the queue pair to which it is posted.
    pub(crate) fn bind(&self, memory: &Pinned, range: &Range<usize>) -> Result<sys::ibv_send_wr, String> {
        let region = memory.region().ok_or("the memory is not registered")?;
        let mut request = sys::ibv_send_wr { opcode: sys::ibv_wr_opcode::IBV_WR_BIND_MW, ..Default::default() };
        request.__bindgen_anon_2.bind_mw = sys::ibv_send_wr__bindgen_ty_4__bindgen_ty_1 {
            mw: self.handle,
            rkey: self.next_key(),
            bind_info: sys::ibv_mw_bind_info {
                mr: region.handle(),
                addr: memory.start().as_ptr() as u64 + range.start as u64,
                length: range.len() as u64,
                mw_access_flags: Access::IBV_ACCESS_REMOTE_READ.0,
            },
        };
        Ok(request)
    }

    /// The work request that invalidates the window.
    pub(crate) fn invalidate(&self) -> sys::ibv_send_wr {
        let mut request = sys::ibv_send_wr { opcode: sys::ibv_wr_opcode::IBV_WR_LOCAL_INV, ..Default::default() };
        request.__bindgen_anon_1.invalidate_rkey = self.key();
        request
    }
}

impl Drop for Window {
    fn drop(&mut self) {
        let Some(dealloc) = self.domain.device.operations().dealloc_mw else { return };
        // SAFETY: allocated once, freed once.
        if let Err(reason) = check("ibv_dealloc_mw", unsafe { dealloc(self.handle) }) {
            tracing::error!(reason, "a memory window could not be freed");
        }
    }
}

/// An exposed range. Fields drop in order: the window before its region.
pub(crate) struct Open {
    pub(crate) how: How,
    pub(crate) memory: Arc<Pinned>,
    pub(crate) range: Range<usize>,
}

pub(crate) enum How {
    /// Until the endpoint is connected, there is no queue pair to which the window can be bound.
    Window {
        window: Window,
        bound: bool,
    },
    Region(#[expect(dead_code, reason = "held for its drop")] Region),
    Whole,
}

/// All ranges that are exposed to one peer.
#[derive(Default)]
pub(crate) struct Exposures {
    open: HashMap<Bytes, Open>,
    spare: Vec<Window>,
}

impl Exposures {
    pub(crate) fn window(&mut self, domain: &Arc<Domain>) -> Result<Window, String> {
        self.spare.pop().map_or_else(|| Window::new(domain), Ok)
    }

    pub(crate) fn keep(&mut self, window: Window) {
        if self.spare.len() < SPARE_WINDOWS {
            self.spare.push(window);
        }
    }

    pub(crate) fn insert(&mut self, rkey: u32, open: Open) -> Bytes {
        let base = open.memory.start().as_ptr() as u64 + open.range.start as u64;
        let key = Bytes::from(Key { rkey, base, len: open.range.len() as u64 }.pack());
        self.open.insert(key.clone(), open);
        key
    }

    pub(crate) fn remove(&mut self, key: &Bytes) -> Option<Open> {
        self.open.remove(key)
    }

    /// Windows that were exposed before the endpoint was connected.
    pub(crate) fn unbound(&mut self) -> Vec<Bytes> {
        let waits = |open: &Open| matches!(open.how, How::Window { bound: false, .. });
        self.open.iter().filter(|(_, open)| waits(open)).map(|(key, _)| key.clone()).collect()
    }

    pub(crate) fn len(&self) -> usize {
        self.open.len()
    }

    /// Revokes everything, by freeing it.
    pub(crate) fn clear(&mut self) {
        self.open.clear();
        self.spare.clear();
    }
}
