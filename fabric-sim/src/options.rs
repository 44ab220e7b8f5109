//! Properties of a simulated network.

use std::ops::RangeInclusive;
use std::time::Duration;

use thallus_fabric::Fencing;

/// Properties of a simulated network. All durations are in steps of the endpoint that waits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SimOptions {
    /// The fencing of lent memory. [`Fencing::Revocation`] simulates verbs: the peer of a closed endpoint is cut off at
    /// once. [`Fencing::LeaseWord`] simulates shared memory: reads continue after the lender closed, while its memory
    /// is registered or until the reader notices that the peer has closed.
    pub fencing: Fencing,
    /// Time from the posting of a read until its bytes are copied.
    pub latency: RangeInclusive<u32>,
    /// Time from the copy until the completion.
    pub completion_lag: RangeInclusive<u32>,
    /// Whether reads overtake each other. If not, they are copied and completed in the order of their posting.
    pub reorder: bool,
    /// Time from the end of the peer until this end notices it.
    pub notice: RangeInclusive<u32>,
    /// Maximum length of one read in bytes.
    pub max_read: u64,
    /// Maximum number of outstanding reads of an endpoint.
    pub max_outstanding_reads: usize,
    /// Whether a key opens exactly the exposed range, until it is revoked, to the endpoint's peer only. If not, it
    /// opens the whole memory.
    pub exposes_ranges: bool,
    /// Whether [`register`](thallus_fabric::Fabric::register) is supported.
    pub foreign_memory: bool,
    /// Maximum number of bytes that one host may have registered.
    pub max_registered: usize,
    /// Duration of a step of an endpoint. `None`: each poll is a step. `Some`: a span of tokio's time, which a
    /// simulation advances.
    pub pace: Option<Duration>,
    /// Bytes of an endpoint's reads per step. 0: unlimited.
    pub bytes_per_step: u64,
    /// One read in this many takes [`SimOptions::straggler`] longer. 0: none.
    pub straggler_one_in: u32,
    /// Additional time until the bytes of a straggler are copied.
    pub straggler: RangeInclusive<u32>,
    /// One read in this many completes before its bytes are in place, as no device should. 0: none.
    pub early_one_in: u32,
    /// Number of steps without a path after which a read and its endpoint fail.
    pub retry: u32,
    /// Whether lenders report their leases ([`LoanObserver`](thallus_fabric::observe::LoanObserver)). Then a read of
    /// any other memory, or of memory that changed while it was on loan, is a violation, and a late read never brings
    /// the batch.
    pub loans: bool,
    /// Whether [`Core::take_events`](crate::core::Core::take_events) returns events.
    pub record: bool,
}

impl SimOptions {
    /// A network that simulates UCX over shared memory: lease words, permanent keys that open whole memory, and
    /// mapping.
    #[must_use]
    pub fn shared_memory() -> Self {
        SimOptions { fencing: Fencing::LeaseWord, exposes_ranges: false, ..SimOptions::default() }
    }
}

impl Default for SimOptions {
    /// A network that simulates an RDMA device: revocation, exposed ranges, some latency, reordering, 16 reads at once,
    /// and no other limit that would affect a test.
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
