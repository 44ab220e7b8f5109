//! Catalogs, schemas, tables and columns, in the nested shape of ADBC.

use std::collections::BTreeSet;
use std::sync::Arc;

use adbc_core::error::Result;
use adbc_core::schemas::{
    COLUMN_SCHEMA, CONSTRAINT_SCHEMA, GET_OBJECTS_SCHEMA, GET_TABLE_TYPES_SCHEMA, OBJECTS_DB_SCHEMA_SCHEMA,
    TABLE_SCHEMA,
};
use arrow::array::{ArrayRef, Int16Array, Int32Array, RecordBatch, StringArray, new_empty_array, new_null_array};
use arrow::compute::like;
use arrow::datatypes::{DataType, Field, FieldRef, SchemaRef};
use thallus_client::{CatalogObject, Depth, ObjectsRequest, TableObject};

use super::{bug, lists, structs};
use crate::error::from_arrow;

/// Types of tables that every server may have.
const TABLE_TYPES: [&str; 2] = ["table", "view"];

/// A request for objects with exactly these names.
pub(crate) fn request(
    depth: Depth,
    catalog: Option<&str>,
    schema: Option<&str>,
    table: Option<&str>,
) -> ObjectsRequest {
    let exact = |name: Option<&str>| name.map(literal);
    ObjectsRequest { depth, catalog: exact(catalog), schema: exact(schema), table: exact(table), kinds: None }
}

/// The LIKE pattern that matches only this name.
fn literal(name: &str) -> String {
    let mut pattern = String::with_capacity(name.len());
    for letter in name.chars() {
        if matches!(letter, '%' | '_' | '\\') {
            pattern.push('\\');
        }
        pattern.push(letter);
    }
    pattern
}

/// The schemas of a catalog, each with its tables.
type Schemas = Vec<(String, Vec<TableObject>)>;

/// Groups objects by catalog and schema, in the order in which they are first named.
fn grouped(objects: Vec<CatalogObject>) -> Vec<(String, Schemas)> {
    let mut catalogs: Vec<(String, Schemas)> = Vec::new();
    for CatalogObject { catalog, schema, table } in objects {
        let place = place(&mut catalogs, catalog);
        let Some(schema) = schema else { continue };
        let schemas = &mut catalogs[place].1;
        let place = self::place(schemas, schema);
        schemas[place].1.extend(table);
    }
    catalogs
}

/// The place of a name, which is added if it is new. A server lists the objects of a schema one after the other.
fn place<T: Default>(named: &mut Vec<(String, T)>, name: String) -> usize {
    if let Some(found) = named.iter().rposition(|(known, _)| *known == name) {
        return found;
    }
    named.push((name, T::default()));
    named.len() - 1
}

/// The result of `get_objects`. `column` is a LIKE pattern.
pub(crate) fn batch(depth: Depth, objects: Vec<CatalogObject>, column: Option<&str>) -> Result<RecordBatch> {
    let catalogs = grouped(objects);
    let has_schemas = depth != Depth::Catalogs;
    let lengths: Vec<_> = catalogs.iter().map(|(_, schemas)| has_schemas.then_some(schemas.len())).collect();
    let names = StringArray::from_iter_values(catalogs.iter().map(|(name, _)| name));
    let schemas: Schemas = catalogs.into_iter().flat_map(|(_, schemas)| schemas).filter(|_| has_schemas).collect();
    let kind = GET_OBJECTS_SCHEMA.field(1).data_type();
    let schemas = lists(kind, &lengths, schema_structs(depth, schemas, column)?)?;
    super::batch(&GET_OBJECTS_SCHEMA, vec![Arc::new(names), schemas])
}

fn schema_structs(depth: Depth, schemas: Schemas, column: Option<&str>) -> Result<ArrayRef> {
    let has_tables = matches!(depth, Depth::Tables | Depth::Columns);
    let lengths: Vec<_> = schemas.iter().map(|(_, tables)| has_tables.then_some(tables.len())).collect();
    let names = StringArray::from_iter_values(schemas.iter().map(|(name, _)| name));
    let tables: Vec<_> = schemas.into_iter().flat_map(|(_, tables)| tables).filter(|_| has_tables).collect();
    let tables = lists(kind_of(&OBJECTS_DB_SCHEMA_SCHEMA, 1)?, &lengths, table_structs(depth, &tables, column)?)?;
    structs(&OBJECTS_DB_SCHEMA_SCHEMA, vec![Arc::new(names), tables])
}

fn table_structs(depth: Depth, tables: &[TableObject], column: Option<&str>) -> Result<ArrayRef> {
    let names = StringArray::from_iter_values(tables.iter().map(|table| &table.name));
    let kinds = StringArray::from_iter_values(tables.iter().map(|table| &table.kind));
    let has_columns = depth == Depth::Columns;
    let (mut lengths, mut columns) = (Vec::new(), Vec::new());
    for table in tables {
        let all = table.columns.as_ref().filter(|_| has_columns);
        let matching = all.map_or(Ok(Vec::new()), |all| matching(all, column))?;
        lengths.push(has_columns.then_some(matching.len()));
        columns.extend(matching);
    }
    let columns = lists(kind_of(&TABLE_SCHEMA, 2)?, &lengths, column_structs(&columns)?)?;
    // Servers know no constraints: empty lists where columns are listed, else null.
    let none: Vec<_> = lengths.iter().map(|length| length.map(|_| 0)).collect();
    let constraints = lists(kind_of(&TABLE_SCHEMA, 3)?, &none, new_empty_array(&CONSTRAINT_SCHEMA))?;
    structs(&TABLE_SCHEMA, vec![Arc::new(names), Arc::new(kinds), columns, constraints])
}

/// Columns whose name matches a LIKE pattern, with their position in the table, from 1.
fn matching(columns: &SchemaRef, pattern: Option<&str>) -> Result<Vec<(usize, FieldRef)>> {
    let numbered = columns.fields().iter().cloned().enumerate().map(|(index, field)| (index + 1, field));
    let Some(pattern) = pattern else { return Ok(numbered.collect()) };
    let names = StringArray::from_iter_values(columns.fields().iter().map(|field| field.name()));
    let fits = like(&names, &StringArray::new_scalar(pattern)).map_err(from_arrow)?;
    Ok(numbered.filter(|(position, _)| fits.value(position - 1)).collect())
}

fn column_structs(columns: &[(usize, FieldRef)]) -> Result<ArrayRef> {
    let fields = columns.iter().map(|(_, field)| field);
    let DataType::Struct(kinds) = &*COLUMN_SCHEMA else { return Err(bug("a struct")) };
    let known: [(&str, ArrayRef); 6] = [
        ("column_name", Arc::new(StringArray::from_iter_values(fields.clone().map(|field| field.name())))),
        ("ordinal_position", Arc::new(Int32Array::from_iter(columns.iter().map(|(at, _)| i32::try_from(*at).ok())))),
        ("xdbc_data_type", Arc::new(Int16Array::from_iter(fields.clone().map(|field| xdbc_type(field.data_type()))))),
        (
            "xdbc_type_name",
            Arc::new(StringArray::from_iter_values(fields.clone().map(|field| field.data_type().to_string()))),
        ),
        ("xdbc_nullable", Arc::new(Int16Array::from_iter_values(fields.clone().map(|f| i16::from(f.is_nullable()))))),
        ("xdbc_is_nullable", Arc::new(StringArray::from_iter_values(fields.map(|field| yes_or_no(field))))),
    ];
    let values = kinds.iter().map(|kind| match known.iter().find(|(name, _)| name == kind.name()) {
        Some((_, values)) => Arc::clone(values),
        None => new_null_array(kind.data_type(), columns.len()),
    });
    structs(&COLUMN_SCHEMA, values.collect())
}

fn yes_or_no(field: &Field) -> &'static str {
    if field.is_nullable() { "YES" } else { "NO" }
}

/// The number of a type in the tables of ODBC and JDBC.
fn xdbc_type(kind: &DataType) -> Option<i16> {
    Some(match kind {
        DataType::Boolean => -7,
        DataType::Int8 | DataType::UInt8 => -6,
        DataType::Int16 | DataType::UInt16 => 5,
        DataType::Int32 | DataType::UInt32 => 4,
        DataType::Int64 | DataType::UInt64 => -5,
        DataType::Float16 | DataType::Float32 => 7,
        DataType::Float64 => 8,
        DataType::Decimal32(..) | DataType::Decimal64(..) | DataType::Decimal128(..) | DataType::Decimal256(..) => 3,
        DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View => 12,
        DataType::Binary | DataType::LargeBinary | DataType::BinaryView => -3,
        DataType::FixedSizeBinary(_) => -2,
        DataType::Date32 | DataType::Date64 => 91,
        DataType::Time32(_) | DataType::Time64(_) => 92,
        DataType::Timestamp(..) => 93,
        _ => return None,
    })
}

/// The type of a member of a struct that ADBC defines.
fn kind_of(kind: &DataType, member: usize) -> Result<&DataType> {
    let DataType::Struct(fields) = kind else { return Err(bug("a struct")) };
    fields.get(member).map(|field| field.data_type()).ok_or_else(|| bug("a struct with that member"))
}

/// The result of `get_table_types`: those of the tables, and those that every server may have.
pub(crate) fn table_types(objects: Vec<CatalogObject>) -> Result<RecordBatch> {
    let found = objects.into_iter().filter_map(|object| object.table).map(|table| table.kind);
    let kinds: BTreeSet<String> = found.chain(TABLE_TYPES.map(str::to_owned)).collect();
    super::batch(&GET_TABLE_TYPES_SCHEMA, vec![Arc::new(StringArray::from_iter_values(kinds))])
}

#[cfg(test)]
mod tests {
    use arrow::array::{Array, AsArray};
    use arrow::datatypes::{Int32Type, Schema};

    use super::*;

    fn table(schema: &str, name: &str, columns: &[&str]) -> CatalogObject {
        let fields = columns.iter().map(|name| Field::new(*name, DataType::Int64, true)).collect::<Vec<_>>();
        let columns = (!columns.is_empty()).then(|| Arc::new(Schema::new(fields)));
        let table = Some(TableObject { name: name.into(), kind: "table".into(), columns });
        CatalogObject { catalog: "c".into(), schema: Some(schema.into()), table }
    }

    fn schema_only(name: &str) -> CatalogObject {
        CatalogObject { catalog: "c".into(), schema: Some(name.into()), table: None }
    }

    #[test]
    fn lists_are_empty_at_the_depth_that_is_asked_for_and_null_below() {
        let catalog = CatalogObject { catalog: "c".into(), schema: None, table: None };
        let at = |depth, objects| batch(depth, objects, None).unwrap();
        let catalogs = at(Depth::Catalogs, vec![catalog.clone()]);
        assert_eq!(catalogs.schema(), *GET_OBJECTS_SCHEMA);
        assert!(catalogs.column(1).is_null(0));
        let schemas = at(Depth::Schemas, vec![catalog, schema_only("s")]);
        let schemas = schemas.column(1).as_list::<i32>().value(0);
        assert!(schemas.as_struct().column(1).is_null(0));
        let tables = at(Depth::Tables, vec![schema_only("empty"), table("s", "t", &[])]);
        let schemas = tables.column(1).as_list::<i32>().value(0);
        let tables = schemas.as_struct().column(1).as_list::<i32>();
        assert_eq!((tables.value(0).len(), tables.value(1).len()), (0, 1));
        let tables = tables.value(1);
        assert!(tables.as_struct().column(2).is_null(0) && tables.as_struct().column(3).is_null(0));
        assert_eq!(at(Depth::Columns, Vec::new()).num_rows(), 0);
    }

    #[test]
    fn columns_are_filtered_and_keep_their_positions() {
        let objects = vec![table("s", "t", &["ab", "x", "aa"]), table("r", "u", &["b"]), table("s", "v", &["a"])];
        let found = batch(Depth::Columns, objects, Some("a%")).unwrap();
        assert_eq!(found.num_rows(), 1);
        let schemas = found.column(1).as_list::<i32>().value(0);
        let names = schemas.as_struct().column(0).as_string::<i32>();
        assert_eq!(names.iter().flatten().collect::<Vec<_>>(), ["s", "r"]);
        let tables = schemas.as_struct().column(1).as_list::<i32>().value(0);
        assert_eq!(tables.as_struct().column(0).as_string::<i32>().value(1), "v");
        let columns = tables.as_struct().column(2).as_list::<i32>();
        let first = columns.value(0);
        assert_eq!(first.as_struct().column(0).as_string::<i32>().value(1), "aa");
        assert_eq!(first.as_struct().column(1).as_primitive::<Int32Type>().values().to_vec(), [1, 3]);
        assert_eq!(tables.as_struct().column(3).as_list::<i32>().value(0).len(), 0);
    }

    #[test]
    fn names_become_patterns_that_match_only_them() {
        let request = request(Depth::Tables, None, Some("a_b%"), Some("c\\d"));
        assert_eq!((request.schema.as_deref(), request.table.as_deref()), (Some("a\\_b\\%"), Some("c\\\\d")));
    }

    #[test]
    fn table_types_are_those_of_all_tables_and_the_usual_ones() {
        let mut odd = table("s", "t", &[]);
        odd.table.as_mut().unwrap().kind = "stage".into();
        let types = table_types(vec![odd, table("s", "u", &[])]).unwrap();
        let types = types.column(0).as_string::<i32>();
        assert_eq!(types.iter().flatten().collect::<Vec<_>>(), ["stage", "table", "view"]);
    }
}
