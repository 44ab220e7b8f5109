//! What happened in the network, for traces.

use thallus_protocol::{LeaseEnd, LeaseId};

use super::{Access, EndpointId, HostId};

/// Something that happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// To whom.
    pub endpoint: EndpointId,
    /// Whose endpoint it is, if it is there still.
    pub host: Option<HostId>,
    /// In which of its steps.
    pub step: u64,
    /// What.
    pub what: What,
}

/// What happened. No addresses: these differ from run to run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum What {
    /// A read of so many bytes was posted.
    Posted(u64, u64),
    /// A read's bytes were copied.
    Landed(u64),
    /// A read came too late: it found what is not the batch any more.
    Late(u64),
    /// A read was refused.
    Refused(u64, Access),
    /// So many bytes were mapped.
    Mapped(u64),
    /// A read completed: whether well.
    Completed(u64, bool),
    /// A read completed before its bytes were in place.
    CompletedEarly(u64),
    /// There was no path for so long that the endpoint failed.
    RetryExceeded,
    /// So many bytes are on loan.
    Lent(LeaseId, u64),
    /// A lease is over.
    Ended(LeaseId, LeaseEnd),
    /// The endpoint was closed, by its owner or a crash.
    Closed,
    /// The endpoint noticed that its peer is gone.
    PeerGone,
}
