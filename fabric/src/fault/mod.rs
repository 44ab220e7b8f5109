//! Fault injection: a wrapper that makes any fabric fail as hardware does.
//!
//! It produces the faults of hardware: completions with an error, completions that are late, or that come only when the
//! endpoint is closed; calls that fail; endpoints that die. It never corrupts bytes, and it keeps the contract of
//! [`Endpoint`](crate::Endpoint): each posted read ends in exactly one completion, and owns its memory until then.
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
