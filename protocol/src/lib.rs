//! The protocol of Thallus: SQL results handed from a lender's memory to a borrower's, with no I/O in here.
//!
//! A connection has two ends and two roles. The **lender** of a stream has its batches, the **borrower** reads them; a
//! result is lent by the server, an upload by the client. [`lender::Lender`] and [`borrower::Borrower`] are the two
//! halves, each usable and tested by itself. [`ServerConnection`] and [`ClientConnection`] are a link, requests, and
//! both halves. They know no socket, no clock, no randomness, no thread and no pointer: time and entropy come in by
//! argument, memory is only ever named by address. Whoever owns the socket and the fabric drives them, in production as
//! in simulation:
//!
//! **Hand every input to `handle`, then call `poll_output` until it says `Wait`, doing each output in order before
//! anything else. `Wait` names the time at which `handle` is due with `Time`, if nothing happens before.**
//!
//! The order of outputs is what keeps the promises: a lease's word is set before the descriptor that names it goes out,
//! and cleared before the memory is reused; after a teardown leases end only once the data plane has been shut.
//!
//! A peer that breaks the protocol ([`PeerMisbehaved`]) and a driver that breaks the contract ([`ApiMisuse`]) are
//! different errors; either ends the connection, and a connection that ends still ends every lease, each exactly once.
//!
//! ```
//! use thallus_protocol::{Timestamp, message::{ServerLimits, Thresholds}, server::*};
//! # let timeout = std::time::Duration::from_secs(30);
//! # let config = ServerConfig {
//! #     name: "doc".into(), fabrics: vec![], no_fabric: "none here".into(),
//! #     limits: ServerLimits { max_streams: 1, max_loan_bytes: 1 << 20, max_sql_bytes: 1 << 16 },
//! #     frame: Default::default(), checksum: true, thresholds: Thresholds::same(65536), max_leases: 8, word_nonce: 7,
//! #     timeouts: Default::default(), lease_timeout: timeout, drain_timeout: timeout,
//! #     borrow: ServerConfig::borrowing(1 << 20, timeout),
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
//! - [`codec`]: preface, frames, incremental decoder. [`message`]: what is said. [`codes`]: reasons as they travel.
//! - [`layout`]: a record batch as descriptor and buffers, and back. [`inline`]: a record batch as Arrow IPC.
//! - [`lender`], [`borrower`]: the two halves, over shared timers and [`credit`].
//! - [`server`], [`client`]: the two ends, over the part of [`connection`] that both share.

#![forbid(unsafe_code)]

mod blob;
pub mod borrower;
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
pub use error::{ApiMisuse, Cause, ConnectionError, StreamError};
pub use ids::{FabricKind, GroupId, LeaseId, PartId, ReadId, RegionId, RemoteRange, StreamId};
pub use lender::LeaseEnd;
pub use link::LinkTimeouts;
pub use misbehaviour::PeerMisbehaved;
pub use server::ServerConnection;
pub use time::Timestamp;
pub use timers::Timer;
