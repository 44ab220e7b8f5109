//! The files of tables: what they hold, and how their rows are read.
//!
//! The readers of text and of Arrow IPC are plain iterators, one file at a time, on threads that may block. They differ
//! from the libraries' readers where those give wrong values: columns go by name and not by position, numbers are
//! exact, an open quote is an error, and no length in a file is believed before it is checked. Parquet is read by
//! DataFusion.

mod adapt;
mod cast;
mod csv;
mod error;
mod input;
mod inspect;
mod ipc;
mod ipc_check;
mod ipc_codec;
mod ipc_content;
mod ipc_dictionaries;
mod ipc_footer;
mod ipc_limits;
mod ipc_schema;
mod ipc_source;
mod json;
mod list_shape;
mod lists;
mod numbers;
mod parquet_check;
mod parquet_fields;
mod parquet_pages;
mod parquet_types;
mod part;
mod schema;
mod source;
mod thrift;
mod widen;
mod zones;

pub(super) use adapt::ColumnAdapter;
pub(super) use inspect::{Inspected, inspect};
pub(super) use ipc_schema::schema_of_message;
pub(super) use parquet_check::footer as check_parquet_footer;
pub(super) use parquet_pages::{page as check_page, pages as check_pages};
pub(super) use parquet_types::check_dictionaries;
pub(super) use schema::{FileColumns, check_names, merge};
pub(super) use source::OwnSource;
pub(super) use widen::{Widening, is_cast_exactly};
pub(super) use zones::with_known_zones;
