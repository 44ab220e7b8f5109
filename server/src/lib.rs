//! The Thallus server: runs SQL, and lends the result's column buffers to those who asked.

#![warn(missing_docs)]

pub mod catalog;
pub mod config;
pub mod engine;
