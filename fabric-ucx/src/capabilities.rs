//! Capabilities of the fabric: the limits of reads, and the memory that a peer can map.

use thallus_fabric::Maps;

use crate::domains::Domains;
use crate::{Allocation, UcxOptions};

/// Maximum length of one read in bytes. Through shared memory a read is a copy, which must not block the executor's
/// thread for long, and which one thread makes: several threads share the pieces of a longer read.
pub(crate) const MAX_READ: u64 = 256 << 10;
/// Maximum number of outstanding reads of an endpoint.
pub(crate) const MAX_OUTSTANDING_READS: usize = 256;

/// The memory that a peer can map, of the memory that these options allocate in these domains.
pub(crate) fn maps(options: &UcxOptions, domains: Domains) -> Maps {
    let reason = match options.allocation {
        Allocation::HugePages => {
            "UCX was told to allocate huge pages; mapping takes shared memory (Allocation::Segment)"
        }
        Allocation::Segment if !domains.has_segments() => {
            "UCX has no shared memory here, which mapping takes: let it use its transports sysv or posix"
        }
        Allocation::Segment => return Maps::Allocated,
    };
    Maps::Nothing { reason: reason.into() }
}
