//! The lending role of an endpoint: exposes memory to the peer, and revokes it.

use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use ibverbs_sys as sys;
use thallus_fabric::memory::RegisteredMemory;
use thallus_fabric::{FabricError, FabricKind};

use super::{State, VerbsEndpoint};
use crate::exposure::{How, Open, Scope, Window};
use crate::memory::{self, Region};
use crate::status::work_failure;

/// Maximum time that the device may take to expose or revoke memory.
const CONTROL_BOUND: Duration = Duration::from_secs(2);

impl VerbsEndpoint {
    /// Posts a request to the lending queue pair and waits for it. It takes microseconds, since no other request is
    /// queued.
    fn execute(&mut self, verb: &'static str, mut request: sys::ibv_send_wr) -> Result<(), String> {
        let Some(pairs) = &self.pairs else { return Err("closed at this end".to_owned()) };
        self.control += 1;
        let id = self.control;
        request.wr_id = id;
        request.send_flags = sys::ibv_send_flags::IBV_SEND_SIGNALED.0;
        // SAFETY: one request, of a window that the caller has, over memory that the caller holds until this window is
        // closed.
        unsafe { pairs.lending.post(&mut request) }.map_err(|reason| format!("{verb}: {reason}"))?;
        let bound = Instant::now() + CONTROL_BOUND;
        loop {
            self.harvest();
            match self.control_ended.take() {
                Some((ended, None)) if ended == id => return Ok(()),
                Some((ended, Some((status, vendor)))) if ended == id => {
                    return Err(work_failure(verb, status, vendor).to_string());
                }
                _ => {}
            }
            if self.lost || Instant::now() > bound {
                return Err(format!("{verb}: the device does not complete it"));
            }
            std::thread::yield_now();
        }
    }

    /// Binds an open window to the peer's queue pair.
    pub(super) fn bind(&mut self, mut window: Window, open: &Open) -> Result<Window, String> {
        let request = window.bind(&open.memory, &open.range)?;
        let key = window.next_key();
        self.execute("BIND MW", request)?;
        window.bound(key);
        Ok(window)
    }

    /// Exposes `range`, which lies within `memory`, to the peer. Other peers can read it only if the operator chose
    /// that.
    pub(super) fn open(&mut self, memory: &RegisteredMemory, range: Range<usize>) -> Result<Bytes, FabricError> {
        let len = range.len();
        let error = |reason: String| FabricError::Registration { fabric: FabricKind::VERBS, len, reason };
        let pinned = memory::pinned(memory)
            .filter(|pinned| pinned.region().is_none_or(|region| Arc::ptr_eq(region.domain(), &self.memory_domain)))
            .ok_or(FabricError::Misuse("memory to be exposed was registered by another fabric"))?;
        let memory = Arc::clone(pinned);
        match self.scope {
            Scope::Whole => {
                let rkey = memory.region().map(Region::remote_key);
                let rkey = rkey.ok_or(FabricError::Misuse("memory without a region"))?;
                Ok(self.exposures.insert(rkey, Open { how: How::Whole, memory, range }))
            }
            Scope::Registrations => {
                // SAFETY: within the memory, which the entry holds for longer than the region; reads only.
                let region = unsafe {
                    let start = memory.start().add(range.start);
                    let access = sys::ibv_access_flags::IBV_ACCESS_REMOTE_READ;
                    Region::register(&self.lending_domain, start, len, access)
                }
                .map_err(error)?;
                Ok(self.exposures.insert(region.remote_key(), Open { how: How::Region(region), memory, range }))
            }
            Scope::Windows => {
                let window = self.exposures.window(&self.lending_domain).map_err(error)?;
                let rkey = window.next_key();
                let open = Open { how: How::Whole, memory, range };
                let (window, bound) = match self.state {
                    State::Connected(_) => match self.bind(window, &open) {
                        Ok(window) => (window, true),
                        Err(reason) => {
                            self.fail(reason.clone());
                            return Err(error(reason));
                        }
                    },
                    _ => (window, false),
                };
                Ok(self.exposures.insert(rkey, Open { how: How::Window { window, bound }, ..open }))
            }
        }
    }

    pub(super) fn close_key(&mut self, key: &Bytes) {
        let Some(Open { how, memory, .. }) = self.exposures.remove(key) else { return };
        match how {
            How::Window { window, bound: true } if self.refusal().is_none() => {
                match self.execute("LOCAL INV", window.invalidate()) {
                    Ok(()) => self.exposures.keep(window),
                    // Freeing the window closes it as well.
                    Err(reason) => self.fail(reason),
                }
            }
            // Freeing a window or deregistering a region revokes it.
            How::Window { .. } | How::Region(_) | How::Whole => {}
        }
        drop(memory);
    }
}
