//! Batches of a driver, checked, and small ones joined.

use std::sync::Arc;

use arrow_array::cast::AsArray;
use arrow_array::{Array, ArrayRef, RecordBatch, RecordBatchOptions, RecordBatchReader};
use arrow_schema::{ArrowError, DataType, SchemaRef};
use arrow_select::concat::concat_batches;
use thallus_server::engine::EngineError;

use crate::error;

/// A driver's reader.
pub(crate) type Reader = Box<dyn RecordBatchReader + Send>;

/// Rows from which a batch is passed on as it is, and up to which smaller ones are joined. DuckDB's have 2048 rows,
/// less than is worth lending.
const ROWS: usize = 65_536;
/// Bytes from which a batch is passed on as it is, and after which no more are joined.
const BYTES: usize = 4 << 20;

/// The batches of a reader, with the announced schema. Nothing follows an error.
///
/// The first batch is passed on at once, and each later one has as many rows as all before it, up to the limit. So a
/// reader waits for a batch at most as long as it has waited for the result so far.
pub(crate) struct Batches {
    reader: Reader,
    schema: SchemaRef,
    /// Rows passed on.
    passed: usize,
    /// A batch that did not fit to those before it, or the error after them.
    next: Option<Result<RecordBatch, EngineError>>,
    ended: bool,
}

impl Batches {
    pub(crate) fn new(reader: Reader, schema: &SchemaRef) -> Self {
        Batches { reader, schema: Arc::clone(schema), passed: 0, next: None, ended: false }
    }

    /// The next batch of the driver with rows.
    fn read(&mut self) -> Option<Result<RecordBatch, EngineError>> {
        if let Some(next) = self.next.take() {
            return Some(next);
        }
        if self.ended {
            return None;
        }
        let schema = &self.schema;
        let read = self.reader.by_ref().map(|item| item.map_err(|e| error::of_stream(&e)));
        let mut checked = read.map(|item| item.and_then(|batch| checked(batch, schema)));
        let item = checked.find(|item| item.as_ref().map_or(true, |batch| batch.num_rows() > 0));
        self.ended = !matches!(item, Some(Ok(_)));
        item
    }

    /// A batch, joined with those that follow it.
    fn joined(&mut self, first: RecordBatch) -> Result<RecordBatch, EngineError> {
        let target = self.passed.min(ROWS);
        let (mut rows, mut bytes) = (first.num_rows(), first.get_array_memory_size());
        let mut parts = vec![first];
        while rows < target && bytes < BYTES {
            match self.read() {
                Some(Ok(batch)) if batch.num_rows() < ROWS && batch.get_array_memory_size() < BYTES => {
                    rows += batch.num_rows();
                    bytes += batch.get_array_memory_size();
                    parts.push(batch);
                }
                other => {
                    self.next = other;
                    break;
                }
            }
        }
        match <[RecordBatch; 1]>::try_from(parts) {
            Ok([alone]) => Ok(alone),
            Err(parts) => concat_batches(&self.schema, &parts)
                .map_err(|e| EngineError::Internal { message: format!("cannot join the driver's batches: {e}") }),
        }
    }
}

impl Iterator for Batches {
    type Item = Result<RecordBatch, EngineError>;

    fn next(&mut self) -> Option<Self::Item> {
        let item = self.read()?.and_then(|first| self.joined(first));
        match &item {
            Ok(batch) => self.passed = self.passed.saturating_add(batch.num_rows()),
            Err(_) => (self.ended, self.next) = (true, None),
        }
        Some(item)
    }
}

/// The batch with the announced schema, if its columns have the announced types and plausible buffers.
///
/// A driver is code in this process, and has to be trusted with its memory. These checks find mistakes that a driver
/// can make in good faith: SQLite's texts may be no UTF-8, for one.
fn checked(batch: RecordBatch, schema: &SchemaRef) -> Result<RecordBatch, EngineError> {
    let broken = |e| EngineError::Internal { message: format!("the driver's batch is not valid: {e}") };
    batch.columns().iter().try_for_each(validate).map_err(broken)?;
    let options = RecordBatchOptions::new().with_row_count(Some(batch.num_rows()));
    RecordBatch::try_new_with_options(Arc::clone(schema), batch.columns().to_vec(), &options).map_err(broken)
}

/// Checks the buffers of an array, and its texts. A full check of numbers and of ASCII finds nothing more, and takes
/// half as long as DuckDB takes to make them.
fn validate(array: &ArrayRef) -> Result<(), ArrowError> {
    let data = array.to_data();
    data.validate()?;
    let is_simple = match array.data_type() {
        DataType::Utf8 => array.as_string::<i32>().value_data().is_ascii(),
        DataType::LargeUtf8 => array.as_string::<i64>().value_data().is_ascii(),
        other => other.is_primitive() || *other == DataType::Boolean,
    };
    if is_simple { Ok(()) } else { data.validate_full() }
}

#[cfg(test)]
mod tests {
    use arrow_array::{Int64Array, RecordBatchIterator};

    use super::*;

    fn batch(rows: std::ops::Range<i64>) -> RecordBatch {
        let values: ArrayRef = Arc::new(Int64Array::from_iter_values(rows));
        RecordBatch::try_from_iter([("a", values)]).unwrap()
    }

    fn batches(items: Vec<Result<RecordBatch, ArrowError>>) -> Vec<Result<RecordBatch, EngineError>> {
        let schema = batch(0..0).schema();
        let reader = RecordBatchIterator::new(items, Arc::clone(&schema));
        Batches::new(Box::new(reader), &schema).collect()
    }

    fn lengths(batches: &[Result<RecordBatch, EngineError>]) -> Vec<usize> {
        batches.iter().map(|batch| batch.as_ref().map_or(0, RecordBatch::num_rows)).collect()
    }

    #[test]
    fn small_batches_are_joined_more_and_more_and_keep_their_order() {
        let items = (0..100).map(|n| Ok(batch(n * 2048..(n + 1) * 2048)));
        let joined = batches(items.collect());
        assert_eq!(lengths(&joined)[..8], [1, 1, 2, 4, 8, 16, 32, 32].map(|chunks| chunks * 2048));
        let joined: Vec<_> = joined.into_iter().map(Result::unwrap).collect();
        assert_eq!(concat_batches(&joined[0].schema(), &joined).unwrap(), batch(0..204_800));
    }

    #[test]
    fn large_batches_are_passed_on_in_their_place() {
        let items = [0..10, 10..20, 20..70_020, 70_020..70_030, 70_030..70_040];
        let pointer = |batch: &RecordBatch| batch.column(0).to_data().buffers()[0].as_ptr();
        let items: Vec<_> = items.into_iter().map(batch).collect();
        let large = pointer(&items[2]);
        let joined = batches(items.into_iter().map(Ok).collect());
        assert_eq!(lengths(&joined), [10, 10, 70_000, 20]);
        assert_eq!(pointer(joined[2].as_ref().unwrap()), large);
    }

    #[test]
    fn an_error_comes_after_the_rows_before_it_and_is_the_end() {
        let failed = || Err(ArrowError::CDataInterface("as told".into()));
        let items = vec![Ok(batch(0..10)), Ok(batch(0..0)), Ok(batch(10..15)), failed(), Ok(batch(15..20))];
        let joined = batches(items);
        assert_eq!(lengths(&joined), [10, 5, 0]);
        assert_eq!(joined[2], Err(EngineError::Execution { message: "as told".into() }));
    }
}
