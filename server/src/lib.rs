//! The Thallus server: runs SQL, and lends the result's column buffers to those who asked.
//!
//! A [`Server`] is an [`engine`], some fabrics and some [`Settings`]; it serves whatever byte streams it is given, so that
//! a simulation can put its own network under it.

#![warn(missing_docs)]

pub mod catalog;
pub mod config;
pub mod engine;
pub mod fabrics;
mod server;
mod session;

pub use server::{Fabrics, Listen, ServeError, Server, Settings};
pub use session::GroupLimits;
