//! The simulated network: hosts, memory, endpoints, reads; no clock, locks, tasks or entropy.
//!
//! **Time is counted in steps, of each endpoint for itself**: [`Core::step`] is one, and whatever an endpoint waits for
//! happens in one of its own. So the events at an endpoint depend on the seed and on the calls on it, not on how often
//! others were stepped.

mod event;
mod loans;
mod memory;
mod network;
mod read;

pub use event::{Event, What};
pub use memory::{Access, Violation};
pub use network::{Core, EndpointState, Mapping, Stats};
pub use read::{Finished, Progress};

/// A host of the network.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HostId(pub u32);

/// One connection's end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EndpointId(pub u64);

/// A registration.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MemoryId(pub u64);

/// A remote key: one memory, exposed by one endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct KeyId(pub u64);
