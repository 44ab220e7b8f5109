//! Identifiers that both ends share. Each has its own type, so that the compiler tells them apart.

use std::borrow::Cow;
use std::fmt;

use serde::{Deserialize, Serialize};

macro_rules! id {
    ($(#[$doc:meta])* $name:ident($inner:ty)) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        pub struct $name(pub $inner);

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({})"), self.0)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}", self.0)
            }
        }
    };
}

id! {
    /// One stream of batches on one connection, in either direction. The client chooses it and never reuses it on a
    /// connection.
    StreamId(u32)
}
id! {
    /// One loan of a batch's buffers. The lender chooses it; it is unique on a connection and never reused.
    LeaseId(u64)
}
id! {
    /// A piece of the lender's memory whose remote key the borrower has. The lender chooses the id.
    RegionId(u32)
}
id! {
    /// The reads of one batch, between a borrower's state machine and its driver. Never on the wire.
    ReadId(u64)
}
id! {
    /// One read of a part of a batch that is on loan on demand. The borrower's driver chooses it. Never on the wire.
    PartId(u64)
}

/// A result that several streams share, each one partition of it. The borrower chooses it: 128 bits of the system's
/// entropy.
///
/// It is a secret: a client that knows it can take a partition before the owner does. Its `Debug` does not show it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct GroupId(pub [u8; 16]);

impl fmt::Debug for GroupId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("GroupId(..)")
    }
}

/// Which fabric carries the data plane: `ucx`, `verbs`, `sim`.
///
/// The set is open: a peer may offer a fabric that this build does not know.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct FabricKind(Cow<'static, str>);

impl FabricKind {
    /// Shared memory of one host: memory files passed over a Unix socket.
    pub const SHM: FabricKind = FabricKind::new("shm");
    /// UCX: RDMA, shared memory or TCP, as far as the installed UCX supports them.
    pub const UCX: FabricKind = FabricKind::new("ucx");
    /// Raw InfiniBand verbs.
    pub const VERBS: FabricKind = FabricKind::new("verbs");
    /// The deterministic in-memory fabric.
    pub const SIM: FabricKind = FabricKind::new("sim");

    /// A kind known at compile time.
    #[must_use]
    pub const fn new(name: &'static str) -> Self {
        FabricKind(Cow::Borrowed(name))
    }

    /// The name on the wire.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl From<String> for FabricKind {
    fn from(name: String) -> Self {
        FabricKind(Cow::Owned(name))
    }
}

impl fmt::Debug for FabricKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for FabricKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A range of the lender's memory, as a one-sided read addresses it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct RemoteRange {
    /// The region whose key opens the range.
    pub region: RegionId,
    /// First byte, in the address space of the region's key (the lender's virtual addresses).
    pub address: u64,
    /// Length in bytes.
    pub len: u64,
}
