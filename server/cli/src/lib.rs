//! The configuration of the program `thallus-server`, from a TOML file and from flags. A library for the binary and its
//! tests only; programs use `thallus-server`.

#![forbid(unsafe_code)]

#[cfg(feature = "adbc")]
mod adbc;
mod args;
mod choices;
pub mod config;

#[cfg(feature = "adbc")]
pub use adbc::{AdbcArgs, OptionArg};
pub use args::{Args, TableArg};
