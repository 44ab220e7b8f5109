//! A description of UCX on this host, for people.

use std::fmt;

use ucx_sys::Ucx;

use crate::capabilities::{MAX_OUTSTANDING_READS, MAX_READ};

/// A description of UCX on this host, for the `doctor` command, through `Display`. No decision depends on it.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Description {
    /// Version of the loaded library.
    pub version: String,
    /// The loaded file, or the name by which the dynamic linker found it.
    pub library: String,
    /// Enabled transports and devices, as UCX prints them: `posix/memory`, `rc_mlx5/mlx5_0:1`.
    pub transports: Vec<String>,
    /// Maximum length of one read in bytes.
    pub max_read: u64,
    /// Maximum number of outstanding reads of an endpoint.
    pub max_outstanding_reads: usize,
    /// Whether memory from [`thallus_fabric::Fabric::register`] is read one-sidedly.
    pub reads_registered_memory: bool,
}

impl Description {
    /// Reads the transports from the text of `ucp_context_print_info`. Its lines for transports have the form `#
    /// resource  3  :  md 2  dev 2  flags -- sysv/memory`.
    pub(crate) fn new(ucx: &Ucx, info: &str, reads_registered_memory: bool) -> Self {
        let transports = info
            .lines()
            .filter(|line| line.trim_start_matches(['#', ' ']).starts_with("resource"))
            .filter_map(|line| line.split_whitespace().last())
            .filter(|name| name.contains('/'))
            .map(str::to_owned)
            .collect();
        Description {
            version: ucx.version().to_string(),
            library: ucx.library().to_owned(),
            transports,
            reads_registered_memory,
            max_read: MAX_READ,
            max_outstanding_reads: MAX_OUTSTANDING_READS,
        }
    }
}

impl fmt::Display for Description {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "UCX {} ({})", self.version, self.library)?;
        writeln!(f, "  transports: {}", self.transports.join(", "))?;
        writeln!(f, "  longest read: {} bytes, outstanding reads: {}", self.max_read, self.max_outstanding_reads)?;
        let registered = if self.reads_registered_memory { "one-sided" } else { "only by emulation" };
        write!(f, "  reads of registered memory: {registered}")
    }
}
