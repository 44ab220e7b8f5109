//! Lists of catalogs, schemas, tables and columns, from the nested lists of ADBC.

use std::sync::Arc;

use adbc_core::Connection;
use adbc_core::options::ObjectDepth;
use adbc_driver_manager::ManagedConnection;
use arrow_array::cast::AsArray;
use arrow_array::{Array, ArrayRef, RecordBatch, Scalar, StringArray, StructArray};
use arrow_schema::{ArrowError, SchemaRef};
use arrow_string::like::like;
use thallus_server::engine::{CatalogObject, Depth, EngineError, ObjectsRequest, TableInfo, TableObject};

use crate::error;
use crate::pool::{Lease, Pool};
use crate::work;

/// Most tables whose columns are counted for the log.
const TABLES_COUNTED: usize = 100;

/// The objects that a request asks for, in the order of their names.
pub(crate) async fn list(pool: &Arc<Pool>, request: ObjectsRequest) -> Result<Vec<CatalogObject>, EngineError> {
    let permit = pool.permit().await?;
    let pool = Arc::clone(pool);
    work::run(move |cancel| {
        let mut lease = pool.connection(permit, &Default::default())?;
        // The reader of the objects ends before the connection is used again.
        let statement = lease.statement(cancel)?;
        let mut objects = named(&mut lease, &request)?;
        drop(statement);
        if request.depth == Depth::Columns {
            for object in &mut objects {
                cancel.check()?;
                let (catalog, schema) = (Some(object.catalog.as_str()), object.schema.as_deref());
                if let Some(table) = &mut object.table {
                    table.columns = columns(lease.connection(), catalog, schema, &table.name);
                }
            }
        }
        lease.give_back(cancel);
        Ok(objects)
    })
    .await
}

/// The schema of a table. A table that cannot be read is listed all the same.
fn columns(
    connection: &ManagedConnection,
    catalog: Option<&str>,
    schema: Option<&str>,
    table: &str,
) -> Option<SchemaRef> {
    let given = |name: Option<&'_ str>| name.filter(|name| !name.is_empty()).map(str::to_owned);
    let (catalog, schema) = (given(catalog), given(schema));
    connection.get_table_schema(catalog.as_deref(), schema.as_deref(), table).ok().map(Arc::new)
}

/// The objects, without columns.
fn named(lease: &mut Lease, request: &ObjectsRequest) -> Result<Vec<CatalogObject>, EngineError> {
    let depth = match request.depth {
        Depth::Catalogs => ObjectDepth::Catalogs,
        Depth::Schemas => ObjectDepth::Schemas,
        Depth::Tables | Depth::Columns => ObjectDepth::Tables,
    };
    // Drivers differ in letter case and in the escape of patterns, so the names are matched again here. A pattern
    // without an escape spares a database with many tables most of the work.
    let table = request.table.as_deref().filter(|pattern| depth == ObjectDepth::Tables && !pattern.contains('\\'));
    let reader = lease.connection().get_objects(depth, None, None, table, None, None);
    let batches = reader.map_err(|e| lease.failed(&e))?.collect::<Result<Vec<_>, _>>();
    let mut objects = Vec::new();
    for batch in batches.map_err(|e| error::of_stream(&e))? {
        unnest(&batch, request.depth, &mut objects).ok_or_else(|| EngineError::Internal {
            message: "the driver's list of objects does not have the shape that ADBC defines".to_owned(),
        })?;
    }
    select(objects, request)
}

/// Appends the objects of a batch. `None`: it does not have the shape of ADBC.
fn unnest(batch: &RecordBatch, depth: Depth, objects: &mut Vec<CatalogObject>) -> Option<()> {
    let catalogs = texts(batch.column_by_name("catalog_name")?)?;
    for (row, catalog) in catalogs.into_iter().enumerate() {
        let object = |schema: Option<String>, table| CatalogObject {
            catalog: catalog.clone().unwrap_or_default(),
            schema,
            table,
        };
        let schemas = match depth {
            Depth::Catalogs => None,
            _ => members(batch.column_by_name("catalog_db_schemas")?, row)?,
        };
        let Some(schemas) = schemas.filter(|schemas| !schemas.is_empty()) else {
            objects.push(object(None, None));
            continue;
        };
        for (row, schema) in texts(schemas.column_by_name("db_schema_name")?)?.into_iter().enumerate() {
            // A database without schemas has one without a name.
            let schema = Some(schema.unwrap_or_default());
            let tables = match depth {
                Depth::Catalogs | Depth::Schemas => None,
                Depth::Tables | Depth::Columns => members(schemas.column_by_name("db_schema_tables")?, row)?,
            };
            let Some(tables) = tables.filter(|tables| !tables.is_empty()) else {
                objects.push(object(schema, None));
                continue;
            };
            let names = texts(tables.column_by_name("table_name")?)?;
            let kinds = texts(tables.column_by_name("table_type")?)?;
            for (name, kind) in names.into_iter().zip(kinds) {
                let table = TableObject { name: name?, kind: of_kind(&kind.unwrap_or_default()), columns: None };
                objects.push(object(schema.clone(), Some(table)));
            }
        }
    }
    Some(())
}

/// The members of a list of structs in a row. The inner `None`: the list is null.
fn members(lists: &ArrayRef, row: usize) -> Option<Option<StructArray>> {
    let lists = lists.as_list_opt::<i32>()?;
    if !lists.is_valid(row) {
        return Some(None);
    }
    lists.value(row).as_struct_opt().cloned().map(Some)
}

fn texts(column: &ArrayRef) -> Option<Vec<Option<String>>> {
    Some(column.as_string_opt::<i32>()?.iter().map(|text| text.map(str::to_owned)).collect())
}

/// The word for a type of tables, as of every engine: `BASE TABLE` is a `table`.
fn of_kind(kind: &str) -> String {
    match kind.to_lowercase().as_str() {
        "base table" => "table".to_owned(),
        other => other.to_owned(),
    }
}

/// The objects that match the patterns and types of a request, sorted. A catalog or a schema of which nothing matches
/// stands for itself.
fn select(objects: Vec<CatalogObject>, request: &ObjectsRequest) -> Result<Vec<CatalogObject>, EngineError> {
    let catalogs = matches(objects.iter().map(|object| Some(object.catalog.as_str())), request.catalog.as_deref())?;
    let schemas = matches(objects.iter().map(|object| object.schema.as_deref()), request.schema.as_deref())?;
    let names = objects.iter().map(|object| object.table.as_ref().map(|table| table.name.as_str()));
    let tables = matches(names, request.table.as_deref())?;
    let wanted_kind = |kind: &String| request.kinds.as_ref().is_none_or(|kinds| kinds.contains(kind));
    let mut selected: Vec<CatalogObject> = Vec::new();
    for (index, mut object) in objects.into_iter().enumerate().filter(|(index, _)| catalogs[*index]) {
        if !tables[index] || object.table.as_ref().is_some_and(|table| !wanted_kind(&table.kind)) {
            object.table = None;
        }
        if object.schema.is_none() || !schemas[index] {
            (object.schema, object.table) = (None, None);
        }
        selected.push(object);
    }
    let key = |object: &CatalogObject| {
        (object.catalog.clone(), object.schema.clone(), object.table.as_ref().map(|table| table.name.clone()))
    };
    selected.sort_by_cached_key(key);
    selected.dedup_by(|a, b| key(a) == key(b));
    // Something that has objects does not also stand for itself.
    let mut kept: Vec<CatalogObject> = Vec::with_capacity(selected.len());
    for object in selected {
        let is_within = |last: &CatalogObject| {
            last.catalog == object.catalog
                && (last.schema.is_none() && object.schema.is_some()
                    || last.schema == object.schema && last.table.is_none() && object.table.is_some())
        };
        if kept.last().is_some_and(is_within) {
            kept.pop();
        }
        kept.push(object);
    }
    Ok(kept)
}

/// Which names match a pattern of LIKE. An absent name matches an absent pattern only.
fn matches<'a>(
    names: impl ExactSizeIterator<Item = Option<&'a str>>,
    pattern: Option<&str>,
) -> Result<Vec<bool>, EngineError> {
    let Some(pattern) = pattern else { return Ok(vec![true; names.len()]) };
    let names = StringArray::from_iter(names);
    let matching = like(&names, &Scalar::new(StringArray::from(vec![pattern])));
    let failed = |e: ArrowError| EngineError::Plan { message: format!("the pattern {pattern:?}: {e}") };
    Ok(matching.map_err(failed)?.iter().map(|matches| matches == Some(true)).collect())
}

/// The tables of a database, for the log. A database that lists none has none there.
pub(crate) fn tables(connection: &ManagedConnection) -> Vec<TableInfo> {
    let Ok(reader) = connection.get_objects(ObjectDepth::Tables, None, None, None, None, None) else {
        return Vec::new();
    };
    let mut objects = Vec::new();
    for batch in reader.map_while(Result::ok) {
        if unnest(&batch, Depth::Tables, &mut objects).is_none() {
            return Vec::new();
        }
    }
    let tables = objects.into_iter().filter_map(|object| Some((object.catalog, object.schema, object.table?)));
    let info = |(index, (catalog, schema, table)): (usize, (String, Option<String>, TableObject))| {
        let source = match schema.as_deref() {
            None | Some("") => catalog.clone(),
            Some(schema) => format!("{catalog}.{schema}"),
        };
        let counted =
            (index < TABLES_COUNTED).then(|| columns(connection, Some(&catalog), schema.as_deref(), &table.name));
        let columns = counted.flatten().map_or(0, |columns| columns.fields().len());
        TableInfo { name: table.name, source, format: "database", columns, files: 0 }
    };
    tables.enumerate().map(info).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn object(catalog: &str, schema: Option<&str>, table: Option<(&str, &str)>) -> CatalogObject {
        let table = table.map(|(name, kind)| TableObject { name: name.into(), kind: kind.into(), columns: None });
        CatalogObject { catalog: catalog.into(), schema: schema.map(str::to_owned), table }
    }

    #[test]
    fn selection_keeps_what_contains_nothing_that_matches() {
        let objects = vec![
            object("main", Some("s"), Some(("orders", "table"))),
            object("main", Some("s"), Some(("names", "view"))),
            object("main", Some("r"), Some(("orders", "table"))),
            object("empty", None, None),
        ];
        let request = |schema: Option<&str>, table: Option<&str>, kinds: Option<&str>| ObjectsRequest {
            depth: Depth::Tables,
            catalog: None,
            schema: schema.map(str::to_owned),
            table: table.map(str::to_owned),
            kinds: kinds.map(|kind| vec![kind.to_owned()]),
        };
        let selected = |request| {
            let selected = select(objects.clone(), &request).unwrap().into_iter();
            let name = |object: CatalogObject| {
                let table = object.table.map(|table| table.name).unwrap_or_default();
                format!("{}.{}.{table}", object.catalog, object.schema.unwrap_or_default())
            };
            selected.map(name).collect::<Vec<_>>().join(" ")
        };
        assert_eq!(selected(request(None, None, None)), "empty.. main.r.orders main.s.names main.s.orders");
        assert_eq!(selected(request(None, Some("n%"), None)), "empty.. main.r. main.s.names");
        assert_eq!(selected(request(Some("s"), None, Some("table"))), "empty.. main.s.orders");
        assert_eq!(selected(request(Some("x"), None, None)), "empty.. main..");
    }

    #[test]
    fn kinds_are_the_words_of_every_engine() {
        assert_eq!((of_kind("BASE TABLE"), of_kind("VIEW")), ("table".to_owned(), "view".to_owned()));
    }
}
