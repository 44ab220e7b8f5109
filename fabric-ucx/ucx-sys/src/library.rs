//! The shared library: found and loaded once for the process, with its functions by name.

use std::ffi::{CStr, c_char, c_int, c_uint, c_void};
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, OnceLock, PoisonError};

use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_LAZY, RTLD_LOCAL, RTLD_NOW};
use thiserror::Error;

use crate::transports::EndpointTransports;
use crate::types::*;

/// The name under which every UCX since 1.3 installs `libucp`.
const SONAME: &str = "libucp.so.0";
/// Environment variable with the file to load, for a UCX that the dynamic linker does not find by itself.
pub const LIBRARY_VARIABLE: &str = "THALLUS_UCX_LIBRARY";
/// The oldest UCX whose interface these bindings describe.
pub const OLDEST: Version = Version { major: 1, minor: 13, release: 0 };

/// Version of a UCX library.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version {
    /// Incremented when the interface becomes incompatible.
    pub major: u32,
    /// Incremented when the interface grows.
    pub minor: u32,
    /// Incremented for fixes.
    pub release: u32,
}

impl Version {
    /// `major.minor`, of any release.
    #[must_use]
    pub const fn new(major: u32, minor: u32) -> Self {
        Version { major, minor, release: 0 }
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.major, self.minor, self.release)
    }
}

/// UCX cannot be used in this process.
#[derive(Clone, Debug, Error)]
#[non_exhaustive]
pub enum LoadError {
    /// The library, or one that it needs, is missing or not readable.
    #[error(
        "{library} cannot be loaded: {reason}; install UCX {OLDEST} or newer (Debian, Ubuntu: `apt install libucx0`; \
         Fedora, RHEL: `dnf install ucx`; or the package libucx-cu12 of PyPI), or let {LIBRARY_VARIABLE} \
         name its libucp.so.0"
    )]
    NotFound {
        /// The library that should be loaded.
        library: String,
        /// The error of the dynamic linker.
        reason: String,
    },
    /// The library lacks a function that every supported version has.
    #[error("{library} lacks the function {function}; it is not UCX {OLDEST} or newer")]
    Function {
        /// The loaded library.
        library: String,
        /// Name of the function.
        function: &'static str,
    },
    /// The library is older than these bindings, or has another major version.
    #[error("{library} is UCX {found}; versions from {OLDEST} to before 2.0 are supported")]
    Version {
        /// The loaded library.
        library: String,
        /// Version of the library.
        found: Version,
    },
    /// A process has one UCX, and another file is loaded already.
    #[error("{wanted} was requested, but this process has loaded {loaded} already")]
    Another {
        /// The library that should be loaded.
        wanted: String,
        /// The loaded library.
        loaded: String,
    },
}

macro_rules! functions {
    (
        every version { $($(#[$doc:meta])* $name:ident: fn($($arg:ident: $type:ty),*) $(-> $result:ty)?;)* }
        some versions { $($(#[$some_doc:meta])* $some:ident: fn($($some_type:ty),*) $(-> $some_result:ty)?;)* }
    ) => {
        /// The library's functions, by their C names.
        pub struct Ucx {
            name: String,
            version: Version,
            $($name: unsafe extern "C" fn($($type),*) $(-> $result)?,)*
            $($(#[$some_doc])* pub $some: Option<unsafe extern "C" fn($($some_type),*) $(-> $some_result)?>,)*
            /// Never unloaded: UCX has threads, signal handlers and hooks in it.
            _library: Library,
        }

        impl Ucx {
            fn bind(name: String, library: Library) -> Result<Self, LoadError> {
                let lacks = |function| LoadError::Function { library: name.clone(), function };
                let mut ucx = Ucx {
                    $($name: {
                        // SAFETY: the function of this name has this signature in every UCX 1.x from 1.13 on, see the
                        // table in the crate's documentation.
                        let symbol = unsafe { library.get(concat!(stringify!($name), "\0").as_bytes()) };
                        *symbol.map_err(|_| lacks(stringify!($name)))?
                    },)*
                    $($some: {
                        // SAFETY: the function of this name has this signature in every UCX that has it.
                        let symbol = unsafe { library.get(concat!(stringify!($some), "\0").as_bytes()) };
                        symbol.ok().map(|symbol| *symbol)
                    },)*
                    version: Version { major: 0, minor: 0, release: 0 },
                    name: name.clone(),
                    _library: library,
                };
                let Version { major, minor, release } = &mut ucx.version;
                // SAFETY: three valid pointers to unsigned.
                unsafe { (ucx.ucp_get_version)(major, minor, release) };
                if ucx.version < OLDEST || ucx.version.major != OLDEST.major {
                    return Err(LoadError::Version { library: name, found: ucx.version });
                }
                Ok(ucx)
            }

            $(
                $(#[$doc])*
                ///
                /// # Safety
                /// The conditions of the C function of this name.
                #[allow(clippy::too_many_arguments, reason = "as the C function")]
                pub unsafe fn $name(&self, $($arg: $type),*) $(-> $result)? {
                    // SAFETY: the caller's promise; the signature is the function's.
                    unsafe { (self.$name)($($arg),*) }
                }
            )*
        }
    };
}

functions! {
    every version {
    /// Version of the library.
    ucp_get_version: fn(major: *mut c_uint, minor: *mut c_uint, release: *mut c_uint);
    /// Text for a status.
    ucs_status_string: fn(status: ucs_status_t) -> *const c_char;
    /// Sets an option of libucs that is read when it is used.
    ucs_global_opts_set_value: fn(name: *const c_char, value: *const c_char) -> ucs_status_t;
    /// Reads the options from environment and files.
    ucp_config_read: fn(prefix: *const c_char, file: *const c_char, config: *mut *mut ucp_config_t) -> ucs_status_t;
    /// Sets an option.
    ucp_config_modify: fn(config: *mut ucp_config_t, name: *const c_char, value: *const c_char) -> ucs_status_t;
    /// Frees options.
    ucp_config_release: fn(config: *mut ucp_config_t);
    /// Opens a context, for callers that know the interface of the given version.
    ucp_init_version: fn(
        major: c_uint, minor: c_uint, params: *const ucp_params_t, config: *const ucp_config_t,
        context: *mut ucp_context_h
    ) -> ucs_status_t;
    /// Closes a context.
    ucp_cleanup: fn(context: ucp_context_h);
    /// Attributes of a context.
    ucp_context_query: fn(context: ucp_context_h, attributes: *mut ucp_context_attr_t) -> ucs_status_t;
    /// Prints a context to a C stream (`FILE *`), for people.
    ucp_context_print_info: fn(context: ucp_context_h, stream: *mut c_void);
    /// Creates a worker.
    ucp_worker_create: fn(
        context: ucp_context_h, params: *const ucp_worker_params_t, worker: *mut ucp_worker_h
    ) -> ucs_status_t;
    /// Destroys a worker.
    ucp_worker_destroy: fn(worker: ucp_worker_h);
    /// Attributes of a worker.
    ucp_worker_query: fn(worker: ucp_worker_h, attributes: *mut ucp_worker_attr_t) -> ucs_status_t;
    /// Frees a worker's address.
    ucp_worker_release_address: fn(worker: ucp_worker_h, address: *mut ucp_address_t);
    /// The descriptor of a worker's events.
    ucp_worker_get_efd: fn(worker: ucp_worker_h, fd: *mut c_int) -> ucs_status_t;
    /// Makes progress; returns 0 if there were no events.
    ucp_worker_progress: fn(worker: ucp_worker_h) -> c_uint;
    /// Arms the descriptor of a worker's events.
    ucp_worker_arm: fn(worker: ucp_worker_h) -> ucs_status_t;
    /// Creates an endpoint.
    ucp_ep_create: fn(worker: ucp_worker_h, params: *const ucp_ep_params_t, endpoint: *mut ucp_ep_h) -> ucs_status_t;
    /// Closes an endpoint.
    ucp_ep_close_nbx: fn(endpoint: ucp_ep_h, params: *const ucp_request_param_t) -> ucs_status_ptr_t;
    /// Attributes of an endpoint.
    ucp_ep_query: fn(endpoint: ucp_ep_h, attributes: *mut EndpointTransports) -> ucs_status_t;
    /// Unpacks a remote key.
    ucp_ep_rkey_unpack: fn(endpoint: ucp_ep_h, packed: *const c_void, key: *mut ucp_rkey_h) -> ucs_status_t;
    /// Destroys a remote key.
    ucp_rkey_destroy: fn(key: ucp_rkey_h);
    /// The address at which memory of a peer on this host is mapped.
    ucp_rkey_ptr: fn(key: ucp_rkey_h, remote: u64, local: *mut *mut c_void) -> ucs_status_t;
    /// Packs a remote key.
    ucp_rkey_pack: fn(
        context: ucp_context_h, memory: ucp_mem_h, packed: *mut *mut c_void, len: *mut usize
    ) -> ucs_status_t;
    /// Frees a packed remote key.
    ucp_rkey_buffer_release: fn(packed: *mut c_void);
    /// Allocates or registers memory.
    ucp_mem_map: fn(
        context: ucp_context_h, params: *const ucp_mem_map_params_t, memory: *mut ucp_mem_h
    ) -> ucs_status_t;
    /// Frees or deregisters memory.
    ucp_mem_unmap: fn(context: ucp_context_h, memory: ucp_mem_h) -> ucs_status_t;
    /// Attributes of memory.
    ucp_mem_query: fn(memory: ucp_mem_h, attributes: *mut ucp_mem_attr_t) -> ucs_status_t;
    /// Starts a read.
    ucp_get_nbx: fn(
        endpoint: ucp_ep_h, buffer: *mut c_void, len: usize, remote: u64, key: ucp_rkey_h,
        params: *const ucp_request_param_t
    ) -> ucs_status_ptr_t;
    /// Starts to wait until all operations on an endpoint, its connection included, are done.
    ucp_ep_flush_nbx: fn(endpoint: ucp_ep_h, params: *const ucp_request_param_t) -> ucs_status_ptr_t;
    /// Status of a request.
    ucp_request_check_status: fn(request: *mut c_void) -> ucs_status_t;
    /// Frees a request.
    ucp_request_free: fn(request: *mut c_void);
    }
    some versions {
    /// `void ucs_debug_disable_signals()`: exported by libucs, declared in no installed header.
    ucs_debug_disable_signals: fn();
    /// `int ucs_config_global_list_has_field(const char *name)` of libucs, from 1.20 on: whether any table of options
    /// has the name.
    ucs_config_global_list_has_field: fn(*const c_char) -> c_int;
    }
}

impl Ucx {
    /// Version of the loaded library, which may be newer than these bindings.
    #[must_use]
    pub fn version(&self) -> Version {
        self.version
    }

    /// The loaded file: a path, or a name for the dynamic linker.
    #[must_use]
    pub fn library(&self) -> &str {
        &self.name
    }

    /// UCX's text for a status.
    #[must_use]
    pub fn status_string(&self, status: ucs_status_t) -> String {
        // SAFETY: any status value is allowed; the text is static, or (for a status unknown to this UCX) a static
        // buffer.
        let text = unsafe { CStr::from_ptr(self.ucs_status_string(status)) };
        text.to_string_lossy().into_owned()
    }
}

impl fmt::Debug for Ucx {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Ucx({}, {})", self.name, self.version)
    }
}

static LOADED: OnceLock<Ucx> = OnceLock::new();

/// Loads UCX, once for the process: the file `library`; if `None`, the file in the environment variable
/// [`LIBRARY_VARIABLE`]; otherwise `libucp.so.0`, as the dynamic linker finds it.
///
/// # Errors
/// [`LoadError`]. A failed call may be repeated, with another file.
pub fn load(library: Option<&Path>) -> Result<&'static Ucx, LoadError> {
    static LOADING: Mutex<()> = Mutex::new(());
    let _one_at_a_time = LOADING.lock().unwrap_or_else(PoisonError::into_inner);
    let wanted = library.map(Path::to_path_buf).or_else(|| std::env::var_os(LIBRARY_VARIABLE).map(PathBuf::from));
    let name = wanted.as_ref().map_or_else(|| SONAME.to_owned(), |path| path.display().to_string());
    if let Some(ucx) = LOADED.get() {
        // Without a requested file, any loaded UCX is accepted.
        return match wanted {
            Some(_) if ucx.name != name => Err(LoadError::Another { wanted: name, loaded: ucx.name.clone() }),
            _ => Ok(ucx),
        };
    }
    let opened = match &wanted {
        Some(path) => open_beside(path),
        None => open(Path::new(SONAME), RTLD_NOW | RTLD_LOCAL),
    };
    let opened = opened.map_err(|error| LoadError::NotFound { library: name.clone(), reason: error.to_string() })?;
    let ucx = Ucx::bind(name, opened)?;
    Ok(LOADED.get_or_init(|| ucx))
}

/// The loaded library, if there is one.
#[must_use]
pub fn loaded() -> Option<&'static Ucx> {
    LOADED.get()
}

/// Loads `libucp` and, before it, the libraries of the same UCX in its directory. Otherwise the dynamic linker would
/// take those of another UCX from the system. The dynamic linker uses a loaded library instead, if it has the required
/// name.
fn open_beside(path: &Path) -> Result<Library, libloading::Error> {
    if let Some(directory) = path.parent() {
        for name in ["libucm.so.0", "libucs.so.0", "libuct.so.0"] {
            let beside = directory.join(name);
            if beside.is_file() {
                // Global and lazy, since they need each other: libucm calls libucs without naming it as a dependency.
                std::mem::forget(open(&beside, RTLD_LAZY | RTLD_GLOBAL)?);
            }
        }
    }
    open(path, RTLD_NOW | RTLD_LOCAL)
}

fn open(path: &Path, flags: c_int) -> Result<Library, libloading::Error> {
    // SAFETY: a system library, or the one that the operator names. UCX's initialisers read its environment and install
    // its signal handlers; they do not rely on the program.
    unsafe { Library::open(Some(path), flags) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_ordered_and_printed() {
        let version = Version { major: 1, minor: 13, release: 1 };
        assert!(version > OLDEST && version < Version::new(1, 14) && Version::new(1, 14) < Version::new(2, 0));
        assert_eq!(version.to_string(), "1.13.1");
    }

    #[test]
    fn errors_say_what_to_do() {
        let error = open(Path::new("/nowhere/libucp.so.0"), RTLD_NOW).unwrap_err();
        let error = LoadError::NotFound { library: "/nowhere/libucp.so.0".into(), reason: error.to_string() };
        assert!(error.to_string().contains("/nowhere/libucp.so.0") && error.to_string().contains("libucx0"), "{error}");
    }

    #[test]
    fn a_library_that_is_not_ucx_is_refused() {
        let library = open(Path::new("libc.so.6"), RTLD_NOW).unwrap();
        let error = Ucx::bind("libc.so.6".into(), library).unwrap_err();
        assert!(matches!(error, LoadError::Function { function: "ucp_get_version", .. }), "{error}");
    }
}
