//! The errors of a fabric, in terms that every fabric shares.

use thallus_protocol::{FabricKind, RegionId};
use thiserror::Error;

/// A fabric, an endpoint or a registration failed.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum FabricError {
    /// The fabric cannot work on this host.
    #[error("fabric {fabric} is unavailable on this host: {reason}")]
    Unavailable {
        /// The fabric.
        fabric: FabricKind,
        /// The missing device, library or permission, and its remedy.
        reason: String,
    },
    /// The peer cannot be reached over this fabric.
    #[error("fabric {fabric}: cannot connect to the peer: {reason}")]
    Connect {
        /// The fabric.
        fabric: FabricKind,
        /// The failed call and its status.
        reason: String,
    },
    /// Memory could not be registered.
    #[error("fabric {fabric}: cannot register {len} bytes: {reason}")]
    Registration {
        /// The fabric.
        fabric: FabricKind,
        /// Requested bytes.
        len: usize,
        /// The failed call, its status, and the limit to check.
        reason: String,
    },
    /// No memory is left.
    #[error("out of registered memory: {len} bytes wanted, {available} of {limit} left")]
    OutOfMemory {
        /// Requested bytes.
        len: usize,
        /// Bytes left.
        available: usize,
        /// Configured limit.
        limit: usize,
    },
    /// The peer's remote key cannot be used.
    #[error("fabric {fabric}: unusable remote key for {region:?}: {reason}")]
    RemoteKey {
        /// The fabric.
        fabric: FabricKind,
        /// The region that the key should have opened.
        region: RegionId,
        /// The failed call and its status.
        reason: String,
    },
    /// A read is outside the region that it names, or the region was not imported.
    #[error("read of {len} bytes at {address:#x} is outside {region:?}")]
    OutsideRegion {
        /// The named region.
        region: RegionId,
        /// First byte of the read.
        address: u64,
        /// Length in bytes.
        len: u64,
    },
    /// The peer's memory cannot be mapped.
    #[error("{len} bytes at {address:#x} of the peer's memory cannot be mapped: {reason}")]
    Map {
        /// Address of the first byte.
        address: u64,
        /// Length in bytes.
        len: u64,
        /// The obstacle and its remedy.
        reason: String,
    },
    /// More reads posted than [`crate::Capabilities::max_outstanding_reads`].
    #[error("{limit} reads are outstanding already")]
    TooManyReads {
        /// The limit.
        limit: usize,
    },
    /// A read could not be posted.
    #[error("fabric {fabric}: posting a read failed: {reason}")]
    Post {
        /// The fabric.
        fabric: FabricKind,
        /// The failed call and its status.
        reason: String,
    },
    /// The peer is gone, or the endpoint is closed.
    #[error("fabric {fabric}: the endpoint is down: {reason}")]
    EndpointDown {
        /// The fabric.
        fabric: FabricKind,
        /// The cause.
        reason: String,
    },
    /// The fabric does not support the operation.
    #[error("fabric {fabric} cannot {what}")]
    Unsupported {
        /// The fabric.
        fabric: FabricKind,
        /// The operation.
        what: &'static str,
    },
    /// The caller broke the contract of a call.
    #[error("misuse of fabric: {0}")]
    Misuse(&'static str),
}

/// The reason why a posted read failed. The names are those of the verbs work-completion statuses (InfiniBand
/// Architecture Specification, vol. 1, section 11.6.2) where one fits.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum ReadFailure {
    /// The peer did not answer within the transport's retries.
    #[error("transport retry count exceeded: the peer did not answer")]
    RetryExceeded,
    /// The peer was not ready in any of the retries.
    #[error("receiver-not-ready retry count exceeded")]
    ReceiverNotReady,
    /// The peer's memory protection refused the read: the key is invalid or revoked, or the range is outside its
    /// memory.
    #[error("remote access error: the key is revoked or does not cover the range")]
    RemoteAccess,
    /// The memory protection of this side refused to write the bytes.
    #[error("local protection error")]
    LocalProtection,
    /// The endpoint failed or was closed before the read completed.
    #[error("flushed: the endpoint went down before the read was done")]
    Flushed,
    /// The peer is gone.
    #[error("the peer is gone: {0}")]
    PeerGone(String),
    /// The device completed the read with an error.
    #[error(transparent)]
    Device(WorkFailure),
    /// Another failure, as the fabric describes it.
    #[error("{0}")]
    Other(String),
}

/// A work request that a device completed with an error.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{verb}: {name} (status {status}, vendor error {vendor_error:#x}): {advice}")]
pub struct WorkFailure {
    /// The operation that the device failed.
    pub verb: &'static str,
    /// The work-completion status (`enum ibv_wc_status`).
    pub status: u32,
    /// Its name in the InfiniBand Architecture Specification, vol. 1, section 11.6.2.
    pub name: &'static str,
    /// The vendor's error code.
    pub vendor_error: u32,
    /// Advice to an operator.
    pub advice: &'static str,
}

impl ReadFailure {
    /// A short name of the failure.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            ReadFailure::RetryExceeded => "retry exceeded",
            ReadFailure::ReceiverNotReady => "receiver not ready",
            ReadFailure::RemoteAccess => "remote access",
            ReadFailure::LocalProtection => "local protection",
            ReadFailure::Flushed => "flushed",
            ReadFailure::PeerGone(_) => "peer gone",
            ReadFailure::Device(failure) => failure.name,
            ReadFailure::Other(_) => "other",
        }
    }
}
