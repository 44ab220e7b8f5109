//! Outstanding operations.

use std::collections::HashMap;
use std::ffi::c_void;
use std::ptr::NonNull;
use std::sync::Arc;

use thallus_fabric::memory::LocalRange;
use thallus_fabric::{Completion, ReadToken};
use ucx_sys::{self as sys, Begun, Ucx, ucs_status_t};

use crate::attachment::Attachment;
use crate::peer::RemoteKey;
use crate::reports::Shared;
use crate::status::read_failure;

/// User data of a UCX request. Its callback, which is called exactly once, takes it back.
struct Ticket {
    ucx: &'static Ucx,
    operation: u64,
    shared: Arc<Shared>,
}

/// `ucp_send_nbx_callback_t`.
extern "C" fn ended(request: *mut c_void, status: ucs_status_t, user_data: *mut c_void) {
    // SAFETY: the box that `with_ticket` turned into a pointer; UCX calls back once.
    let ticket = unsafe { Box::from_raw(user_data.cast::<Ticket>()) };
    ticket.shared.ended(ticket.operation, status);
    // SAFETY: the request that this callback is about, freed once; UCX allows that within the callback.
    unsafe { ticket.ucx.ucp_request_free(request) };
}

/// The owner of the memory that is read.
#[derive(Clone, Debug)]
pub(crate) enum Source {
    /// UCX reads with the key, or has mapped the memory for the key.
    Key(Arc<RemoteKey>),
    /// A segment that this crate has attached.
    Attachment(Arc<Attachment>),
}

impl Source {
    /// The address in this process of `len` bytes at `address` in the owner's address space.
    pub(crate) fn find(&self, address: u64, len: u64) -> Option<(NonNull<u8>, usize)> {
        match self {
            Source::Key(key) => key.find(address, len),
            Source::Attachment(attachment) => attachment.find(address, len),
        }
    }

    /// Touches the pages of a range that is about to be read for the first time.
    pub(crate) fn prefault(&self, address: u64, len: u64) {
        match self {
            Source::Key(key) => key.prefault(address, len),
            Source::Attachment(attachment) => attachment.prefault(address, len),
        }
    }
}

/// An outstanding read.
#[derive(Debug)]
struct Read {
    token: ReadToken,
    /// The target of UCX's writes, or of a copy. Kept until the completion is reported, even if the task that posted
    /// the read has ended.
    _into: LocalRange,
    _from: Source,
}

/// The table of outstanding operations. It owns the memory of reads.
#[derive(Debug, Default)]
pub(crate) struct Operations {
    next: u64,
    reads: HashMap<u64, Read>,
    /// The flush that waits for the connection.
    flush: Option<u64>,
}

impl Operations {
    /// Number of outstanding reads.
    pub(crate) fn reads(&self) -> usize {
        self.reads.len()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.reads.is_empty() && self.flush.is_none()
    }

    /// Adds a read that `post` starts. Its end will be reported to [`Shared::ended`].
    pub(crate) fn enter(
        &mut self,
        token: ReadToken,
        into: LocalRange,
        from: Source,
        post: impl FnOnce(u64, &LocalRange),
    ) {
        let operation = self.number();
        post(operation, &into);
        self.reads.insert(operation, Read { token, _into: into, _from: from });
    }

    /// Starts a read by `post`, which gets the callback's parameters. After an error, nothing was posted.
    pub(crate) fn begin(
        &mut self,
        shared: &Arc<Shared>,
        token: ReadToken,
        into: LocalRange,
        key: Arc<RemoteKey>,
        post: impl FnOnce(&LocalRange, &RemoteKey, sys::ucp_request_param_t) -> sys::ucs_status_ptr_t,
    ) -> Result<(), ucs_status_t> {
        let operation = self.number();
        with_ticket(key.ucx(), shared, operation, |params| post(&into, &key, params))?;
        self.reads.insert(operation, Read { token, _into: into, _from: Source::Key(key) });
        Ok(())
    }

    /// Starts a flush by `post`. [`Operations::settle`] returns its status.
    pub(crate) fn begin_flush(
        &mut self,
        ucx: &'static Ucx,
        shared: &Arc<Shared>,
        post: impl FnOnce(sys::ucp_request_param_t) -> sys::ucs_status_ptr_t,
    ) -> Result<(), ucs_status_t> {
        let operation = self.number();
        with_ticket(ucx, shared, operation, post)?;
        self.flush = Some(operation);
        Ok(())
    }

    fn number(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    /// Moves finished reads to `completions`, and drops their memory. Returns the status of a flush, if one has ended.
    pub(crate) fn settle(&mut self, shared: &Shared, completions: &mut Vec<Completion>) -> Option<ucs_status_t> {
        let mut flushed = None;
        for (operation, status) in shared.take_ended() {
            if self.flush.take_if(|flush| *flush == operation).is_some() {
                flushed = Some(status);
            } else if let Some(Read { token, .. }) = self.reads.remove(&operation) {
                let result = if status == ucs_status_t::UCS_OK { Ok(()) } else { Err(read_failure(status)) };
                completions.push(Completion { token, result });
            }
        }
        flushed
    }
}

/// Starts an operation of UCX by `post`, which gets the callback's parameters. Its end will be reported to
/// [`Shared::ended`]. After an error, nothing was posted.
fn with_ticket(
    ucx: &'static Ucx,
    shared: &Arc<Shared>,
    operation: u64,
    post: impl FnOnce(sys::ucp_request_param_t) -> sys::ucs_status_ptr_t,
) -> Result<(), ucs_status_t> {
    let ticket = Box::into_raw(Box::new(Ticket { ucx, operation, shared: shared.clone() }));
    let begun = sys::status_ptr(post(sys::ucp_request_param_t {
        op_attr_mask: sys::UCP_OP_ATTR_FIELD_CALLBACK | sys::UCP_OP_ATTR_FIELD_USER_DATA,
        cb: sys::ucp_request_param_t__bindgen_ty_1 { send: Some(ended) },
        user_data: ticket.cast(),
        ..Default::default()
    }));
    if !matches!(begun, Begun::Request(_)) {
        // SAFETY: UCX calls back for requests only, so the box still belongs to this function.
        drop(unsafe { Box::from_raw(ticket) });
    }
    match begun {
        Begun::Failed(status) => return Err(status),
        Begun::Done => shared.ended(operation, ucs_status_t::UCS_OK),
        Begun::Request(_) => {}
    }
    Ok(())
}
