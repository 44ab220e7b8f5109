//! Tests of the server's parts without a network: catalog and query engine.

mod catalog;
#[cfg(feature = "datafusion")]
mod engine;
mod files;
#[cfg(feature = "datafusion")]
mod odd;
#[cfg(feature = "datafusion")]
mod partitions;
#[cfg(feature = "datafusion")]
mod sources;
#[cfg(feature = "datafusion")]
mod sql;
#[cfg(feature = "datafusion")]
mod statements;
