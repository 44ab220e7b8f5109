//! The columns of files, and the columns of their upload.

use std::collections::HashSet;
use std::sync::Arc;

use arrow::array::{RecordBatch, new_null_array};
use arrow::datatypes::{DataType, Field, Fields, Schema, SchemaRef, TimeUnit};
use arrow::error::ArrowError;

use super::error::InputError;

/// The columns of a file.
#[derive(Clone, Debug)]
pub(super) struct Columns {
    /// The name of the file.
    pub(super) file: String,
    pub(super) schema: SchemaRef,
    /// True if the types are guesses from texts. A column without any value has the type Null then.
    pub(super) inferred: bool,
}

impl Columns {
    /// # Errors
    /// Two columns have one name.
    pub(super) fn check(&self) -> Result<(), InputError> {
        let mut names = HashSet::new();
        match self.schema.fields().iter().find(|field| !names.insert(field.name())) {
            Some(field) => Err(InputError::Twice { file: self.file.clone(), column: field.name().clone() }),
            None => Ok(()),
        }
    }

    fn field(&self, name: &str) -> Option<&Field> {
        self.schema.field_with_name(name).ok()
    }
}

/// The columns of an upload of these files, in the order of the first file. Each column is nullable if it is in any
/// file.
///
/// # Errors
/// The files differ in a column.
pub(super) fn unified(files: &[Columns]) -> Result<SchemaRef, InputError> {
    let Some((first, others)) = files.split_first() else { return Ok(Arc::new(Schema::empty())) };
    for other in others {
        same_names(first, other)?;
        same_names(other, first)?;
    }
    let fields = first.schema.fields().iter().map(|field| column(field, files));
    Ok(Arc::new(Schema::new(fields.collect::<Result<Fields, _>>()?)))
}

fn same_names(of: &Columns, other: &Columns) -> Result<(), InputError> {
    match of.schema.fields().iter().find(|field| other.field(field.name()).is_none()) {
        Some(field) => {
            let (file, column, other) = (other.file.clone(), field.name().clone(), of.file.clone());
            Err(InputError::Missing { file, column, other })
        }
        None => Ok(()),
    }
}

/// A column of the upload. A column without any value takes the type that it has in another file.
fn column(first: &Field, files: &[Columns]) -> Result<Field, InputError> {
    let mut typed: Option<(&Columns, &Field)> = None;
    let mut nullable = false;
    for file in files {
        let Some(field) = file.field(first.name()) else { continue };
        nullable |= field.is_nullable();
        match typed {
            _ if field.data_type() == &DataType::Null => {}
            None => typed = Some((file, field)),
            Some((_, known)) if known.data_type() == field.data_type() => {}
            Some((other, known)) => {
                return Err(InputError::Types {
                    column: first.name().clone(),
                    file: file.file.clone(),
                    found: field.data_type().clone(),
                    other: other.file.clone(),
                    expected: known.data_type().clone(),
                });
            }
        }
    }
    let without_value = if files.iter().all(|file| file.inferred) { DataType::Utf8 } else { DataType::Null };
    Ok(match typed {
        Some((_, field)) => field.clone().with_nullable(nullable),
        None => first.clone().with_data_type(without_value).with_nullable(true),
    })
}

/// The columns with the types that a table has, where a reader of texts can make them.
pub(super) fn typed_as(inferred: &Schema, table: &Schema) -> SchemaRef {
    let field = |field: &Arc<Field>| match table.field_with_name(field.name()) {
        Ok(known) if is_readable(known.data_type()) => field.as_ref().clone().with_data_type(known.data_type().clone()),
        _ => field.as_ref().clone(),
    };
    Arc::new(Schema::new(inferred.fields().iter().map(field).collect::<Fields>()))
}

/// Returns whether Arrow's readers of CSV and of JSON both make values of a type.
fn is_readable(data_type: &DataType) -> bool {
    use DataType::*;
    let is_integer = data_type.is_integer();
    let is_time = matches!(
        data_type,
        Time32(TimeUnit::Second | TimeUnit::Millisecond) | Time64(TimeUnit::Microsecond | TimeUnit::Nanosecond)
    );
    let is_other = matches!(
        data_type,
        Boolean
            | Float32
            | Float64
            | Utf8
            | LargeUtf8
            | Utf8View
            | Date32
            | Date64
            | Decimal128(..)
            | Decimal256(..)
            | Timestamp(..)
    );
    is_integer || is_time || is_other
}

/// A batch with the columns of the upload, in their order.
///
/// # Errors
/// A column is missing, or has another type or a NULL where none may be.
pub(super) fn adapted(batch: &RecordBatch, target: &SchemaRef) -> Result<RecordBatch, ArrowError> {
    let columns = target.fields().iter().map(|field| {
        let column = batch.column(batch.schema_ref().index_of(field.name())?);
        let is_null = column.data_type() == &DataType::Null && field.data_type() != &DataType::Null;
        Ok(if is_null { new_null_array(field.data_type(), batch.num_rows()) } else { Arc::clone(column) })
    });
    let columns = columns.collect::<Result<Vec<_>, ArrowError>>()?;
    let options = arrow::array::RecordBatchOptions::new().with_row_count(Some(batch.num_rows()));
    RecordBatch::try_new_with_options(Arc::clone(target), columns, &options)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(name: &str, inferred: bool, fields: &[(&str, DataType, bool)]) -> Columns {
        let fields = fields.iter().map(|(name, data_type, nullable)| Field::new(*name, data_type.clone(), *nullable));
        Columns { file: name.into(), schema: Arc::new(Schema::new(fields.collect::<Vec<_>>())), inferred }
    }

    #[test]
    fn a_column_takes_its_type_from_the_file_that_has_values() {
        let a = file("a", true, &[("x", DataType::Null, true), ("y", DataType::Int64, false)]);
        let b = file("b", false, &[("y", DataType::Int64, true), ("x", DataType::Float64, false)]);
        let expected = file("", true, &[("x", DataType::Float64, true), ("y", DataType::Int64, true)]).schema;
        assert_eq!(unified(&[a.clone(), b]).unwrap(), expected);
        // Without any value it is one of strings.
        let expected = file("", true, &[("x", DataType::Utf8, true), ("y", DataType::Int64, false)]).schema;
        assert_eq!(unified(&[a]).unwrap(), expected);
        let real = file("r", false, &[("x", DataType::Null, true)]);
        assert_eq!(unified(std::slice::from_ref(&real)).unwrap(), real.schema);
    }

    #[test]
    fn files_that_differ_are_named_with_the_column() {
        let a = file("a.csv", true, &[("x", DataType::Int64, true)]);
        let b = file("b.csv", true, &[("x", DataType::Utf8, true)]);
        let c = file("c.csv", true, &[("x", DataType::Int64, true), ("z", DataType::Utf8, true)]);
        let message = |files: &[Columns]| unified(files).unwrap_err().to_string();
        assert_eq!(message(&[a.clone(), b]), "column \"x\" is Utf8 in b.csv, but Int64 in a.csv");
        assert_eq!(message(&[a.clone(), c.clone()]), "a.csv has no column \"z\", but c.csv has");
        assert_eq!(message(&[c, a]), "a.csv has no column \"z\", but c.csv has");
        let twice = file("t.csv", true, &[("x", DataType::Int64, true), ("x", DataType::Int64, true)]);
        assert_eq!(twice.check().unwrap_err().to_string(), "t.csv has several columns \"x\"");
    }

    #[test]
    fn texts_take_the_types_of_the_table() {
        let inferred = file("a", true, &[("x", DataType::Int64, true), ("y", DataType::Int64, true)]).schema;
        let list = DataType::new_list(DataType::Int64, true);
        let table = file("t", false, &[("y", list, false), ("x", DataType::Utf8View, false)]).schema;
        let expected = file("", true, &[("x", DataType::Utf8View, true), ("y", DataType::Int64, true)]).schema;
        assert_eq!(typed_as(&inferred, &table), expected);
    }
}
