//! Rows of an upload as rows of the table that they are added to: columns by name, values unchanged.
//!
//! Only the layout of values may differ: text, binary values and lists with other offsets, dictionaries, runs, and the
//! width of decimals. A value that would become another one is never accepted, not even a small number in a wider type.

use std::sync::Arc;

use arrow_array::{ArrayRef, RecordBatch, RecordBatchOptions, new_null_array};
use arrow_cast::{CastOptions, can_cast_types, cast_with_options};
use arrow_schema::{DataType, FieldRef, Fields, Schema, SchemaRef};

use super::error::invalid;
use super::name::Name;
use crate::engine::EngineError;

/// The way from the batches of an upload to those of its table.
#[derive(Debug)]
pub(super) struct Fit {
    table: Name,
    schema: SchemaRef,
    /// For each column of the table its place in the upload. `None`: NULL.
    places: Vec<Option<usize>>,
}

impl Fit {
    /// Refuses columns that the table does not have, and types that are not the table's.
    pub(super) fn new(upload: &Schema, schema: &SchemaRef, table: &Name) -> Result<Self, EngineError> {
        if let Some(extra) = upload.fields().iter().find(|field| schema.index_of(field.name()).is_err()) {
            let known: Vec<&str> = schema.fields().iter().map(|field| field.name().as_str()).collect();
            let (extra, known) = (extra.name(), known.join(", "));
            let message = format!("table '{table}' has no column '{extra}'; its columns: {known}");
            return Err(EngineError::Column { message });
        }
        let place = |field: &FieldRef| match upload.index_of(field.name()) {
            Ok(place) => check_type(upload.field(place).data_type(), field, table).map(|()| Some(place)),
            Err(_) if field.is_nullable() => Ok(None),
            Err(_) => {
                let message =
                    format!("column '{}' of table '{table}' takes no NULL, and the upload lacks it", field.name());
                Err(EngineError::Constraint { message })
            }
        };
        let places = schema.fields().iter().map(place).collect::<Result<_, _>>()?;
        Ok(Fit { table: table.clone(), schema: Arc::clone(schema), places })
    }

    /// A batch with the columns of the table. NULLs are not checked.
    pub(super) fn adapt(&self, batch: &RecordBatch) -> Result<RecordBatch, EngineError> {
        let rows = batch.num_rows();
        let column = |(place, field): (&Option<usize>, &FieldRef)| match place {
            Some(place) => self.cast(batch.column(*place), field),
            None => Ok(new_null_array(field.data_type(), rows)),
        };
        let columns = self.places.iter().zip(self.schema.fields()).map(column).collect::<Result<Vec<_>, _>>()?;
        with_columns(&self.schema, columns, rows, &self.table)
    }

    fn cast(&self, column: &ArrayRef, field: &FieldRef) -> Result<ArrayRef, EngineError> {
        if column.data_type() == field.data_type() {
            return Ok(Arc::clone(column));
        }
        let options = CastOptions { safe: false, ..CastOptions::default() };
        cast_with_options(column, field.data_type(), &options).map_err(|e| {
            invalid(format!("column '{}' of table '{}' does not hold these values: {e}", field.name(), self.table))
        })
    }
}

/// A batch of exactly this schema. A column that takes no NULL and has one is refused.
pub(super) fn with_columns(
    schema: &SchemaRef,
    columns: Vec<ArrayRef>,
    rows: usize,
    table: &Name,
) -> Result<RecordBatch, EngineError> {
    for (field, column) in schema.fields().iter().zip(&columns) {
        if !field.is_nullable() && column.logical_null_count() > 0 {
            let message = format!("column '{}' of table '{table}' takes no NULL", field.name());
            return Err(EngineError::Constraint { message });
        }
    }
    let options = RecordBatchOptions::new().with_row_count(Some(rows));
    RecordBatch::try_new_with_options(Arc::clone(schema), columns, &options)
        .map_err(|e| invalid(format!("a batch does not fit table '{table}': {e}")))
}

fn check_type(from: &DataType, field: &FieldRef, table: &Name) -> Result<(), EngineError> {
    let to = field.data_type();
    let is_null = *from == DataType::Null && field.is_nullable();
    if (is_null || has_same_values(from, to)) && can_cast_types(from, to) {
        return Ok(());
    }
    let name = field.name();
    Err(invalid(format!("column '{name}' of table '{table}' is {to}, and that of the upload is {from}; cast it")))
}

/// Returns whether two types differ in the layout of their values at most.
fn has_same_values(a: &DataType, b: &DataType) -> bool {
    use DataType as T;
    match (a, b) {
        _ if a == b => true,
        (T::Dictionary(_, a), b) => has_same_values(a, b),
        (a, T::Dictionary(_, b)) => has_same_values(a, b),
        (T::RunEndEncoded(_, a), b) => has_same_values(a.data_type(), b),
        (a, T::RunEndEncoded(_, b)) => has_same_values(a, b.data_type()),
        (T::Utf8 | T::LargeUtf8 | T::Utf8View, T::Utf8 | T::LargeUtf8 | T::Utf8View)
        | (T::Binary | T::LargeBinary | T::BinaryView, T::Binary | T::LargeBinary | T::BinaryView) => true,
        (T::FixedSizeList(a, size), T::FixedSizeList(b, other)) => {
            size == other && has_same_values(a.data_type(), b.data_type())
        }
        (T::Struct(a), T::Struct(b)) => have_same_values(a, b),
        (T::Map(a, is_sorted), T::Map(b, other)) => is_sorted == other && has_same_values(a.data_type(), b.data_type()),
        _ => match (item(a), item(b), decimal(a), decimal(b)) {
            (Some(a), Some(b), ..) => has_same_values(a.data_type(), b.data_type()),
            (_, _, Some(a), Some(b)) => a == b,
            _ => false,
        },
    }
}

fn have_same_values(a: &Fields, b: &Fields) -> bool {
    let is_same =
        |(a, b): (&FieldRef, &FieldRef)| a.name() == b.name() && has_same_values(a.data_type(), b.data_type());
    a.len() == b.len() && a.iter().zip(b).all(is_same)
}

fn item(data_type: &DataType) -> Option<&FieldRef> {
    match data_type {
        DataType::List(item)
        | DataType::LargeList(item)
        | DataType::ListView(item)
        | DataType::LargeListView(item)
        | DataType::FixedSizeList(item, _) => Some(item),
        _ => None,
    }
}

fn decimal(data_type: &DataType) -> Option<(u8, i8)> {
    match data_type {
        DataType::Decimal32(precision, scale)
        | DataType::Decimal64(precision, scale)
        | DataType::Decimal128(precision, scale)
        | DataType::Decimal256(precision, scale) => Some((*precision, *scale)),
        _ => None,
    }
}
