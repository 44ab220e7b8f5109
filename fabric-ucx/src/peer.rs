//! UCX's handles of the peer: the `ucp_ep_h`, and remote keys that were unpacked for it.

use std::ffi::{CStr, c_char, c_void};
use std::fmt;
use std::ptr::{self, NonNull};
use std::sync::Arc;

use ucx_sys::{self as sys, Begun, EndpointTransports, Ucx, Version, ucp_transport_entry_t};

use crate::reports::{Shared, peer_failed};
use crate::status::{check, failed};
use crate::worker::Worker;
use thallus_fabric::memory::copying::Prefault;

/// The first UCX whose `ucp_ep_query` returns transports.
const TELLS_TRANSPORTS: Version = Version::new(1, 14);
/// More lanes than any UCX gives an endpoint (`UCP_MAX_LANES`).
const MAX_LANES: usize = 64;

/// A `ucp_ep_h`. It is closed by [`Connection::close`], or with the worker.
pub(crate) struct Connection {
    handle: sys::ucp_ep_h,
    worker: Arc<Worker>,
    /// The argument that UCX passes to the error handler.
    _shared: Arc<Shared>,
}

// SAFETY: used under the worker's rule: any thread, one at a time.
unsafe impl Send for Connection {}

/// The progress of closing a connection.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Closing {
    Done,
    /// A request that has not completed yet. It is freed when it completes.
    Underway(&'static Ucx, sys::ucs_status_ptr_t),
}

// SAFETY: as above: the request belongs to the worker.
unsafe impl Send for Closing {}

impl Connection {
    /// `address` as UCX packed it. UCX reads it without bounds, so it must come from an opened envelope.
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
        // SAFETY: an open worker; parameters whose mask names the fields that are set; the address lives through the
        // call; the error handler's argument lives as long as the returned value, whose drop comes after the endpoint's
        // end.
        check("ucp_ep_create", unsafe { worker.ucx().ucp_ep_create(worker.handle(), &params, &mut handle) })?;
        Ok(Connection { handle, worker: worker.clone(), _shared: shared.clone() })
    }

    pub(crate) fn handle(&self) -> sys::ucp_ep_h {
        self.handle
    }

    pub(crate) fn ucx(&self) -> &'static Ucx {
        self.worker.ucx()
    }

    /// The transports that UCX chose for this endpoint, with their devices (`sysv/memory`). `None` for UCX before 1.14,
    /// which does not report them.
    pub(crate) fn transports(&self) -> Option<Vec<String>> {
        let ucx = self.worker.ucx();
        if ucx.version() < TELLS_TRANSPORTS {
            return None;
        }
        let mut entries = [ucp_transport_entry_t::default(); MAX_LANES];
        let mut question = EndpointTransports::into(&mut entries);
        // SAFETY: an open endpoint; the query's mask names its one field, which has room for as many entries as it
        // announces.
        let status = unsafe { ucx.ucp_ep_query(self.handle, &mut question) };
        check("ucp_ep_query", status).inspect_err(|reason| tracing::debug!(reason, "transports are not known")).ok()?;
        let count = usize::try_from(question.transports.num_entries).unwrap_or(0).min(MAX_LANES);
        let text = |text: *const c_char| {
            if text.is_null() {
                return String::new();
            }
            // SAFETY: not null, so a C string of the context, which outlives this call.
            unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned()
        };
        let names = entries[..count].iter().map(|entry| (text(entry.transport_name), text(entry.device_name)));
        Some(names.map(|(name, device)| format!("{name}/{device}")).collect())
    }

    /// Cuts the peer off without its cooperation. Outstanding reads end as cancelled. The handle must not be used
    /// again.
    pub(crate) fn close(&self) -> Closing {
        let params = sys::ucp_request_param_t {
            op_attr_mask: sys::UCP_OP_ATTR_FIELD_FLAGS,
            flags: sys::UCP_EP_CLOSE_FLAG_FORCE,
            ..Default::default()
        };
        // SAFETY: an endpoint that was not closed: the only caller takes the connection out of its state first.
        match sys::status_ptr(unsafe { self.worker.ucx().ucp_ep_close_nbx(self.handle, &params) }) {
            Begun::Done => Closing::Done,
            Begun::Request(request) => Closing::Underway(self.worker.ucx(), request),
            Begun::Failed(status) => {
                tracing::debug!(reason = failed("ucp_ep_close_nbx", status), "closing a UCX endpoint");
                Closing::Done
            }
        }
    }
}

impl Closing {
    /// Checks the request again.
    pub(crate) fn advance(self) -> Closing {
        let Closing::Underway(ucx, request) = self else { return Closing::Done };
        // SAFETY: a request that is not freed yet.
        if unsafe { ucx.ucp_request_check_status(request) } == sys::ucs_status_t::UCS_INPROGRESS {
            return self;
        }
        // SAFETY: done, and freed once: the caller replaces `Underway` by the returned value.
        unsafe { ucx.ucp_request_free(request) };
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
    /// The address at which UCX has mapped the first byte, if it has.
    start: Option<NonNull<u8>>,
    /// The touched pages of the mapping.
    mapping: Option<Prefault>,
    /// The key lies in the worker's pools.
    worker: Arc<Worker>,
}

// SAFETY: used under the worker's rule: any thread, one at a time.
unsafe impl Send for RemoteKey {}
// SAFETY: as above; clones of its `Arc` stay within one `UcxEndpoint`.
unsafe impl Sync for RemoteKey {}

impl RemoteKey {
    /// Unpacks `key`. UCX reads it without bounds, so it must come from `envelope::to_unpack`.
    pub(crate) fn new(connection: &Connection, base: u64, len: u64, key: &[u8]) -> Result<Self, String> {
        let mut handle = ptr::null_mut();
        // SAFETY: an open endpoint, room for the handle, a key of checked lengths, whose end every UCX finds.
        check("ucp_ep_rkey_unpack", unsafe {
            connection.worker.ucx().ucp_ep_rkey_unpack(connection.handle, key.as_ptr().cast(), &mut handle)
        })?;
        let mut start = ptr::null_mut();
        // SAFETY: an unpacked key, room for the address. UCX computes it, and accesses no memory of the peer.
        let is_mapped =
            unsafe { connection.worker.ucx().ucp_rkey_ptr(handle, base, &mut start) } == sys::ucs_status_t::UCS_OK;
        let mapping = usize::try_from(len).ok().filter(|_| is_mapped).and_then(|len| Prefault::new(start.addr(), len));
        let start = NonNull::new(start.cast::<u8>()).filter(|_| is_mapped);
        Ok(RemoteKey { handle, base, len, start, mapping, worker: connection.worker.clone() })
    }

    pub(crate) fn ucx(&self) -> &'static Ucx {
        self.worker.ucx()
    }

    /// Whether UCX has mapped the memory into this process. It is shared memory then, and reads are copies of it.
    pub(crate) fn is_mapped(&self) -> bool {
        self.start.is_some()
    }

    /// The address in this process of `len` bytes at `address` in the owner's address space, if UCX has mapped them.
    pub(crate) fn find(&self, address: u64, len: u64) -> Option<(NonNull<u8>, usize)> {
        let start = self.start?;
        let offset = address
            .checked_sub(self.base)
            .filter(|offset| offset.checked_add(len).is_some_and(|end| end <= self.len))?;
        let (offset, len) = (usize::try_from(offset).ok()?, usize::try_from(len).ok()?);
        // SAFETY: within the imported range, whose first byte is at `start`; nothing is read yet.
        Some((unsafe { start.add(offset) }, len))
    }

    /// Touches the pages of mapped memory that is about to be read for the first time.
    pub(crate) fn prefault(&self, address: u64, len: u64) {
        if let Some(mapping) = &self.mapping {
            mapping.prefault(address.saturating_sub(self.base), len);
        }
    }

    pub(crate) fn handle(&self) -> sys::ucp_rkey_h {
        self.handle
    }
}

impl Drop for RemoteKey {
    fn drop(&mut self) {
        // SAFETY: unpacked once, destroyed once; outstanding reads hold the key by `Arc`.
        unsafe { self.worker.ucx().ucp_rkey_destroy(self.handle) }
    }
}

impl fmt::Debug for RemoteKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RemoteKey({:p}, {:#x}+{})", self.handle, self.base, self.len)
    }
}
