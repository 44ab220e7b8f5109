//! What UCX has on this host, in words.

use std::fmt;

use crate::{MAX_OUTSTANDING_READS, MAX_READ};

/// UCX on this host: for a doctor command, through `Display`.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Description {
    /// Version of the library that is loaded.
    pub version: String,
    /// Transports and devices that are enabled: `posix/memory`, `rc_mlx5/mlx5_0:1`.
    pub transports: Vec<String>,
    /// Longest single read, in bytes.
    pub max_read: u64,
    /// Most outstanding reads of an endpoint.
    pub max_outstanding_reads: usize,
}

impl Description {
    /// Reads what `ucp_context_print_info` prints, of which the lines on transports are like
    /// `#  resource  3  :  md 2  dev 2  flags -- sysv/memory`.
    pub(crate) fn new(info: &str) -> Self {
        let (major, minor, release) = ucx_sys::version();
        let transports = info
            .lines()
            .filter(|line| line.trim_start_matches(['#', ' ']).starts_with("resource"))
            .filter_map(|line| line.split_whitespace().last())
            .filter(|name| name.contains('/'))
            .map(str::to_owned)
            .collect();
        Description {
            version: format!("{major}.{minor}.{release}"),
            transports,
            max_read: MAX_READ,
            max_outstanding_reads: MAX_OUTSTANDING_READS,
        }
    }

    /// Whether there is a transport by queue pairs.
    pub(crate) fn has_rdma(&self) -> bool {
        self.transports.iter().any(|name| ["rc_", "dc_", "ud_"].iter().any(|rdma| name.starts_with(rdma)))
    }

    /// Whether a transport shares segments of memory between processes of this host.
    pub(crate) fn has_segments(&self) -> bool {
        self.transports.iter().any(|name| ["sysv/", "posix/"].iter().any(|shared| name.starts_with(shared)))
    }

    /// Whether a transport registers memory where it lies and reads it one-sidedly: RDMA, or XPMEM on one host.
    pub(crate) fn reads_registered_memory(&self) -> bool {
        self.transports.iter().any(|name| ["rc_", "dc_", "xpmem", "ugni"].iter().any(|native| name.starts_with(native)))
    }
}

impl fmt::Display for Description {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "UCX {}", self.version)?;
        writeln!(f, "  transports: {}", self.transports.join(", "))?;
        writeln!(f, "  longest read: {} bytes, outstanding reads: {}", self.max_read, self.max_outstanding_reads)?;
        let registered = if self.reads_registered_memory() { "one-sided" } else { "only by emulation" };
        write!(f, "  reads of registered memory: {registered}")
    }
}
