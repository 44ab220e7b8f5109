//! The peer as UCX knows it: the `ucp_ep_h` and remote keys unpacked for it.

use std::ffi::c_void;
use std::fmt;
use std::ptr;
use std::sync::{Arc, Mutex, PoisonError};

use ucx_sys::{self as sys, Begun};

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
    /// Where this process has the memory mapped, if it does.
    mapped: Option<Mapped>,
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
        let mapped = Mapped::of(handle, base, len);
        Ok(RemoteKey { handle, base, len, mapped, _worker: connection.worker.clone() })
    }

    /// Readies mapped memory that is about to be read for the first time.
    pub(crate) fn prefault(&self, address: u64, len: u64) {
        if let Some(mapped) = &self.mapped {
            mapped.prefault(address.saturating_sub(self.base), len);
        }
    }

    /// Where this process has what is at `address` mapped, if it has. Valid for as long as the key is, and as far as
    /// [`RemoteKey::covers`] says.
    pub(crate) fn mapped(&self, address: u64) -> Option<*const u8> {
        let offset = usize::try_from(address.checked_sub(self.base)?).ok()?;
        Some(ptr::with_exposed_provenance(self.mapped.as_ref()?.start.checked_add(offset)?))
    }

    pub(crate) fn handle(&self) -> sys::ucp_rkey_h {
        self.handle
    }

    /// Whether `address .. address + len` is within what was imported.
    pub(crate) fn covers(&self, address: u64, len: u64) -> bool {
        address.checked_sub(self.base).and_then(|offset| offset.checked_add(len)).is_some_and(|end| end <= self.len)
    }
}

/// Memory of the peer in this process's address space, as shared memory is. Each connection maps it anew, and pays for the first
/// touch of each page: one by one as the copy goes over them, several times what the copy itself costs; or, here, by one system
/// call for many.
struct Mapped {
    start: usize,
    len: usize,
    /// Which blocks have been touched.
    touched: Mutex<Vec<bool>>,
}

impl Mapped {
    const BLOCK: usize = 2 << 20;
    const PAGE: usize = 4096;

    /// The mapping behind a key, if there is one.
    fn of(key: sys::ucp_rkey_h, base: u64, len: u64) -> Option<Self> {
        let mut start = ptr::null_mut();
        // SAFETY: an unpacked key, room for the address. UCX computes it, and touches nothing.
        let status = unsafe { sys::ucp_rkey_ptr(key, base, &mut start) };
        let len = usize::try_from(len).ok()?;
        let whole = start.addr() % Self::PAGE == 0 && len > 0 && start.addr().checked_add(len).is_some();
        (status == sys::ucs_status_t::UCS_OK && whole).then(|| Mapped {
            start: start.expose_provenance(),
            len,
            touched: Mutex::new(vec![false; len.div_ceil(Self::BLOCK)]),
        })
    }

    /// Maps the pages around `offset .. offset + len` that no read has met yet.
    fn prefault(&self, offset: u64, len: u64) {
        let (Ok(first), Ok(last)) = (usize::try_from(offset), usize::try_from(offset.saturating_add(len.max(1)) - 1))
        else {
            return;
        };
        let mut touched = self.touched.lock().unwrap_or_else(PoisonError::into_inner);
        for block in first / Self::BLOCK..=last / Self::BLOCK {
            let Some(new) = touched.get_mut(block).filter(|touched| !**touched) else { continue };
            *new = true;
            let at = block * Self::BLOCK;
            // SAFETY: fills page tables for reading, as reads would, and changes no byte. Where the range is not mapped, or is not
            // what the peer said it is, the kernel answers with an error, as an older kernel does; that only costs speed.
            unsafe {
                let start = ptr::without_provenance_mut(self.start + at);
                libc::madvise(start, (self.len - at).min(Self::BLOCK), libc::MADV_POPULATE_READ);
            }
        }
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

#[cfg(test)]
mod tests {
    use thallus_fabric::memory::Pages;

    use super::*;

    fn mapped(start: usize, len: usize) -> Mapped {
        Mapped { start, len, touched: Mutex::new(vec![false; len.div_ceil(Mapped::BLOCK)]) }
    }

    fn touched(mapped: &Mapped) -> Vec<bool> {
        mapped.touched.lock().unwrap().clone()
    }

    #[test]
    fn blocks_are_readied_once_and_only_where_something_is_read() {
        let len = 3 * Mapped::BLOCK + Mapped::PAGE;
        let pages = Pages::new(len).unwrap();
        let mapped = mapped(pages.start().addr().get(), len);
        mapped.prefault(Mapped::BLOCK as u64 - 1, 1);
        assert_eq!(touched(&mapped), [true, false, false, false]);
        mapped.prefault(Mapped::BLOCK as u64 * 2 - 1, 2);
        assert_eq!(touched(&mapped), [true, true, true, false]);
        mapped.prefault(len as u64 - 1, 1);
        assert_eq!(touched(&mapped), [true; 4]);
        // Nothing to be read, and ranges that `post_read` refuses before.
        mapped.prefault(0, 0);
        mapped.prefault(u64::MAX, u64::MAX);
    }

    #[test]
    fn what_is_not_mapped_is_left_alone() {
        let gone = {
            let pages = Pages::new(Mapped::BLOCK).unwrap();
            pages.start().addr().get()
        };
        mapped(gone, Mapped::BLOCK).prefault(0, 1);
        mapped(usize::MAX - Mapped::PAGE + 1, Mapped::PAGE - 1).prefault(0, 1);
    }
}
