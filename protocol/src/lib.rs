//! The protocol of Thallus: a borrower reads SQL results out of a lender's memory. This crate does no I/O.
//!
//! A connection has two ends and two roles. The **lender** of a stream has its batches, the **borrower** reads them.
//! The server lends results, the client lends uploads. [`lender::Lender`] and [`borrower::Borrower`] are the two
//! halves; each can be used and tested by itself. [`ServerConnection`] and [`ClientConnection`] consist of a link,
//! requests and both halves. They use no socket, clock, randomness, thread or pointer: time and entropy are arguments,
//! and memory is named by its address only. A driver owns the socket and the fabric, and runs the connection, in
//! production as in simulation:
//!
//! **Pass every input to `handle`. Then call `poll_output` until it returns `Wait`, and carry out each output, in
//! order, before anything else. `Wait` contains the time at which `handle` is due with `Time` if no other input comes
//! before.**
//!
//! The order of outputs is part of the contract. A lease's word is set before the descriptor that names it is sent, and
//! cleared before the memory is reused. After a teardown, leases end only once the data plane has been shut.
//!
//! A peer that breaks the protocol causes [`PeerMisbehaved`]; a driver that breaks the contract causes [`ApiMisuse`].
//! Either error ends the connection. A connection that ends still ends every lease, each exactly once.
//!
//! ```
//! use thallus_protocol::{Machine, Timestamp, message::{ServerLimits, Thresholds}, server::*};
//! # let timeout = std::time::Duration::from_secs(30);
//! # let config = ServerConfig {
//! #     name: "doc".into(), fabrics: vec![], no_fabric_reason: "none here".into(), vendor: Default::default(),
//! #     limits: ServerLimits { max_streams: 1, max_loan_bytes: 1 << 20, max_sql_bytes: 1 << 16 },
//! #     frame: Default::default(), checksum: true, thresholds: Thresholds::uniform(65536), max_leases: 8,
//! #     word_nonce: 7,
//! #     timeouts: Default::default(), lease_timeout: timeout, drain_timeout: timeout,
//! #     borrow: ServerConfig::borrower_config(1 << 20, timeout),
//! # };
//! let now = Timestamp::ZERO;
//! let mut connection = ServerConnection::new(config, now);
//! connection.handle(now, ServerInput::Received(b"GET / HTTP/1.1\r\n"))?;
//! let mut reason = None;
//! loop {
//!     match connection.poll_output() {
//!         ServerOutput::Transmit(_frame) => { /* write it */ }
//!         ServerOutput::Closed(error) => reason = Some(error),
//!         ServerOutput::Wait(_) => break,
//!         _ => {}
//!     }
//! }
//! assert!(reason.unwrap().to_string().contains("not a Thallus connection"));
//! # Ok::<(), thallus_protocol::ApiMisuse>(())
//! ```
//!
//! # Map
//! - [`codec`]: preface, frames, incremental decoder. [`message`]: the messages. [`codes`]: reasons as numbers on the
//!   wire.
//! - [`layout`]: a record batch as descriptor and buffers, and back. [`inline`]: a record batch as Arrow IPC.
//! - [`lender`], [`borrower`]: the two halves, over shared timers and [`credit`].
//! - [`server`], [`client`]: the two ends, over the part of [`connection`] that both share.

#![forbid(unsafe_code)]

mod blob;
pub mod borrower;
pub mod catalog;
pub mod client;
pub mod codec;
pub mod codes;
pub mod connection;
pub mod credit;
mod error;
mod ids;
pub mod inline;
pub mod layout;
pub mod lender;
mod link;
pub mod message;
mod misbehaviour;
pub mod random;
pub mod server;
mod time;
mod timers;

pub use client::ClientConnection;
pub use connection::Machine;
pub use error::{ApiMisuse, Cause, ConnectionError, StreamError};
pub use ids::{FabricKind, GroupId, LeaseId, PartId, ReadId, RegionId, RemoteRange, StreamId};
pub use lender::LeaseEnd;
pub use link::LinkTimeouts;
pub use misbehaviour::PeerMisbehaved;
pub use server::ServerConnection;
pub use time::Timestamp;
pub use timers::Timer;

/// The examples of README.md compile.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
