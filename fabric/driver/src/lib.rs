//! Drives a connection at either end. A server's session and a client's driver both consist of these parts.
//!
//! - [`Connection`] is the loop: machine, clock, control connection, data plane.
//! - [`Plane`] is the data plane of one connection, in both directions: it reads the memory that the peer lends, and
//!   lends this end's memory.
//! - [`LoanPool`] and [`Packing`] prepare batches for sending; [`Rebuilder`] converts arrived batches to arrays.
//! - [`Clock`], [`Control`] and [`Doorbell`] are the parts below.
//!
//! The crate runs on any byte stream and on tokio's time, so that a simulation can replace both.

#![forbid(unsafe_code)]

mod arrived;
mod budget;
mod clock;
mod connection;
mod control;
mod doorbell;
mod lending;
mod loans;
mod packing;
mod plane;
mod pools;
mod reads;
mod regions;
mod threshold;

pub use arrived::{Arrived, Rebuilder};
pub use budget::{LoanBudget, PeerBudget};
pub use clock::Clock;
pub use connection::{Connection, ConnectionInput, EndTask};
pub use control::{Control, ControlEvent, ControlIo};
pub use doorbell::Doorbell;
pub use lending::{KeepLoan, LendingParameters, PROBE};
pub use loans::{LoanBuffers, LoanPool, Part, PreparedLoan};
pub use packing::{Packing, PackingContext, PreparedBatch};
pub use plane::{Plane, PlaneEvent, Proof};
pub use pools::Pools;
pub use reads::{ReadSlab, into_buffer};
pub use threshold::{MAX_THRESHOLD, Threshold};

/// The examples of README.md compile.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
