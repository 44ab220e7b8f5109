//! The peer as UCX knows it: the `ucp_ep_h` and remote keys unpacked for it.

use std::ffi::c_void;
use std::fmt;
use std::ptr;
use std::sync::Arc;

use ucx_sys::{self as sys, Begun};

use crate::mapping::Mapping;
use crate::operations::{Shared, peer_failed};
use crate::status::{check, failed};
use crate::stream;
use crate::worker::Worker;

/// A `ucp_ep_h`. Closed by [`Connection::close`], or by the worker's end.
pub(crate) struct Connection {
    handle: sys::ucp_ep_h,
    worker: Arc<Worker>,
    /// What UCX passes to the error handler.
    _shared: Arc<Shared>,
}

// SAFETY: used under the worker's rule: any thread, one at a time.
unsafe impl Send for Connection {}

/// How far closing a connection has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Closing {
    Done,
    /// A request to be asked, and freed once it is done.
    Underway(sys::ucs_status_ptr_t),
}

// SAFETY: as above: the request belongs to the worker.
unsafe impl Send for Closing {}

impl Connection {
    /// `address` as UCX packed it. UCX reads it without bounds: it comes from an opened envelope.
    pub(crate) fn new(worker: &Arc<Worker>, shared: &Arc<Shared>, address: &[u8]) -> Result<Self, String> {
        let params = sys::ucp_ep_params_t {
            field_mask: u64::from(
                sys::UCP_EP_PARAM_FIELD_REMOTE_ADDRESS
                    | sys::UCP_EP_PARAM_FIELD_ERR_HANDLING_MODE
                    | sys::UCP_EP_PARAM_FIELD_ERR_HANDLER,
            ),
            address: address.as_ptr().cast(),
            err_mode: sys::UCP_ERR_HANDLING_MODE_PEER,
            err_handler: sys::ucp_err_handler {
                cb: Some(peer_failed),
                arg: Arc::as_ptr(shared).cast_mut().cast::<c_void>(),
            },
            ..Default::default()
        };
        let mut handle = ptr::null_mut();
        // SAFETY: an open worker; parameters whose mask names the fields that are set; the address lives through the call;
        // the error handler's argument lives as long as the returned value, whose drop comes after the endpoint's end.
        check("ucp_ep_create", unsafe { sys::ucp_ep_create(worker.handle(), &params, &mut handle) })?;
        Ok(Connection { handle, worker: worker.clone(), _shared: shared.clone() })
    }

    pub(crate) fn handle(&self) -> sys::ucp_ep_h {
        self.handle
    }

    /// What `ucp_ep_print_info` prints.
    pub(crate) fn info(&self) -> Option<String> {
        // SAFETY: an open endpoint and an open stream.
        stream::capture(|file| unsafe { sys::ucp_ep_print_info(self.handle, file) })
    }

    /// Cuts the peer off without asking it; outstanding reads end as cancelled. The handle is not to be used again.
    pub(crate) fn close(&self) -> Closing {
        let params = sys::ucp_request_param_t {
            op_attr_mask: sys::UCP_OP_ATTR_FIELD_FLAGS,
            flags: sys::UCP_EP_CLOSE_FLAG_FORCE,
            ..Default::default()
        };
        // SAFETY: an endpoint that was not closed: the only caller takes the connection out of its state first.
        match sys::status_ptr(unsafe { sys::ucp_ep_close_nbx(self.handle, &params) }) {
            Begun::Done => Closing::Done,
            Begun::Request(request) => Closing::Underway(request),
            Begun::Failed(status) => {
                tracing::debug!(reason = failed("ucp_ep_close_nbx", status), "closing a UCX endpoint");
                Closing::Done
            }
        }
    }
}

impl Closing {
    /// Asks again.
    pub(crate) fn advance(self) -> Closing {
        let Closing::Underway(request) = self else { return Closing::Done };
        // SAFETY: a request that is not freed yet.
        if unsafe { sys::ucp_request_check_status(request) } == sys::ucs_status_t::UCS_INPROGRESS {
            return self;
        }
        // SAFETY: done, and freed once: the caller replaces `Underway` by what this returns.
        unsafe { sys::ucp_request_free(request) };
        Closing::Done
    }
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Connection({:p}, {:?})", self.handle, self.worker)
    }
}

/// An unpacked remote key and the memory that it opens.
pub(crate) struct RemoteKey {
    handle: sys::ucp_rkey_h,
    base: u64,
    len: u64,
    /// Where UCX has the memory mapped, if it has.
    mapped: Option<Mapping>,
    /// The key lies in the worker's pools.
    _worker: Arc<Worker>,
}

// SAFETY: used under the worker's rule: any thread, one at a time.
unsafe impl Send for RemoteKey {}
// SAFETY: as above; clones of its `Arc` stay within one `UcxEndpoint`.
unsafe impl Sync for RemoteKey {}

impl RemoteKey {
    /// Unpacks `key`, as UCX packed it. UCX reads it without bounds: it comes from an opened envelope.
    pub(crate) fn new(connection: &Connection, base: u64, len: u64, key: &[u8]) -> Result<Self, String> {
        let mut handle = ptr::null_mut();
        // SAFETY: an open endpoint, a key whose lengths the envelope has walked, room for the handle.
        check("ucp_ep_rkey_unpack", unsafe {
            sys::ucp_ep_rkey_unpack(connection.handle, key.as_ptr().cast(), &mut handle)
        })?;
        let mut start = ptr::null_mut();
        // SAFETY: an unpacked key, room for the address. UCX computes it, and touches nothing.
        let is_mapped = unsafe { sys::ucp_rkey_ptr(handle, base, &mut start) } == sys::ucs_status_t::UCS_OK;
        let mapped = usize::try_from(len).ok().filter(|_| is_mapped).and_then(|len| Mapping::new(start.addr(), len));
        Ok(RemoteKey { handle, base, len, mapped, _worker: connection.worker.clone() })
    }

    /// Readies mapped memory that is about to be read for the first time.
    pub(crate) fn prefault(&self, address: u64, len: u64) {
        if let Some(mapped) = &self.mapped {
            mapped.prefault(address.saturating_sub(self.base), len);
        }
    }

    pub(crate) fn handle(&self) -> sys::ucp_rkey_h {
        self.handle
    }

    /// Whether `address .. address + len` is within what was imported.
    pub(crate) fn covers(&self, address: u64, len: u64) -> bool {
        address.checked_sub(self.base).and_then(|offset| offset.checked_add(len)).is_some_and(|end| end <= self.len)
    }
}

impl Drop for RemoteKey {
    fn drop(&mut self) {
        // SAFETY: unpacked once, destroyed once; reads under way hold the key by `Arc`.
        unsafe { sys::ucp_rkey_destroy(self.handle) }
    }
}

impl fmt::Debug for RemoteKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RemoteKey({:p}, {:#x}+{})", self.handle, self.base, self.len)
    }
}
