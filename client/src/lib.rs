//! The Thallus client: SQL in, Apache Arrow out, read one-sidedly from the server's memory where possible.
//!
//! ```no_run
//! use futures::TryStreamExt;
//! use thallus_client::Client;
//!
//! # async fn example() -> Result<(), thallus_client::ClientError> {
//! let client = Client::connect("thallus://db.example:7807").await?;
//! let mut result = client.query("SELECT l_shipmode, count(*) FROM lineitem GROUP BY 1").await?;
//! println!("{}", result.schema());
//! while let Some(batch) = result.try_next().await? {
//!     println!("{} rows", batch.num_rows());
//! }
//! println!("{}", result.report());
//! # Ok(())
//! # }
//! ```
//!
//! [`Client::query_lazy`] reads only the requested columns and rows. [`Client::upload`] sends batches to the server.
//! [`blocking`] offers the same without async, as a [`RecordBatchReader`](arrow::array::RecordBatchReader).

#![forbid(unsafe_code)]
#![warn(missing_docs)]

pub mod blocking;
mod connection;
mod driver;
mod error;
mod fabrics;
mod options;
mod partitions;
mod report;
mod result;
mod statements;
mod upload;

pub use connection::{Client, protocol_versions};
pub use error::{Cause, ClientError, StreamCode};
pub use fabrics::diagnose;
pub use options::{
    Access, ConnectOptions, DEFAULT_PORT, FabricPreference, LazyOptions, LendFrom, MAX_PARTITIONS, QueryOptions,
    UrlError, parse_lend_from,
};
pub use partitions::ResultStream;
pub use report::{Carrier, ConnectionInfo, LazyReport, ServerReport, TransferReport};
pub use result::{LazyBatch, LazyStream};
pub use thallus_fabric::diagnosis::{Diagnosis, Finding};
pub use thallus_protocol::catalog::{CatalogObject, Description, TableObject, is_change};
pub use thallus_protocol::message::{Defaults, Depth, IngestMode, ObjectsRequest, SortKey, Vendor};
pub use upload::{UploadOptions, UploadReport};

/// The examples of README.md compile.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
