//! An engine for tests: it plays scripts, lazily, and counts queries and batches.
//!
//! It needs no query engine, no files and no threads. Its clock is tokio's, so that it works in simulated time.
//!
//! ```
//! # use thallus_scripted_engine::{Script, ScriptedEngine};
//! # use thallus_server::engine::{Engine, QueryRequest};
//! # use futures::TryStreamExt;
//! # tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(async {
//! let engine = ScriptedEngine::new().with_query("big", Script::synthetic(3, 1000));
//! let query = engine.execute(QueryRequest::new("big")).await.unwrap();
//! let batches: Vec<_> = query.batches.try_collect().await.unwrap();
//! assert_eq!(batches.iter().map(|b| b.num_rows()).sum::<usize>(), 3000);
//! # });
//! ```

#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use arrow_array::{ArrayRef, BinaryArray, Float64Array, Int64Array, RecordBatch};
use arrow_schema::{DataType, Field, Schema, SchemaRef};
use async_trait::async_trait;
use futures::{StreamExt, stream};
use thallus_protocol::message::SortKey;
use thallus_server::engine::{
    Engine, EngineError, IngestRequest, Ingestion, PartitionedQuery, QueryRequest, QueryStream, TableInfo, slices,
};

/// Makes the batch with a given number.
pub type Generator = Arc<dyn Fn(u64) -> RecordBatch + Send + Sync>;

#[derive(Clone)]
enum Step {
    Batch(RecordBatch),
    Generate { batches: u64, generator: Generator },
    Sleep(Duration),
    Hang,
    IgnoreCancel,
    Fail(EngineError),
}

/// The steps of a query, which run in order as the stream is polled.
#[derive(Clone)]
pub struct Script {
    schema: SchemaRef,
    refusal: Option<EngineError>,
    steps: Vec<Step>,
}

impl Script {
    /// A result without rows.
    #[must_use]
    pub fn new(schema: SchemaRef) -> Self {
        Script { schema, refusal: None, steps: Vec::new() }
    }

    /// A query that fails before it starts.
    #[must_use]
    pub fn refuse(error: EngineError) -> Self {
        Script { schema: Arc::new(Schema::empty()), refusal: Some(error), steps: Vec::new() }
    }

    /// A result of these batches, which share the schema of the first.
    ///
    /// # Panics
    /// If `batches` is empty.
    #[must_use]
    pub fn batches(batches: impl IntoIterator<Item = RecordBatch>) -> Self {
        let mut batches = batches.into_iter();
        let first = batches.next().expect("at least one batch, for its schema");
        batches.fold(Script::new(first.schema()).batch(first), Script::batch)
    }

    /// `batches` batches of `rows` rows each of [`synthetic_batch`], made on demand.
    #[must_use]
    pub fn synthetic(batches: u64, rows: usize) -> Self {
        Script::new(synthetic_schema()).generate(batches, move |number| synthetic_batch(number, rows))
    }

    /// Adds a batch.
    #[must_use]
    pub fn batch(mut self, batch: RecordBatch) -> Self {
        self.steps.push(Step::Batch(batch));
        self
    }

    /// Adds `batches` batches, numbered from zero and made on demand.
    #[must_use]
    pub fn generate(mut self, batches: u64, generator: impl Fn(u64) -> RecordBatch + Send + Sync + 'static) -> Self {
        self.steps.push(Step::Generate { batches, generator: Arc::new(generator) });
        self
    }

    /// Adds a pause.
    #[must_use]
    pub fn sleep(mut self, time: Duration) -> Self {
        self.steps.push(Step::Sleep(time));
        self
    }

    /// Adds a pause without end.
    #[must_use]
    pub fn hang(mut self) -> Self {
        self.steps.push(Step::Hang);
        self
    }

    /// Adds a pause without end in a task of its own, which goes on after the query was cancelled: an engine that does
    /// not yield. See [`ScriptedEngine::ignoring_cancel`].
    #[must_use]
    pub fn ignore_cancel(mut self) -> Self {
        self.steps.push(Step::IgnoreCancel);
        self
    }

    /// Adds an error, which ends the result.
    #[must_use]
    pub fn fail(mut self, error: EngineError) -> Self {
        self.steps.push(Step::Fail(error));
        self
    }
}

impl fmt::Debug for Script {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Script").field("schema", &self.schema).field("steps", &self.steps.len()).finish_non_exhaustive()
    }
}

#[derive(Debug, Default)]
struct Counters {
    started: AtomicU64,
    running: AtomicU64,
    batches: AtomicU64,
    ignoring_cancel: AtomicU64,
}

/// The behaviour of a table during uploads.
#[derive(Clone, Debug, Default)]
pub struct SinkScript {
    /// Error at the begin of the upload.
    refusal: Option<EngineError>,
    /// Time for each batch, and for the end.
    pace: Duration,
    /// Error at the batch with this number, or at the end if there are fewer batches.
    failure: Option<(u64, EngineError)>,
}

impl SinkScript {
    /// A table that accepts every upload.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Refuses every upload.
    #[must_use]
    pub fn refuse(mut self, error: EngineError) -> Self {
        self.refusal = Some(error);
        self
    }

    /// Takes this time for each batch, and for the end.
    #[must_use]
    pub fn pace(mut self, pace: Duration) -> Self {
        self.pace = pace;
        self
    }

    /// Fails at the batch with this number, from 0, or at the end if there are fewer batches.
    #[must_use]
    pub fn fail_at(mut self, batch: u64, error: EngineError) -> Self {
        self.failure = Some((batch, error));
        self
    }
}

/// Completed uploads, by table, in the order of their completion.
type Uploads = Arc<Mutex<BTreeMap<String, Vec<Vec<RecordBatch>>>>>;

/// Plays a script for each known SQL text. Clones share scripts and counters.
#[derive(Clone, Debug, Default)]
pub struct ScriptedEngine {
    scripts: BTreeMap<String, Script>,
    partitioned: BTreeMap<String, (Vec<SortKey>, Vec<Script>)>,
    sinks: BTreeMap<String, SinkScript>,
    uploads: Uploads,
    counters: Arc<Counters>,
}

impl ScriptedEngine {
    /// An engine without scripts.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Plays `script` for the query with exactly this text.
    #[must_use]
    pub fn with_query(mut self, sql: impl Into<String>, script: Script) -> Self {
        self.scripts.insert(sql.into(), script);
        self
    }

    /// Plays one of `parts` in each partition of the query with this text, if it is requested in that many partitions.
    /// Each is sorted by `order`.
    #[must_use]
    pub fn with_partitioned_query(mut self, sql: impl Into<String>, order: Vec<SortKey>, parts: Vec<Script>) -> Self {
        self.partitioned.insert(sql.into(), (order, parts));
        self
    }

    /// Accepts uploads to `table`, with the behaviour of `sink`.
    #[must_use]
    pub fn with_sink(mut self, table: impl Into<String>, sink: SinkScript) -> Self {
        self.sinks.insert(table.into(), sink);
        self
    }

    /// Completed uploads to `table`, each with its batches, in the order of their completion.
    #[must_use]
    pub fn uploads(&self, table: &str) -> Vec<Vec<RecordBatch>> {
        self.lock_uploads().get(table).cloned().unwrap_or_default()
    }

    /// Removes and returns the completed uploads to `table`. Their arrays may be in memory that the server has
    /// registered.
    pub fn take_uploads(&self, table: &str) -> Vec<Vec<RecordBatch>> {
        self.lock_uploads().remove(table).unwrap_or_default()
    }

    fn lock_uploads(&self) -> MutexGuard<'_, BTreeMap<String, Vec<Vec<RecordBatch>>>> {
        self.uploads.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Number of queries started so far. A query in partitions counts once for each.
    #[must_use]
    pub fn started(&self) -> u64 {
        self.counters.started.load(Ordering::Relaxed)
    }

    /// Number of running queries and uploads: not ended, failed or dropped.
    #[must_use]
    pub fn running(&self) -> u64 {
        self.counters.running.load(Ordering::Relaxed)
    }

    /// Number of tasks of [`Script::ignore_cancel`]. They end with their runtime.
    #[must_use]
    pub fn ignoring_cancel(&self) -> u64 {
        self.counters.ignoring_cancel.load(Ordering::Relaxed)
    }

    /// Number of batches delivered so far, by all queries.
    #[must_use]
    pub fn batches(&self) -> u64 {
        self.counters.batches.load(Ordering::Relaxed)
    }
}

/// Counts a query as running while it exists.
struct Running(Arc<Counters>);

impl Running {
    fn new(counters: &Arc<Counters>) -> Self {
        counters.started.fetch_add(1, Ordering::Relaxed);
        counters.running.fetch_add(1, Ordering::Relaxed);
        Running(Arc::clone(counters))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.0.running.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Counts a task that ignores the cancel of its query.
struct IgnoringCancel(Arc<Counters>);

impl IgnoringCancel {
    fn new(counters: &Arc<Counters>) -> Self {
        counters.ignoring_cancel.fetch_add(1, Ordering::Relaxed);
        IgnoringCancel(Arc::clone(counters))
    }
}

impl Drop for IgnoringCancel {
    fn drop(&mut self) {
        self.0.ignoring_cancel.fetch_sub(1, Ordering::Relaxed);
    }
}

struct Player {
    steps: std::vec::IntoIter<Step>,
    generating: Option<(std::ops::Range<u64>, Generator)>,
    running: Running,
}

impl Player {
    async fn next(&mut self) -> Option<Result<RecordBatch, EngineError>> {
        loop {
            if let Some((numbers, generator)) = &mut self.generating {
                match numbers.next() {
                    Some(number) => return Some(Ok(generator(number))),
                    None => self.generating = None,
                }
            }
            match self.steps.next()? {
                Step::Batch(batch) => return Some(Ok(batch)),
                Step::Generate { batches, generator } => self.generating = Some((0..batches, generator)),
                Step::Sleep(time) => tokio::time::sleep(time).await,
                Step::Hang => std::future::pending().await,
                Step::IgnoreCancel => {
                    let busy = IgnoringCancel::new(&self.running.0);
                    let work = tokio::spawn(async move {
                        let _busy = busy;
                        std::future::pending::<()>().await;
                    });
                    // The task outlives its handle.
                    let _never = work.await;
                }
                Step::Fail(error) => {
                    self.steps = Vec::new().into_iter();
                    return Some(Err(error));
                }
            }
        }
    }
}

/// A running upload.
struct Sink {
    engine: ScriptedEngine,
    table: String,
    script: SinkScript,
    batches: Vec<RecordBatch>,
    /// Held for its drop.
    _running: Running,
}

impl Sink {
    /// Waits for the pace of the table. Fails if the script fails at the batch with this number.
    async fn step(&self, number: u64, last: bool) -> Result<(), EngineError> {
        if !self.script.pace.is_zero() {
            tokio::time::sleep(self.script.pace).await;
        }
        match &self.script.failure {
            Some((at, error)) if *at == number || last && *at > number => Err(error.clone()),
            _ => Ok(()),
        }
    }
}

#[async_trait]
impl Ingestion for Sink {
    async fn push(&mut self, batch: RecordBatch) -> Result<(), EngineError> {
        self.step(self.batches.len() as u64, false).await?;
        self.batches.push(batch);
        Ok(())
    }

    async fn finish(self: Box<Self>) -> Result<u64, EngineError> {
        self.step(self.batches.len() as u64, true).await?;
        let rows = self.batches.iter().map(|batch| batch.num_rows() as u64).sum();
        self.engine.lock_uploads().entry(self.table).or_default().push(self.batches);
        Ok(rows)
    }
}

impl ScriptedEngine {
    fn play(&self, script: &Script, batch_rows: Option<usize>) -> Result<QueryStream, EngineError> {
        if let Some(error) = &script.refusal {
            return Err(error.clone());
        }
        let player =
            Player { steps: script.steps.clone().into_iter(), generating: None, running: Running::new(&self.counters) };
        let rows = batch_rows.unwrap_or(usize::MAX).max(1);
        let batches = stream::unfold(player, |mut player| async move {
            let item = player.next().await?;
            Some((item, player))
        })
        .flat_map(move |item| stream::iter(slices(item, rows)));
        let counters = Arc::clone(&self.counters);
        let batches = batches.inspect(move |item| {
            counters.batches.fetch_add(u64::from(item.is_ok()), Ordering::Relaxed);
        });
        Ok(QueryStream { schema: Arc::clone(&script.schema), batches: batches.boxed() })
    }
}

#[async_trait]
impl Engine for ScriptedEngine {
    async fn execute(&self, query: QueryRequest) -> Result<QueryStream, EngineError> {
        let script = self.scripts.get(&query.sql).ok_or_else(|| EngineError::UnknownTable {
            table: query.sql.clone(),
            known: self.scripts.keys().cloned().collect(),
        })?;
        self.play(script, query.batch_rows)
    }

    async fn execute_partitioned(&self, query: QueryRequest, count: usize) -> Result<PartitionedQuery, EngineError> {
        let Some((order, parts)) = self.partitioned.get(&query.sql).filter(|(_, parts)| parts.len() == count) else {
            return Ok(PartitionedQuery::in_first(self.execute(query).await?, count));
        };
        let played: Vec<_> = parts.iter().map(|part| self.play(part, query.batch_rows)).collect::<Result<_, _>>()?;
        let schema = played.first().map_or_else(|| Arc::new(Schema::empty()), |first| Arc::clone(&first.schema));
        let partitions = played.into_iter().map(|part| part.batches).collect();
        Ok(PartitionedQuery { schema, order: order.clone(), partitions })
    }

    async fn ingest(&self, request: IngestRequest) -> Result<Box<dyn Ingestion>, EngineError> {
        let known = || self.sinks.keys().cloned().collect();
        let IngestRequest { table, .. } = request;
        let sink = self.sinks.get(&table).cloned();
        let sink = sink.ok_or_else(|| EngineError::UnknownTable { table: table.clone(), known: known() })?;
        if let Some(error) = sink.refusal {
            return Err(error);
        }
        let running = Running::new(&self.counters);
        Ok(Box::new(Sink { engine: self.clone(), table, script: sink, batches: Vec::new(), _running: running }))
    }

    fn tables(&self) -> Vec<TableInfo> {
        self.scripts
            .iter()
            .map(|(name, script)| TableInfo {
                name: name.clone(),
                source: "a script".to_owned(),
                format: "script",
                columns: script.schema.fields().len(),
                files: 0,
            })
            .collect()
    }
}

/// Schema of [`synthetic_batch`].
#[must_use]
pub fn synthetic_schema() -> SchemaRef {
    Arc::new(Schema::new(vec![
        Field::new("id", DataType::Int64, false),
        Field::new("value", DataType::Float64, true),
        Field::new("payload", DataType::Binary, false),
    ]))
}

/// A batch of which every value follows from its number and row, so that a receiver can check each value by making the
/// batch again. `id` counts all rows; `value` is null in every seventh row, else half of `id`; `payload` is 100 bytes
/// of the low byte of `id`. About 124 bytes per row.
#[must_use]
pub fn synthetic_batch(number: u64, rows: usize) -> RecordBatch {
    let first = number.wrapping_mul(rows as u64);
    let ids = || (0..rows as u64).map(move |row| first.wrapping_add(row));
    let id = Int64Array::from_iter_values(ids().map(u64::cast_signed));
    let value = Float64Array::from_iter(ids().map(|id| (id % 7 != 0).then_some(id as f64 / 2.0)));
    let payload = BinaryArray::from_iter_values(ids().map(|id| [id as u8; 100]));
    let columns: Vec<ArrayRef> = vec![Arc::new(id), Arc::new(value), Arc::new(payload)];
    RecordBatch::try_new(synthetic_schema(), columns).expect("the columns are made to fit the schema")
}

#[cfg(test)]
mod tests {
    use futures::{FutureExt, TryStreamExt};
    use thallus_server::engine::EngineErrorKind;

    use super::*;

    fn engine() -> ScriptedEngine {
        let broken = EngineError::Execution { message: "as told".to_owned() };
        ScriptedEngine::new()
            .with_query("ten", Script::synthetic(10, 100))
            .with_query("endless", Script::synthetic(u64::MAX, 1000))
            .with_query("fails", Script::synthetic(2, 10).fail(broken.clone()).batch(synthetic_batch(9, 1)))
            .with_query("hangs", Script::synthetic(1, 10).hang())
            .with_query(
                "sleeps",
                Script::new(synthetic_schema()).sleep(Duration::from_millis(20)).batch(synthetic_batch(0, 1)),
            )
            .with_query("refused", Script::refuse(broken))
    }

    #[tokio::test]
    async fn plays_batches_in_order_and_cuts_them_to_the_requested_rows() {
        let engine = engine();
        let query = QueryRequest { batch_rows: Some(64), ..QueryRequest::new("ten".to_owned()) };
        let batches: Vec<_> = engine.execute(query).await.unwrap().batches.try_collect().await.unwrap();
        assert_eq!(batches.iter().map(RecordBatch::num_rows).collect::<Vec<_>>(), [64, 36].repeat(10));
        assert_eq!(batches[19], synthetic_batch(9, 100).slice(64, 36));
        assert_eq!((engine.started(), engine.running(), engine.batches()), (1, 0, 20));
    }

    #[tokio::test]
    async fn is_lazy_and_a_dropped_stream_no_longer_runs() {
        let engine = engine();
        let mut query = engine.execute(QueryRequest::new("endless")).await.unwrap();
        assert_eq!(query.batches.next().await.unwrap().unwrap(), synthetic_batch(0, 1000));
        assert_eq!((engine.running(), engine.batches()), (1, 1));
        drop(query);
        assert_eq!(engine.running(), 0);
    }

    #[tokio::test]
    async fn an_error_is_the_end() {
        let items: Vec<_> = engine().execute(QueryRequest::new("fails")).await.unwrap().batches.collect().await;
        assert!(items[..2].iter().all(Result::is_ok));
        assert_eq!(items[2], Err(EngineError::Execution { message: "as told".to_owned() }));
        assert_eq!(items.len(), 3);
    }

    #[tokio::test]
    async fn hangs_and_sleeps() {
        let engine = engine();
        let mut hangs = engine.execute(QueryRequest::new("hangs")).await.unwrap().batches;
        assert!(hangs.next().await.is_some());
        assert!(tokio::time::timeout(Duration::from_millis(50), hangs.next()).await.is_err());
        let mut sleeps = engine.execute(QueryRequest::new("sleeps")).await.unwrap().batches;
        assert!(sleeps.next().now_or_never().is_none());
        assert!(sleeps.next().await.is_some());
    }

    #[tokio::test]
    async fn refuses_queries_by_script_and_unknown_queries() {
        let kind = async |sql| engine().execute(QueryRequest::new(sql)).await.unwrap_err().kind();
        assert_eq!(kind("refused").await, EngineErrorKind::Execution);
        assert_eq!(kind("nonsense").await, EngineErrorKind::UnknownTable);
    }
}
