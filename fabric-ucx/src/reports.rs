//! Reports to an endpoint, by UCX's callbacks and by the threads that copy.

use std::ffi::c_void;
use std::sync::{Mutex, PoisonError};

use ucx_sys::{self as sys, ucs_status_t};

/// Reports to an endpoint: by callbacks, which run inside calls of the endpoint's worker, and by the threads that copy
/// for it.
#[derive(Debug, Default)]
pub(crate) struct Shared(Mutex<Reported>);

#[derive(Debug, Default)]
struct Reported {
    /// Operations that ended, in order, with their status.
    ended: Vec<(u64, ucs_status_t)>,
    /// The status with which UCX declared the connection dead.
    failed: Option<ucs_status_t>,
}

impl Shared {
    fn report(&self, apply: impl FnOnce(&mut Reported)) {
        apply(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner));
    }

    /// The status with which UCX declared the connection dead, if it has.
    pub(crate) fn failed(&self) -> Option<ucs_status_t> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).failed
    }

    /// Reports that an operation has ended.
    pub(crate) fn ended(&self, operation: u64, status: ucs_status_t) {
        self.report(|reported| reported.ended.push((operation, status)));
    }

    pub(crate) fn take_ended(&self) -> Vec<(u64, ucs_status_t)> {
        std::mem::take(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner).ended)
    }
}

/// `ucp_err_handler_cb_t`, with a [`Shared`] that outlives the endpoint as its argument.
pub(crate) extern "C" fn peer_failed(shared: *mut c_void, _: sys::ucp_ep_h, status: ucs_status_t) {
    // SAFETY: `Connection` holds the `Arc` whose pointer this is for as long as UCX has the endpoint.
    let shared = unsafe { &*shared.cast::<Shared>() };
    shared.report(|reported| {
        reported.failed.get_or_insert(status);
    });
}
