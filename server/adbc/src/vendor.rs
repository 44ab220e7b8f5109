//! The database behind a driver, and what is particular to it.

use std::collections::HashSet;

use adbc_core::error::Result;
use adbc_core::options::{InfoCode, OptionConnection};
use adbc_core::{Connection, Optionable};
use adbc_driver_manager::ManagedConnection;
use arrow_array::cast::AsArray;
use arrow_array::types::UInt32Type;
use arrow_array::{Array, RecordBatch, UnionArray};
use thallus_server::engine::{Defaults, Vendor};

/// Type id of texts in the union of `get_info`.
const TEXT: i8 = 0;

/// Asks a driver for the product and its version. A driver that does not say leaves them empty.
pub(crate) fn of(connection: &ManagedConnection) -> Vendor {
    let codes = HashSet::from([InfoCode::VendorName, InfoCode::VendorVersion]);
    let batches = connection.get_info(Some(codes)).map(|reader| reader.filter_map(std::result::Result::ok).collect());
    let batches: Result<Vec<RecordBatch>> = batches;
    let mut vendor = Vendor::default();
    for batch in batches.unwrap_or_default() {
        let (Some(names), Some(values)) = (
            batch.column_by_name("info_name").and_then(|column| column.as_primitive_opt::<UInt32Type>()),
            batch.column_by_name("info_value").and_then(|column| column.as_any().downcast_ref::<UnionArray>()),
        ) else {
            continue;
        };
        for row in 0..batch.num_rows() {
            match InfoCode::from(names.value(row)) {
                InfoCode::VendorName => vendor.name = text(values, row).unwrap_or_default(),
                InfoCode::VendorVersion => vendor.version = text(values, row).unwrap_or_default(),
                _ => {}
            }
        }
    }
    let current = |option| connection.get_option_string(option).ok().filter(|name| !name.is_empty());
    let (catalog, schema) = (current(OptionConnection::CurrentCatalog), current(OptionConnection::CurrentSchema));
    vendor.defaults = Defaults { catalog, schema };
    vendor
}

fn text(values: &UnionArray, row: usize) -> Option<String> {
    let value = (values.type_id(row) == TEXT).then(|| values.value(row))?;
    let value = value.as_string_opt::<i32>()?;
    (value.len() == 1 && value.is_valid(0)).then(|| value.value(0).to_owned())
}

/// The statement for each new connection. SQLite's writers do not wait for each other by default.
pub(crate) fn begin(vendor: &Vendor) -> Option<&'static str> {
    (vendor.name == "SQLite").then_some("PRAGMA busy_timeout = 10000")
}

/// The statements at the begin of a transaction that writes. SQLite's driver begins one that reads until its first
/// change, and such a transaction does not wait for others that write.
pub(crate) fn begin_writing(vendor: &Vendor) -> &'static [&'static str] {
    if vendor.name == "SQLite" { &["COMMIT", "BEGIN IMMEDIATE"] } else { &[] }
}

/// The statement that makes a used connection as good as a new one, if the database has such a statement.
pub(crate) fn reset(vendor: &Vendor) -> Option<&'static str> {
    is_postgresql(vendor).then_some("DISCARD ALL")
}

/// The statement that fails if a transaction has failed and its driver has not said so. DuckDB's driver (1.5.6) reports
/// success for rows that break a primary key, stores none of the upload's rows, and then commits without an error.
pub(crate) fn check_of_transaction(vendor: &Vendor) -> Option<&'static str> {
    (vendor.name == "duckdb").then_some("SELECT 1")
}

/// The option without which a driver runs queries only. PostgreSQL's driver wraps each statement with a result in a
/// `COPY`, which `EXPLAIN` and `SHOW` do not allow.
pub(crate) fn option_for_rows(vendor: &Vendor) -> Option<(&'static str, &'static str)> {
    is_postgresql(vendor).then_some(("adbc.postgresql.use_copy", "false"))
}

fn is_postgresql(vendor: &Vendor) -> bool {
    vendor.name == "PostgreSQL"
}
