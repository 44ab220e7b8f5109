//! The simulated network: hosts, memory, endpoints, reads. It has no clock, locks, tasks or entropy.
//!
//! **Time is counted in steps, separately for each endpoint**: [`Core::step`] makes one step, and every event that an
//! endpoint waits for happens in one of its own steps. So the events at an endpoint depend on the seed and on the calls
//! on it, not on the number of steps of other endpoints.

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

/// One end of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EndpointId(pub u64);

/// A registration.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MemoryId(pub u64);

/// A remote key: one memory, exposed by one endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct KeyId(pub u64);
