//! The protocol of Thallus: SQL results handed from a lender's memory to a borrower's, with no I/O in here.
//!
//! Two state machines, [`ServerConnection`] and [`ClientConnection`], one for each end of a control connection. They know
//! no socket, no clock, no randomness, no thread and no pointer: time and entropy come in by argument, memory is only ever
//! named by address. Whoever owns the socket and the fabric drives them, in production as in simulation:
//!
//! **Hand every input to `handle`, then call `poll_output` until it says `Wait`, doing each output in order before
//! anything else. `Wait` names the time at which `handle` is due with `Time`, if nothing happens before.**
//!
//! The order of outputs is what keeps the promises: a lease's word is set before the descriptor that names it goes out,
//! and cleared before the memory is reused; after a teardown leases end only once the data plane has been shut.
//!
//! A peer that breaks the protocol ([`PeerMisbehaved`]) and a driver that breaks the contract ([`ApiMisuse`]) are different
//! errors; either ends the connection, and a connection that ends still ends every lease, each exactly once.
//!
//! ```
//! use thallus_protocol::{Timestamp, message::ServerLimits, server::*};
//! # let config = ServerConfig {
//! #     name: "doc".into(), fabrics: vec![], no_fabric: "none here".into(),
//! #     limits: ServerLimits { max_streams: 1, max_loan_bytes: 1 << 20, max_sql_bytes: 1 << 16 },
//! #     frame: Default::default(), inline_threshold: 65536, max_leases: 8, word_nonce: 7,
//! #     timeouts: Default::default(), lease_timeout: std::time::Duration::from_secs(30),
//! #     drain_timeout: std::time::Duration::from_secs(30),
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
//! - [`server`], [`client`]: the machines, over the shared link, timers, [`credit`] and the lease ledger.

#![forbid(unsafe_code)]

mod blob;
pub mod client;
pub mod codec;
pub mod codes;
pub mod credit;
mod error;
mod ids;
pub mod inline;
pub mod layout;
mod lease;
mod link;
pub mod message;
mod misbehaviour;
#[cfg(feature = "planted-bugs")]
pub mod planted;
pub mod random;
pub mod server;
#[cfg(feature = "testing")]
pub mod testing;
mod time;
mod timers;

pub use client::ClientConnection;
pub use error::{ApiMisuse, ConnectionError, StreamError};
pub use ids::{AskId, FabricKind, GroupId, LeaseId, ReadId, RegionId, RemoteRange, StreamId};
pub use lease::LeaseEnd;
pub use link::LinkTimeouts;
pub use misbehaviour::PeerMisbehaved;
pub use server::ServerConnection;
pub use time::Timestamp;
pub use timers::Timer;
