//! Standard output, which carries results and nothing else.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::OnceLock;

/// The standard output with which the process was started.
static RESULTS: OnceLock<OwnedFd> = OnceLock::new();

/// Reserves standard output for results: it is kept under a descriptor of its own, and the usual descriptor leads to
/// stderr.
///
/// Libraries such as UCX log to the usual descriptor, also at settings of their own (`UCX_LOG_LEVEL`, `UCX_PROTO_INFO`,
/// `UCX_STATS_DEST`). Their lines would be inside of the result.
///
/// # Errors
/// [`io::Error`] if standard output is closed.
pub(crate) fn reserve() -> io::Result<()> {
    let results = io::stdout().as_fd().try_clone_to_owned()?;
    match rustix::stdio::dup2_stdout(io::stderr()) {
        Ok(()) => {}
        // Without stderr the lines are lost.
        Err(_) => rustix::stdio::dup2_stdout(File::options().write(true).open("/dev/null")?)?,
    }
    // Set once, by `main`.
    let _ = RESULTS.set(results);
    Ok(())
}

/// A new descriptor of standard output. Unlike Rust's own handle, it does not flush at every line.
///
/// # Errors
/// [`io::Error`] if standard output is closed.
pub(crate) fn open() -> io::Result<File> {
    let fd = match RESULTS.get() {
        Some(results) => results.try_clone()?,
        None => io::stdout().as_fd().try_clone_to_owned()?,
    };
    Ok(fd.into())
}
