//! Reports of loans, for a simulator that checks each read against them.
//!
//! A fabric does not see leases: it sees keys and reads. The lending end (a server's session) reports the begin and the
//! end of each lease to an observer, if its settings name one. The simulated network is such an observer: it finds
//! reads of memory that is not on loan, memory that changes while it is on loan, and leases that end while their peer
//! could still read.

use std::fmt;
use std::sync::Arc;

use thallus_protocol::{LeaseEnd, LeaseId, RemoteRange};

/// The lease of a connection's lease words, which are on loan while the connection lasts, and are written meanwhile.
pub const STANDING_LEASE: LeaseId = LeaseId(0);

/// Observes the leases of lenders.
pub trait LoanObserver: Send + Sync + fmt::Debug {
    /// The ranges are on loan from now on to the peer of `lender`, which is the [address](crate::Endpoint::address) of
    /// the lending endpoint. Called before the lease is announced to the peer.
    fn lent(&self, lender: &[u8], lease: LeaseId, ranges: &[RemoteRange]);

    /// A lease has ended. Called before its memory is reused.
    fn lease_ended(&self, lender: &[u8], lease: LeaseId, end: LeaseEnd);
}

/// A shared observer. Two are equal if they are the same object.
#[derive(Clone, Debug)]
pub struct SharedObserver(pub Arc<dyn LoanObserver>);

impl PartialEq for SharedObserver {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl Eq for SharedObserver {}
