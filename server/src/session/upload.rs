//! One upload: batches that the client lends, borrowed by the server and passed to the engine.

use std::fmt;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use futures::FutureExt;
use thallus_driver::{Arrived, Rebuilder};
use thallus_protocol::StreamId;
use thallus_protocol::codes::StreamCode;
use thallus_protocol::layout::Plan;
use thallus_protocol::message::{Failure, Ingest, OpenOptions};
use tokio::sync::mpsc;

use super::query::Task;
use super::source::failure;
use crate::engine::{Engine, IngestRequest, Ingestion};

/// An upload, as requested by a client.
#[derive(Debug)]
pub(crate) struct UploadRequest {
    pub(crate) table: String,
    pub(crate) options: OpenOptions,
}

/// An item from a connection for an upload. The upload's window bounds the number of items.
#[derive(Debug)]
pub(crate) enum UploadItem {
    Schema(Plan),
    Batch { seq: u64, cost: u64, arrived: Arrived },
    End { rows: u64 },
}

/// An event of an upload for its connection.
#[derive(Debug)]
pub(crate) enum UploadEvent {
    /// The engine has accepted the upload.
    Accepted,
    /// The engine has consumed a batch.
    Consumed { cost: u64 },
    /// A batch is not valid.
    Rejected { seq: u64, reason: String },
    /// The upload has ended.
    Done(Result<u64, Failure>),
}

/// Channel for the events of uploads.
pub(crate) type UploadEvents = mpsc::UnboundedSender<(StreamId, UploadEvent)>;

/// An upload, as held by its connection. Dropping it cancels the upload: the engine stores none of its rows.
pub(crate) struct RunningUpload {
    items: mpsc::UnboundedSender<UploadItem>,
    _task: Task,
}

impl fmt::Debug for RunningUpload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("RunningUpload")
    }
}

impl RunningUpload {
    /// Starts an upload, whose largest batch has at most `max_batch` bytes.
    pub(crate) fn start(
        engine: Arc<dyn Engine>,
        stream: StreamId,
        request: UploadRequest,
        max_batch: u64,
        events: UploadEvents,
    ) -> Self {
        let (items, received) = mpsc::unbounded_channel();
        let task = tokio::spawn(async move {
            // A connection that has ended has dropped its uploads, and receives no events.
            let report = |event| drop(events.send((stream, event)));
            let taken = AssertUnwindSafe(take(&*engine, request, max_batch, received, &report)).catch_unwind().await;
            let panicked = || Err(Failure::new(StreamCode::Internal, "the upload panicked; see the server's log"));
            let result = taken.unwrap_or_else(|_panic| Some(panicked()));
            if let Some(result) = result {
                report(UploadEvent::Done(result));
            }
        });
        RunningUpload { items, _task: Task::new(&task) }
    }

    /// Passes an item to the upload's task.
    pub(crate) fn push(&self, item: UploadItem) {
        // The task ends only after it has reported the upload's end.
        let _gone = self.items.send(item);
    }
}

/// Runs an upload to its end. `None`: the connection already has the result.
async fn take(
    engine: &dyn Engine,
    UploadRequest { table, options }: UploadRequest,
    max_batch: u64,
    mut items: mpsc::UnboundedReceiver<UploadItem>,
    report: &(impl Fn(UploadEvent) + Sync),
) -> Option<Result<u64, Failure>> {
    let Some(UploadItem::Schema(plan)) = items.recv().await else { return None };
    let schema = Arc::clone(plan.schema());
    let mut rebuilder = Rebuilder::new(plan, max_batch);
    let OpenOptions { defaults, ingest: Ingest { mode, temporary }, .. } = options;
    let request = IngestRequest { table, schema, mode, temporary, defaults };
    let mut ingestion: Box<dyn Ingestion> = match engine.ingest(request).await {
        Ok(ingestion) => ingestion,
        Err(error) => return Some(Err(failure(error))),
    };
    report(UploadEvent::Accepted);
    let mut taken = 0;
    while let Some(item) = items.recv().await {
        match item {
            UploadItem::Schema(_) => return None,
            UploadItem::Batch { seq, cost, arrived } => {
                let batch = match rebuilder.rebuild(arrived) {
                    Ok(batch) => batch,
                    Err(reason) => {
                        report(UploadEvent::Rejected { seq, reason });
                        return None;
                    }
                };
                taken += batch.num_rows() as u64;
                if let Err(error) = ingestion.push(batch).await {
                    return Some(Err(failure(error)));
                }
                report(UploadEvent::Consumed { cost });
            }
            UploadItem::End { rows } if rows != taken => {
                let message = format!("received {taken} of {rows} rows");
                return Some(Err(Failure::new(StreamCode::InvalidBatch, message)));
            }
            UploadItem::End { .. } => return Some(ingestion.finish().await.map_err(failure)),
        }
    }
    None
}
