//! A query's result that is read only on request.

use std::ops::Range;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use arrow::array::{Array, RecordBatch};
use arrow::buffer::Buffer;
use arrow::datatypes::SchemaRef;
use arrow::error::ArrowError;
use futures::Stream;
use thallus_fabric::memory::UncheckedAssembler;
use thallus_protocol::borrower::BorrowerCommand;
use thallus_protocol::layout::{CheckedDescriptor, Piece, Projection, Step, column_bytes};
use tokio::sync::oneshot;
use tokio::time::Instant;
use tracing::warn;

use super::PartStream;
use crate::driver::{Command, Delivered, Handle, LoanGuard};
use crate::error::ClientError;
use crate::report::{LazyReport, TransferReport};

/// A query's result of which nothing is read until requested: its batches are [`LazyBatch`]es.
///
/// Batches arrive in order. A batch is on loan, and counts against the result's window, until it is dropped. If the
/// application keeps all batches, no further batch arrives once the window is full (a warning is logged). The server
/// then revokes its loans after a while (its `timeouts.lease`, 60 s by default), which ends the result in an error with
/// that reason; so does the query's deadline. So read the required part of each batch, and drop the batch.
///
/// Dropping the stream before its end cancels the query, and batches that are still held can no longer be read. After
/// the stream has returned `None`, held batches can be read until the lease or the deadline expires.
#[derive(Debug)]
pub struct LazyStream {
    result: PartStream,
    /// Bytes that may be on loan at a time.
    window: u64,
    warned: bool,
    account: Arc<Mutex<Account>>,
}

/// Counters over all batches of a stream.
#[derive(Debug, Default)]
struct Account {
    lazy: LazyReport,
    /// Time spent in determining the pieces to read, and in validation.
    decode: Duration,
    /// When the last partial read completed.
    last: Option<Instant>,
    /// Batches on loan, and their bytes of the window.
    held: u64,
    held_bytes: u64,
}

impl LazyStream {
    pub(crate) fn new(result: PartStream, window: u64) -> Self {
        LazyStream { result, window, warned: false, account: Arc::default() }
    }

    /// The schema of every batch.
    #[must_use]
    pub fn schema(&self) -> SchemaRef {
        self.result.schema()
    }

    /// The transfer so far, including partial reads of held batches. [`TransferReport::lazy`] has the savings.
    #[must_use]
    pub fn report(&self) -> TransferReport {
        let mut report = self.result.report();
        let account = lock(&self.account);
        report.bytes_lent = account.lazy.bytes_read;
        report.decode += account.decode;
        report.lazy = Some(account.lazy);
        if let Some(last) = account.last {
            report.total = report.total.max(last.saturating_duration_since(self.result.started));
        }
        report
    }

    fn batch(&mut self, seq: u64, cost: u64, batch: Delivered) -> Result<LazyBatch, ClientError> {
        let schema = self.schema();
        let (loan, descriptor) = match batch {
            Delivered::OnDemand { guard, descriptor } => (guard, descriptor),
            here => {
                let batch = self.result.batch(seq, cost, here)?;
                return Ok(LazyBatch { schema, content: Content::Here(batch) });
            }
        };
        let handle = Arc::clone(&self.result.handle);
        let columns = match column_bytes(&descriptor) {
            Ok(columns) => columns,
            Err(error) => return Err(reject(&handle, &loan, &error.to_string())),
        };
        self.result.was_lent();
        self.result.report.batches_lent += 1;
        self.result.report.rows += descriptor.rows;
        {
            let mut account = lock(&self.account);
            account.lazy.bytes_offered += descriptor.live_bytes();
            account.held += 1;
            account.held_bytes += cost;
        }
        let account = Arc::clone(&self.account);
        Ok(LazyBatch { schema, content: Content::Lent(Lent { handle, loan, descriptor, cost, columns, account }) })
    }

    /// Warns once if the application holds more than half the window while it waits for another batch: it may never
    /// arrive.
    fn waits(&mut self) {
        let account = lock(&self.account);
        if account.held_bytes > self.window / 2 && !std::mem::replace(&mut self.warned, true) {
            let (held, bytes, window) = (account.held, account.held_bytes, self.window);
            warn!(held, bytes, window, "waiting for a batch, but held lazy batches may leave no room in the window");
        }
    }

    /// Adds the cause to the error of an expired lease: batches were held.
    fn explained(&self, error: ClientError) -> ClientError {
        let held = lock(&self.account).held;
        match error {
            ClientError::LeaseExpired { message } if held > 0 => ClientError::LeaseExpired {
                message: format!(
                    "{message}; {held} batches of this lazy result are held: drop each after use, before \
                     waiting for the next, or take a larger window"
                ),
            },
            other => other,
        }
    }
}

impl Stream for LazyStream {
    type Item = Result<LazyBatch, ClientError>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let arrived = self.result.poll_arrived(cx);
        if arrived.is_pending() {
            self.waits();
        }
        Poll::Ready(match ready!(arrived) {
            Some(Ok((seq, cost, batch))) => Some(self.batch(seq, cost, batch)),
            Some(Err(error)) => Some(Err(self.explained(error))),
            None => None,
        })
    }
}

/// A batch in the server's memory, read in parts, on request, any number of times.
///
/// The client reads the requested part one-sidedly and validates it. It returns the part only if the lease still stood
/// after the read. Every failure except a lack of memory loses the batch: all further reads of it fail, and so does the
/// result, if it has not ended.
///
/// Batches that travelled inline, because they are small or there is no fabric, are already in this process; the same
/// methods read them.
#[derive(Debug)]
pub struct LazyBatch {
    schema: SchemaRef,
    content: Content,
}

#[derive(Debug)]
enum Content {
    Here(RecordBatch),
    Lent(Lent),
}

impl LazyBatch {
    /// The schema of the whole batch.
    #[must_use]
    pub fn schema(&self) -> SchemaRef {
        Arc::clone(&self.schema)
    }

    /// Rows of the batch.
    #[must_use]
    pub fn num_rows(&self) -> usize {
        match &self.content {
            Content::Here(batch) => batch.num_rows(),
            // Checked against the limits when it was announced.
            Content::Lent(lent) => lent.descriptor.rows as usize,
        }
    }

    /// Bytes of each column, including its children and dictionaries: the cost of reading all of it. A batch that [is
    /// here](Self::is_here) costs nothing more to read.
    #[must_use]
    pub fn column_bytes(&self) -> Vec<u64> {
        match &self.content {
            Content::Here(batch) => batch.columns().iter().map(|column| live_bytes(column)).collect(),
            Content::Lent(lent) => lent.columns.clone(),
        }
    }

    /// Whether the batch travelled inline, so that nothing of it has to be read.
    #[must_use]
    pub fn is_here(&self) -> bool {
        matches!(self.content, Content::Here(_))
    }

    /// Reads these columns, by their positions in the schema, and returns them in the order of the argument.
    ///
    /// # Errors
    /// [`ClientError::OutOfRange`] if there is no such column; [`ClientError::Read`], [`ClientError::LeaseExpired`],
    /// [`ClientError::InvalidBatch`] and the like if it cannot be read, after which the batch is lost;
    /// [`ClientError::OutOfMemory`], after which a smaller part may still be read; and the error that ended the result
    /// or the connection since the batch arrived.
    pub async fn columns(&self, columns: &[usize]) -> Result<RecordBatch, ClientError> {
        self.columns_in(columns, 0..self.num_rows()).await
    }

    /// Reads these rows of these columns. Of strings, lists and the like it reads the offsets first, and then only the
    /// values of these rows. Of dictionaries it reads the keys of these rows, and the dictionary.
    ///
    /// # Errors
    /// See [`LazyBatch::columns`]; [`ClientError::OutOfRange`] also if there are no such rows.
    pub async fn columns_in(&self, columns: &[usize], rows: Range<usize>) -> Result<RecordBatch, ClientError> {
        let count = self.schema.fields().len();
        if let Some(&got) = columns.iter().find(|column| **column >= count) {
            return Err(ClientError::OutOfRange { what: "column", got, count });
        }
        if rows.start > rows.end || rows.end > self.num_rows() {
            return Err(ClientError::OutOfRange { what: "row", got: rows.start.max(rows.end), count: self.num_rows() });
        }
        match &self.content {
            Content::Here(batch) => {
                // The columns were checked against the schema above.
                let invalid = |error: ArrowError| ClientError::InvalidBatch { batch: 0, reason: error.to_string() };
                Ok(batch.project(columns).map_err(invalid)?.slice(rows.start, rows.len()))
            }
            Content::Lent(lent) => lent.read(columns, rows).await,
        }
    }

    /// Reads the whole batch.
    ///
    /// # Errors
    /// See [`LazyBatch::columns`].
    pub async fn read_all(&self) -> Result<RecordBatch, ClientError> {
        let columns: Vec<_> = (0..self.schema.fields().len()).collect();
        self.columns(&columns).await
    }
}

/// A batch on loan. Dropping it ends the loan.
#[derive(Debug)]
struct Lent {
    handle: Arc<Handle>,
    loan: LoanGuard,
    descriptor: Arc<CheckedDescriptor>,
    cost: u64,
    columns: Vec<u64>,
    account: Arc<Mutex<Account>>,
}

impl Drop for Lent {
    fn drop(&mut self) {
        let mut account = lock(&self.account);
        account.held -= 1;
        account.held_bytes -= self.cost;
    }
}

impl Lent {
    async fn read(&self, columns: &[usize], rows: Range<usize>) -> Result<RecordBatch, ClientError> {
        let begun = Instant::now();
        let rows = rows.start as u64..rows.end as u64;
        let projection = Projection::new(&self.descriptor, columns, rows);
        let mut projection = projection.map_err(|error| self.invalid(&error.to_string()))?;
        loop {
            let stepped = Instant::now();
            let step = projection.step_with(&UncheckedAssembler);
            lock(&self.account).decode += stepped.elapsed();
            match step.map_err(|error| self.invalid(&error.to_string()))? {
                Step::Read(pieces) => projection.give(self.ask(pieces).await?),
                Step::Done(batch) => {
                    let (mut account, now) = (lock(&self.account), Instant::now());
                    account.lazy.asks += 1;
                    account.lazy.asking += now - begun;
                    account.last = Some(now);
                    return Ok(batch);
                }
            }
        }
    }

    async fn ask(&self, pieces: Vec<Piece>) -> Result<Vec<Buffer>, ClientError> {
        let bytes: u64 = pieces.iter().map(|piece| piece.len).sum();
        let (answer, answered) = oneshot::channel();
        let (stream, seq) = (self.loan.stream, self.loan.seq);
        let gone = || ClientError::ServerGone { message: "the connection has ended".into() };
        if !self.handle.send(Command::ReadPart { stream, seq, pieces, answer }) {
            return Err(gone());
        }
        // The connection's own timeouts bound this wait.
        let (buffer, layout) = answered.await.map_err(|_| gone())??;
        lock(&self.account).lazy.bytes_read += bytes;
        // The slab was allocated with this layout's length, which is a usize.
        let slice = |range: &thallus_protocol::layout::Range| {
            buffer.slice_with_length(range.offset as usize, range.len as usize)
        };
        Ok(layout.ranges.iter().map(slice).collect())
    }

    fn invalid(&self, reason: &str) -> ClientError {
        reject(&self.handle, &self.loan, reason)
    }
}

/// Reports an invalid batch to the connection, which ends the stream.
fn reject(handle: &Handle, loan: &LoanGuard, reason: &str) -> ClientError {
    let (stream, seq) = (loan.stream, loan.seq);
    handle.borrower(BorrowerCommand::Rejected { stream, seq, reason: reason.to_owned() });
    ClientError::InvalidBatch { batch: seq, reason: reason.to_owned() }
}

fn live_bytes(column: &dyn Array) -> u64 {
    column.to_data().get_slice_memory_size().unwrap_or_else(|_| column.get_buffer_memory_size()) as u64
}

fn lock(account: &Mutex<Account>) -> MutexGuard<'_, Account> {
    account.lock().unwrap_or_else(PoisonError::into_inner)
}
