//! The UCX context: one per fabric, shared by its endpoints and registrations.

use std::ffi::CString;
use std::fmt;
use std::ptr;
use std::sync::{Arc, Mutex, PoisonError};

use ucx_sys::{self as sys, Ucx, Version};

use crate::config::{Config, Refusal};
use crate::defaults::{self, KEEPALIVE};
use crate::domains::Domains;
use crate::status::check;
use crate::{UcxOptions, host, quiet, stream};

/// An open `ucp_context_h`.
pub(crate) struct UcxContext {
    ucx: &'static Ucx,
    handle: sys::ucp_context_h,
    /// Identity of this host, sent to peers.
    host: u64,
    /// Workers are created one at a time: UCX documents that a context may be used by several threads, but not for this
    /// call.
    creating: Mutex<()>,
}

// SAFETY: the context was made with `mt_workers_shared`, and UCX confirmed UCS_THREAD_MODE_MULTI: its functions lock.
unsafe impl Send for UcxContext {}
// SAFETY: as above.
unsafe impl Sync for UcxContext {}

/// Whether UCX's keepalive can abort this process. With keepalive, an RDMA connection of UCX 1.13 gets a lane of
/// datagrams (`ud_verbs`) for checking the peer, and is set up over that lane. Closing it before it is set up fails an
/// assertion (`ucp_request_send_state_ff`, "got REQ message"), which 1.14 does not have: a client that connects and
/// closes at once would end the server. Without keepalive, a dead peer is noticed by failed RDMA reads, and by the
/// control connection.
pub(crate) fn keepalive_aborts(version: Version, domains: Domains) -> bool {
    version < Version::new(1, 14) && domains.rdma
}

impl UcxContext {
    /// Opens UCX.
    ///
    /// # Errors
    /// The failed call and UCX's text.
    pub(crate) fn new(options: &UcxOptions) -> Result<Arc<Self>, String> {
        let ucx = quiet::load(options.library.as_deref()).map_err(|error| error.to_string())?;
        Ok(Arc::new(Self::open(ucx, options, None)?))
    }

    /// Opens UCX without its keepalive.
    ///
    /// # Errors
    /// As [`UcxContext::new`].
    pub(crate) fn without_keepalive(ucx: &'static Ucx, options: &UcxOptions) -> Result<Arc<Self>, String> {
        Ok(Arc::new(Self::open(ucx, options, Some((KEEPALIVE, "inf")))?))
    }

    fn open(ucx: &'static Ucx, options: &UcxOptions, over_all: Option<(&str, &str)>) -> Result<Self, String> {
        let config = Config::read(ucx)?;
        defaults::apply(ucx, &config);
        let asked = [("TLS", options.transports.as_ref()), ("NET_DEVICES", options.net_devices.as_ref())];
        let asked = asked.into_iter().filter_map(|(name, value)| Some((name, value?.as_str())));
        let others = options.settings.iter().map(|(name, value)| (name.as_str(), value.as_str()));
        for (name, value) in asked.chain(others).chain(over_all) {
            match config.set(name, value) {
                Ok(()) => {}
                Err(Refusal::Unknown(reason)) => {
                    tracing::warn!(reason, "UCX does not have a requested option")
                }
                Err(Refusal::Failed(reason)) => return Err(reason),
            }
        }

        let name = CString::new(options.name.as_str()).map_err(|_| "the name contains a NUL byte".to_owned())?;
        let params = sys::ucp_params_t {
            field_mask: u64::from(
                sys::UCP_PARAM_FIELD_FEATURES | sys::UCP_PARAM_FIELD_MT_WORKERS_SHARED | sys::UCP_PARAM_FIELD_NAME,
            ),
            features: u64::from(sys::UCP_FEATURE_RMA | sys::UCP_FEATURE_WAKEUP),
            mt_workers_shared: 1,
            name: name.as_ptr(),
            ..Default::default()
        };
        let mut handle = ptr::null_mut();
        // SAFETY: the parameters' mask names the fields that are set; the name lives through the call, which copies it.
        check("ucp_init", unsafe { ucx.ucp_init(&params, config.handle(), &mut handle) }).map_err(|reason| {
            format!(
                "{reason}; requested transports: {}, devices: {} (`ucx_info -d` lists those that exist)",
                options.transports.as_deref().unwrap_or("default"),
                options.net_devices.as_deref().unwrap_or("default"),
            )
        })?;
        let context = UcxContext { ucx, handle, host: host::identity(), creating: Mutex::new(()) };

        let mut attributes =
            sys::ucp_context_attr_t { field_mask: u64::from(sys::UCP_ATTR_FIELD_THREAD_MODE), ..Default::default() };
        // SAFETY: an open context, and room for the one field that the mask names.
        check("ucp_context_query", unsafe { ucx.ucp_context_query(handle, &mut attributes) })?;
        if attributes.thread_mode != sys::UCS_THREAD_MODE_MULTI {
            return Err("this UCX was built without multi-thread support (./configure --enable-mt)".to_owned());
        }
        Ok(context)
    }

    pub(crate) fn ucx(&self) -> &'static Ucx {
        self.ucx
    }

    pub(crate) fn handle(&self) -> sys::ucp_context_h {
        self.handle
    }

    /// Identity of this host, sent to peers.
    pub(crate) fn host(&self) -> u64 {
        self.host
    }

    /// The text of `ucp_context_print_info`, for people. No decision depends on it.
    pub(crate) fn info(&self) -> Option<String> {
        // SAFETY: an open context and an open stream.
        stream::capture(|file| unsafe { self.ucx.ucp_context_print_info(self.handle, file) })
    }

    /// A new worker for one endpoint.
    pub(crate) fn create_worker(&self) -> Result<sys::ucp_worker_h, String> {
        let _one_at_a_time = self.creating.lock().unwrap_or_else(PoisonError::into_inner);
        let params = sys::ucp_worker_params_t {
            field_mask: u64::from(sys::UCP_WORKER_PARAM_FIELD_THREAD_MODE | sys::UCP_WORKER_PARAM_FIELD_FLAGS),
            thread_mode: sys::UCS_THREAD_MODE_SERIALIZED,
            flags: u64::from(sys::UCP_WORKER_FLAG_IGNORE_REQUEST_LEAK),
            ..Default::default()
        };
        let mut worker = ptr::null_mut();
        // SAFETY: an open context, parameters whose mask names the fields that are set, room for the handle.
        check("ucp_worker_create", unsafe { self.ucx.ucp_worker_create(self.handle, &params, &mut worker) })?;
        Ok(worker)
    }
}

impl Drop for UcxContext {
    fn drop(&mut self) {
        // SAFETY: workers and registrations hold the context by `Arc`, so that none of them is left.
        unsafe { self.ucx.ucp_cleanup(self.handle) }
    }
}

impl fmt::Debug for UcxContext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "UcxContext({:p})", self.handle)
    }
}
