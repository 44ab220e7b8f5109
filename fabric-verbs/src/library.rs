//! libibverbs, loaded at run time.
//!
//! Types come from `ibverbs-sys`. None of its functions is referenced, so the program does not depend on the shared
//! library and starts where rdma-core is not installed. Verbs that move data are not exported symbols: they are called
//! through the device's table of operations in its `ibv_context`, as in the inline functions of `infiniband/verbs.h`.

use std::ffi::{c_int, c_void};
use std::fmt;
use std::sync::OnceLock;

use ibverbs_sys as sys;
use libloading::Library;

/// The name under which every rdma-core since 2009 installs the library.
const NAME: &str = "libibverbs.so.1";

macro_rules! symbols {
    ($($name:ident: fn($($arg:ty),*) $(-> $result:ty)?;)*) => {
        /// The functions of libibverbs that this crate calls, with the signatures of `infiniband/verbs.h`.
        #[allow(non_snake_case, reason = "named as the library names them")]
        pub(crate) struct Verbs {
            $(pub(crate) $name: unsafe extern "C" fn($($arg),*) $(-> $result)?,)*
            /// Never unloaded: device threads of providers may run in it.
            _library: Library,
        }

        impl Verbs {
            fn load() -> Result<Self, String> {
                // SAFETY: a system library, whose initialisers set up the library only.
                let library = unsafe { Library::new(NAME) }.map_err(|error| {
                    format!(
                        "{NAME} cannot be loaded: {error}; install rdma-core's libibverbs \
                         (Debian: libibverbs1 ibverbs-providers)"
                    )
                })?;
                Ok(Verbs {
                    $($name: {
                        // SAFETY: the function of this name has this signature in every version of the library's ABI
                        // (IBVERBS_1.1), which the name of the library stands for.
                        let symbol = unsafe { library.get(concat!(stringify!($name), "\0").as_bytes()) };
                        *symbol.map_err(|error| format!("{NAME} lacks {}: {error}", stringify!($name)))?
                    },)*
                    _library: library,
                })
            }
        }
    };
}

symbols! {
    ibv_get_device_list: fn(*mut c_int) -> *mut *mut sys::ibv_device;
    ibv_free_device_list: fn(*mut *mut sys::ibv_device);
    ibv_get_device_name: fn(*mut sys::ibv_device) -> *const libc::c_char;
    ibv_open_device: fn(*mut sys::ibv_device) -> *mut sys::ibv_context;
    ibv_close_device: fn(*mut sys::ibv_context) -> c_int;
    ibv_query_device: fn(*mut sys::ibv_context, *mut sys::ibv_device_attr) -> c_int;
    ibv_query_port: fn(*mut sys::ibv_context, u8, *mut sys::ibv_port_attr) -> c_int;
    ibv_alloc_pd: fn(*mut sys::ibv_context) -> *mut sys::ibv_pd;
    ibv_dealloc_pd: fn(*mut sys::ibv_pd) -> c_int;
    ibv_reg_mr: fn(*mut sys::ibv_pd, *mut c_void, usize, c_int) -> *mut sys::ibv_mr;
    ibv_dereg_mr: fn(*mut sys::ibv_mr) -> c_int;
    ibv_create_comp_channel: fn(*mut sys::ibv_context) -> *mut sys::ibv_comp_channel;
    ibv_destroy_comp_channel: fn(*mut sys::ibv_comp_channel) -> c_int;
    ibv_create_cq: fn(*mut sys::ibv_context, c_int, *mut c_void, *mut sys::ibv_comp_channel, c_int) -> *mut sys::ibv_cq;
    ibv_destroy_cq: fn(*mut sys::ibv_cq) -> c_int;
    ibv_get_cq_event: fn(*mut sys::ibv_comp_channel, *mut *mut sys::ibv_cq, *mut *mut c_void) -> c_int;
    ibv_ack_cq_events: fn(*mut sys::ibv_cq, libc::c_uint);
    ibv_create_qp: fn(*mut sys::ibv_pd, *mut sys::ibv_qp_init_attr) -> *mut sys::ibv_qp;
    ibv_modify_qp: fn(*mut sys::ibv_qp, *mut sys::ibv_qp_attr, c_int) -> c_int;
    ibv_destroy_qp: fn(*mut sys::ibv_qp) -> c_int;
}

impl fmt::Debug for Verbs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(NAME)
    }
}

/// The library, loaded once for the process; or the reason why it cannot be loaded.
pub(crate) fn verbs() -> Result<&'static Verbs, String> {
    static VERBS: OnceLock<Result<Verbs, String>> = OnceLock::new();
    VERBS.get_or_init(Verbs::load).as_ref().map_err(Clone::clone)
}

/// `call: the system's text`, for a verb that sets `errno`.
pub(crate) fn last_error(call: &str) -> String {
    format!("{call}: {}", std::io::Error::last_os_error())
}

/// `Ok` for 0, otherwise the failed call and the error number that it returned (or set, if it returned -1).
pub(crate) fn check(call: &str, returned: c_int) -> Result<(), String> {
    match returned {
        0 => Ok(()),
        -1 => Err(last_error(call)),
        number => Err(format!("{call}: {}", std::io::Error::from_raw_os_error(number.abs()))),
    }
}
