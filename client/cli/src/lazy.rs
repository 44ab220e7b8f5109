//! `thallus query --lazy`: reads only the columns and rows of each batch that are written to the output.

use std::ops::Range;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use arrow::array::RecordBatch;
use arrow::datatypes::{Schema, SchemaRef};
use futures::future::{BoxFuture, FutureExt};
use futures::stream::{FuturesOrdered, Stream, StreamExt};

use super::failure::Failure;
use super::output::QueryResult;
pub use super::rows::{Rows, RowsError};
use thallus_client::{ClientError, LazyBatch, LazyStream, TransferReport};

/// Batches that are read concurrently, so that the output does not wait for each round trip.
const AHEAD: usize = 4;

/// Positions of the named columns. Each argument is one name, or several separated by commas. All columns if none is
/// named.
///
/// # Errors
/// [`Failure::Usage`] if a name matches no column, or several.
pub fn columns(schema: &Schema, named: &[String]) -> Result<Vec<usize>, Failure> {
    if named.is_empty() {
        return Ok((0..schema.fields().len()).collect());
    }
    let is_column = |name: &str| schema.fields().iter().any(|field| field.name() == name);
    let mut columns = Vec::new();
    for argument in named {
        // Names of expressions contain commas, as in `round(a,2)`.
        let names = if is_column(argument) { vec![argument.as_str()] } else { argument.split(',').collect() };
        for name in names {
            columns.push(column(schema, name)?);
        }
    }
    Ok(columns)
}

fn column(schema: &Schema, name: &str) -> Result<usize, Failure> {
    let mut found = schema.fields().iter().enumerate().filter(|(_, field)| field.name() == name);
    match (found.next(), found.next()) {
        (Some((at, _)), None) => Ok(at),
        (Some(_), Some(_)) => Err(Failure::Usage {
            message: format!("the result has several columns {name:?}"),
            hint: "give them names of their own in the query, with AS".into(),
        }),
        (None, _) => {
            let names: Vec<_> = schema.fields().iter().map(|field| field.name().as_str()).collect();
            Err(Failure::Usage {
                message: format!("the result has no column {name:?}"),
                hint: format!("its columns are {}", names.join(", ")),
            })
        }
    }
}

/// The part of a lazy result that is written: some columns, some rows, and at most as many rows as are shown.
pub struct LazyRows {
    /// Dropped once nothing more of it is needed, which cancels the query if it still runs.
    result: Option<LazyStream>,
    schema: SchemaRef,
    columns: Arc<[usize]>,
    /// Requested rows that have not passed yet, counted from the next batch's first row.
    rows: Rows,
    /// Most rows that the output shows; further rows are counted, and not read.
    show: u64,
    omitted: u64,
    reading: FuturesOrdered<BoxFuture<'static, Result<RecordBatch, ClientError>>>,
    /// The last report, once the result is dropped.
    report: TransferReport,
}

impl LazyRows {
    /// These columns and rows of a result. At most `show` of the rows are read.
    ///
    /// # Errors
    /// [`Failure::Usage`] if the result has no such column.
    pub fn new(result: LazyStream, named: &[String], rows: Rows, show: Option<usize>) -> Result<Self, Failure> {
        let columns: Arc<[usize]> = columns(&result.schema(), named)?.into();
        let schema = Arc::new(result.schema().project(&columns).map_err(|error| Failure::Usage {
            message: format!("the columns cannot be taken from the result: {error}"),
            hint: "leave --columns out".into(),
        })?);
        let (report, show) = (result.report(), show.map_or(u64::MAX, |rows| rows as u64));
        let reading = FuturesOrdered::new();
        Ok(LazyRows { result: Some(result), schema, columns, rows, show, omitted: 0, reading, report })
    }

    /// Begins to read the requested part of a batch.
    fn want(&mut self, batch: LazyBatch) {
        let Range { start, end } = self.pass(batch.num_rows());
        if start == end {
            return;
        }
        let columns = Arc::clone(&self.columns);
        self.reading.push_back(async move { batch.columns_in(&columns, start..end).await }.boxed());
    }

    /// The rows to be read of the next batch.
    fn pass(&mut self, count: usize) -> Range<usize> {
        let len = count as u64;
        let (start, end) = (self.rows.from.min(len), self.rows.to.min(len));
        let to = if self.rows.to == u64::MAX { u64::MAX } else { self.rows.to - end };
        self.rows = Rows { from: self.rows.from - start, to };
        let shown = (end - start).min(self.show);
        self.show -= shown;
        self.omitted += end - start - shown;
        // Within the batch, whose length is a usize.
        start as usize..(start + shown) as usize
    }

    /// All requested rows have passed, so the rest of the result is dropped.
    fn finished(&mut self) {
        if let Some(result) = self.result.take() {
            self.report = result.report();
            self.report.complete = true;
        }
    }
}

impl Stream for LazyRows {
    type Item = Result<RecordBatch, ClientError>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = &mut *self;
        // Batches first, so that they are read while the output is written.
        while this.reading.len() < AHEAD && this.rows.to > 0 {
            let Some(result) = &mut this.result else { break };
            match result.poll_next_unpin(cx) {
                Poll::Ready(Some(Ok(batch))) => this.want(batch),
                Poll::Ready(Some(Err(error))) => return Poll::Ready(Some(Err(error))),
                Poll::Ready(None) => break,
                Poll::Pending if this.reading.is_empty() => return Poll::Pending,
                Poll::Pending => break,
            }
        }
        let next = this.reading.poll_next_unpin(cx);
        if matches!(next, Poll::Ready(None)) && this.rows.to == 0 {
            this.finished();
        }
        next
    }
}

impl QueryResult for LazyRows {
    fn schema(&self) -> SchemaRef {
        Arc::clone(&self.schema)
    }

    fn report(&self) -> TransferReport {
        self.result.as_ref().map_or_else(|| self.report.clone(), LazyStream::report)
    }

    fn rows_omitted(&self) -> u64 {
        self.omitted
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use arrow::datatypes::{DataType, Field};

    #[test]
    fn columns_by_name() {
        let fields = ["a", "b", "round(a,2)", "twice", "twice"].map(|name| Field::new(name, DataType::Int64, true));
        let schema = Schema::new(fields.to_vec());
        let found = |named: &[&str]| columns(&schema, &named.iter().map(|&name| name.to_owned()).collect::<Vec<_>>());
        assert_eq!(found(&[]).unwrap(), [0, 1, 2, 3, 4]);
        assert_eq!(found(&["b,a"]).unwrap(), [1, 0]);
        assert_eq!(found(&["b", "round(a,2)", "b"]).unwrap(), [1, 2, 1]);
        let unknown = found(&["a,c"]).unwrap_err();
        assert!(unknown.to_string().contains("no column \"c\""), "{unknown}");
        assert!(unknown.hint().unwrap().contains("a, b, round(a,2)"), "{unknown:?}");
        assert!(found(&["twice"]).unwrap_err().to_string().contains("several columns"));
    }
}
