//! An ADBC driver for Thallus: SQL in, Arrow out, and uploads, for every language that ADBC reaches.
//!
//! As a shared library (`libadbc_driver_thallus.so`) it exports [`AdbcDriverThallusInit`](ffi::AdbcDriverThallusInit)
//! for driver managers. As a Rust crate it implements the traits of [`adbc_core`]:
//!
//! ```no_run
//! use adbc_core::options::OptionDatabase;
//! use adbc_core::{Connection, Database, Driver, Statement};
//! use adbc_driver_thallus::ThallusDriver;
//!
//! let mut driver = ThallusDriver::default();
//! let database = driver.new_database_with_opts([(OptionDatabase::Uri, "thallus://localhost".into())])?;
//! let mut connection = database.new_connection()?;
//! let mut statement = connection.new_statement()?;
//! statement.set_sql_query("SELECT 1 AS one")?;
//! for batch in statement.execute()? {
//!     println!("{} rows", batch?.num_rows());
//! }
//! # Ok::<(), adbc_core::error::Error>(())
//! ```
//!
//! Batches are handed out as they arrive, in the memory into which they were read; nothing is collected or copied. A
//! result owns its connection, so it may outlive the statement and the connection object. README.md lists the options.

#![deny(unsafe_code)]
#![warn(missing_docs)]

mod bind;
mod cancel;
mod connection;
mod database;
mod driver;
mod error;
pub mod ffi;
mod fork;
mod ingest;
mod metadata;
mod option;
mod partition;
mod reader;
mod session;
mod settings;
mod shared;
mod statement;

pub use connection::ThallusConnection;
pub use database::ThallusDatabase;
pub use driver::ThallusDriver;
pub use statement::ThallusStatement;
