//! One stream of a connection: a query's result, or one partition of it.

mod lazy;
mod mapped;

use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use arrow::array::RecordBatch;
use arrow::datatypes::{Schema, SchemaRef};
use futures::Stream;
use thallus_driver::{Arrived, Rebuilder};
use thallus_protocol::StreamId;
use thallus_protocol::borrower::BorrowerCommand;
use thallus_protocol::message::SortKey;
use tokio::sync::mpsc;
use tokio::time::Instant;

pub use self::lazy::{LazyBatch, LazyStream};
use crate::driver::{Delivered, Handle, Item};
use crate::error::ClientError;
use crate::report::{Carrier, ConnectionInfo, ServerReport, TransferReport};

/// A result, or one partition of it, as received from its connection.
#[derive(Debug)]
pub(crate) struct PartStream {
    handle: Arc<Handle>,
    stream: StreamId,
    items: mpsc::UnboundedReceiver<Item>,
    schema: SchemaRef,
    order: Vec<SortKey>,
    rebuilder: Option<Rebuilder>,
    info: Arc<Mutex<ConnectionInfo>>,
    /// The caller wants lent batches: a result without any is a fallback.
    pub(crate) wants_loans: bool,
    /// Size of the largest batch that is accepted, in bytes.
    pub(crate) max_batch: u64,
    /// Inline batches above this size should have been mapped. `None` once the warning has been logged.
    pub(crate) mapped_from: Option<u64>,
    started: Instant,
    waiting_since: Option<Instant>,
    report: TransferReport,
    ended: bool,
    /// The carrier of the lent batches.
    lent_by: Option<Carrier>,
}

impl PartStream {
    pub(crate) fn new(
        handle: Arc<Handle>,
        stream: StreamId,
        items: mpsc::UnboundedReceiver<Item>,
        started: Instant,
        info: Arc<Mutex<ConnectionInfo>>,
    ) -> Self {
        PartStream {
            handle,
            stream,
            items,
            schema: Arc::new(Schema::empty()),
            order: Vec::new(),
            rebuilder: None,
            info,
            wants_loans: true,
            max_batch: 0,
            mapped_from: None,
            started,
            waiting_since: None,
            report: TransferReport::default(),
            ended: false,
            lent_by: None,
        }
    }

    /// Waits for the schema.
    pub(crate) async fn after_schema(mut self) -> Result<Self, ClientError> {
        let first = self.items.recv().await;
        self.report.first_answer = self.started.elapsed();
        match first {
            Some(Item::Schema { plan, order }) => {
                self.schema = Arc::clone(plan.schema());
                self.rebuilder = Some(Rebuilder::new(plan, self.max_batch));
                self.order = order;
                Ok(self)
            }
            Some(Item::Failed(error)) => {
                self.ended = true;
                Err(error.into())
            }
            _ => {
                self.ended = true;
                Err(ClientError::gone())
            }
        }
    }

    pub(crate) fn schema(&self) -> SchemaRef {
        Arc::clone(&self.schema)
    }

    /// The order of the rows, if this is a partition of a sorted result.
    pub(crate) fn order(&self) -> &[SortKey] {
        &self.order
    }

    pub(crate) fn has_ended(&self) -> bool {
        self.ended
    }

    /// Cancels the stream. Further items are discarded.
    pub(crate) fn cancel(&mut self) {
        if !self.ended {
            self.end();
            self.handle.borrower(BorrowerCommand::Cancel { stream: self.stream });
        }
    }

    pub(crate) fn report(&self) -> TransferReport {
        let mut report = self.report.clone();
        if !self.ended {
            report.total = self.started.elapsed();
        }
        report.carrier = self.carrier();
        report
    }

    /// The carrier of this result so far, which may differ from the connection's carrier.
    fn carrier(&self) -> Carrier {
        let connection = self.info.lock().unwrap_or_else(PoisonError::into_inner).carrier.clone();
        match (&self.lent_by, connection) {
            (Some(carrier), _) => carrier.clone(),
            (None, Carrier::Inline { fallback }) => Carrier::Inline { fallback: fallback.filter(|_| self.wants_loans) },
            (None, Carrier::OneSided { .. }) => Carrier::Inline { fallback: None },
        }
    }

    /// Records the connection's current carrier when the first batch is lent.
    fn was_lent(&mut self) {
        let carrier = || self.info.lock().unwrap_or_else(PoisonError::into_inner).carrier.clone();
        self.lent_by.get_or_insert_with(carrier);
    }

    fn end(&mut self) {
        self.ended = true;
        if let Some(rebuilder) = &mut self.rebuilder {
            rebuilder.forget_dictionaries();
        }
        self.report.total = self.started.elapsed();
    }

    fn decode(&mut self, batch: Delivered) -> Result<RecordBatch, String> {
        let arrived = match batch {
            Delivered::Local(arrived) => arrived,
            Delivered::OnDemand { .. } => return Err("bug: a batch on demand of a result that is read whole".into()),
            Delivered::Mapped(batch) => {
                self.was_lent();
                return mapped::build(batch, &mut self.report);
            }
        };
        match &arrived {
            Arrived::Inline(ipc) => {
                self.report.batches_inline += 1;
                self.report.bytes_inline += ipc.len() as u64;
                mapped::warn_of_inline(&mut self.mapped_from, ipc.len() as u64, &self.report);
            }
            Arrived::Read { descriptor, .. } => {
                self.was_lent();
                self.report.batches_lent += 1;
                self.report.bytes_lent += descriptor.live_bytes();
            }
        }
        self.rebuilder.as_mut().ok_or("bug: a batch before the schema")?.rebuild(arrived)
    }

    fn batch(&mut self, seq: u64, cost: u64, batch: Delivered) -> Result<RecordBatch, ClientError> {
        let begun = Instant::now();
        let decoded = self.decode(batch);
        self.report.decode += begun.elapsed();
        let stream = self.stream;
        match decoded {
            Ok(batch) => {
                self.handle.borrower(BorrowerCommand::Consumed { stream, cost });
                self.report.rows += batch.num_rows() as u64;
                Ok(batch)
            }
            Err(reason) => {
                self.handle.borrower(BorrowerCommand::Rejected { stream, seq, reason: reason.clone() });
                self.end();
                Err(ClientError::InvalidBatch { batch: seq, reason })
            }
        }
    }
}

/// A batch with its sequence number and its cost.
type Numbered = (u64, u64, Delivered);

impl PartStream {
    fn poll_arrived(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Numbered, ClientError>>> {
        let this = self;
        if this.ended {
            return Poll::Ready(None);
        }
        let polled = this.items.poll_recv(cx);
        if polled.is_pending() {
            this.waiting_since.get_or_insert_with(Instant::now);
        }
        let item = ready!(polled);
        if let Some(since) = this.waiting_since.take() {
            this.report.wait += since.elapsed();
        }
        Poll::Ready(match item {
            Some(Item::Batch { seq, cost, batch }) => Some(Ok((seq, cost, batch))),
            Some(Item::End { stats, read, registrations }) => {
                this.end();
                this.report.complete = true;
                this.report.read = read;
                this.report.registrations = registrations;
                this.report.server = Some(ServerReport {
                    bytes_copied: stats.bytes_staged,
                    registrations: stats.registrations,
                    regions: stats.regions,
                    page_faults: stats.page_faults,
                    first_batch: Duration::from_nanos(stats.first_batch_nanos),
                    execute: Duration::from_nanos(stats.execute_nanos),
                    credit_wait: Duration::from_nanos(stats.credit_wait_nanos),
                });
                if stats.rows == this.report.rows {
                    None
                } else {
                    let (sent, got) = (stats.rows, this.report.rows);
                    this.report.complete = false;
                    Some(Err(ClientError::Incomplete { got, sent }))
                }
            }
            Some(Item::Failed(error)) => {
                this.end();
                Some(Err(error.into()))
            }
            Some(Item::Schema { .. }) | None => {
                this.end();
                Some(Err(ClientError::gone()))
            }
        })
    }
}

impl Stream for PartStream {
    type Item = Result<RecordBatch, ClientError>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        Poll::Ready(match ready!(self.poll_arrived(cx)) {
            Some(Ok((seq, cost, batch))) => Some(self.batch(seq, cost, batch)),
            Some(Err(error)) => Some(Err(error)),
            None => None,
        })
    }
}

impl Drop for PartStream {
    fn drop(&mut self) {
        self.cancel();
    }
}
