//! One upload: batches that the client lends, borrowed here and handed to the engine.

use std::fmt;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use arrow_schema::SchemaRef;
use bytes::Bytes;
use futures::FutureExt;
use thallus_driver::{Arrived, Rebuilder};
use thallus_protocol::StreamId;
use thallus_protocol::codes::StreamCode;
use thallus_protocol::message::Failure;
use tokio::sync::mpsc;

use super::query::Task;
use super::source::failure;
use crate::engine::{Engine, IngestRequest, Ingestion};

/// What a connection tells an upload. Bounded by the upload's window.
#[derive(Debug)]
pub(crate) enum UploadItem {
    Schema { schema: SchemaRef, ipc: Bytes },
    Batch { seq: u64, cost: u64, arrived: Arrived },
    End { rows: u64 },
}

/// What an upload tells its connection.
#[derive(Debug)]
pub(crate) enum UploadEvent {
    /// The engine takes it.
    Accepted,
    /// The engine has taken a batch.
    Consumed { cost: u64 },
    /// A batch is not valid.
    Rejected { seq: u64, reason: String },
    /// It is over.
    Done(Result<u64, Failure>),
}

/// Where uploads report to.
pub(crate) type UploadEvents = mpsc::UnboundedSender<(StreamId, UploadEvent)>;

/// An upload, as its connection holds it. Dropping it gives it up: the engine takes none of its rows.
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
    /// Begins to take an upload for `table`, whose largest batch has `max_batch` bytes.
    pub(crate) fn start(
        engine: Arc<dyn Engine>,
        stream: StreamId,
        table: String,
        max_batch: u64,
        events: UploadEvents,
    ) -> Self {
        let (items, received) = mpsc::unbounded_channel();
        let task = tokio::spawn(async move {
            // A connection that is gone has dropped its uploads, and hears nothing.
            let report = |event| drop(events.send((stream, event)));
            let taken = AssertUnwindSafe(take(&*engine, table, max_batch, received, &report)).catch_unwind().await;
            let panicked =
                || Err(Failure::new(StreamCode::Internal, "the upload panicked; the server's log says where"));
            let result = taken.unwrap_or_else(|_panic| Some(panicked()));
            if let Some(result) = result {
                report(UploadEvent::Done(result));
            }
        });
        RunningUpload { items, _task: Task::new(&task) }
    }

    /// Hands the next thing over.
    pub(crate) fn push(&self, item: UploadItem) {
        // The task is gone only if it has reported its end already.
        let _gone = self.items.send(item);
    }
}

/// Takes an upload to its end. `None`: the connection knows already how it ended.
async fn take(
    engine: &dyn Engine,
    table: String,
    max_batch: u64,
    mut items: mpsc::UnboundedReceiver<UploadItem>,
    report: &(impl Fn(UploadEvent) + Sync),
) -> Option<Result<u64, Failure>> {
    let Some(UploadItem::Schema { schema, ipc }) = items.recv().await else { return None };
    let mut rebuilder = match Rebuilder::new(&ipc, max_batch) {
        Ok(rebuilder) => rebuilder,
        Err(error) => return Some(Err(Failure::new(StreamCode::InvalidBatch, error.to_string()))),
    };
    let mut ingestion: Box<dyn Ingestion> = match engine.ingest(IngestRequest { table, schema }).await {
        Ok(ingestion) => ingestion,
        Err(error) => return Some(Err(failure(error))),
    };
    report(UploadEvent::Accepted);
    let mut taken = 0;
    while let Some(item) = items.recv().await {
        match item {
            UploadItem::Schema { .. } => return None,
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
                let message = format!("{taken} rows arrived of {rows} that were sent");
                return Some(Err(Failure::new(StreamCode::InvalidBatch, message)));
            }
            UploadItem::End { .. } => return Some(ingestion.finish().await.map_err(failure)),
        }
    }
    None
}
