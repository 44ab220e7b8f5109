//! Results of requests about the catalog and the server, in the shapes that ADBC defines.

pub(crate) mod info;
pub(crate) mod objects;
pub(crate) mod statistics;

use std::sync::Arc;

use adbc_core::error::Result;
use arrow::array::{Array, ArrayRef, ListArray, RecordBatch, RecordBatchOptions, StructArray};
use arrow::buffer::{NullBuffer, OffsetBuffer};
use arrow::datatypes::{DataType, SchemaRef};

use crate::error::from_arrow;

/// Lists of these lengths over `values`; `None` is a null.
pub(crate) fn lists(kind: &DataType, lengths: &[Option<usize>], values: ArrayRef) -> Result<ArrayRef> {
    let DataType::List(item) = kind else { return Err(bug("a list")) };
    let offsets = OffsetBuffer::from_lengths(lengths.iter().map(|length| length.unwrap_or(0)));
    let nulls = NullBuffer::from_iter(lengths.iter().map(Option::is_some));
    let lists = ListArray::try_new(Arc::clone(item), offsets, values, Some(nulls).filter(|n| n.null_count() > 0));
    Ok(Arc::new(lists.map_err(from_arrow)?))
}

/// Structs of these columns.
pub(crate) fn structs(kind: &DataType, columns: Vec<ArrayRef>) -> Result<ArrayRef> {
    let DataType::Struct(fields) = kind else { return Err(bug("a struct")) };
    let length = columns.first().map_or(0, |column| column.len());
    let structs = StructArray::try_new_with_length(fields.clone(), columns, None, length);
    Ok(Arc::new(structs.map_err(from_arrow)?))
}

/// A batch of this schema.
pub(crate) fn batch(schema: &SchemaRef, columns: Vec<ArrayRef>) -> Result<RecordBatch> {
    let rows = columns.first().map_or(0, |column| column.len());
    let options = RecordBatchOptions::new().with_row_count(Some(rows));
    RecordBatch::try_new_with_options(Arc::clone(schema), columns, &options).map_err(from_arrow)
}

/// The type of a field of a struct or schema that ADBC defines.
fn bug(expected: &str) -> adbc_core::error::Error {
    crate::error::error(adbc_core::error::Status::Internal, format!("bug: a type of ADBC is not {expected}"))
}
