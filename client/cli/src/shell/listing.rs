//! Lists of tables and columns, as the shell shows them.

use std::sync::Arc;

use arrow::array::{ArrayRef, RecordBatch, StringArray};
use arrow::datatypes::FieldRef;
use thallus_client::{CatalogObject, Depth, ObjectsRequest};

use crate::failure::Failure;
use crate::names::pattern;

/// The request for a table by the parts of its name: `[[catalog.]schema.]table`.
pub(super) fn request_of(name: &[String]) -> ObjectsRequest {
    let mut parts = name.iter().rev().map(|part| Some(pattern(part)));
    ObjectsRequest {
        depth: Depth::Columns,
        table: parts.next().flatten(),
        schema: parts.next().flatten(),
        catalog: parts.next().flatten(),
        ..ObjectsRequest::default()
    }
}

fn rows(columns: Vec<(&str, StringArray)>) -> Result<RecordBatch, Failure> {
    let columns = columns.into_iter().map(|(name, texts)| (name, Arc::new(texts) as ArrayRef, true));
    RecordBatch::try_from_iter_with_nullable(columns).map_err(|error| Failure::Usage {
        message: format!("the answer of the server cannot be shown: {error}"),
        hint: "this is a bug in the client".into(),
    })
}

/// The rows of `\d` and of `thallus tables`, without the tables that describe tables.
pub(crate) fn tables(objects: &[CatalogObject]) -> Result<RecordBatch, Failure> {
    let shown = || {
        let tables = objects.iter().filter_map(|object| Some((object.schema.as_deref(), object.table.as_ref()?)));
        tables.filter(|(schema, _)| *schema != Some("information_schema"))
    };
    rows(vec![
        ("schema", shown().map(|(schema, _)| schema).collect()),
        ("table", shown().map(|(_, table)| Some(&table.name)).collect()),
        ("kind", shown().map(|(_, table)| Some(&table.kind)).collect()),
    ])
}

/// The rows of `\d TABLE`: those of each table of this name. `None` if there is no table.
pub(super) fn columns(objects: &[CatalogObject]) -> Result<Option<RecordBatch>, Failure> {
    let tables: Vec<_> = objects.iter().filter_map(|object| Some((&object.schema, object.table.as_ref()?))).collect();
    if tables.is_empty() {
        return Ok(None);
    }
    let mut fields = Vec::new();
    for (schema, table) in &tables {
        let columns = table.columns.iter().flat_map(|columns| columns.fields());
        fields.extend(columns.map(|field| (schema.as_deref(), field)));
    }
    let null = |field: &FieldRef| if field.is_nullable() { "yes" } else { "no" };
    let mut shown = vec![
        ("column", fields.iter().map(|(_, field)| Some(field.name())).collect()),
        ("type", fields.iter().map(|(_, field)| Some(field.data_type().to_string())).collect()),
        ("null", fields.iter().map(|(_, field)| Some(null(field))).collect()),
    ];
    if tables.len() > 1 {
        shown.insert(0, ("schema", fields.iter().map(|(schema, _)| *schema).collect()));
    }
    rows(shown).map(Some)
}

#[cfg(test)]
mod tests {
    use super::*;
    use arrow::array::AsArray;
    use arrow::datatypes::{DataType, Field, Schema};
    use thallus_client::TableObject;

    fn object(schema: &str, name: &str) -> CatalogObject {
        let fields = vec![Field::new("id", DataType::Int64, false), Field::new("s", DataType::Utf8, true)];
        let columns = Some(Arc::new(Schema::new(fields)));
        let table = Some(TableObject { name: name.into(), kind: "table".into(), columns });
        CatalogObject { catalog: "c".into(), schema: Some(schema.into()), table }
    }

    fn texts(rows: &RecordBatch) -> Vec<Vec<String>> {
        let text = |column: &ArrayRef, row| column.as_string::<i32>().value(row).to_owned();
        (0..rows.num_rows()).map(|row| rows.columns().iter().map(|column| text(column, row)).collect()).collect()
    }

    #[test]
    fn tables_without_those_that_describe_tables() {
        let empty = CatalogObject { catalog: "c".into(), schema: Some("empty".into()), table: None };
        let rows = tables(&[object("public", "t"), object("information_schema", "columns"), empty]).unwrap();
        assert_eq!(texts(&rows), [["public", "t", "table"]]);
    }

    #[test]
    fn columns_of_a_table_or_of_each_of_this_name() {
        assert_eq!(columns(&[]).unwrap(), None);
        let one = columns(&[object("a", "t")]).unwrap().unwrap();
        assert_eq!(texts(&one), [["id", "Int64", "no"], ["s", "Utf8", "yes"]]);
        let two = columns(&[object("a", "t"), object("b", "t")]).unwrap().unwrap();
        assert_eq!(texts(&two)[2], ["b", "id", "Int64", "no"]);
    }

    #[test]
    fn a_name_has_up_to_three_parts() {
        let request = request_of(&["c".into(), "s".into(), "t_1".into()]);
        assert_eq!((request.catalog.as_deref(), request.schema.as_deref()), (Some("c"), Some("s")));
        assert_eq!(request.table.as_deref(), Some("t\\_1"));
        assert_eq!(request_of(&["t".into()]).schema, None);
    }
}
