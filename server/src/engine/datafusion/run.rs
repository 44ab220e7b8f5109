//! One query, from its request to the end of its rows: a task on the engine's runtime, and the stream of its batches.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use arrow_array::cast::AsArray;
use arrow_array::types::UInt64Type;
use arrow_array::{RecordBatch, RecordBatchOptions};
use arrow_schema::{Field, FieldRef, Schema, SchemaRef};
use datafusion::error::DataFusionError;
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::physical_plan::{SendableRecordBatchStream, execute_stream};
use futures::{FutureExt, Stream, StreamExt, TryStreamExt};
use tokio::runtime::Handle;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;

use super::database::Applied;
use super::partitions::split;
use super::plan_cache::Read;
use super::planning::{Planned, apart, batch_rows, described, plan_apart, specs};
use super::{Shared, error};
use crate::engine::{BatchStream, Description, EngineError, PartitionedQuery, QueryRequest, QueryStream, is_change};

/// Batches in the channel, besides the one in the making: enough that neither side waits for every step of the other,
/// and no more memory than that.
const BATCHES_AHEAD: usize = 2;

/// Aborts the query's task when dropped, and with it all tasks that the task spawned.
struct Task(JoinHandle<()>);

impl Drop for Task {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Task {
    /// The end of the task: `None` if it completed, else the error.
    fn poll_end(&mut self, cx: &mut Context<'_>) -> Poll<Option<EngineError>> {
        self.0.poll_unpin(cx).map(|end| end.err().map(error::of_join))
    }
}

/// Plans and starts a query.
pub(super) async fn start(
    handle: &Handle,
    shared: Arc<Shared>,
    query: QueryRequest,
) -> Result<QueryStream, EngineError> {
    let (started, start) = oneshot::channel();
    let (rows, batches) = channel();
    let mut task = Task(handle.spawn(run(shared, query, started, rows)));
    let schema = answer(start, &mut task).await?;
    Ok(QueryStream { schema, batches: Box::pin(batches.of(task)) })
}

/// Plans a query and starts it as `count` streams.
pub(super) async fn start_partitioned(
    handle: &Handle,
    shared: Arc<Shared>,
    query: QueryRequest,
    count: usize,
) -> Result<PartitionedQuery, EngineError> {
    let (started, start) = oneshot::channel();
    let mut task = Task(handle.spawn(async move {
        // If the receiver is gone, this drops the partitions and ends their tasks.
        let _gone = started.send(partitions(&shared, query, count).await);
    }));
    answer(start, &mut task).await
}

/// Plans a statement without running it.
pub(super) async fn describe(
    handle: &Handle,
    shared: Arc<Shared>,
    query: QueryRequest,
) -> Result<Description, EngineError> {
    let (started, start) = oneshot::channel();
    let mut task = Task(handle.spawn(async move {
        let described = apart(&shared, move |shared| async move { described(&shared, &query).await }).await;
        let _gone = started.send(described.map_err(|e| shared.directories.hide(e)));
    }));
    answer(start, &mut task).await
}

/// Waits until a task has planned, and returns its answer.
async fn answer<T>(start: oneshot::Receiver<Result<T, EngineError>>, task: &mut Task) -> Result<T, EngineError> {
    match start.await {
        Ok(answer) => answer,
        // The task ended without an answer: it panicked, or the engine is shutting down.
        Err(_) => {
            let end = std::future::poll_fn(|cx| task.poll_end(cx)).await;
            Err(end.unwrap_or_else(error::shutting_down))
        }
    }
}

/// The way from a query's task to its reader.
fn channel() -> (Rows, Batches) {
    let (first_poll, wanted) = oneshot::channel();
    let (rows, batches) = mpsc::channel(BATCHES_AHEAD);
    (Rows { wanted, rows }, Batches { first_poll: Some(first_poll), batches, task: None })
}

/// The sending end of a query's rows.
struct Rows {
    /// Sent by the first poll of the receiving end. A query without a reader makes no batch.
    wanted: oneshot::Receiver<()>,
    rows: mpsc::Sender<Result<RecordBatch, EngineError>>,
}

/// The receiving end of a query's rows.
struct Batches {
    /// `None` once it was polled.
    first_poll: Option<oneshot::Sender<()>>,
    batches: mpsc::Receiver<Result<RecordBatch, EngineError>>,
    /// `None` once the task's end is known.
    task: Option<Task>,
}

impl Batches {
    /// The rows of this task.
    fn of(self, task: Task) -> Self {
        Batches { task: Some(task), ..self }
    }
}

impl Stream for Batches {
    type Item = Result<RecordBatch, EngineError>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if let Some(first_poll) = self.first_poll.take() {
            // The task may have ended.
            let _ended = first_poll.send(());
        }
        if let Some(item) = ready!(self.batches.poll_recv(cx)) {
            return Poll::Ready(Some(item));
        }
        // A closed channel alone does not distinguish a complete result from one that a panic truncated.
        let Some(task) = &mut self.task else { return Poll::Ready(None) };
        let end = ready!(task.poll_end(cx));
        self.task = None;
        Poll::Ready(end.map(Err))
    }
}

/// The task of a query: every step happens here, including the drop of its (possibly deep) plan.
async fn run(
    shared: Arc<Shared>,
    query: QueryRequest,
    started: oneshot::Sender<Result<SchemaRef, EngineError>>,
    Rows { wanted, rows }: Rows,
) {
    let mut executions = match executions(&query) {
        Ok(executions) => executions.into_iter(),
        Err(e) => return drop(started.send(Err(e))),
    };
    let query = Arc::new(query);
    let (stream, read) = match execute(&shared, &query, executions.next().flatten()).await {
        Ok(execution) => execution,
        // The receiver may be dropped.
        Err(e) => return drop(started.send(Err(e))),
    };
    if is_change(&stream.schema()) {
        return change(&shared, &query, stream, executions, started, rows).await;
    }
    let schema = announced(&query, stream.schema());
    if started.send(Ok(Arc::clone(&schema))).is_err() || wanted.await.is_err() {
        return;
    }
    let feed = Feed { shared: &shared, schema, batch_rows: batch_rows(&shared, &query), rows };
    let mut goes_on = feed.send(stream, &read).await;
    for row in executions {
        if !goes_on {
            return;
        }
        goes_on = match execute(&shared, &query, row).await {
            Ok((stream, read)) => feed.send(stream, &read).await,
            Err(e) => return drop(feed.rows.send(Err(e)).await),
        };
    }
}

/// Makes the changes of all rows of parameters, of which the first is done, before the client gets the answer: one row
/// with the sum of changed rows.
async fn change(
    shared: &Arc<Shared>,
    query: &Arc<QueryRequest>,
    first: SendableRecordBatchStream,
    executions: impl Iterator<Item = Option<RecordBatch>>,
    started: oneshot::Sender<Result<SchemaRef, EngineError>>,
    rows: mpsc::Sender<Result<RecordBatch, EngineError>>,
) {
    let changed = async {
        let mut count = counted(first).await?;
        for row in executions {
            let (stream, _read) = execute(shared, query, row).await?;
            count += counted(stream).await?;
        }
        Ok(count)
    };
    match changed.await {
        Err(e) => drop(started.send(Err(e))),
        Ok(count) => {
            let QueryStream { schema, mut batches } = crate::engine::changed_rows(count);
            // The receivers may be dropped.
            let _gone = started.send(Ok(schema));
            while let Some(batch) = batches.next().await {
                let _gone = rows.send(batch).await;
            }
        }
    }
}

/// The number in the result of a change.
async fn counted(mut stream: SendableRecordBatchStream) -> Result<u64, EngineError> {
    let mut count = 0;
    while let Some(batch) = stream.next().await {
        let batch = batch.map_err(|e| error::of_datafusion(e, &[]))?;
        let counts = batch.columns().first().and_then(|column| column.as_primitive_opt::<UInt64Type>());
        count += counts.map_or(0, |counts| counts.values().iter().sum::<u64>());
    }
    Ok(count)
}

/// The schema of a result. A parameter may be NULL in a later row, or in the next request of the same statement, so
/// results with parameters have columns that may have nulls.
pub(super) fn announced(query: &QueryRequest, schema: SchemaRef) -> SchemaRef {
    if query.parameters.is_none() {
        return schema;
    }
    let field = |field: &FieldRef| Field::clone(field).with_nullable(true);
    let fields: Vec<Field> = schema.fields().iter().map(field).collect();
    Arc::new(Schema::new_with_metadata(fields, schema.metadata().clone()))
}

/// The parameters of each execution of a statement.
fn executions(query: &QueryRequest) -> Result<Vec<Option<RecordBatch>>, EngineError> {
    match &query.parameters {
        None => Ok(vec![None]),
        Some(parameters) if parameters.num_rows() == 0 => {
            Err(EngineError::Parameters { message: "there is no row of parameters".to_owned() })
        }
        Some(parameters) => Ok((0..parameters.num_rows()).map(|row| Some(parameters.slice(row, 1))).collect()),
    }
}

/// Plans a statement with one row of parameters, and starts it.
async fn execute(
    shared: &Arc<Shared>,
    query: &Arc<QueryRequest>,
    row: Option<RecordBatch>,
) -> Result<(SendableRecordBatchStream, Read), EngineError> {
    let begun = match begin(shared, query, row, 1).await {
        Ok(Begun::Rows(Planned { plan, context, read, .. })) => execute_stream(plan, context)
            .map_err(|e| error::of_datafusion(e, &specs(&read.tables)))
            .map(|stream| (stream, read)),
        Ok(Begun::Changed(count)) => {
            let QueryStream { schema, batches } = crate::engine::changed_rows(count);
            let batches = batches.map_err(|e| DataFusionError::External(Box::new(e)));
            let stream: SendableRecordBatchStream = Box::pin(RecordBatchStreamAdapter::new(schema, batches));
            Ok((stream, Read { tables: Vec::new(), explains: false }))
        }
        Err(e) => Err(e),
    };
    begun.map_err(|e| shared.directories.hide(e))
}

/// A statement after its planning.
enum Begun {
    /// A query.
    Rows(Planned),
    /// A change that is done, of this many rows.
    Changed(u64),
}

/// Attempts of a change, if others of the same table come first.
const ATTEMPTS: usize = 10;

/// Plans a statement. A change is also made.
async fn begin(
    shared: &Arc<Shared>,
    query: &Arc<QueryRequest>,
    row: Option<RecordBatch>,
    partitions: usize,
) -> Result<Begun, EngineError> {
    for _ in 0..ATTEMPTS {
        let planned = plan_apart(shared, Arc::clone(query), row.clone(), partitions).await?;
        let (Some(change), Some(database)) = (planned.change, &shared.database) else {
            return Ok(Begun::Rows(Planned { change: None, ..planned }));
        };
        let read = planned.read;
        let failed = |e| error::of_datafusion(e, &specs(&read.tables));
        let rows = execute_stream(planned.plan, planned.context).map_err(failed)?.map_err(failed);
        let check =
            || read.tables.iter().try_for_each(|opened| opened.check_unchanged().map_err(|e| error::of_catalog(&e)));
        match change.apply(Arc::clone(database), &Handle::current(), rows, check).await? {
            Applied::Done(count) => {
                shared.plans.committed(database.commits_so_far());
                return Ok(Begun::Changed(count));
            }
            Applied::Conflict => {}
        }
    }
    let message = format!("other statements changed the same table during each of {ATTEMPTS} attempts; try again");
    Err(EngineError::Execution { message })
}

/// A query's partitions, each with its own task.
async fn partitions(shared: &Arc<Shared>, query: QueryRequest, count: usize) -> Result<PartitionedQuery, EngineError> {
    let mut executions = executions(&query)?;
    if executions.len() > 1 {
        let message = "partitions of a result with several rows of parameters".to_owned();
        return Err(EngineError::Unsupported { message });
    }
    let batch_rows = batch_rows(shared, &query);
    let row = executions.pop().flatten();
    let planned = plan_apart(shared, Arc::new(query), row, count).await.map_err(|e| shared.directories.hide(e))?;
    // Another member of the group may be lost, and then the client repeats the statement.
    if planned.change.is_some() {
        let message = "a change in several partitions; request it in one".to_owned();
        return Err(EngineError::Unsupported { message });
    }
    let Planned { plan, context, read, .. } = planned;
    let split = split(&plan, count, &context).map_err(|e| error::of_datafusion(e, &specs(&read.tables)));
    let split = split.map_err(|e| shared.directories.hide(e))?;
    let schema = split.streams.first().map_or_else(|| plan.schema(), |stream| stream.schema());
    let start = |stream: SendableRecordBatchStream| {
        let (Rows { wanted, rows }, batches) = channel();
        let (shared, read) = (Arc::clone(shared), read.clone());
        let task = tokio::spawn(async move {
            if wanted.await.is_ok() {
                let feed = Feed { shared: &shared, schema: stream.schema(), batch_rows, rows };
                feed.send(stream, &read).await;
            }
        });
        Box::pin(batches.of(Task(task))) as BatchStream
    };
    Ok(PartitionedQuery { schema, order: split.order, partitions: split.streams.into_iter().map(start).collect() })
}

/// The way of batches from operators to the reader.
struct Feed<'a> {
    shared: &'a Shared,
    /// The announced schema.
    schema: SchemaRef,
    batch_rows: usize,
    rows: mpsc::Sender<Result<RecordBatch, EngineError>>,
}

impl Feed<'_> {
    /// Sends the batches of a stream, up to its end or its first error. Returns whether more may follow.
    async fn send(&self, mut stream: SendableRecordBatchStream, read: &Read) -> bool {
        while let Some(item) = stream.next().await {
            let item = item
                .map_err(|e| error::of_datafusion(e, &specs(&read.tables)))
                .and_then(|batch| with_schema(batch, &self.schema))
                .map(|batch| if read.explains { self.shared.directories.hide_in_plan(batch) } else { batch })
                .map_err(|e| self.shared.directories.hide(e));
            let failed = item.is_err();
            for piece in crate::engine::slices(item, self.batch_rows) {
                if self.rows.send(piece).await.is_err() {
                    return false;
                }
            }
            if failed {
                return false;
            }
        }
        // Rows of two states of a file must not pass for a result.
        for opened in &read.tables {
            if let Err(changed) = opened.check_unchanged() {
                // The receiver may be dropped.
                let _ = self.rows.send(Err(self.shared.directories.hide(error::of_catalog(&changed)))).await;
                return false;
            }
        }
        true
    }
}

/// The batch with exactly the announced schema: some operators yield one that differs in nullability or metadata.
fn with_schema(batch: RecordBatch, schema: &SchemaRef) -> Result<RecordBatch, EngineError> {
    if Arc::ptr_eq(batch.schema_ref(), schema) || batch.schema_ref() == schema {
        return Ok(batch);
    }
    let options = RecordBatchOptions::new().with_row_count(Some(batch.num_rows()));
    RecordBatch::try_new_with_options(Arc::clone(schema), batch.columns().to_vec(), &options)
        .map_err(|e| EngineError::Internal { message: format!("a batch does not fit the announced schema: {e}") })
}
