//! The UCX context: one per fabric, shared by its endpoints and by every registration.

use std::env;
use std::ffi::CString;
use std::fmt;
use std::ptr;
use std::sync::{Mutex, PoisonError};

use ucx_sys as sys;

use crate::status::check;
use crate::{Description, UcxOptions, quiet, stream};

/// Where this crate wants something else than UCX does, unless the environment or the options say otherwise.
///
/// Options of one transport go by their table's prefix: `MM_` up to UCX 1.18, the transport's own later. What this UCX does
/// not know it ignores.
const DEFAULTS: [(&str, &str); 12] = [
    // Endpoints with error handling, which a forced close needs, otherwise exclude shared memory (UCX 1.13
    // `uct_mm_iface_query`); what remains between processes of one host is emulation over tcp.
    ("MM_ERROR_HANDLING", "y"),
    ("POSIX_ERROR_HANDLING", "y"),
    ("SYSV_ERROR_HANDLING", "y"),
    // Receive buffers of messages through shared memory: UCX's 512 of 8 KiB, per worker and transport, come to 4 MiB for
    // each connection, touched or not; here they only carry the wire-up (and emulated reads, if allowed).
    ("MM_FIFO_SIZE", "32"),
    ("POSIX_FIFO_SIZE", "32"),
    ("SYSV_FIFO_SIZE", "32"),
    ("MM_RX_BUFS_GROW", "48"),
    // The same for RDMA: UCX's 4095 come to 67 MB for each connection, pinned.
    ("IB_RX_QUEUE_LEN", "64"),
    ("IB_RX_BUFS_GROW", "64"),
    ("IB_TX_BUFS_GROW", "64"),
    // How soon a peer's death is noticed through shared memory. UCX's 20 s outlast the deadlines of a query.
    (KEEPALIVE, "2s"),
    // When UCX 1.13 gives up a peer that does not answer the datagrams by which an RDMA connection is made, it fails an
    // assertion (`uct_ud_ep_t` cleanup, "tx.window") and ends the process. The endpoint closes such a connection long before.
    ("UD_TIMEOUT", "60m"),
];

const KEEPALIVE: &str = "KEEPALIVE_INTERVAL";

/// An open `ucp_context_h`.
pub(crate) struct UcxContext {
    handle: sys::ucp_context_h,
    /// Workers are created one at a time: UCX documents thread safety of a context's use, not of this.
    creating: Mutex<()>,
}

// SAFETY: the context was made with `mt_workers_shared`, and UCX confirmed UCS_THREAD_MODE_MULTI: its functions lock.
unsafe impl Send for UcxContext {}
// SAFETY: as above.
unsafe impl Sync for UcxContext {}

/// UCX's configuration as read from its file and the environment, and modified by options.
struct Config(*mut sys::ucp_config_t);

impl Config {
    fn read() -> Result<Self, String> {
        let mut config = ptr::null_mut();
        // SAFETY: no prefix and no file name mean the defaults; room for the handle.
        check("ucp_config_read", unsafe { sys::ucp_config_read(ptr::null(), ptr::null(), &mut config) })?;
        Ok(Config(config))
    }

    fn set(&self, name: &str, value: &str) -> Result<(), String> {
        let c_string = |text: &str| CString::new(text).map_err(|_| format!("UCX option {name} contains a NUL byte"));
        let (c_name, c_value) = (c_string(name)?, c_string(value)?);
        // SAFETY: an open configuration and two C strings, which UCX copies.
        let status = unsafe { sys::ucp_config_modify(self.0, c_name.as_ptr(), c_value.as_ptr()) };
        check(&format!("ucp_config_modify({name}={value})"), status)
    }
}

impl Drop for Config {
    fn drop(&mut self) {
        // SAFETY: opened by `read`, released once.
        unsafe { sys::ucp_config_release(self.0) }
    }
}

/// Whether UCX's keepalive can abort this process. With it, an RDMA connection gets a lane of datagrams (`ud_verbs`) to ask the
/// peer by, and is set up over that lane; closing it before that is done fails an assertion of UCX 1.13
/// (`ucp_request_send_state_ff`, "got REQ message"), which 1.14 has not: a client that came and went would end the server.
/// Without it, a dead peer is noticed by reads that RDMA gives up, and by the control connection.
fn keepalive_aborts((major, minor, _): (u32, u32, u32), description: &Description) -> bool {
    (major, minor) < (1, 14) && description.has_rdma()
}

impl UcxContext {
    /// Opens UCX.
    pub(crate) fn new(options: &UcxOptions) -> Result<Self, String> {
        quiet::once();
        let context = Self::open(options, None)?;
        let description = Description::new(&context.info().unwrap_or_default());
        if !keepalive_aborts(ucx_sys::version(), &description) {
            return Ok(context);
        }
        drop(context);
        Self::open(options, Some((KEEPALIVE, "inf")))
    }

    fn open(options: &UcxOptions, over_all: Option<(&str, &str)>) -> Result<Self, String> {
        let config = Config::read()?;
        for (name, value) in DEFAULTS {
            if env::var_os(format!("UCX_{name}")).is_none() {
                config.set(name, value)?;
            }
        }
        if let Some(transports) = &options.transports {
            config.set("TLS", transports)?;
        }
        if let Some(devices) = &options.net_devices {
            config.set("NET_DEVICES", devices)?;
        }
        for (name, value) in &options.settings {
            config.set(name, value)?;
        }
        if let Some((name, value)) = over_all {
            config.set(name, value)?;
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
        check("ucp_init", unsafe { sys::ucp_init(&params, config.0, &mut handle) }).map_err(|reason| {
            format!(
                "{reason}; transports asked for: {}, devices: {} (`ucx_info -d` lists what there is)",
                options.transports.as_deref().unwrap_or("default"),
                options.net_devices.as_deref().unwrap_or("default"),
            )
        })?;
        let context = UcxContext { handle, creating: Mutex::new(()) };

        let mut attributes =
            sys::ucp_context_attr_t { field_mask: u64::from(sys::UCP_ATTR_FIELD_THREAD_MODE), ..Default::default() };
        // SAFETY: an open context, and room for the one field that the mask names.
        check("ucp_context_query", unsafe { sys::ucp_context_query(handle, &mut attributes) })?;
        if attributes.thread_mode != sys::UCS_THREAD_MODE_MULTI {
            return Err("this UCX was built without multi-thread support (./configure --enable-mt)".to_owned());
        }
        Ok(context)
    }

    pub(crate) fn handle(&self) -> sys::ucp_context_h {
        self.handle
    }

    /// What `ucp_context_print_info` prints.
    pub(crate) fn info(&self) -> Option<String> {
        // SAFETY: an open context and an open stream.
        stream::capture(|file| unsafe { sys::ucp_context_print_info(self.handle, file) })
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
        check("ucp_worker_create", unsafe { sys::ucp_worker_create(self.handle, &params, &mut worker) })?;
        Ok(worker)
    }
}

impl Drop for UcxContext {
    fn drop(&mut self) {
        // SAFETY: workers and registrations hold the context by `Arc`, so that they are gone.
        unsafe { sys::ucp_cleanup(self.handle) }
    }
}

impl fmt::Debug for UcxContext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "UcxContext({:p})", self.handle)
    }
}
