//! Properties of a simulated network.

use std::ops::RangeInclusive;
use std::time::Duration;

use thallus_fabric::Fencing;

/// Properties of a simulated network. All durations are in steps of the endpoint that waits.
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
    /// Whether a key opens exactly the range that was exposed, until it is revoked, to the endpoint's peer only. If
    /// not, it opens the whole memory.
    pub exposes_ranges: bool,
    /// Whether [`register`](thallus_fabric::Fabric::register) is supported.
    pub foreign_memory: bool,
    /// Most bytes that one host may have registered.
    pub max_registered: usize,
    /// How long a step of an endpoint is. `None`: each poll is one. `Some`: so much of tokio's time, which a simulation
    /// moves.
    pub pace: Option<Duration>,
    /// Bytes that an endpoint's reads bring in a step. 0: any number.
    pub bytes_per_step: u64,
    /// One read in this many takes [`SimOptions::straggler`] longer. 0: none.
    pub straggler_one_in: u32,
    /// How much longer a straggler takes until its bytes are copied.
    pub straggler: RangeInclusive<u32>,
    /// One read in this many completes while its bytes are still being put in place, as no device should. 0: none.
    pub early_one_in: u32,
    /// Steps without a path after which a read fails, and its endpoint with it.
    pub retry: u32,
    /// Whether lenders report their leases ([`LoanObserver`](thallus_fabric::observe::LoanObserver)). Then a read of
    /// anything else, or of memory that changed while it was on loan, is a violation, and a late reader never finds the
    /// batch.
    pub loans: bool,
    /// Whether [`Core::take_events`](crate::core::Core::take_events) has anything to tell.
    pub record: bool,
}

impl SimOptions {
    /// A network that plays shared memory, as UCX does it: lease words, keys that open whole memory and stand, and
    /// mapping.
    #[must_use]
    pub fn shared_memory() -> Self {
        SimOptions { fencing: Fencing::LeaseWord, exposes_ranges: false, ..SimOptions::default() }
    }
}

impl Default for SimOptions {
    /// A network that plays an RDMA device: revocation, exposed ranges, some latency, reordering, 16 reads at once, and
    /// no other limit that a test would notice.
    fn default() -> Self {
        SimOptions {
            fencing: Fencing::Revocation,
            latency: 0..=4,
            completion_lag: 0..=2,
            reorder: true,
            notice: 0..=8,
            max_read: 1 << 30,
            max_outstanding_reads: 16,
            exposes_ranges: true,
            foreign_memory: true,
            max_registered: 1 << 36,
            pace: None,
            bytes_per_step: 0,
            straggler_one_in: 0,
            straggler: 0..=0,
            early_one_in: 0,
            retry: 1000,
            loans: false,
            record: false,
        }
    }
}
