//! Reads under way, and how UCX's callbacks report back.

use std::collections::HashMap;
use std::ffi::c_void;
use std::sync::{Arc, Mutex, PoisonError};

use thallus_fabric::memory::LocalRange;
use thallus_fabric::{Completion, ReadToken};
use ucx_sys::{self as sys, Begun, ucs_status_t};

use crate::attachment::Attachment;
use crate::peer::RemoteKey;
use crate::status::read_failure;

/// What callbacks tell the endpoint, which run inside calls into the endpoint's worker, and those who copy for it.
#[derive(Debug, Default)]
pub(crate) struct Shared(Mutex<Reported>);

#[derive(Debug, Default)]
struct Reported {
    /// Operations that ended, in order, with their status.
    ended: Vec<(u64, ucs_status_t)>,
    /// Why UCX declared the connection dead.
    failed: Option<ucs_status_t>,
}

impl Shared {
    fn report(&self, apply: impl FnOnce(&mut Reported)) {
        apply(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner));
    }

    /// Why UCX declared the connection dead, if it has.
    pub(crate) fn failed(&self) -> Option<ucs_status_t> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).failed
    }

    /// An operation has ended so.
    pub(crate) fn ended(&self, operation: u64, status: ucs_status_t) {
        self.report(|reported| reported.ended.push((operation, status)));
    }

    /// As many have ended well.
    pub(crate) fn all_ended(&self, operations: impl Iterator<Item = u64>) {
        let well = operations.map(|operation| (operation, ucs_status_t::UCS_OK));
        self.report(|reported| reported.ended.extend(well));
    }

    pub(crate) fn take_ended(&self) -> Vec<(u64, ucs_status_t)> {
        std::mem::take(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner).ended)
    }
}

/// Goes through UCX with a request, as its user data; the callback, which comes exactly once, takes it back.
struct Ticket {
    operation: u64,
    shared: Arc<Shared>,
}

/// `ucp_send_nbx_callback_t`.
extern "C" fn ended(request: *mut c_void, status: ucs_status_t, user_data: *mut c_void) {
    // SAFETY: the box that `Operations::begin` turned into a pointer; UCX calls back once.
    let ticket = unsafe { Box::from_raw(user_data.cast::<Ticket>()) };
    ticket.shared.ended(ticket.operation, status);
    // SAFETY: the request that this callback is about, freed once; UCX allows that within the callback.
    unsafe { sys::ucp_request_free(request) };
}

/// `ucp_err_handler_cb_t`, with a [`Shared`] that outlives the endpoint as its argument.
pub(crate) extern "C" fn peer_failed(shared: *mut c_void, _: sys::ucp_ep_h, status: ucs_status_t) {
    // SAFETY: `Connection` holds the `Arc` whose pointer this is for as long as UCX has the endpoint.
    let shared = unsafe { &*shared.cast::<Shared>() };
    shared.report(|reported| {
        reported.failed.get_or_insert(status);
    });
}

/// What keeps the memory there that is read.
#[derive(Debug)]
#[expect(dead_code, reason = "they are only held")]
pub(crate) enum Source {
    /// UCX reads with it.
    Key(Arc<RemoteKey>),
    /// It is copied out of.
    Attachment(Arc<Attachment>),
}

/// A read under way.
#[derive(Debug)]
struct Operation {
    token: ReadToken,
    /// Where UCX writes, or a copy. Kept until the completion is handed over, whatever became of whoever asked.
    _into: LocalRange,
    _from: Source,
}

/// The table of reads under way. It owns their memory.
#[derive(Debug, Default)]
pub(crate) struct Operations {
    next: u64,
    table: HashMap<u64, Operation>,
}

impl Operations {
    pub(crate) fn len(&self) -> usize {
        self.table.len()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.table.is_empty()
    }

    /// Enters a read which `post` begins, and whose end will be reported to [`Shared::ended`].
    pub(crate) fn enter(
        &mut self,
        token: ReadToken,
        into: LocalRange,
        from: Arc<Attachment>,
        post: impl FnOnce(u64, &LocalRange),
    ) {
        let operation = self.next;
        self.next += 1;
        post(operation, &into);
        self.table.insert(operation, Operation { token, _into: into, _from: Source::Attachment(from) });
    }

    /// Begins a read by `post`, which is given the callback's parameters. An error means that nothing was posted.
    pub(crate) fn begin(
        &mut self,
        shared: &Arc<Shared>,
        token: ReadToken,
        into: LocalRange,
        key: Arc<RemoteKey>,
        post: impl FnOnce(&LocalRange, &RemoteKey, sys::ucp_request_param_t) -> sys::ucs_status_ptr_t,
    ) -> Result<(), ucs_status_t> {
        let operation = self.next;
        self.next += 1;
        let ticket = Box::into_raw(Box::new(Ticket { operation, shared: shared.clone() }));
        let params = sys::ucp_request_param_t {
            op_attr_mask: sys::UCP_OP_ATTR_FIELD_CALLBACK | sys::UCP_OP_ATTR_FIELD_USER_DATA,
            cb: sys::ucp_request_param_t__bindgen_ty_1 { send: Some(ended) },
            user_data: ticket.cast(),
            ..Default::default()
        };
        let begun = sys::status_ptr(post(&into, &key, params));
        if !matches!(begun, Begun::Request(_)) {
            // SAFETY: UCX calls back for requests only, so that the box is still ours.
            drop(unsafe { Box::from_raw(ticket) });
        }
        match begun {
            Begun::Failed(status) => return Err(status),
            Begun::Done => shared.ended(operation, ucs_status_t::UCS_OK),
            Begun::Request(_) => {}
        }
        self.table.insert(operation, Operation { token, _into: into, _from: Source::Key(key) });
        Ok(())
    }

    /// Moves what has ended to `completions`, and lets go of its memory.
    pub(crate) fn settle(&mut self, shared: &Shared, completions: &mut Vec<Completion>) {
        for (operation, status) in shared.take_ended() {
            if let Some(Operation { token, .. }) = self.table.remove(&operation) {
                let result = if status == ucs_status_t::UCS_OK { Ok(()) } else { Err(read_failure(status)) };
                completions.push(Completion { token, result });
            }
        }
    }
}
