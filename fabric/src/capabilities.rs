//! The capabilities of a fabric on this host.

use std::borrow::Cow;

/// The way in which a late one-sided read is detected after a lease has ended without a release.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fencing {
    /// The fabric refuses every read of an endpoint's memory once that endpoint [is
    /// closed](crate::Endpoint::is_closed).
    Revocation,
    /// The fabric cannot cut a peer off. After its reads completed and before it delivers, the borrower reads the lease
    /// word last, which proves that the lease still stood (as FaRM does: Dragojevic et al., NSDI 2014, section 4).
    LeaseWord,
}

/// The memory of a lender that a peer on the same host can map, see [`MapsPeer`](crate::MapsPeer).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Maps {
    /// No memory. [`Endpoint::mapping`](crate::Endpoint::mapping) returns `None`.
    Nothing {
        /// The reason, and its remedy, as a text for users: "UCX was told not to use shared memory (transports sysv,
        /// posix)".
        reason: Cow<'static, str>,
    },
    /// Memory from [`Fabric::allocate`](crate::Fabric::allocate). Other memory has to be copied into it first.
    Allocated,
}

/// The capabilities of a fabric on this host. They are constant while the fabric is open.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Capabilities {
    /// The fencing of lent memory.
    pub fencing: Fencing,
    /// Maximum length of one read in bytes. The caller posts longer ranges in pieces.
    pub max_read: u64,
    /// Maximum number of outstanding reads of one endpoint. One read more fails with
    /// [`FabricError::TooManyReads`](crate::FabricError).
    pub max_outstanding_reads: usize,
    /// Whether a key opens exactly the range that was [exposed](crate::Endpoint::expose), to exactly the endpoint's
    /// peer, until it is [revoked](crate::Endpoint::revoke). If not, a key opens the whole memory for as long as it is
    /// registered.
    pub exposes_ranges: bool,
    /// Whether memory from [`Fabric::register`](crate::Fabric::register) becomes known to the device only when it is
    /// exposed, each time again. Then a registration that is kept for the next loan saves nothing.
    pub registers_when_exposed: bool,
    /// The memory that a peer can map.
    pub maps: Maps,
}
