//! Names in statements and uploads, and what they mean in the database.

use datafusion::common::TableReference;
use datafusion::common::config::CatalogOptions;

use super::super::names::{CATALOG, SCHEMA, SERVER_SCHEMA};
use super::super::tables::Tables;
use super::error::{already_exists, invalid};
use super::name::Name;
use super::snapshot::{Object, Snapshot};
use crate::catalog::name_flaw;
use crate::engine::{Defaults, EngineError};

/// The schema of DataFusion about all others.
const INFORMATION: &str = "information_schema";

/// The full name of a reference in a statement.
pub(super) fn of_reference(reference: &TableReference, defaults: &CatalogOptions) -> Result<Name, EngineError> {
    let resolved = reference.clone().resolve(&defaults.default_catalog, &defaults.default_schema);
    check_catalog(&resolved.catalog)?;
    Ok(Name { schema: resolved.schema.to_string(), object: resolved.table.to_string() })
}

/// The full name of the table of an upload.
pub(super) fn of_upload(table: &str, defaults: &Defaults) -> Result<Name, EngineError> {
    if let Some(catalog) = &defaults.catalog {
        check_catalog(catalog)?;
    }
    let schema = defaults.schema.clone().unwrap_or_else(|| SCHEMA.to_owned());
    Ok(Name { schema, object: table.to_owned() })
}

/// The table or view of the database that a change means by a name. As in queries, an exact name of the operator's
/// tables comes before one of the database that differs in case.
pub(super) async fn find<'a>(snapshot: &'a Snapshot, tables: &Tables, name: &Name) -> Option<(Name, &'a Object)> {
    let found = snapshot.find(name)?;
    let is_exact = found.0.object == name.object;
    let is_of_operator = !is_exact && found.0.schema == SCHEMA && tables.has(&name.object).await;
    (!is_of_operator).then_some(found)
}

/// Returns whether a catalog of this name exists.
pub(super) fn is_catalog(name: &str) -> bool {
    name.eq_ignore_ascii_case(CATALOG)
}

pub(super) fn check_catalog(catalog: &str) -> Result<(), EngineError> {
    match is_catalog(catalog) {
        true => Ok(()),
        false => Err(invalid(format!("there is no catalog '{catalog}'; the only one is '{CATALOG}'"))),
    }
}

/// Refuses a name that a new schema, table or view cannot have.
pub(super) fn check_new(what: &str, name: &str) -> Result<(), EngineError> {
    match name_flaw(name) {
        None => Ok(()),
        Some(flaw) => Err(invalid(format!("{name:?} cannot be the name of a {what}: {flaw}"))),
    }
}

/// Returns whether the server itself has a schema of this name.
pub(super) fn is_reserved_schema(name: &str) -> bool {
    [INFORMATION, SERVER_SCHEMA].iter().any(|known| known.eq_ignore_ascii_case(name))
}

/// Refuses a place for a new table or view: a schema that does not exist, or a name that is taken.
pub(super) fn check_place(snapshot: &Snapshot, name: &Name) -> Result<(), EngineError> {
    check_new("table", &name.object)?;
    let Some((schema, objects)) = snapshot.schema(&name.schema) else { return Err(no_schema(&name.schema)) };
    // Names that differ in case only would be ambiguous without quotes.
    match objects.keys().find(|known| known.eq_ignore_ascii_case(&name.object)) {
        Some(known) => {
            let known = Name { schema: schema.to_owned(), object: known.clone() };
            Err(already_exists("a table or view", &known.to_string()))
        }
        None => Ok(()),
    }
}

pub(super) fn no_schema(schema: &str) -> EngineError {
    if is_reserved_schema(schema) {
        return super::error::unsupported(format!(
            "the schema '{schema}' is made by the server, which never changes it"
        ));
    }
    invalid(format!("there is no schema '{schema}' (CREATE SCHEMA makes one)"))
}

/// There is no such table.
pub(super) fn unknown_table(snapshot: &Snapshot, tables: &Tables, name: &Name) -> EngineError {
    let schemas = snapshot.schemas.iter().flat_map(|(schema, objects)| {
        objects.keys().map(|object| Name { schema: schema.clone(), object: object.clone() }.to_string())
    });
    let mut known: Vec<String> = schemas.chain(tables.names()).collect();
    known.sort();
    EngineError::UnknownTable { table: name.to_string(), known }
}

/// The table of the operator's files that has this name, or one that differs in case only.
pub(super) async fn of_operator(tables: &Tables, name: &Name) -> Option<String> {
    if !name.schema.eq_ignore_ascii_case(SCHEMA) {
        return None;
    }
    tables.clash(&name.object).await
}
