//! Faults on purpose: a wrapper that makes any fabric fail as hardware does.
//!
//! It shows the faults that hardware shows: completions that bring an error, that are late, or that never come until
//! the endpoint is closed; calls that fail; endpoints that die. It never corrupts bytes, and it keeps the contract of
//! [`Endpoint`](crate::Endpoint): each posted read ends in exactly one completion, and its memory stays under it until
//! then.
//!
//! ```
//! use thallus_fabric::fault::{Call, FaultInjector, FaultPlan, ReadFault, When};
//! use thallus_fabric::{Fabric, FabricError, ReadFailure, Touch};
//! # use thallus_fabric_sim::{SimNetwork, SimOptions};
//! # let fabric = SimNetwork::new(1, SimOptions::default()).host();
//!
//! let plan = FaultPlan::new(42)
//!     .call(Call::Allocate, When::Nth(1))
//!     .read(When::OneIn(100), ReadFault::Fail(ReadFailure::RetryExceeded))
//!     .read(When::OneIn(10), ReadFault::Delay { polls: 7 });
//! let faulty = FaultInjector::new(fabric, plan);
//! assert!(faulty.allocate(4096, Touch::Now).is_ok());
//! assert!(matches!(faulty.allocate(4096, Touch::Now), Err(FabricError::OutOfMemory { .. })));
//! ```

mod endpoint;
mod injector;
mod plan;

pub use injector::FaultInjector;
pub use plan::{Call, FaultPlan, ReadFault, Strike, When};
