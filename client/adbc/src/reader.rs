//! Results: batches as they arrive, in the memory into which they were read.

use std::any::Any;
use std::cell::RefCell;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use adbc_core::error::{Error, Result, Status};
use arrow::array::{RecordBatch, RecordBatchIterator, RecordBatchReader};
use arrow::datatypes::{DataType, Schema, SchemaRef};
use arrow::error::ArrowError;
use futures::StreamExt;
use thallus_client::ResultStream;

use crate::bind::Executions;
use crate::cancel::Watch;
use crate::error::{error, invalid_state, to_arrow};
use crate::fork::Anchored;
use crate::session::Session;

/// Batches for the application.
pub(crate) type Reader = Box<dyn RecordBatchReader + Send + 'static>;

/// The error that ended a result, for the stream that carries the result to C.
#[derive(Clone, Debug, Default)]
pub(crate) struct Failure(Arc<Mutex<Option<Error>>>);

impl Failure {
    pub(crate) fn get(&self) -> Option<Error> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn set(&self, error: Error) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
    }
}

/// The received part of a statement's last result.
#[derive(Debug, Default)]
pub(crate) struct Progress {
    rows: AtomicU64,
    complete: AtomicBool,
}

impl Progress {
    /// Rows received.
    pub(crate) fn rows(&self) -> u64 {
        self.rows.load(Ordering::Relaxed)
    }

    /// All rows of the result, once it has ended.
    pub(crate) fn total(&self) -> Option<u64> {
        self.complete.load(Ordering::Relaxed).then(|| self.rows())
    }
}

/// A statement's result.
pub(crate) struct ResultReader {
    schema: SchemaRef,
    /// `None` after the end.
    live: Anchored<Option<Live>>,
    failure: Failure,
}

/// A running result.
pub(crate) struct Live {
    // Dropped before the session that drives it.
    pub(crate) result: ResultStream,
    /// The executions that follow, each with its part of the bound rows.
    pub(crate) further: Option<Executions>,
    pub(crate) session: Arc<Session>,
    pub(crate) watch: Watch,
    pub(crate) progress: Arc<Progress>,
}

impl Live {
    pub(crate) fn next(&mut self) -> Result<Option<RecordBatch>> {
        let Live { result, further, session, watch, progress } = self;
        loop {
            if let Some(batch) = session.run(watch, async { result.next().await.transpose() })? {
                progress.rows.fetch_add(batch.num_rows() as u64, Ordering::Relaxed);
                return Ok(Some(batch));
            }
            let next = further.as_mut().map(|further| further.next(session, watch)).transpose()?.flatten();
            let Some(next) = next else {
                progress.complete.store(true, Ordering::Relaxed);
                return Ok(None);
            };
            if next.schema() != result.schema() {
                let message = "the result's schema changed between the rows of parameters; execute again";
                return Err(invalid_state(message));
            }
            *result = next;
        }
    }
}

impl ResultReader {
    pub(crate) fn new(live: Live) -> Self {
        let schema = live.result.schema();
        ResultReader { schema, live: Anchored::new(Some(live)), failure: Failure::default() }
    }

    pub(crate) fn failure(&self) -> Failure {
        self.failure.clone()
    }

    fn advance(&mut self) -> Result<Option<RecordBatch>> {
        let live = self.live.get_mut()?;
        let Some(running) = live else { return Ok(None) };
        // A panic must not unwind into the application, which may be written in C.
        let next = catch_unwind(AssertUnwindSafe(|| running.next())).unwrap_or_else(|_| Err(panicked()));
        if !matches!(next, Ok(Some(_))) {
            *live = None;
        }
        next
    }
}

fn panicked() -> Error {
    error(Status::Internal, "bug: the driver panicked while it read a result; the standard error has the message")
}

impl Iterator for ResultReader {
    type Item = std::result::Result<RecordBatch, ArrowError>;

    fn next(&mut self) -> Option<Self::Item> {
        match self.advance() {
            Ok(batch) => batch.map(Ok),
            Err(error) => {
                self.failure.set(error.clone());
                Some(Err(to_arrow(error)))
            }
        }
    }
}

impl RecordBatchReader for ResultReader {
    fn schema(&self) -> SchemaRef {
        Arc::clone(&self.schema)
    }
}

impl fmt::Debug for ResultReader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ResultReader").field("schema", &self.schema).finish_non_exhaustive()
    }
}

/// Refuses a schema that arrow cannot hand to C: a time zone with a NUL would end the process.
pub(crate) fn check_schema(schema: &Schema) -> Result<()> {
    let has_nul = |field: &&arrow::datatypes::Field| match field.data_type() {
        DataType::Timestamp(_, Some(zone)) => zone.contains('\0'),
        _ => false,
    };
    match schema.flattened_fields().into_iter().find(has_nul) {
        None => Ok(()),
        Some(field) => Err(error(Status::InvalidData, format!("the time zone of column {:?} has a NUL", field.name()))),
    }
}

/// A result that is complete.
pub(crate) fn of_batch(batch: RecordBatch) -> Reader {
    let schema = batch.schema();
    Box::new(RecordBatchIterator::new([Ok(batch)], schema))
}

/// A result without rows.
pub(crate) fn without_rows(schema: SchemaRef) -> Reader {
    Box::new(RecordBatchIterator::new([], schema))
}

/// The result of a statement that has none: no columns, no rows.
pub(crate) fn without_result() -> Reader {
    without_rows(Arc::new(Schema::empty()))
}

/// Facts about an execution that the traits of `adbc_core` have no room for.
#[derive(Clone, Default)]
pub(crate) struct Handover {
    /// The error of the result, once it has one.
    pub(crate) failure: Failure,
    /// Rows that the statement has changed.
    pub(crate) rows_affected: Option<i64>,
    /// Kept for as long as an array of the result: the connection that releases a mapped batch.
    pub(crate) keep: Option<Arc<dyn Any + Send + Sync>>,
}

thread_local! {
    /// `None` while no exported function waits for the facts.
    static WAITING: RefCell<Option<Handover>> = const { RefCell::new(None) };
}

/// Gives the facts to the exported function that runs on this thread, if there is one.
pub(crate) fn hand_over(facts: Handover) {
    WAITING.with_borrow_mut(|waiting| {
        if let Some(waiting) = waiting {
            *waiting = facts;
        }
    });
}

/// Calls the function, and returns the facts that it has handed over.
pub(crate) fn with_handover<T>(call: impl FnOnce() -> T) -> (T, Handover) {
    // The call may pull rows from the application, whose source may execute a statement of its own on this thread.
    let outer = WAITING.replace(Some(Handover::default()));
    let returned = call();
    (returned, WAITING.replace(outer).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn facts_reach_only_a_function_that_waits() {
        let facts = |rows| Handover { rows_affected: Some(rows), ..Handover::default() };
        hand_over(facts(1));
        let ((), none) = with_handover(|| ());
        assert_eq!(none.rows_affected, None);
        let ((), some) = with_handover(|| hand_over(facts(2)));
        assert_eq!(some.rows_affected, Some(2));
        let ((), outer) = with_handover(|| {
            let ((), inner) = with_handover(|| hand_over(facts(3)));
            assert_eq!(inner.rows_affected, Some(3));
            hand_over(facts(4));
        });
        assert_eq!(outer.rows_affected, Some(4));
    }
}
