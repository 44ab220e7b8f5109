//! What a simulated network is like.

use std::ops::RangeInclusive;

use thallus_fabric::Fencing;

/// What a simulated network is like. All durations are in steps of the endpoint that waits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SimOptions {
    /// How lent memory is fenced. [`Fencing::Revocation`] plays verbs: a closed endpoint's peer is cut off at once.
    /// [`Fencing::LeaseWord`] plays shared memory: reads go on after the lender closed, for as long as its memory is
    /// registered or until the reader notices that the peer is gone.
    pub fencing: Fencing,
    /// From the posting of a read until its bytes are copied.
    pub latency: RangeInclusive<u32>,
    /// From the copy until the completion.
    pub completion_lag: RangeInclusive<u32>,
    /// Whether reads overtake each other. If not, they are copied and completed in the order in which they were posted.
    pub reorder: bool,
    /// From the peer's end until this end is told.
    pub notice: RangeInclusive<u32>,
    /// Longest read.
    pub max_read: u64,
    /// Most reads outstanding per endpoint.
    pub max_outstanding_reads: usize,
    /// Whether memory that somebody else allocated can be lent.
    pub foreign_memory: bool,
    /// Most bytes that one host may have registered.
    pub max_registered: usize,
}

impl Default for SimOptions {
    /// Revocation, some latency, reordering, 16 reads at once, and no other limit that a test would notice.
    fn default() -> Self {
        SimOptions {
            fencing: Fencing::Revocation,
            latency: 0..=4,
            completion_lag: 0..=2,
            reorder: true,
            notice: 0..=8,
            max_read: 1 << 30,
            max_outstanding_reads: 16,
            foreign_memory: true,
            max_registered: 1 << 36,
        }
    }
}
