//! One query: runs the engine as batches are requested, and packs the batches for sending.
//!
//! A query begins in its connection's own task: a result of one batch that is ready immediately wakes no other task,
//! and all of it is sent in one write. The query stays there as long as its batches cost less than waking another task
//! for them, as those of tables in memory do. A query that costs more, or stalls its connection, is
//! [spawned](RunningQuery::spawn) into its own task, where the engine works one batch ahead if the client has granted
//! credit for that batch.

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use arrow_array::RecordBatch;
use bytes::Bytes;
use futures::StreamExt;
use thallus_driver::{Packing, PackingContext, PreparedBatch};
use thallus_protocol::StreamId;
use thallus_protocol::codes::{CancelReason, StreamCode};
use thallus_protocol::message::{Failure, SortKey};
use tokio::sync::mpsc;
use tokio::task::AbortHandle;
use tokio::time::Instant;

use super::allowance::Allowance;
use super::groups::GroupMember;
use super::planning::Planning;
use super::source::{Source, failure};
use crate::engine::{BatchStream, EngineError};

/// A request of the connection for the next batch of a query.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pull {
    /// Live bytes from which the batch is lent.
    pub(crate) lend_from: Option<u64>,
    /// True if the engine may prepare one more batch.
    pub(crate) ahead: bool,
}

/// An event of a query for its connection.
#[derive(Debug)]
pub(crate) enum QueryEvent {
    Schema { schema: Bytes, order: Vec<SortKey> },
    Batch(PreparedBatch),
    Finish { execute: Duration },
    Fail(Failure),
}

/// Channel for the events of spawned queries.
pub(crate) type Events = mpsc::UnboundedSender<(StreamId, QueryEvent)>;

/// A query, as held by its connection. Dropping it stops the query.
#[derive(Debug)]
pub(crate) struct RunningQuery {
    execution: Execution,
    /// If the query is one partition of another: its place in the group, until it has ended.
    member: Option<Arc<GroupMember>>,
}

/// The task that runs a query.
#[derive(Debug)]
enum Execution {
    /// The connection's task, which polls the query.
    Inline(Box<Query>),
    /// A task of the query's own.
    Spawned { pulls: mpsc::UnboundedSender<Pull>, _task: Task },
}

/// The result of polling a query.
#[derive(Debug)]
pub(crate) enum Progress {
    Event(QueryEvent),
    /// The query must be spawned.
    MustSpawn,
}

impl RunningQuery {
    /// A query for its connection to poll; or, if it is a member of a group, to spawn.
    pub(crate) fn new(packing: PackingContext, planning: Planning, member: Option<Arc<GroupMember>>) -> Self {
        RunningQuery { execution: Execution::Inline(Box::new(Query::new(packing, planning))), member }
    }

    /// Ends the query well: its end is in the connection's queue, so a loss of the connection no longer affects the
    /// other partitions.
    pub(crate) fn finish(mut self) {
        self.member = None;
    }

    /// Stops the query before its end. `failure` is its error, as reported to the client; `reason` is the client's
    /// reason for cancelling. Without both, the connection ends.
    pub(crate) fn stop(mut self, reason: Option<CancelReason>, failure: Option<Failure>) {
        let Some(member) = self.member.take() else { return };
        match (failure, reason) {
            (Some(failure), _) => member.fail(failure),
            (None, Some(reason)) => member.leave(&format!("the client cancelled it: {reason}")),
            (None, None) => member.leave("its connection ended"),
        }
    }

    /// Requests the next batch.
    pub(crate) fn pull(&mut self, pull: Pull) {
        match &mut self.execution {
            Execution::Inline(query) => query.pull = Some(pull),
            // The task ends only after it has reported the query's end.
            Execution::Spawned { pulls, .. } => drop(pulls.send(pull)),
        }
    }

    /// The query, if it runs in the connection's task.
    pub(crate) fn inline(&mut self) -> Option<&mut Query> {
        match &mut self.execution {
            Execution::Inline(query) => Some(query),
            Execution::Spawned { .. } => None,
        }
    }

    /// Moves the query to its own task, which reports to `events`.
    pub(crate) fn spawn(&mut self, stream: StreamId, events: Events) {
        let Execution::Inline(query) = &mut self.execution else { return };
        let query = query.take();
        let (pulls, wanted) = mpsc::unbounded_channel();
        if let Some(pull) = query.pull {
            // The receiver still exists.
            let _sent = pulls.send(pull);
        }
        let member = self.member.clone();
        let task = tokio::spawn(async move {
            let mut report = Report { stream, events, done: false };
            let ran = match &member {
                None => run(query, wanted, &report).await,
                Some(member) => tokio::select! {
                    biased;
                    failed = member.failed() => Err(failed),
                    ran = run(query, wanted, &report) => ran,
                },
            };
            if let Err(failure) = ran {
                if let Some(member) = &member {
                    member.fail(failure.clone());
                }
                report.send(QueryEvent::Fail(failure));
            }
            report.done = true;
        });
        self.execution = Execution::Spawned { pulls, _task: Task::new(&task) };
    }
}

impl Drop for RunningQuery {
    fn drop(&mut self) {
        if let Some(member) = self.member.take() {
            member.leave("its connection ended");
        }
    }
}

/// A task that is aborted when its handle is dropped.
#[derive(Debug)]
pub(crate) struct Task(AbortHandle);

impl Task {
    pub(crate) fn new<T>(task: &tokio::task::JoinHandle<T>) -> Self {
        Task(task.abort_handle())
    }
}

impl Drop for Task {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// A query in its connection's task.
pub(crate) struct Query {
    packing: PackingContext,
    stage: Stage,
    /// The pending request for a batch.
    pull: Option<Pull>,
    allowance: Allowance,
    /// Start of the engine's current step.
    since: Option<Instant>,
}

enum Stage {
    Planning(Planning),
    Running(Box<Running>),
    Over,
}

struct Running {
    batches: BatchStream,
    /// A batch that the engine has already produced, or the rest of one that was cut.
    next: Option<Result<RecordBatch, EngineError>>,
    packing: Packing,
    /// Time in the engine.
    execute: Duration,
}

impl fmt::Debug for Query {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let stage = match &self.stage {
            Stage::Planning(_) => "planning",
            Stage::Running(_) => "running",
            Stage::Over => "over",
        };
        f.debug_struct("Query")
            .field("stage", &stage)
            .field("allowance", &self.allowance)
            .field("pull", &self.pull)
            .finish_non_exhaustive()
    }
}

impl Query {
    fn new(packing: PackingContext, planning: Planning) -> Self {
        Query { packing, stage: Stage::Planning(planning), pull: None, allowance: Allowance::new(), since: None }
    }

    /// Takes the query's state, and leaves an ended query.
    fn take(&mut self) -> Query {
        let (packing, stage) = (self.packing.clone(), std::mem::replace(&mut self.stage, Stage::Over));
        Query { packing, stage, ..*self }
    }

    /// The next event of the query. Nothing follows [`QueryEvent::Finish`] and [`QueryEvent::Fail`]. After the schema,
    /// each batch needs a pull.
    pub(crate) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Progress> {
        // A panic ends only this query, which is dropped.
        let polled = catch_unwind(AssertUnwindSafe(|| self.poll_step(cx)));
        let failure = match polled {
            Ok(Poll::Pending) => return Poll::Pending,
            Ok(Poll::Ready(Ok(progress))) => return Poll::Ready(progress),
            Ok(Poll::Ready(Err(failure))) => failure,
            Err(_panic) => Failure::new(StreamCode::Internal, PANICKED),
        };
        self.stage = Stage::Over;
        Poll::Ready(Progress::Event(QueryEvent::Fail(failure)))
    }

    /// Whether a call of the engine took too long, with or without a result.
    pub(crate) fn has_stalled(&self) -> bool {
        self.allowance.has_stalled()
    }

    fn poll_step(&mut self, cx: &mut Context<'_>) -> Poll<Result<Progress, Failure>> {
        let began = Instant::now();
        let since = *self.since.get_or_insert(began);
        let item = match &mut self.stage {
            Stage::Planning(planning) => {
                let planned = planning.as_mut().poll(cx);
                let now = Instant::now();
                self.allowance.planned(now - began);
                let source = ready!(planned)?;
                return Poll::Ready(self.begin(source, now - since).map(Progress::Event));
            }
            Stage::Running(running) if self.pull.is_some() => {
                let next = match running.next.take() {
                    Some(next) => Poll::Ready(Some(next)),
                    None => running.batches.as_mut().poll_next(cx),
                };
                let now = Instant::now();
                self.allowance.polled(now - began);
                let next = ready!(next);
                running.execute += now - since;
                next
            }
            Stage::Running(_) | Stage::Over => {
                self.since = None;
                return Poll::Pending;
            }
        };
        self.since = None;
        let (Stage::Running(running), Some(pull)) = (&mut self.stage, self.pull) else { return Poll::Pending };
        if item.is_none() {
            let execute = running.execute;
            self.stage = Stage::Over;
            return Poll::Ready(Ok(Progress::Event(QueryEvent::Finish { execute })));
        }
        if self.allowance.is_overdrawn() {
            running.next = item;
            return Poll::Ready(Ok(Progress::MustSpawn));
        }
        let Some(batch) = item else { return Poll::Pending };
        self.pull = None;
        let began = Instant::now();
        let (part, rest) = running.packing.cut(batch.map_err(failure)?)?;
        running.next = rest.map(Ok);
        let packed = running.packing.pack(&part, pull.lend_from)?;
        self.allowance.packed(began.elapsed());
        Poll::Ready(Ok(Progress::Event(QueryEvent::Batch(packed))))
    }

    /// Begins to deliver the engine's rows: returns the event with their schema.
    fn begin(&mut self, source: Source, execute: Duration) -> Result<QueryEvent, Failure> {
        let Source { schema, order, batches } = source;
        let (packing, schema) = Packing::new(&schema, self.packing.clone())?;
        self.stage = Stage::Running(Box::new(Running { batches, next: None, packing, execute }));
        self.since = None;
        Ok(QueryEvent::Schema { schema, order })
    }
}

const PANICKED: &str = "the query panicked; see the server's log";

/// The channel to the connection. Reports a failure if the task panics.
struct Report {
    stream: StreamId,
    events: Events,
    done: bool,
}

impl Report {
    fn send(&self, event: QueryEvent) {
        // A connection that has ended has dropped its queries, and receives no events.
        let _gone = self.events.send((self.stream, event));
    }
}

impl Drop for Report {
    fn drop(&mut self) {
        if !self.done && std::thread::panicking() {
            self.send(QueryEvent::Fail(Failure::new(StreamCode::Internal, PANICKED)));
        }
    }
}

/// The task of a spawned query, from its current stage on.
async fn run(mut query: Query, mut pulls: mpsc::UnboundedReceiver<Pull>, report: &Report) -> Result<(), Failure> {
    if let Stage::Planning(planning) = &mut query.stage {
        let since = query.since.unwrap_or_else(Instant::now);
        let source = planning.await?;
        report.send(query.begin(source, since.elapsed())?);
    }
    let Query { stage: Stage::Running(running), .. } = query else { return Ok(()) };
    let Running { batches, mut next, mut packing, execute } = *running;
    let mut ahead = Ahead::start(batches, execute);
    while let Some(pull) = pulls.recv().await {
        let item = match next.take() {
            Some(item) => Some(item),
            None => ahead.next().await,
        };
        // A producer that panicked has sent no error, and the result must not seem complete.
        if item.is_none() && !ahead.finished() {
            return Err(Failure::new(StreamCode::Internal, PANICKED));
        }
        let Some(batch) = item else {
            report.send(QueryEvent::Finish { execute: ahead.execute_time() });
            return Ok(());
        };
        let (part, rest) = packing.cut(batch.map_err(failure)?)?;
        next = rest.map(Ok);
        if pull.ahead && next.is_none() {
            ahead.request();
        }
        report.send(QueryEvent::Batch(packing.pack(&part, pull.lend_from)?));
    }
    Ok(())
}

/// The engine in a task of its own, so that it works while batches are packed and travel. It makes a batch only on
/// request, and so is one batch ahead of its client at most.
struct Ahead {
    requests: mpsc::UnboundedSender<()>,
    /// True if a batch was requested and not taken yet.
    requested: bool,
    batches: mpsc::UnboundedReceiver<Result<RecordBatch, EngineError>>,
    execute_nanos: Arc<AtomicU64>,
    finished: Arc<AtomicBool>,
    _task: Task,
}

impl Ahead {
    fn start(mut batches: BatchStream, before: Duration) -> Self {
        let (requests, mut requested) = mpsc::unbounded_channel();
        let (sender, receiver) = mpsc::unbounded_channel();
        let execute_nanos = Arc::new(AtomicU64::new(nanos(before)));
        let finished = Arc::new(AtomicBool::new(false));
        let (spent, done) = (Arc::clone(&execute_nanos), Arc::clone(&finished));
        let task = tokio::spawn(async move {
            while requested.recv().await.is_some() {
                let asked = Instant::now();
                let next = batches.next().await;
                spent.fetch_add(nanos(asked.elapsed()), Ordering::Relaxed);
                let Some(batch) = next else { break };
                if sender.send(batch).is_err() {
                    break;
                }
            }
            done.store(true, Ordering::Release);
        });
        Ahead { requests, requested: false, batches: receiver, execute_nanos, finished, _task: Task::new(&task) }
    }

    /// Has the engine make the next batch, unless it has been requested before.
    fn request(&mut self) {
        if !std::mem::replace(&mut self.requested, true) {
            // A task that has ended has no further batch.
            let _ended = self.requests.send(());
        }
    }

    /// The next batch. `None`: there are no more, or the task panicked.
    async fn next(&mut self) -> Option<Result<RecordBatch, EngineError>> {
        self.request();
        self.requested = false;
        self.batches.recv().await
    }

    fn finished(&self) -> bool {
        self.finished.load(Ordering::Acquire)
    }

    fn execute_time(&self) -> Duration {
        Duration::from_nanos(self.execute_nanos.load(Ordering::Relaxed))
    }
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}
