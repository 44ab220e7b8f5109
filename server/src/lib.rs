//! The Thallus server: runs SQL, and lends the result's column buffers to clients.
//!
//! A [`Server`] consists of an [`engine`], some fabrics and some [`Settings`]. It serves any byte streams, so that a
//! simulation can replace the network.

#![forbid(unsafe_code)]
#![warn(missing_docs)]

mod accepting;
pub mod catalog;
pub mod config;
pub mod engine;
mod entrance;
pub mod fabrics;
#[cfg(feature = "registered-heap")]
pub mod heap;
mod server;
mod session;
mod trimming;

pub use server::{Fabrics, Listen, Registered, ServeError, Server, Settings};
pub use session::GroupLimits;
pub use thallus_driver::PeerBudget;

/// The examples of README.md compile.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
