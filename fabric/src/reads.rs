//! The reads of an endpoint: their transport, their names, and their ends.

use crate::ReadFailure;

/// The transport of an endpoint's reads. Known once the endpoint is connected.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Transport {
    /// The chosen transports and devices, as the fabric names them (`posix/memory cma/memory`). Not empty.
    pub name: String,
    /// The reason why this path is not better than bytes sent inline over the control connection, if it is not. An
    /// example is a fabric that emulates one-sided reads over TCP. The negotiation then prefers inline, and reports
    /// this reason.
    pub inferior: Option<String>,
}

/// Identifies a posted read until its completion has been polled. The caller chooses it; it must be unique among the
/// outstanding reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ReadToken(pub u64);

/// The end of one posted read. Each posted read ends in exactly one completion, also when the endpoint is closed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Completion {
    /// The read that ended.
    pub token: ReadToken,
    /// `Ok` if all bytes have been read.
    pub result: Result<(), ReadFailure>,
}
