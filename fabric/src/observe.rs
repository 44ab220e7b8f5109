//! Reports of what is on loan, for a simulator that checks each read against them.
//!
//! A fabric does not see leases: it sees keys and reads. Whoever lends (a server's session) tells an observer, if its
//! settings name one, when a lease begins and ends. The simulated network is such an observer: it finds reads of memory
//! that is not on loan, memory that changes while it is, and leases that end while their peer could still read.

use std::fmt;
use std::sync::Arc;

use thallus_protocol::{LeaseEnd, LeaseId, RemoteRange};

/// The lease of memory that is on loan for as long as a connection lasts, and written meanwhile: its lease words.
pub const STANDING_LEASE: LeaseId = LeaseId(0);

/// Observes the leases of lenders.
pub trait LoanObserver: Send + Sync + fmt::Debug {
    /// The ranges are on loan from now on to the peer of `lender`, which is the [address](crate::Endpoint::address) of
    /// the lending endpoint. Called before the peer learns of the lease.
    fn lent(&self, lender: &[u8], lease: LeaseId, ranges: &[RemoteRange]);

    /// A lease is over. Called before its memory is reused.
    fn lease_ended(&self, lender: &[u8], lease: LeaseId, end: LeaseEnd);
}

/// A shared observer. Two are equal if they are the same one.
#[derive(Clone, Debug)]
pub struct SharedObserver(pub Arc<dyn LoanObserver>);

impl PartialEq for SharedObserver {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl Eq for SharedObserver {}
