//! Uploads: batches that this client lends, for the server to read.

use std::sync::Arc;
use std::time::Duration;

use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use arrow::error::ArrowError;
use futures::{Stream, StreamExt};
use thallus_driver::{Packing, PackingContext};
use thallus_protocol::StreamId;
use thallus_protocol::client::{ClientCommand, UploadOptions as MachineOptions};
use thallus_protocol::codes::StreamCode;
use thallus_protocol::lender::LenderCommand;
use thallus_protocol::message::{Access, Defaults, Failure, IngestMode, LendFrom};
use tokio::sync::{mpsc, oneshot};

use crate::driver::{Command, Feed, Handle};
use crate::error::ClientError;

/// Options of one upload.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct UploadOptions {
    /// The upload ends in an error this long after it began. `None`: no limit.
    pub deadline: Option<Duration>,
    /// Size from which batches are lent. `None`: [`ConnectOptions::lend_from`](crate::ConnectOptions::lend_from).
    pub lend_from: Option<LendFrom>,
    /// The treatment of the table.
    pub mode: IngestMode,
    /// The table lasts only as long as the connection.
    pub temporary: bool,
    /// The catalog and the schema of the table.
    pub defaults: Defaults,
}

impl UploadOptions {
    /// No deadline, an existing table in the server's default schema, and the connection's settings for the rest.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets [`deadline`](Self::deadline).
    #[must_use]
    pub fn with_deadline(mut self, deadline: Option<Duration>) -> Self {
        self.deadline = deadline;
        self
    }

    /// Sets [`lend_from`](Self::lend_from).
    #[must_use]
    pub fn with_lend_from(mut self, lend_from: LendFrom) -> Self {
        self.lend_from = Some(lend_from);
        self
    }

    /// Sets [`mode`](Self::mode).
    #[must_use]
    pub fn with_mode(mut self, mode: IngestMode) -> Self {
        self.mode = mode;
        self
    }

    /// Sets [`temporary`](Self::temporary).
    #[must_use]
    pub fn with_temporary(mut self, temporary: bool) -> Self {
        self.temporary = temporary;
        self
    }

    /// Sets [`defaults`](Self::defaults).
    #[must_use]
    pub fn with_defaults(mut self, defaults: Defaults) -> Self {
        self.defaults = defaults;
        self
    }
}

/// Report of one upload's transfer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct UploadReport {
    /// Rows that the server has accepted.
    pub rows: u64,
    /// Batches that the server read one-sidedly from this client's memory.
    pub batches_lent: u64,
    /// Batches that travelled over the control connection.
    pub batches_inline: u64,
}

/// Withdraws an upload whose future was dropped.
struct Upload<'a> {
    handle: &'a Handle,
    stream: StreamId,
    ended: bool,
}

impl Drop for Upload<'_> {
    fn drop(&mut self) {
        if !self.ended {
            self.handle.send(Command::Machine(ClientCommand::Withdraw { stream: self.stream }));
        }
    }
}

/// Sends batches to the server as it requests them.
pub(crate) async fn run(
    handle: &Handle,
    table: &str,
    schema: SchemaRef,
    mut batches: impl Stream<Item = Result<RecordBatch, ArrowError>> + Unpin,
    options: MachineOptions,
    max_loan_bytes: u64,
) -> Result<UploadReport, ClientError> {
    let (begun, has_begun) = oneshot::channel();
    let (pulls, mut pulled) = mpsc::unbounded_channel();
    let (answer, mut answered) = oneshot::channel();
    let feed = Feed { begun, pulls, answer };
    let stream = handle.upload(table.to_owned(), options, feed).ok_or_else(ClientError::gone)?;
    let mut upload = Upload { handle, stream, ended: false };
    let pool = has_begun.await.map_err(|_| ClientError::gone())?;
    let context = PackingContext { pool, max_loan_bytes, largest_batch: None, access: Access::Read, page_faults: || 0 };
    let mut rest: Option<RecordBatch> = None;
    let (mut packing, schema_message) = Packing::new(&schema, context)?;
    handle.lender(LenderCommand::Schema { stream, schema: schema_message, order: Vec::new() });
    let mut report = UploadReport::default();
    let answer = loop {
        let lend_from = tokio::select! {
            biased;
            answer = &mut answered => break answer,
            pull = pulled.recv() => match pull {
                Some(lend_from) => lend_from,
                // The stream has ended; the answer has the result.
                None => break answered.await,
            },
        };
        // The source may take any time, and the upload can end meanwhile.
        let next = match rest.take() {
            Some(rest) => Some(Ok(rest)),
            None => tokio::select! {
                biased;
                answer = &mut answered => break answer,
                next = batches.next() => next,
            },
        };
        match next {
            Some(Ok(batch)) => {
                if batch.schema() != schema {
                    return Err(ClientError::Source { source: differs(&batch) });
                }
                let part;
                (part, rest) = packing.cut(batch)?;
                let packed = packing.pack(&part, lend_from)?;
                match &packed {
                    thallus_driver::PreparedBatch::Lent { .. } => report.batches_lent += 1,
                    thallus_driver::PreparedBatch::Inline { .. } => report.batches_inline += 1,
                }
                handle.send(Command::Packed { stream, packed });
            }
            Some(Err(source)) => {
                let failure = Failure::new(StreamCode::Source, source.to_string());
                upload.ended = true;
                handle.lender(LenderCommand::Fail { stream, failure });
                return Err(ClientError::Source { source });
            }
            None => {
                handle.lender(LenderCommand::Finish { stream, execute_nanos: 0 });
                break answered.await;
            }
        }
    };
    upload.ended = true;
    report.rows = answer.map_err(|_| ClientError::gone())??;
    Ok(report)
}

fn differs(batch: &RecordBatch) -> ArrowError {
    ArrowError::SchemaError(format!("a batch has the schema {:?}, the upload another", Arc::as_ref(&batch.schema())))
}
