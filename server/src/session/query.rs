//! One query's task: it runs the engine ahead of the pulls, by a batch, and makes batches ready to travel.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use arrow_array::RecordBatch;
use bytes::Bytes;
use futures::StreamExt;
use thallus_protocol::codes::StreamCode;
use thallus_protocol::inline::InlineEncoder;
use thallus_protocol::layout;
use thallus_protocol::{FabricKind, StreamId};
use tokio::sync::mpsc;
use tokio::task::AbortHandle;
use tokio::time::Instant;
use tracing::warn;

use super::lender::{Lender, PreparedLoan};
use super::mapped::Borrower;
use crate::engine::{BatchStream, Engine, EngineError, EngineErrorKind, QueryRequest, QueryStream};

/// The connection wants the next batch of a query.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pull {
    /// Live bytes from which on it is to be lent.
    pub(crate) lend_from: Option<u64>,
}

/// What a query's task says to its connection.
#[derive(Debug)]
pub(crate) enum QueryEvent {
    Schema(Bytes),
    Lend { loan: PreparedLoan, rows: u64 },
    Inline { ipc: Bytes, rows: u64 },
    Finish { execute: Duration },
    Fail { code: StreamCode, message: String },
}

/// What a query's task works with.
#[derive(Clone, Debug)]
pub(crate) struct QueryContext {
    pub(crate) engine: Arc<dyn Engine>,
    pub(crate) lender: Option<Arc<Lender>>,
    /// The most that one batch may lend.
    pub(crate) max_loan_bytes: u64,
    /// Who maps what is lent, if that is how it is delivered.
    pub(crate) borrower: Option<Borrower>,
}

/// A running query, as its connection holds it. Dropping it stops the query.
#[derive(Debug)]
pub(crate) struct RunningQuery {
    pulls: mpsc::UnboundedSender<Pull>,
    task: AbortHandle,
    borrower: Option<Borrower>,
}

impl RunningQuery {
    /// Starts a query whose task reports to `events`.
    pub(crate) fn start(
        context: QueryContext,
        stream: StreamId,
        request: QueryRequest,
        events: mpsc::UnboundedSender<(StreamId, QueryEvent)>,
    ) -> Self {
        let (pulls, wanted) = mpsc::unbounded_channel();
        let borrower = context.borrower.clone();
        let task = tokio::spawn(async move {
            let mut report = Report { stream, events, done: false };
            if let Err((code, message)) = run(&context, request, wanted, &report).await {
                report.say(QueryEvent::Fail { code, message });
            }
            report.done = true;
        });
        RunningQuery { pulls, task: task.abort_handle(), borrower }
    }

    /// Who maps what it lends.
    pub(crate) fn borrower(&self) -> Option<&Borrower> {
        self.borrower.as_ref()
    }

    /// Asks for the next batch.
    pub(crate) fn pull(&self, pull: Pull) {
        // The task is gone only if it has said its last word already.
        let _gone = self.pulls.send(pull);
    }
}

impl Drop for RunningQuery {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// The way back to the connection; says so if the task panics.
struct Report {
    stream: StreamId,
    events: mpsc::UnboundedSender<(StreamId, QueryEvent)>,
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
            let message = "the query's task panicked; the server's log says where".to_owned();
            self.say(QueryEvent::Fail { code: StreamCode::Internal, message });
        }
    }
}

type Failure = (StreamCode, String);

async fn run(
    context: &QueryContext,
    request: QueryRequest,
    mut pulls: mpsc::UnboundedReceiver<Pull>,
    report: &Report,
) -> Result<(), Failure> {
    let started = Instant::now();
    let QueryStream { schema, batches } = context.engine.execute(request).await.map_err(failure)?;
    let unencodable = |what: String| (StreamCode::Unencodable, what);
    let (mut encoder, schema_bytes) = InlineEncoder::new(&schema).map_err(|e| unencodable(e.to_string()))?;
    report.say(QueryEvent::Schema(schema_bytes.into()));

    let mut ahead = Ahead::start(batches, started.elapsed());
    while let Some(pull) = pulls.recv().await {
        let Some(batch) = ahead.batches.recv().await else {
            // A producer that panicked has sent no error: what it has not said must not pass for the end.
            if !ahead.finished() {
                return Err((StreamCode::Internal, "the query engine panicked; the server's log says where".into()));
            }
            report.say(QueryEvent::Finish { execute: ahead.execute_time() });
            return Ok(());
        };
        #[cfg(feature = "planted-bugs")]
        if thallus_protocol::planted::is_planted(thallus_protocol::planted::Bug::ErrorTakenForEnd) && batch.is_err() {
            report.say(QueryEvent::Finish { execute: ahead.execute_time() });
            return Ok(());
        }
        let batch = batch.map_err(failure)?;
        let rows = batch.num_rows() as u64;
        let loan = prepare(context, &batch, pull).map_err(|e| unencodable(e.to_string()))?;
        report.say(match loan {
            Some(loan) => QueryEvent::Lend { loan, rows },
            None => {
                let ipc = encoder.encode(&batch).map_err(|e| unencodable(e.to_string()))?;
                QueryEvent::Inline { ipc: ipc.into(), rows }
            }
        });
    }
    Ok(())
}

/// The batch as a loan, if it is to be lent and can be.
fn prepare(
    context: &QueryContext,
    batch: &RecordBatch,
    pull: Pull,
) -> Result<Option<PreparedLoan>, layout::LayoutError> {
    let (Some(threshold), Some(lender)) = (pull.lend_from, &context.lender) else { return Ok(None) };
    let (descriptor, buffers) = layout::describe(batch)?;
    if descriptor.live_bytes() < threshold || descriptor.slab_bytes() > context.max_loan_bytes {
        return Ok(None);
    }
    let bytes = descriptor.slab_bytes();
    match lender.prepare(descriptor, &buffers, context.borrower.is_some()) {
        Ok(Some(loan)) => Ok(Some(loan)),
        Ok(None) => {
            warn!(bytes, fabric = %lender_kind(lender), "the limit of bytes on loan is reached: a batch travels inline");
            Ok(None)
        }
        Err(error) => {
            warn!(%error, bytes, "a batch cannot be lent, and travels inline");
            Ok(None)
        }
    }
}

fn lender_kind(lender: &Lender) -> FabricKind {
    lender.fabric().kind()
}

/// The engine, a batch ahead of what is asked for, so that it works while batches travel.
struct Ahead {
    batches: mpsc::Receiver<Result<RecordBatch, EngineError>>,
    execute_nanos: Arc<AtomicU64>,
    finished: Arc<AtomicBool>,
    task: AbortHandle,
}

impl Ahead {
    fn start(mut batches: BatchStream, planning: Duration) -> Self {
        let (sender, receiver) = mpsc::channel(1);
        let execute_nanos = Arc::new(AtomicU64::new(nanos(planning)));
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
        Ahead { batches: receiver, execute_nanos, finished, task: task.abort_handle() }
    }

    fn finished(&self) -> bool {
        self.finished.load(Ordering::Acquire)
    }

    fn execute_time(&self) -> Duration {
        Duration::from_nanos(self.execute_nanos.load(Ordering::Relaxed))
    }
}

impl Drop for Ahead {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

/// An engine's error as the client hears it.
fn failure(error: EngineError) -> Failure {
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
