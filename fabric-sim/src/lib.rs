//! An in-memory fabric. Its seed determines every choice.
//!
//! It is for property tests and tests of whole systems without devices. Memory is registered with a simulated network.
//! The network copies a read's bytes at a later step of the reading endpoint, completes the read at a still later step,
//! perhaps out of order, and simulates the hardware's memory protection: it records the reads that it refused
//! ([`SimNetwork::violations`]). As a [`LoanObserver`](thallus_fabric::observe::LoanObserver) it also checks each read
//! against the leases that stand.
//!
//! [`core`] is the network itself: a plain state machine without clock, locks, tasks or entropy. [`SimNetwork`] makes
//! it a [`Fabric`](thallus_fabric::Fabric), under any tokio runtime. There a step is a poll of an endpoint.
//!
//! ```
//! use thallus_fabric::{Fabric, Touch};
//! use thallus_fabric_sim::{SimNetwork, SimOptions};
//!
//! let network = SimNetwork::new(42, SimOptions::default());
//! let (lender, borrower) = (network.host(), network.host());
//! let memory = lender.allocate(4096, Touch::Now)?;
//! assert_eq!(borrower.capabilities(), lender.capabilities());
//! # Ok::<(), thallus_fabric::FabricError>(())
//! ```

#![forbid(unsafe_code)]

mod blob;
pub mod core;
mod endpoint;
mod fabric;
mod network;
mod options;

pub use fabric::SimFabric;
pub use network::SimNetwork;
pub use options::SimOptions;

/// The examples of README.md compile.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
