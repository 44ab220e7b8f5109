//! UCX as a library: it must not take the process's signals, write to its standard output, or wait for a debugger.

use std::env;
use std::ffi::{CStr, c_char, c_int, c_void};
use std::mem::{MaybeUninit, transmute};
use std::ptr;
use std::sync::Once;

use ucx_sys::{ucs_global_opts_set_value, ucs_status_t};

static ONCE: Once = Once::new();

/// Undoes, once per process, what UCX's library constructor did before `main`, unless the environment asks for it.
///
/// - Its handlers of SIGSEGV, SIGBUS, SIGILL, SIGFPE (and SIGHUP, its debug signal) print a backtrace and may stop for a
///   debugger. If they are still in place the ones before them are restored (`UCX_HANDLE_ERRORS` keeps UCX's).
/// - It logs errors and warnings to standard output, where a program's results go. Every error comes back as a status and is
///   reported by this crate, so that the log is set to `fatal` (`UCX_LOG_LEVEL` keeps it).
///
/// The constructor has read the environment by then, so that setting variables would be too late as well as unsafe in a
/// process with threads; `ucs_global_opts_set_value` sets the parsed options.
pub(crate) fn once() {
    ONCE.call_once(|| {
        if env::var_os("UCX_HANDLE_ERRORS").is_none() {
            restore_signals();
            set(c"HANDLE_ERRORS", c"none");
        }
        if env::var_os("UCX_LOG_LEVEL").is_none() {
            set(c"LOG_LEVEL", c"fatal");
        }
    });
}

fn set(name: &CStr, value: &CStr) {
    // SAFETY: two C strings that UCX copies. The options are plain values that UCX reads without a lock; the writer is
    // this `Once`, before this crate has made a context.
    let status = unsafe { ucs_global_opts_set_value(name.as_ptr(), value.as_ptr()) };
    if status != ucs_status_t::UCS_OK {
        tracing::debug!(?name, ?value, reason = ucx_sys::status_string(status), "UCX did not take a global option");
    }
}

fn restore_signals() {
    if !ucx_handles(libc::SIGSEGV) {
        return;
    }
    // Exported by libucs but not declared in an installed header, so that it is looked up rather than linked.
    // SAFETY: a C string; RTLD_DEFAULT searches the libraries that are loaded.
    let found = unsafe { libc::dlsym(libc::RTLD_DEFAULT, c"ucs_debug_disable_signals".as_ptr()) };
    if found.is_null() {
        tracing::debug!(
            "this UCX keeps its signal handlers: set UCX_HANDLE_ERRORS=none before the start to prevent it"
        );
        return;
    }
    // SAFETY: `void ucs_debug_disable_signals()` in every UCX that exports it (src/ucs/debug/debug_int.h).
    let disable = unsafe { transmute::<*mut c_void, unsafe extern "C" fn()>(found) };
    // SAFETY: it locks its own table and restores the actions that the constructor found; `ucx_handles` made sure that
    // nobody has installed another handler since.
    unsafe { disable() };
}

/// Whether the handler of `signal` lies in libucs.
fn ucx_handles(signal: c_int) -> bool {
    let mut action = MaybeUninit::<libc::sigaction>::zeroed();
    // SAFETY: a query: no new action, and room for the old one.
    if unsafe { libc::sigaction(signal, ptr::null(), action.as_mut_ptr()) } != 0 {
        return false;
    }
    // SAFETY: zeroed is a valid `sigaction`, and the call filled it.
    let handler = unsafe { action.assume_init() }.sa_sigaction;
    if handler == libc::SIG_DFL || handler == libc::SIG_IGN {
        return false;
    }
    let mut info = MaybeUninit::<libc::Dl_info>::zeroed();
    // SAFETY: any address may be asked for, and there is room for the answer.
    if unsafe { libc::dladdr(handler as *const c_void, info.as_mut_ptr()) } == 0 {
        return false;
    }
    // SAFETY: zeroed is a valid `Dl_info`, and the call filled it.
    let name: *const c_char = unsafe { info.assume_init() }.dli_fname;
    // SAFETY: `dladdr` gives null or the C string of a loaded library, which stays loaded.
    !name.is_null() && unsafe { CStr::from_ptr(name) }.to_bytes().windows(6).any(|part| part == b"libucs")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ucx_keeps_no_signal() {
        once();
        for signal in [libc::SIGSEGV, libc::SIGBUS, libc::SIGFPE, libc::SIGILL, libc::SIGHUP] {
            assert!(!ucx_handles(signal), "signal {signal}");
        }
    }
}
