//! Running a statement: its rows on their way from the driver's reader to the client, or the number of changed rows.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use adbc_core::error::{Error, Status};
use adbc_core::options::{OptionStatement, OptionValue};
use adbc_core::{Optionable, Statement as _};
use adbc_driver_manager::ManagedStatement;
use arrow_array::RecordBatch;
use arrow_schema::{Field, Schema, SchemaRef};
use futures::Stream;
use thallus_server::engine::{EngineError, QueryRequest, QueryStream, changed_rows, slices};
use tokio::sync::{mpsc, oneshot};

use crate::batches::{Batches, Reader};
use crate::error;
use crate::parameters;
use crate::pool::{Lease, Permit, Pool};
use crate::text::{Kind, Statement};
use crate::vendor;
use crate::work::{Cancel, Work};

/// Batches in the channel, besides the one in the making.
const BATCHES_AHEAD: usize = 2;

/// A batch of a result, or the error that ends it.
type Item = Result<RecordBatch, EngineError>;

/// A statement that has begun.
enum Started {
    /// It returns rows of this schema.
    Rows(SchemaRef),
    /// It has changed this many rows.
    Changed(u64),
}

/// Runs a statement.
pub(crate) async fn execute(pool: &Arc<Pool>, query: QueryRequest) -> Result<QueryStream, EngineError> {
    let statement = Statement::of(&query.sql)?;
    let parameters = parameters::of(&query)?;
    let permit = pool.permit().await?;
    let (started, start) = oneshot::channel();
    let (rows, batches) = mpsc::channel(BATCHES_AHEAD);
    let execution = Execution { pool: Arc::clone(pool), statement, query, parameters };
    let mut work = Work::start(move |cancel| {
        let mut ways = Ways { started: Some(started), rows };
        if let Err(error) = execution.run(permit, cancel, &mut ways) {
            ways.fail(error);
        }
    });
    match work.answer(start).await? {
        Started::Changed(count) => Ok(changed_rows(count)),
        Started::Rows(schema) => Ok(QueryStream { schema, batches: Box::pin(Rows { batches, work: Some(work) }) }),
    }
}

/// The ways from a statement's thread to its reader.
struct Ways {
    /// `None` once the schema is sent.
    started: Option<oneshot::Sender<Result<Started, EngineError>>>,
    rows: mpsc::Sender<Item>,
}

impl Ways {
    /// Returns whether anything still waits for the result.
    fn start(&mut self, started: Started) -> bool {
        self.started.take().is_some_and(|sender| sender.send(Ok(started)).is_ok())
    }

    /// Waits for room, so that a slow client slows down the driver. Returns whether more rows are wanted.
    fn send(&self, item: Item) -> bool {
        self.rows.blocking_send(item).is_ok()
    }

    /// Ends the result with an error. The receivers may be dropped.
    fn fail(&mut self, error: EngineError) {
        match self.started.take() {
            Some(started) => drop(started.send(Err(error))),
            None => drop(self.rows.blocking_send(Err(error))),
        }
    }
}

/// The receiving end of a statement's rows.
struct Rows {
    batches: mpsc::Receiver<Item>,
    /// `None` once the end of the thread is known.
    work: Option<Work>,
}

impl Stream for Rows {
    type Item = Item;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Item>> {
        if let Some(item) = ready!(self.batches.poll_recv(cx)) {
            return Poll::Ready(Some(item));
        }
        // A closed channel alone does not distinguish a complete result from one that a panic truncated.
        let Some(work) = &mut self.work else { return Poll::Ready(None) };
        let end = ready!(work.poll_end(cx));
        self.work = None;
        Poll::Ready(end.map(Err))
    }
}

/// A statement to run.
struct Execution {
    pool: Arc<Pool>,
    statement: Statement,
    query: QueryRequest,
    /// The parameters in the order of the statement, at least one row.
    parameters: Option<RecordBatch>,
}

impl Execution {
    /// Runs the statement on the current thread.
    fn run(&self, permit: Permit, cancel: &Cancel, ways: &mut Ways) -> Result<(), EngineError> {
        cancel.check()?;
        let defaults = &self.query.defaults;
        // A statement that reads the state of its connection must not see another client's.
        let mut lease = match self.statement.leaves_no_state {
            true => self.pool.connection(permit, defaults)?,
            false => self.pool.new_connection(permit, defaults)?,
        };
        let rows = self.parameters.as_ref().map_or(1, RecordBatch::num_rows);
        let in_transaction = rows > 1 && !matches!(self.statement.kind, Kind::Select | Kind::Rows);
        if in_transaction {
            lease.begin("a change with several rows of parameters")?;
        }
        let complete = match self.statement.kind {
            Kind::Change | Kind::Definition => {
                let count = self.change(&mut lease, cancel)?;
                if in_transaction {
                    lease.commit()?;
                }
                ways.start(Started::Changed(count))
            }
            Kind::Select | Kind::Rows | Kind::Returning => {
                let complete = self.rows(&mut lease, cancel, ways)?;
                if in_transaction && complete {
                    lease.commit()?;
                }
                complete
            }
        };
        if complete && self.statement.leaves_no_state {
            lease.give_back(cancel);
        }
        Ok(())
    }

    /// Runs a statement without rows. Returns the number of changed rows.
    fn change(&self, lease: &mut Lease, cancel: &Cancel) -> Result<u64, EngineError> {
        let mut statement = self.prepared(lease, cancel)?;
        let mut count = |statement: &mut ManagedStatement| {
            let count = statement.execute_update()?.unwrap_or(0);
            Ok(if self.statement.kind == Kind::Change { u64::try_from(count).unwrap_or(0) } else { 0 })
        };
        let mut executions = Executions::new(&self.parameters);
        let mut changed = 0_u64;
        while let Some(counted) = executions.next(&mut statement, &mut count).map_err(|e| lease.failed(&e))? {
            changed = changed.saturating_add(counted);
            cancel.check()?;
        }
        Ok(changed)
    }

    /// Runs a statement that may return rows, and sends them. Returns whether all were wanted.
    fn rows(&self, lease: &mut Lease, cancel: &Cancel, ways: &mut Ways) -> Result<bool, EngineError> {
        let mut statement = self.prepared(lease, cancel)?;
        let mut executions = Executions::new(&self.parameters);
        let mut execute = |statement: &mut ManagedStatement| statement.execute().map(|reader| reader as Reader);
        let first = executions.next(&mut statement, &mut execute).map_err(|e| lease.failed(&e))?;
        let Some(mut reader) = first else {
            return Err(EngineError::Internal { message: "the statement was not run".to_owned() });
        };
        let schema = reader.schema();
        if self.statement.kind == Kind::Rows && schema.fields().is_empty() {
            // The statement runs as its reader is read.
            reader.try_for_each(|item| item.map(drop)).map_err(|e| error::of_stream(&e))?;
            return Ok(ways.start(Started::Changed(0)));
        }
        let schema = self.announced(schema);
        if !ways.start(Started::Rows(Arc::clone(&schema))) {
            return Ok(false);
        }
        loop {
            for item in Batches::new(reader, &schema) {
                cancel.check()?;
                for piece in slices(item, self.query.batch_rows.unwrap_or(usize::MAX).max(1)) {
                    if !ways.send(Ok(piece?)) {
                        return Ok(false);
                    }
                }
            }
            match executions.next(&mut statement, &mut execute).map_err(|e| lease.failed(&e))? {
                Some(next) => reader = next,
                None => return Ok(true),
            }
        }
    }

    /// The statement in the driver, ready to be executed.
    fn prepared(&self, lease: &mut Lease, cancel: &Cancel) -> Result<ManagedStatement, EngineError> {
        let mut statement = lease.statement(cancel)?;
        statement.set_sql_query(&self.query.sql).map_err(|e| lease.failed(&e))?;
        let option = vendor::option_for_rows(self.pool.vendor()).filter(|_| self.statement.kind == Kind::Rows);
        if let Some((key, value)) = option {
            let set = statement.set_option(OptionStatement::from(key), OptionValue::from(value));
            set.map_err(|e| lease.failed(&e))?;
        }
        if let Some(parameters) = &self.parameters {
            statement.prepare().map_err(|e| lease.failed(&e))?;
            parameters::check(&statement, parameters)?;
        }
        Ok(statement)
    }

    /// The schema of the result. A parameter may be NULL in a later row, or in the next request of the same statement,
    /// so results with parameters have columns that may have nulls.
    fn announced(&self, schema: SchemaRef) -> SchemaRef {
        if self.parameters.is_none() {
            return schema;
        }
        let fields = schema.fields().iter().map(|field| Field::clone(field).with_nullable(true));
        Arc::new(Schema::new_with_metadata(fields.collect::<Vec<_>>(), schema.metadata().clone()))
    }
}

/// The executions of a statement: one for all rows of parameters if the driver can, else one for each row.
struct Executions<'a> {
    parameters: Option<&'a RecordBatch>,
    /// The next row, once the driver has refused several at once.
    row: Option<usize>,
    done: bool,
}

impl<'a> Executions<'a> {
    fn new(parameters: &'a Option<RecordBatch>) -> Self {
        Executions { parameters: parameters.as_ref(), row: None, done: false }
    }

    /// Executes the statement for the next row, or for all. `None`: it was executed for all rows.
    fn next<T>(
        &mut self,
        statement: &mut ManagedStatement,
        execute: &mut impl FnMut(&mut ManagedStatement) -> Result<T, Error>,
    ) -> Result<Option<T>, Error> {
        let Some(parameters) = self.parameters else {
            return if std::mem::replace(&mut self.done, true) { Ok(None) } else { execute(statement).map(Some) };
        };
        if self.done {
            return Ok(None);
        }
        let Some(row) = self.row else {
            return match statement.bind(parameters.clone()).and_then(|()| execute(statement)) {
                Err(error) if error.status == Status::NotImplemented && parameters.num_rows() > 1 => {
                    self.row = Some(0);
                    self.next(statement, execute)
                }
                executed => {
                    self.done = true;
                    executed.map(Some)
                }
            };
        };
        self.row = Some(row + 1);
        self.done = row + 1 >= parameters.num_rows();
        statement.bind(parameters.slice(row, 1)).and_then(|()| execute(statement)).map(Some)
    }
}
