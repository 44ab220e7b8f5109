//! One query: runs the engine as batches are asked for, and makes them ready to travel.
//!
//! It begins in its connection's own task: for a result that is there at once, and has one batch, nobody else is woken, and all
//! of it goes out in one write. It stays there for as long as its batches come more cheaply than another task is woken for them, as
//! those of tables in memory do. A query that costs more, or holds its connection up, is [sent away](RunningQuery::send_away) to
//! a task of its own, where the engine is ahead of what is asked for by a batch.

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use arrow_array::RecordBatch;
use arrow_schema::SchemaRef;
use bytes::Bytes;
use futures::StreamExt;
use thallus_protocol::StreamId;
use thallus_protocol::codes::{CancelReason, StreamCode};
use thallus_protocol::message::SortKey;
use thallus_protocol::server::LoanEffort;
use tokio::sync::mpsc;
use tokio::task::AbortHandle;
use tokio::time::Instant;

use super::allowance::Allowance;
use super::groups::Seat;
use super::lender::{Lender, PreparedLoan};
use super::mapped::Borrower;
use super::packing::Packing;
use crate::engine::{BatchStream, Engine, EngineError, EngineErrorKind, QueryRequest, QueryStream};

/// The connection wants the next batch of a query.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pull {
    /// Live bytes from which on it is to be lent.
    pub(crate) lend_from: Option<u64>,
}

/// What a query says to its connection.
#[derive(Debug)]
pub(crate) enum QueryEvent {
    Schema { schema: Bytes, order: Vec<SortKey> },
    Lend { loan: PreparedLoan, effort: LoanEffort, rows: u64 },
    Inline { ipc: Bytes, rows: u64 },
    Finish { execute: Duration },
    Fail { code: StreamCode, message: String },
}

/// What a query works with.
#[derive(Clone, Debug)]
pub(crate) struct QueryContext {
    pub(crate) engine: Arc<dyn Engine>,
    pub(crate) lender: Option<Arc<Lender>>,
    /// The most that one batch may lend.
    pub(crate) max_loan_bytes: u64,
    /// Who maps what is lent, if that is how it is delivered.
    pub(crate) borrower: Option<Borrower>,
    /// Each batch that is lent is to be complete: not all of them are read in full, one after the other.
    pub(crate) complete: bool,
    /// Page faults of the thread so far.
    pub(crate) page_faults: fn() -> u64,
}

/// Where queries in tasks of their own report to.
pub(crate) type Events = mpsc::UnboundedSender<(StreamId, QueryEvent)>;

/// A query, as its connection holds it. Dropping it stops the query.
#[derive(Debug)]
pub(crate) struct RunningQuery {
    place: Place,
    /// Where the query is one partition of another, until it has ended.
    seat: Option<Arc<Seat>>,
    borrower: Option<Borrower>,
}

#[derive(Debug)]
enum Place {
    /// In the connection's task, which polls it.
    Here(Box<Query>),
    /// In a task of its own.
    Away { pulls: mpsc::UnboundedSender<Pull>, _task: Task },
}

/// What came of polling a query.
#[derive(Debug)]
pub(crate) enum Progress {
    Said(QueryEvent),
    /// It is work for a task of its own.
    Grown,
}

impl RunningQuery {
    /// A query that its connection is to poll; or, if it has a seat, to send away.
    pub(crate) fn new(context: QueryContext, request: QueryRequest, seat: Option<Arc<Seat>>) -> Self {
        let borrower = context.borrower.clone();
        RunningQuery { place: Place::Here(Box::new(Query::new(context, request, seat.clone()))), seat, borrower }
    }

    /// Who maps what it lends.
    pub(crate) fn borrower(&self) -> Option<&Borrower> {
        self.borrower.as_ref()
    }

    /// Its end is on its way to the client: nobody else needs to know if the connection is lost now.
    pub(crate) fn finish(mut self) {
        self.seat = None;
    }

    /// Stops it before its end: because the client gave it up, or because it failed as what the client is told, or because
    /// the connection ends.
    pub(crate) fn stop(mut self, reason: Option<CancelReason>, failure: Option<Failure>) {
        let Some(seat) = self.seat.take() else { return };
        match (failure, reason) {
            (Some(failure), _) => seat.fail(failure),
            (None, Some(reason)) => seat.leave(&format!("the client gave it up: {reason}")),
            (None, None) => seat.leave("its connection ended"),
        }
    }

    /// Asks for the next batch.
    pub(crate) fn pull(&mut self, pull: Pull) {
        match &mut self.place {
            Place::Here(query) => query.pull = Some(pull),
            // The task is gone only if it has said its last word already.
            Place::Away { pulls, .. } => drop(pulls.send(pull)),
        }
    }

    /// The query, if it is here.
    pub(crate) fn here(&mut self) -> Option<&mut Query> {
        match &mut self.place {
            Place::Here(query) => Some(query),
            Place::Away { .. } => None,
        }
    }

    /// Goes on in a task of its own, which reports to `events`.
    pub(crate) fn send_away(&mut self, stream: StreamId, events: Events) {
        let Place::Here(query) = &mut self.place else { return };
        let query = query.take();
        let (pulls, wanted) = mpsc::unbounded_channel();
        if let Some(pull) = query.pull {
            // The receiver is here.
            let _sent = pulls.send(pull);
        }
        let member = self.seat.clone();
        let task = tokio::spawn(async move {
            let mut report = Report { stream, events, done: false };
            let ran = match &member {
                None => run(query, wanted, &report).await,
                Some(seat) => tokio::select! {
                    biased;
                    failed = seat.failed() => Err(failed),
                    ran = run(query, wanted, &report) => ran,
                },
            };
            if let Err(failure) = ran {
                if let Some(seat) = &member {
                    seat.fail(failure.clone());
                }
                report.say(failed(failure));
            }
            report.done = true;
        });
        self.place = Place::Away { pulls, _task: Task(task.abort_handle()) };
    }
}

impl Drop for RunningQuery {
    fn drop(&mut self) {
        if let Some(seat) = self.seat.take() {
            seat.leave("its connection ended");
        }
    }
}

/// A task that ends with its handle.
#[derive(Debug)]
pub(crate) struct Task(AbortHandle);

impl Drop for Task {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// A query, for as long as it is in its connection's task.
pub(crate) struct Query {
    context: QueryContext,
    stage: Stage,
    /// A batch is asked for.
    pull: Option<Pull>,
    allowance: Allowance,
    /// Since when the engine is at the current step.
    since: Option<Instant>,
}

enum Stage {
    Planning(Pin<Box<dyn Future<Output = Result<Source, Failure>> + Send>>),
    Running(Box<Running>),
    Over,
}

struct Running {
    batches: BatchStream,
    /// One that came of them already.
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

/// A result, or one partition of it, as it comes from the engine.
pub(crate) struct Source {
    pub(crate) schema: SchemaRef,
    /// What a partition is sorted by, if the result is.
    pub(crate) order: Vec<SortKey>,
    pub(crate) batches: BatchStream,
}

/// As what a client hears of it.
pub(super) type Failure = (StreamCode, String);

impl Query {
    fn new(context: QueryContext, request: QueryRequest, seat: Option<Arc<Seat>>) -> Self {
        let engine = Arc::clone(&context.engine);
        let planning = Box::pin(async move {
            if let Some(seat) = seat {
                return seat.part(&*engine, request).await;
            }
            let QueryStream { schema, batches } = engine.execute(request).await.map_err(failure)?;
            Ok(Source { schema, order: Vec::new(), batches })
        });
        Query { context, stage: Stage::Planning(planning), pull: None, allowance: Allowance::new(), since: None }
    }

    /// What there is of it; nothing is left here.
    fn take(&mut self) -> Query {
        let (context, stage) = (self.context.clone(), std::mem::replace(&mut self.stage, Stage::Over));
        Query { context, stage, ..*self }
    }

    /// The next thing that it has to say. Nothing comes after [`QueryEvent::Finish`] and [`QueryEvent::Fail`], nor before a batch
    /// has been pulled, once the schema is out.
    pub(crate) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Progress> {
        // A query that panicked is dropped, and was nobody else's.
        let polled = catch_unwind(AssertUnwindSafe(|| self.poll_step(cx)));
        let failure = match polled {
            Ok(Poll::Pending) => return Poll::Pending,
            Ok(Poll::Ready(Ok(progress))) => return Poll::Ready(progress),
            Ok(Poll::Ready(Err(failure))) => failure,
            Err(_panic) => (StreamCode::Internal, PANICKED.into()),
        };
        self.stage = Stage::Over;
        Poll::Ready(Progress::Said(failed(failure)))
    }

    /// Whether the engine took long to come back, with or without an answer.
    pub(crate) fn has_held_up(&self) -> bool {
        self.allowance.has_held_up()
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
                return Poll::Ready(self.begin(source, now - since).map(Progress::Said));
            }
            Stage::Running(running) if self.pull.is_some() => {
                let next = running.batches.as_mut().poll_next(cx);
                let now = Instant::now();
                self.allowance.searched(now - began);
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
        if is_end(item.as_ref()) {
            let execute = running.execute;
            self.stage = Stage::Over;
            return Poll::Ready(Ok(Progress::Said(QueryEvent::Finish { execute })));
        }
        if self.allowance.is_overdrawn() {
            running.next = item;
            return Poll::Ready(Ok(Progress::Grown));
        }
        let Some(batch) = item else { return Poll::Pending };
        self.pull = None;
        let began = Instant::now();
        let event = running.packing.pack(&self.context, batch.map_err(failure)?, pull)?;
        self.allowance.handed_over(began.elapsed());
        Poll::Ready(Ok(Progress::Said(event)))
    }

    /// Takes the engine's rows, and says their schema.
    fn begin(&mut self, source: Source, execute: Duration) -> Result<QueryEvent, Failure> {
        let Source { schema, order, batches } = source;
        let (packing, schema) = Packing::new(&schema, self.context.complete)?;
        self.stage = Stage::Running(Box::new(Running { batches, next: None, packing, execute }));
        self.since = None;
        Ok(QueryEvent::Schema { schema, order })
    }
}

const PANICKED: &str = "the query panicked; the server's log says where";

fn failed((code, message): Failure) -> QueryEvent {
    QueryEvent::Fail { code, message }
}

/// Whether the rows end here.
fn is_end(item: Option<&Result<RecordBatch, EngineError>>) -> bool {
    #[cfg(feature = "planted-bugs")]
    if thallus_protocol::planted::is_planted(thallus_protocol::planted::Bug::ErrorTakenForEnd) {
        return !matches!(item, Some(Ok(_)));
    }
    item.is_none()
}

/// The way back to the connection; says so if the task panics.
struct Report {
    stream: StreamId,
    events: Events,
    done: bool,
}

impl Report {
    fn say(&self, event: QueryEvent) {
        // A connection that is gone has dropped its queries, and hears nothing.
        let _gone = self.events.send((self.stream, event));
    }
}

impl Drop for Report {
    fn drop(&mut self) {
        if !self.done && std::thread::panicking() {
            self.say(failed((StreamCode::Internal, PANICKED.into())));
        }
    }
}

/// The task of a query, from where it is.
async fn run(mut query: Query, mut pulls: mpsc::UnboundedReceiver<Pull>, report: &Report) -> Result<(), Failure> {
    if let Stage::Planning(planning) = &mut query.stage {
        let since = query.since.unwrap_or_else(Instant::now);
        let source = planning.await?;
        report.say(query.begin(source, since.elapsed())?);
    }
    let Query { context, stage: Stage::Running(running), .. } = query else { return Ok(()) };
    let Running { batches, mut next, mut packing, execute } = *running;
    let mut ahead = Ahead::start(batches, execute);
    while let Some(pull) = pulls.recv().await {
        let item = match next.take() {
            Some(item) => Some(item),
            None => ahead.batches.recv().await,
        };
        // A producer that panicked has sent no error: what it has not said must not pass for the end.
        if item.is_none() && !ahead.finished() {
            return Err((StreamCode::Internal, PANICKED.into()));
        }
        if is_end(item.as_ref()) {
            report.say(QueryEvent::Finish { execute: ahead.execute_time() });
            return Ok(());
        }
        let Some(batch) = item else { return Ok(()) };
        report.say(packing.pack(&context, batch.map_err(failure)?, pull)?);
    }
    Ok(())
}

/// The engine, a batch ahead of what is asked for, so that it works while batches travel.
struct Ahead {
    batches: mpsc::Receiver<Result<RecordBatch, EngineError>>,
    execute_nanos: Arc<AtomicU64>,
    finished: Arc<AtomicBool>,
    _task: Task,
}

impl Ahead {
    fn start(mut batches: BatchStream, before: Duration) -> Self {
        let (sender, receiver) = mpsc::channel(1);
        let execute_nanos = Arc::new(AtomicU64::new(nanos(before)));
        let finished = Arc::new(AtomicBool::new(false));
        let (spent, done) = (Arc::clone(&execute_nanos), Arc::clone(&finished));
        let task = tokio::spawn(async move {
            loop {
                let asked = Instant::now();
                let next = batches.next().await;
                spent.fetch_add(nanos(asked.elapsed()), Ordering::Relaxed);
                let Some(batch) = next else { break };
                if sender.send(batch).await.is_err() {
                    break;
                }
            }
            done.store(true, Ordering::Release);
        });
        Ahead { batches: receiver, execute_nanos, finished, _task: Task(task.abort_handle()) }
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

/// An engine's error as the client hears it.
pub(super) fn failure(error: EngineError) -> Failure {
    let code = match error.kind() {
        EngineErrorKind::Syntax => StreamCode::Syntax,
        EngineErrorKind::UnknownTable => StreamCode::UnknownTable,
        EngineErrorKind::Column | EngineErrorKind::Plan => StreamCode::Plan,
        EngineErrorKind::TooLarge => StreamCode::SqlTooLong,
        EngineErrorKind::Unsupported => StreamCode::Unsupported,
        EngineErrorKind::ReadOnly => StreamCode::ReadOnly,
        EngineErrorKind::Execution => StreamCode::Execution,
        EngineErrorKind::ResourcesExhausted => StreamCode::ResourcesExhausted,
        EngineErrorKind::Source => StreamCode::Source,
        EngineErrorKind::Internal => StreamCode::Internal,
    };
    // The code says what kind of error it is, in words too: not a second time.
    let message = match error {
        EngineError::Syntax { message } | EngineError::Execution { message } | EngineError::Unsupported { message } => {
            message
        }
        other => other.to_string(),
    };
    (code, message)
}
