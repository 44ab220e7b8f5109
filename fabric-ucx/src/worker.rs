//! The UCX worker of one endpoint: it makes progress, and reports when there are events.

use std::fmt;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::slice;
use std::sync::Arc;

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use ucx_sys::{self as sys, Ucx, ucs_status_t};

use crate::context::UcxContext;
use crate::status::{check, failed};

/// Maximum number of calls of `ucp_worker_progress` in a row, before other tasks run on the executor's thread.
const PROGRESS_BUDGET: usize = 64;

/// An open `ucp_worker_h`. It is destroyed when its last user is dropped.
pub(crate) struct Worker {
    handle: sys::ucp_worker_h,
    context: Arc<UcxContext>,
}

// SAFETY: the worker was made for UCS_THREAD_MODE_SERIALIZED, so that any thread may use it, one at a time. All its
// users (the endpoint, its remote keys) are parts of one `UcxEndpoint`, which is Send, not Sync, and never hands them
// out.
unsafe impl Send for Worker {}
// SAFETY: as above: shared only within one `UcxEndpoint`.
unsafe impl Sync for Worker {}

/// The result of [`Worker::progress`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Progress {
    /// There are no more events now.
    Idle,
    /// The budget is used up, and there may be more events.
    More,
}

impl Worker {
    pub(crate) fn new(context: Arc<UcxContext>) -> Result<Arc<Self>, String> {
        Ok(Arc::new(Worker { handle: context.create_worker()?, context }))
    }

    pub(crate) fn handle(&self) -> sys::ucp_worker_h {
        self.handle
    }

    pub(crate) fn ucx(&self) -> &'static Ucx {
        self.context.ucx()
    }

    pub(crate) fn context(&self) -> &Arc<UcxContext> {
        &self.context
    }

    /// The packed address, as UCX returns it.
    pub(crate) fn address(&self) -> Result<Vec<u8>, String> {
        let mut attributes =
            sys::ucp_worker_attr_t { field_mask: u64::from(sys::UCP_WORKER_ATTR_FIELD_ADDRESS), ..Default::default() };
        // SAFETY: an open worker, and room for the field that the mask names.
        check("ucp_worker_query", unsafe { self.ucx().ucp_worker_query(self.handle, &mut attributes) })?;
        // SAFETY: UCX packed that many bytes there.
        let packed = unsafe { slice::from_raw_parts(attributes.address.cast::<u8>(), attributes.address_length) };
        let address = packed.to_vec();
        // SAFETY: made by the query above, released once.
        unsafe { self.ucx().ucp_worker_release_address(self.handle, attributes.address) };
        Ok(address)
    }

    /// The descriptor that becomes readable when there are events, after [`Worker::arm`]. It belongs to the worker.
    pub(crate) fn event_fd(&self) -> Result<RawFd, String> {
        let mut fd = -1;
        // SAFETY: an open worker with UCP_FEATURE_WAKEUP, and room for the descriptor.
        check("ucp_worker_get_efd", unsafe { self.ucx().ucp_worker_get_efd(self.handle, &mut fd) })?;
        Ok(fd)
    }

    /// Makes progress within the budget.
    pub(crate) fn progress(&self) -> Progress {
        for _ in 0..PROGRESS_BUDGET {
            // SAFETY: an open worker, used by one thread at a time. Callbacks only touch `Shared` and their own ticket.
            if unsafe { self.ucx().ucp_worker_progress(self.handle) } == 0 {
                return Progress::Idle;
            }
        }
        Progress::More
    }

    /// Arms the event descriptor. Returns `false` if there were events since the last progress; they must be handled
    /// first.
    pub(crate) fn arm(&self) -> Result<bool, String> {
        // SAFETY: an open worker with UCP_FEATURE_WAKEUP.
        match unsafe { self.ucx().ucp_worker_arm(self.handle) } {
            ucs_status_t::UCS_OK => Ok(true),
            ucs_status_t::UCS_ERR_BUSY => Ok(false),
            status => Err(failed("ucp_worker_arm", status)),
        }
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        // SAFETY: created once, destroyed once; every owner of its keys or its endpoint holds it by `Arc`, so that
        // those are dropped.
        unsafe { self.ucx().ucp_worker_destroy(self.handle) }
    }
}

impl fmt::Debug for Worker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Worker({:p})", self.handle)
    }
}

/// The worker's event descriptor, for tokio. Keeps the worker, and with it the descriptor, open.
#[derive(Debug)]
pub(crate) struct EventFd {
    fd: RawFd,
    _worker: Arc<Worker>,
}

impl EventFd {
    /// Registers the worker's events with the current tokio runtime.
    pub(crate) fn register(worker: &Arc<Worker>) -> Result<AsyncFd<EventFd>, String> {
        // Without a runtime, tokio would panic.
        tokio::runtime::Handle::try_current().map_err(|error| error.to_string())?;
        let event_fd = EventFd { fd: worker.event_fd()?, _worker: worker.clone() };
        // SAFETY: the descriptor stays open, and the same, until the worker is destroyed, and `EventFd` holds the
        // worker.
        unsafe { AsyncFd::register_with_interest(event_fd, Interest::READABLE) }
            .map_err(|error| format!("cannot wait for the worker's events: {}", io::Error::from(error)))
    }
}

impl AsRawFd for EventFd {
    fn as_raw_fd(&self) -> RawFd {
        self.fd
    }
}
