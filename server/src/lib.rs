//! The Thallus server: runs SQL, and lends the result's column buffers to those who asked.
//!
//! A [`Server`] is an [`engine`], some fabrics and some [`Settings`]; it serves whatever byte streams it is given, so that
//! a simulation can put its own network under it.

#![forbid(unsafe_code)]
#![warn(missing_docs)]

pub mod catalog;
pub mod config;
pub mod engine;
pub mod fabrics;
#[cfg(feature = "registered-heap")]
pub mod heap;
mod server;
mod session;

pub use server::{Fabrics, Listen, Registered, ServeError, Server, Settings};
pub use session::GroupLimits;

/// The examples of README.md compile.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
