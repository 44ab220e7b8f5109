//! `--plain-strings`: views of strings and bytes become plain columns, for readers that know no views.

use arrow::array::{Array, ArrayRef, AsArray, RecordBatch};
use arrow::datatypes::{DataType, SchemaRef};
use arrow::error::ArrowError;

use super::retype::Retyped;
use super::writer::{BatchWriter, WriteError};

/// The offsets of a plain column have 32 bits. Views have no such bound for a whole column.
const LIMIT: usize = i32::MAX as usize;

/// The schema with plain strings, and batches in it.
pub(super) struct PlainStrings {
    retyped: Retyped,
    limit: usize,
}

impl PlainStrings {
    /// # Errors
    /// [`WriteError::Column`] for a column that cannot be converted.
    pub(super) fn new(schema: &SchemaRef) -> Result<Self, WriteError> {
        Ok(PlainStrings { retyped: Retyped::new(schema, plain)?, limit: LIMIT })
    }

    pub(super) fn schema(&self) -> &SchemaRef {
        self.retyped.schema()
    }

    /// The batch in its new schema: in one part, or in several where it has more text than a plain column holds.
    fn apply(&self, batch: &RecordBatch, parts: &mut Vec<RecordBatch>) -> Result<(), WriteError> {
        let large = batch.columns().iter().position(|column| text_bytes(column) > self.limit);
        match (large, batch.num_rows()) {
            (None, _) => parts.push(self.retyped.apply(batch)?),
            (Some(column), ..2) => {
                let reason = format!("a row has more than {} bytes of text, which need views", self.limit);
                return Err(WriteError::column(batch.schema().field(column), ArrowError::CastError(reason)));
            }
            (Some(_), rows) => {
                self.apply(&batch.slice(0, rows / 2), parts)?;
                self.apply(&batch.slice(rows / 2, rows - rows / 2), parts)?;
            }
        }
        Ok(())
    }
}

/// Passes plain strings to another writer, whose schema is the plain one.
pub(super) struct Adapter {
    pub(super) plain: PlainStrings,
    pub(super) inner: Box<dyn BatchWriter>,
}

impl BatchWriter for Adapter {
    fn write(&mut self, batch: &RecordBatch) -> Result<(), WriteError> {
        let mut parts = Vec::new();
        self.plain.apply(batch, &mut parts)?;
        parts.iter().try_for_each(|part| self.inner.write(part))
    }

    fn finish(self: Box<Self>) -> Result<(), WriteError> {
        self.inner.finish()
    }

    fn notes(&self) -> Vec<String> {
        self.inner.notes()
    }
}

fn plain(data_type: &DataType) -> Option<DataType> {
    match data_type {
        DataType::Utf8View => Some(DataType::Utf8),
        DataType::BinaryView => Some(DataType::Binary),
        _ => None,
    }
}

/// Bytes of the largest column of views within an array.
fn text_bytes(array: &ArrayRef) -> usize {
    use DataType::*;
    let children = |arrays: &[ArrayRef]| arrays.iter().map(text_bytes).max().unwrap_or_default();
    let range = |values: &ArrayRef, from: usize, to: usize| text_bytes(&values.slice(from, to - from));
    match array.data_type() {
        Utf8View => array.as_string_view().lengths().map(|len| len as usize).sum(),
        BinaryView => array.as_binary_view().lengths().map(|len| len as usize).sum(),
        Dictionary(..) => text_bytes(array.as_any_dictionary().values()),
        List(_) => {
            let list = array.as_list::<i32>();
            range(list.values(), list.offsets()[0] as usize, list.offsets()[list.len()] as usize)
        }
        LargeList(_) => {
            let list = array.as_list::<i64>();
            range(list.values(), list.offsets()[0] as usize, list.offsets()[list.len()] as usize)
        }
        Map(..) => {
            let map = array.as_map();
            let (from, to) = (map.offsets()[0] as usize, map.offsets()[map.len()] as usize);
            children(map.entries().slice(from, to - from).columns())
        }
        ListView(_) => text_bytes(array.as_list_view::<i32>().values()),
        LargeListView(_) => text_bytes(array.as_list_view::<i64>().values()),
        FixedSizeList(..) => text_bytes(array.as_fixed_size_list().values()),
        Struct(_) => children(array.as_struct().columns()),
        Union(fields, _) => {
            fields.iter().map(|(id, _)| text_bytes(array.as_union().child(id))).max().unwrap_or_default()
        }
        RunEndEncoded(ends, _) => match ends.data_type() {
            Int16 => text_bytes(array.as_run::<arrow::datatypes::Int16Type>().values()),
            Int32 => text_bytes(array.as_run::<arrow::datatypes::Int32Type>().values()),
            _ => text_bytes(array.as_run::<arrow::datatypes::Int64Type>().values()),
        },
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    use arrow::array::{ListArray, StringArray, StringViewArray};
    use arrow::buffer::OffsetBuffer;
    use arrow::datatypes::Field;

    #[test]
    fn a_batch_with_more_text_than_a_plain_column_holds_is_divided() {
        let views = Arc::new(StringViewArray::from_iter_values(["a", "bc", "def", "ghij", "k"])) as ArrayRef;
        let item = Arc::new(Field::new("item", DataType::Utf8View, true));
        let lists = ListArray::new(item, OffsetBuffer::from_lengths([1, 1, 1, 1, 1]), Arc::clone(&views), None);
        let batch = RecordBatch::try_from_iter([("v", views), ("l", Arc::new(lists) as ArrayRef)]).unwrap();
        let mut plain = PlainStrings::new(&batch.schema()).unwrap();
        plain.limit = 5;
        let mut parts = Vec::new();
        plain.apply(&batch, &mut parts).unwrap();
        let rows: Vec<_> = parts.iter().map(RecordBatch::num_rows).collect();
        assert_eq!(rows, [2, 1, 2]);
        assert_eq!(parts[2].column(0).as_ref(), &StringArray::from(vec!["ghij", "k"]) as &dyn Array);
        assert_eq!(parts[2].column(1).as_list::<i32>().values().len(), 2);
        plain.limit = 3;
        let error = plain.apply(&batch, &mut Vec::new()).unwrap_err();
        assert!(error.to_string().starts_with("column \"v\" (Utf8View): a row has more than 3 bytes"), "{error}");
    }
}
