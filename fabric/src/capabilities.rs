//! What a fabric can do on this host, in terms that a caller can decide by.

use std::borrow::Cow;

/// How a lender keeps a late one-sided read from being taken for a good one, once a lease has ended without a release.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fencing {
    /// The fabric refuses every read of an endpoint's memory once that endpoint [is
    /// closed](crate::Endpoint::is_closed).
    Revocation,
    /// The fabric cannot cut a peer off. The borrower proves, after its reads completed and before it delivers, that
    /// the lease still stood, by reading the lease word last (as FaRM does: Dragojevic et al., NSDI 2014, section 4).
    LeaseWord,
}

/// Which memory of a lender a peer on the same host can map, see [`MapsPeer`](crate::MapsPeer).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Maps {
    /// None. [`Endpoint::mapping`](crate::Endpoint::mapping) returns `None`.
    Nothing {
        /// Why, and what to do about it. A user reads it: "UCX was told not to use shared memory (transports sysv,
        /// posix)".
        reason: Cow<'static, str>,
    },
    /// Memory from [`Fabric::allocate`](crate::Fabric::allocate). Other memory has to be copied there first.
    Allocated,
}

/// What a fabric can do on this host. Constant for as long as the fabric is open.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Capabilities {
    /// How lent memory is fenced.
    pub fencing: Fencing,
    /// Longest single read, in bytes. The caller posts longer ranges in pieces.
    pub max_read: u64,
    /// Most reads that one endpoint may have outstanding; one more is
    /// [`FabricError::TooManyReads`](crate::FabricError).
    pub max_outstanding_reads: usize,
    /// Whether a key opens exactly the range that was [exposed](crate::Endpoint::expose), to exactly the endpoint's
    /// peer, until it is [revoked](crate::Endpoint::revoke). If not, a key opens the whole memory for as long as it is
    /// registered.
    pub exposes_ranges: bool,
    /// Whether memory from [`Fabric::register`](crate::Fabric::register) becomes known to the device only when it is
    /// exposed, each time anew. Then keeping a registration for the next loan saves nothing.
    pub registers_when_exposed: bool,
    /// What a peer can map.
    pub maps: Maps,
}
