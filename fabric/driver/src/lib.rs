//! What drives a connection at either end: a server's session and a client's driver are both made of this.
//!
//! - [`Connection`] is the loop: machine, clock, control connection, data plane.
//! - [`Plane`] is the data plane of one connection, in both directions: it reads what the peer lends, and lends this
//!   end's memory.
//! - [`LoanPool`] and [`Packing`] make batches ready to travel; [`Rebuilder`] makes arrays of those that have arrived.
//! - [`Clock`], [`Control`] and [`Doorbell`] are the parts below.
//!
//! It runs on any byte stream and on tokio's time, so that a simulation can put its own under it.

#![forbid(unsafe_code)]

mod arrived;
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
pub use clock::Clock;
pub use connection::{Connection, EndTask, Happened};
pub use control::{Control, ControlEvent, ControlIo};
pub use doorbell::Doorbell;
pub use lending::{KeepLoan, OpenedWords, PROBE};
pub use loans::{Held, LoanPool, Part, PreparedLoan};
pub use packing::{Packed, Packing, PackingContext};
pub use plane::{Plane, PlaneEvent, Proof};
pub use pools::Pools;
pub use reads::{ReadSlab, into_buffer};
pub use threshold::{MAX_THRESHOLD, Threshold};

/// The examples of README.md compile.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
