//! Stops UCX from handling the process's signals, logging to its standard output, and waiting for a debugger.

use std::env;
use std::ffi::{CStr, c_char, c_int, c_void};
use std::mem::MaybeUninit;
use std::path::Path;
use std::ptr;
use std::sync::{Mutex, PoisonError};

use ucx_sys::{LoadError, Ucx, ucs_status_t};

/// UCX handles these to print a backtrace and perhaps to stop for a debugger; the last is its debug signal.
const SIGNALS: [c_int; 5] = [libc::SIGSEGV, libc::SIGBUS, libc::SIGILL, libc::SIGFPE, libc::SIGHUP];

/// Loads UCX, and undoes, once per process, the effects of its library constructor, unless the environment requests
/// them.
///
/// - The constructor installs signal handlers. The previous handlers are restored (`UCX_HANDLE_ERRORS` keeps UCX's).
/// - The constructor sends errors and warnings to standard output, which carries a program's results. Every error is
///   returned as a status and reported by this crate, so the log level is set to `fatal` (`UCX_LOG_LEVEL` keeps UCX's).
///
/// The constructor has read the environment by then: setting variables would be too late, and is unsafe in a process
/// with threads. `ucs_global_opts_set_value` sets the parsed options.
pub(crate) fn load(library: Option<&Path>) -> Result<&'static Ucx, LoadError> {
    // One thread at a time: when another thread returns, these effects must be undone already.
    static IS_DONE: Mutex<bool> = Mutex::new(false);
    let mut is_done = IS_DONE.lock().unwrap_or_else(PoisonError::into_inner);
    let before = SIGNALS.map(action);
    let ucx = ucx_sys::load(library)?;
    if !std::mem::replace(&mut *is_done, true) {
        if env::var_os("UCX_HANDLE_ERRORS").is_none() {
            restore_signals(ucx, &before);
            set(ucx, c"HANDLE_ERRORS", c"none");
        }
        if env::var_os("UCX_LOG_LEVEL").is_none() {
            set(ucx, c"LOG_LEVEL", c"fatal");
        }
    }
    Ok(ucx)
}

fn set(ucx: &Ucx, name: &CStr, value: &CStr) {
    // SAFETY: two C strings that UCX copies. The options are plain values that UCX reads without a lock; the writer
    // holds the lock of `load`, before this crate has made a context.
    let status = unsafe { ucx.ucs_global_opts_set_value(name.as_ptr(), value.as_ptr()) };
    if status != ucs_status_t::UCS_OK {
        tracing::debug!(?name, ?value, reason = ucx.status_string(status), "UCX did not accept a global option");
    }
}

fn restore_signals(ucx: &Ucx, before: &[Option<libc::sigaction>]) {
    if let Some(disable) = ucx.ucs_debug_disable_signals.filter(|_| handler_of_ucx(libc::SIGSEGV).is_some()) {
        // SAFETY: it locks its own table and restores the actions that the constructor found; the lines above have
        // checked that no other handler was installed since.
        unsafe { disable() };
    }
    // UCX from 1.20 on keeps the handler of its debug signal.
    for (signal, before) in SIGNALS.iter().zip(before) {
        if let (Some(_), Some(before)) = (handler_of_ucx(*signal), before.filter(|before| !is_of_ucx(before))) {
            // SAFETY: an action that was in force before UCX was loaded.
            if unsafe { libc::sigaction(*signal, &raw const before, ptr::null_mut()) } != 0 {
                tracing::debug!(
                    signal,
                    "UCX's signal handler stays: set UCX_HANDLE_ERRORS=none before the start to prevent it"
                );
            }
        }
    }
}

/// The current action of `signal`.
fn action(signal: c_int) -> Option<libc::sigaction> {
    let mut action = MaybeUninit::<libc::sigaction>::zeroed();
    // SAFETY: a query: no new action, and room for the old one.
    let asked = unsafe { libc::sigaction(signal, ptr::null(), action.as_mut_ptr()) };
    // SAFETY: zeroed is a valid `sigaction`, and the call filled it or left it so.
    (asked == 0).then(|| unsafe { action.assume_init() })
}

/// The action of `signal`, if its handler lies in libucs.
fn handler_of_ucx(signal: c_int) -> Option<libc::sigaction> {
    action(signal).filter(is_of_ucx)
}

fn is_of_ucx(action: &libc::sigaction) -> bool {
    let handler = action.sa_sigaction;
    if handler == libc::SIG_DFL || handler == libc::SIG_IGN {
        return false;
    }
    let mut info = MaybeUninit::<libc::Dl_info>::zeroed();
    // SAFETY: any address is allowed, and there is room for the answer.
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
        load(None).unwrap();
        for signal in SIGNALS {
            assert!(handler_of_ucx(signal).is_none(), "signal {signal}");
        }
    }
}
