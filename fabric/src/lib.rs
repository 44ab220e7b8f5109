//! The fabric of Thallus: one-sided reads of memory that a peer has lent, over any transport.
//!
//! - [`Fabric`] is a device or library on this host; [`Endpoint`] is one end of a connection over it; [`MapsPeer`] is
//!   an extension for fabrics that can map a peer's memory.
//! - [`memory`] is registered memory, with the pools, arenas and caches that both roles keep it in.
//! - [`fault::FaultInjector`], [`trace::Tracer`] and [`count::CountedFabric`] wrap any fabric.
//! - [`diagnosis`] checks whether a fabric can work on this host; [`process`] checks whether a process that has memory
//!   mapped still runs; [`observe`] reports loans to a simulator.
//! - `conformance`, behind the feature of that name, is the test suite that every fabric passes.
//!
//! # How to write a fabric
//!
//! A fabric is a crate that depends on this one and implements [`Fabric`] and [`Endpoint`]. `examples/in_process.rs` is
//! a complete one in safe code, which passes the suite.
//!
//! ## Order of calls
//!
//! Both ends make the same calls. The roles of lender and borrower are decided per region.
//!
//! ```text
//!   lender                                    borrower
//!   Fabric::allocate / register  memory       Fabric::allocate  memory for reads
//!   Fabric::endpoint                          Fabric::endpoint
//!   Endpoint::address   ── control plane ──▶  Endpoint::connect
//!   Endpoint::connect   ◀── control plane ──  Endpoint::address
//!   Endpoint::expose    ── key, base, len ─▶  Endpoint::import
//!                                             Endpoint::post_read, any number
//!   Endpoint::poll, whenever woken            Endpoint::poll, whenever woken: completions
//!   Endpoint::revoke    ◀── released ───────  Endpoint::forget
//!   Endpoint::close, poll until is_closed     Endpoint::close, poll until is_closed
//! ```
//!
//! Both ends are driven, not awaited: no method waits for the peer. One task owns an endpoint, and the task may move
//! between threads. All connections of a process share its fabrics, and any part of the process may share
//! [`RegisteredMemory`](memory::RegisteredMemory).
//!
//! ## Ownership of memory
//!
//! - [`Fabric::allocate`]d memory belongs to the `Arc` that it returns. Dropping the last handle deregisters the
//!   memory, then frees it: put everything that the device needs into the [`Registration`](memory::Registration).
//! - [`Fabric::register`]ed memory belongs to the buffer's owners. The registration holds the buffer, and nothing
//!   writes to it.
//! - A key does not keep memory alive. The caller keeps exposed memory until it has revoked the key, or the endpoint is
//!   closed.
//! - A posted read owns its [`LocalRange`](memory::LocalRange) from [`Endpoint::post_read`] until its completion has
//!   been polled. Keep the value in a table of operations, and drop it with the completion: after the drop, other code
//!   may read the bytes.
//! - A [mapped](MapsPeer::map) buffer keeps the mapping alive, not the endpoint.
//!
//! ## Untrusted input
//!
//! Address blobs, keys, bases and lengths come from the peer. A malformed one is a typed error, never a crash or a read
//! outside the region. A token, a local range, and a range to be exposed come from this process: misuse is
//! [`FabricError::Misuse`]. A fabric that does not withstand a hostile peer (UCX reads keys without bounds) documents
//! that.
//!
//! ## How to run the suite
//!
//! Depend on this crate with the feature `conformance` in `[dev-dependencies]`, and write, in a test:
//!
//! ```ignore
//! thallus_fabric::conformance_suite!(|| -> Arc<dyn Fabric> { Arc::new(MyFabric::new().unwrap()) });
//! ```
//!
//! Each case becomes a `#[test]`. A closure that returns a pair of fabrics tests two hosts.

#![warn(missing_docs)]

mod capabilities;
#[cfg(feature = "conformance")]
pub mod conformance;
pub mod count;
mod descriptors;
pub mod diagnosis;
mod error;
mod fabric;
pub mod fault;
pub mod lines;
pub mod memory;
pub mod observe;
pub mod process;
mod reads;
pub mod trace;
pub mod units;

pub use arrow_buffer::Buffer;
pub use bytes::Bytes;
pub use thallus_protocol::random;
pub use thallus_protocol::{FabricKind, LeaseEnd, LeaseId, RegionId, RemoteRange};

pub use capabilities::{Capabilities, Fencing, Maps};
pub use descriptors::{descriptor_limit, is_near_descriptor_limit, raise_descriptor_limit};
pub use error::{FabricError, ReadFailure, WorkFailure};
pub use fabric::{Endpoint, Fabric, MapsPeer, Touch};
pub use observe::STANDING_LEASE;
pub use process::PresenceProbe;
pub use reads::{Completion, ReadToken, Transport};

/// The examples of README.md compile.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
