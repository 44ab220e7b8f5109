//! Events of the network, for traces.

use thallus_protocol::{LeaseEnd, LeaseId};

use super::{Access, EndpointId, HostId};

/// An event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// The endpoint of the event.
    pub endpoint: EndpointId,
    /// The host of that endpoint, if the endpoint still exists.
    pub host: Option<HostId>,
    /// That endpoint's step.
    pub step: u64,
    /// The kind of event.
    pub what: What,
}

/// The kind of an event. Events contain no addresses, since these differ from run to run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum What {
    /// A read was posted: token, length in bytes.
    Posted(u64, u64),
    /// A read's bytes were copied.
    Landed(u64),
    /// A read was late, after the end of the lease, and brought other bytes.
    Late(u64),
    /// A read was refused.
    Refused(u64, Access),
    /// A range was mapped: length in bytes.
    Mapped(u64),
    /// A read completed: token, and whether it succeeded.
    Completed(u64, bool),
    /// A read completed before its bytes were in place.
    CompletedEarly(u64),
    /// The endpoint failed for want of a path.
    RetryExceeded,
    /// A lease began: length in bytes.
    Lent(LeaseId, u64),
    /// A lease ended.
    Ended(LeaseId, LeaseEnd),
    /// The endpoint was closed, by its owner or by a crash.
    Closed,
    /// The endpoint noticed that its peer has closed.
    PeerGone,
}
