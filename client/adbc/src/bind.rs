//! Bound rows of parameters: each row is one execution of the statement.

use std::sync::Arc;

use adbc_core::error::Result;
use arrow::array::{Array, ArrayRef, AsArray, RecordBatch, RecordBatchReader};
use arrow::compute::cast;
use arrow::datatypes::{DataType, Field, Schema};
use arrow::error::ArrowError;
use arrow::ipc::writer::StreamWriter;
use thallus_client::{QueryOptions, ResultStream};

use crate::cancel::Watch;
use crate::error::{from_arrow, not_implemented};
use crate::session::Session;

/// Most bytes of parameters in one request, encoded as Arrow IPC. Requests have 64 KiB at most, with their SQL text.
const MAX_BYTES: usize = 48 << 10;
/// Most rows of parameters in one request.
const MAX_ROWS: usize = 1 << 16;

/// The rows that an application has bound.
pub(crate) type Bound = Box<dyn RecordBatchReader + Send>;

/// Executions of one statement, each with as many rows of parameters as one request takes.
pub(crate) struct Executions {
    sql: String,
    options: QueryOptions,
    pieces: Pieces,
}

impl Executions {
    pub(crate) fn new(sql: String, options: QueryOptions, bound: Bound) -> Self {
        Executions { sql, options, pieces: Pieces { bound, rest: None } }
    }

    /// Executes the statement with the next rows. `None` after the last.
    ///
    /// # Errors
    /// Those of the application's stream and of the query.
    pub(crate) fn next(&mut self, session: &Session, watch: &mut Watch) -> Result<Option<ResultStream>> {
        let Some(rows) = self.pieces.next()? else { return Ok(None) };
        let options = self.options.clone().with_parameters(Some(rows));
        let result = session.run(watch, session.client()?.query_with(&self.sql, options))?;
        Ok(Some(result))
    }
}

/// Rows in pieces of at most [`MAX_BYTES`].
struct Pieces {
    bound: Bound,
    /// Rows that were read and not sent yet.
    rest: Option<RecordBatch>,
}

impl Pieces {
    fn next(&mut self) -> Result<Option<RecordBatch>> {
        let batch = loop {
            let next = match self.rest.take() {
                Some(rest) => Some(rest),
                None => {
                    self.bound.next().transpose().and_then(|batch| batch.map(plain).transpose()).map_err(from_arrow)?
                }
            };
            match next {
                None => return Ok(None),
                Some(batch) if batch.num_rows() > 0 => break batch,
                Some(_) => {}
            }
        };
        let rows = fitting_rows(&batch).map_err(from_arrow)?;
        if rows < batch.num_rows() {
            self.rest = Some(batch.slice(rows, batch.num_rows() - rows));
        }
        compact(&batch.slice(0, rows)).map(Some).map_err(from_arrow)
    }
}

/// The batch with dictionaries decoded: their values would travel whole with every piece.
fn plain(batch: RecordBatch) -> std::result::Result<RecordBatch, ArrowError> {
    let is_dictionary = |field: &Arc<Field>| matches!(field.data_type(), DataType::Dictionary(..));
    if !batch.schema_ref().fields().iter().any(is_dictionary) {
        return Ok(batch);
    }
    let (mut fields, mut columns) = (Vec::new(), Vec::new());
    for (field, column) in batch.schema_ref().fields().iter().zip(batch.columns()) {
        let kind = match field.data_type() {
            DataType::Dictionary(_, values) => values.as_ref(),
            other => other,
        };
        columns.push(cast(column, kind)?);
        fields.push(Field::new(field.name(), kind.clone(), field.is_nullable()));
    }
    RecordBatch::try_new(Arc::new(Schema::new(fields)), columns)
}

/// Copies of the views that a slice uses, without the rest of their buffers.
fn compact(batch: &RecordBatch) -> std::result::Result<RecordBatch, ArrowError> {
    let columns = batch.columns().iter().map(|column| -> ArrayRef {
        match column.data_type() {
            DataType::Utf8View => Arc::new(column.as_string_view().gc()),
            DataType::BinaryView => Arc::new(column.as_binary_view().gc()),
            _ => Arc::clone(column),
        }
    });
    RecordBatch::try_new_with_options(
        batch.schema(),
        columns.collect(),
        &arrow::array::RecordBatchOptions::new().with_row_count(Some(batch.num_rows())),
    )
}

/// The number of rows at the begin of a batch that fit one request; at least one, so that the server can refuse a row
/// that is too large.
fn fitting_rows(batch: &RecordBatch) -> std::result::Result<usize, ArrowError> {
    let mut rows = batch.num_rows().min(MAX_ROWS);
    while rows > 1 {
        let bytes = encoded_bytes(&compact(&batch.slice(0, rows))?)?;
        if bytes <= MAX_BYTES {
            break;
        }
        // A little less than the proportion, since each message has bytes of its own.
        rows = (rows.saturating_mul(MAX_BYTES) / bytes).saturating_mul(9).div_euclid(10).clamp(1, rows - 1);
    }
    Ok(rows)
}

fn encoded_bytes(batch: &RecordBatch) -> std::result::Result<usize, ArrowError> {
    let mut writer = StreamWriter::try_new(Vec::new(), batch.schema_ref())?;
    writer.write(batch)?;
    Ok(writer.into_inner()?.len())
}

/// Parameters of a partitioned execution, which no descriptor carries.
pub(crate) fn not_in_partitions() -> adbc_core::error::Error {
    not_implemented("partitions of a statement with parameters; execute it, or write the values into its text")
}

#[cfg(test)]
mod tests {
    use arrow::array::{DictionaryArray, Int64Array, RecordBatchIterator, StringArray, StringViewArray};
    use arrow::compute::concat_batches;
    use arrow::datatypes::Int32Type;

    use super::*;

    fn pieces(batches: Vec<RecordBatch>) -> Vec<RecordBatch> {
        let schema = batches[0].schema();
        let bound = Box::new(RecordBatchIterator::new(batches.into_iter().map(Ok), schema));
        let mut pieces = Pieces { bound, rest: None };
        std::iter::from_fn(|| pieces.next().unwrap()).collect()
    }

    fn texts(rows: i64, long: usize) -> RecordBatch {
        let ids: ArrayRef = Arc::new(Int64Array::from_iter_values(0..rows));
        let texts: ArrayRef =
            Arc::new(StringArray::from_iter_values((0..rows).map(|row| format!("{row}{}", "x".repeat(long)))));
        RecordBatch::try_from_iter([("id", ids), ("text", texts)]).unwrap()
    }

    #[test]
    fn pieces_fit_requests_and_have_all_rows_in_order() {
        for batch in [texts(1, 0), texts(10_000, 10), texts(100, 5000), texts(3, 60_000)] {
            let pieces = pieces(vec![batch.slice(0, 0), batch.clone()]);
            assert_eq!(concat_batches(&batch.schema(), &pieces).unwrap(), batch);
            for piece in pieces {
                assert!(piece.num_rows() == 1 || encoded_bytes(&piece).unwrap() <= MAX_BYTES);
            }
        }
        assert_eq!(pieces(vec![texts(100, 10)]).len(), 1);
    }

    #[test]
    fn views_and_dictionaries_do_not_drag_their_buffers_along() {
        let long = |row: usize| format!("{row} {}", "y".repeat(2000));
        let views: ArrayRef = Arc::new(StringViewArray::from_iter_values((0..100).map(long)));
        let texts: DictionaryArray<Int32Type> =
            (0..100).map(long).collect::<Vec<_>>().iter().map(String::as_str).collect();
        let batch = RecordBatch::try_from_iter([("v", views), ("d", Arc::new(texts) as ArrayRef)]).unwrap();
        let pieces = pieces(vec![batch.clone()]);
        assert!(pieces.iter().all(|piece| encoded_bytes(piece).unwrap() <= MAX_BYTES));
        assert_eq!(pieces.iter().map(RecordBatch::num_rows).sum::<usize>(), 100);
        assert_eq!(pieces[0].schema().field(1).data_type(), &DataType::Utf8);
        assert_eq!(pieces[1].column(0).as_string_view().value(0), long(pieces[0].num_rows()));
    }
}
