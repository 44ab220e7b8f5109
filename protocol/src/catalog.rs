//! Answers about statements and tables: the result of a change, and the rows of the requests
//! [`Describe`](crate::message::Request::Describe) and [`Objects`](crate::message::Request::Objects).

use std::sync::Arc;

use arrow_array::cast::AsArray;
use arrow_array::{Array, ArrayRef, BinaryArray, RecordBatch, StringArray};
use arrow_schema::{DataType, Field, Schema, SchemaRef};

use crate::inline::{InlineError, InlineLimits, decode_schema, encode_schema};

/// A statement that was planned and not run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Description {
    /// Schema of the result.
    pub result: SchemaRef,
    /// The parameters, one field each, in their order. A parameter of unknown type has the type Null.
    pub parameters: SchemaRef,
}

/// A catalog without schemas, a schema without tables, or a table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CatalogObject {
    /// The catalog.
    pub catalog: String,
    /// The schema, unless the catalog has none or schemas were not asked for.
    pub schema: Option<String>,
    /// The table, unless the schema has none or tables were not asked for.
    pub table: Option<TableObject>,
}

/// A table in a list of objects.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TableObject {
    /// Its name.
    pub name: String,
    /// Its type: `table` or `view`, or another word of the engine.
    pub kind: String,
    /// Its columns, if they were asked for.
    pub columns: Option<SchemaRef>,
}

/// Key of the schema's metadata, with the value `1`, by which clients tell the result of a statement that changes rows
/// or tables.
const CHANGES: &str = "thallus.changes";

/// Schema of the result of a statement that changes rows or tables: one row with the number of changed rows.
#[must_use]
pub fn changes_schema() -> SchemaRef {
    let metadata = [(CHANGES.to_owned(), "1".to_owned())].into();
    Arc::new(Schema::new_with_metadata(vec![Field::new("count", DataType::UInt64, false)], metadata))
}

/// Returns whether a result is that of a statement that changes rows or tables. It has one row with one column, the
/// number of changed rows.
#[must_use]
pub fn is_change(schema: &Schema) -> bool {
    schema.metadata().get(CHANGES).is_some_and(|value| value == "1")
}

fn wrong_shape(what: &str) -> InlineError {
    InlineError::Schema { what: format!("the answer does not have the columns of {what}") }
}

impl Description {
    /// The one row of the answer: `result` and `parameters`, each an Arrow IPC schema message.
    ///
    /// # Errors
    /// Arrow IPC cannot carry a type of the schemas.
    pub fn encode(&self) -> Result<RecordBatch, InlineError> {
        let column = |schema: &Schema| {
            let message = encode_schema(schema)?;
            Ok::<_, InlineError>(Arc::new(BinaryArray::from_vec(vec![&message])) as ArrayRef)
        };
        let columns = vec![column(&self.result)?, column(&self.parameters)?];
        Ok(RecordBatch::try_new(Self::schema(), columns)?)
    }

    /// Schema of the answer.
    #[must_use]
    pub fn schema() -> SchemaRef {
        let field = |name| Field::new(name, DataType::Binary, false);
        Arc::new(Schema::new(vec![field("result"), field("parameters")]))
    }

    /// The description in the row of an answer.
    ///
    /// # Errors
    /// The batch is not one row of [`Self::schema`], or a message in it is not a valid schema.
    pub fn decode(row: &RecordBatch) -> Result<Self, InlineError> {
        if row.num_rows() != 1 || row.schema_ref() != &Self::schema() {
            return Err(wrong_shape("a description"));
        }
        let schema =
            |column: usize| decode_schema(row.column(column).as_binary::<i32>().value(0), &InlineLimits::default());
        Ok(Description { result: schema(0)?, parameters: schema(1)? })
    }
}

impl CatalogObject {
    /// The rows of the answer, one for each object: `catalog`, `schema`, `table`, `kind`, and the columns as an Arrow
    /// IPC schema message.
    ///
    /// # Errors
    /// Arrow IPC cannot carry the type of a column.
    pub fn encode(objects: &[CatalogObject]) -> Result<RecordBatch, InlineError> {
        let table = |object: &'_ CatalogObject| object.table.as_ref().map(|table| table.name.clone());
        let kind = |object: &'_ CatalogObject| object.table.as_ref().map(|table| table.kind.clone());
        let columns = objects.iter().map(|object| {
            let columns = object.table.as_ref().and_then(|table| table.columns.as_ref());
            columns.map(|schema| encode_schema(schema)).transpose()
        });
        let columns = columns.collect::<Result<Vec<_>, _>>()?;
        let arrays: Vec<ArrayRef> = vec![
            Arc::new(StringArray::from_iter_values(objects.iter().map(|object| &object.catalog))),
            Arc::new(StringArray::from_iter(objects.iter().map(|object| object.schema.as_ref()))),
            Arc::new(StringArray::from_iter(objects.iter().map(table))),
            Arc::new(StringArray::from_iter(objects.iter().map(kind))),
            Arc::new(BinaryArray::from_iter(columns)),
        ];
        Ok(RecordBatch::try_new(Self::schema(), arrays)?)
    }

    /// Schema of the answer.
    #[must_use]
    pub fn schema() -> SchemaRef {
        let text = |name, nullable| Field::new(name, DataType::Utf8, nullable);
        Arc::new(Schema::new(vec![
            text("catalog", false),
            text("schema", true),
            text("table", true),
            text("kind", true),
            Field::new("columns", DataType::Binary, true),
        ]))
    }

    /// The objects in a batch of an answer.
    ///
    /// # Errors
    /// The batch has another schema than [`Self::schema`], or a message in it is not a valid schema.
    pub fn decode(rows: &RecordBatch) -> Result<Vec<Self>, InlineError> {
        if rows.schema_ref() != &Self::schema() {
            return Err(wrong_shape("a list of objects"));
        }
        let text = |column: usize, row: usize| {
            let column = rows.column(column).as_string::<i32>();
            column.is_valid(row).then(|| column.value(row).to_owned())
        };
        let columns = rows.column(4).as_binary::<i32>();
        let object = |row: usize| {
            let message = columns.is_valid(row).then(|| decode_schema(columns.value(row), &InlineLimits::default()));
            let columns = message.transpose()?;
            let table = text(2, row).map(|name| TableObject { name, kind: text(3, row).unwrap_or_default(), columns });
            Ok(CatalogObject { catalog: text(0, row).unwrap_or_default(), schema: text(1, row), table })
        };
        (0..rows.num_rows()).map(object).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn columns() -> SchemaRef {
        let metadata = [("unit".to_owned(), "kg".to_owned())].into();
        let field = Field::new("weight", DataType::Float64, true).with_metadata(metadata);
        Arc::new(Schema::new(vec![field, Field::new("näme", DataType::Utf8View, false)]))
    }

    #[test]
    fn a_description_comes_back_equal() {
        let description = Description { result: columns(), parameters: Arc::new(Schema::empty()) };
        assert_eq!(Description::decode(&description.encode().unwrap()).unwrap(), description);
    }

    #[test]
    fn objects_come_back_equal() {
        let object = |schema: Option<&str>, table| CatalogObject {
            catalog: "c".to_owned(),
            schema: schema.map(str::to_owned),
            table,
        };
        let table = |columns| Some(TableObject { name: "t".to_owned(), kind: "table".to_owned(), columns });
        let objects = vec![
            object(None, None),
            object(Some("s"), None),
            object(Some("s"), table(None)),
            object(Some("s"), table(Some(columns()))),
        ];
        assert_eq!(CatalogObject::decode(&CatalogObject::encode(&objects).unwrap()).unwrap(), objects);
        assert_eq!(CatalogObject::decode(&CatalogObject::encode(&[]).unwrap()).unwrap(), []);
    }

    #[test]
    fn other_rows_are_refused() {
        let description = Description { result: columns(), parameters: columns() }.encode().unwrap();
        assert!(CatalogObject::decode(&description).is_err());
        assert!(Description::decode(&CatalogObject::encode(&[]).unwrap()).is_err());
        assert!(Description::decode(&description.slice(0, 0)).is_err());
        let bytes: ArrayRef = Arc::new(BinaryArray::from_vec(vec![b"no schema"]));
        let forged = RecordBatch::try_new(Description::schema(), vec![Arc::clone(&bytes), bytes]).unwrap();
        assert!(Description::decode(&forged).is_err());
    }
}
