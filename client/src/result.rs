//! What one stream of a connection brings: a query's result, or one partition of it.

mod lazy;
mod mapped;

use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use arrow::array::RecordBatch;
use arrow::buffer::Buffer;
use arrow::datatypes::{Schema, SchemaRef};
use futures::Stream;
use thallus_fabric::memory::{Slab, UncheckedAssembler};
use thallus_protocol::inline::{InlineDecoder, InlineLimits};
use thallus_protocol::layout::{CheckedDescriptor, KeptDictionaries, Range};
use thallus_protocol::message::SortKey;
use thallus_protocol::{StreamId, layout};
use tokio::sync::mpsc;
use tokio::time::Instant;

pub use self::lazy::{LazyBatch, LazyStream};
use crate::driver::{Arrived, Command, Handle, Item};
use crate::error::ClientError;
use crate::options::Delivery;
use crate::report::{Carrier, ConnectionInfo, ServerReport, TransferReport};

/// A result, or one partition of it, as its connection brings it.
#[derive(Debug)]
pub(crate) struct PartStream {
    handle: Arc<Handle>,
    stream: StreamId,
    items: mpsc::UnboundedReceiver<Item>,
    schema: SchemaRef,
    order: Vec<SortKey>,
    decoder: Option<InlineDecoder>,
    /// Of what was lent.
    pub(crate) dictionaries: KeptDictionaries,
    info: Arc<Mutex<ConnectionInfo>>,
    inline_wanted: bool,
    /// Inline batches of so many bytes should have been mapped; said once.
    pub(crate) mapped_from: Option<u64>,
    started: Instant,
    waiting_since: Option<Instant>,
    report: TransferReport,
    over: bool,
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
            decoder: None,
            dictionaries: KeptDictionaries::default(),
            info,
            inline_wanted: false,
            mapped_from: None,
            started,
            waiting_since: None,
            report: TransferReport::default(),
            over: false,
        }
    }

    /// Waits for the schema.
    pub(crate) async fn begun(mut self, delivery: Delivery) -> Result<Self, ClientError> {
        self.inline_wanted = delivery == Delivery::Inline;
        let first = self.items.recv().await;
        self.report.first_answer = self.started.elapsed();
        match first {
            Some(Item::Schema { schema, ipc, order }) => {
                let decoder = InlineDecoder::new(&ipc, InlineLimits::default());
                self.decoder = Some(decoder.map_err(|e| ClientError::Protocol { message: e.to_string() })?);
                self.schema = schema;
                self.order = order;
                Ok(self)
            }
            Some(Item::Failed(error)) => {
                self.over = true;
                Err(error.into())
            }
            _ => {
                self.over = true;
                Err(ClientError::gone())
            }
        }
    }

    pub(crate) fn schema(&self) -> SchemaRef {
        Arc::clone(&self.schema)
    }

    /// What it is sorted by, if it is a partition of a sorted result.
    pub(crate) fn order(&self) -> &[SortKey] {
        &self.order
    }

    pub(crate) fn is_over(&self) -> bool {
        self.over
    }

    /// Ends it here: whatever still comes is not wanted.
    pub(crate) fn give_up(&mut self) {
        if !self.over {
            self.ended();
            self.handle.send(Command::Cancel { stream: self.stream });
        }
    }

    pub(crate) fn report(&self) -> TransferReport {
        let mut report = self.report.clone();
        if !self.over {
            report.total = self.started.elapsed();
        }
        let now = || self.info.lock().unwrap_or_else(PoisonError::into_inner).carrier.clone();
        report.carrier = match (self.inline_wanted, now()) {
            (true, _) => Carrier::Inline { fallback: None },
            (false, carrier) => carrier,
        };
        report
    }

    fn ended(&mut self) {
        self.over = true;
        // They may be slices of a whole batch's memory.
        self.dictionaries = KeptDictionaries::default();
        self.report.total = self.started.elapsed();
    }

    fn decode(&mut self, arrived: Arrived) -> Result<RecordBatch, String> {
        match arrived {
            Arrived::Inline(ipc) => {
                self.report.batches_inline += 1;
                self.report.bytes_inline += ipc.len() as u64;
                mapped::warn_of_inline(&mut self.mapped_from, ipc.len() as u64, &self.report);
                let decoder = self.decoder.as_mut().ok_or("no schema")?;
                decoder.decode(ipc).map_err(|e| e.to_string())
            }
            Arrived::Lazy { .. } => Err("bug: a lazy batch of a result that is not".into()),
            Arrived::Mapped(batch) => mapped::build(batch, &mut self.report),
            Arrived::Lent { slab, descriptor } => {
                self.report.batches_lent += 1;
                self.report.bytes_lent += descriptor.live_bytes();
                let mut descriptor = Arc::unwrap_or_clone(descriptor);
                let buffers = match slab {
                    Some(slab) => read_buffers(slab, &mut descriptor)?,
                    None => vec![Buffer::default(); descriptor.buffers.len()],
                };
                let kept = &mut self.dictionaries;
                layout::rebuild_after(&descriptor, &buffers, kept, &UncheckedAssembler).map_err(|e| e.to_string())
            }
        }
    }

    fn batch(&mut self, seq: u64, cost: u64, arrived: Arrived) -> Result<RecordBatch, ClientError> {
        let begun = Instant::now();
        let decoded = self.decode(arrived);
        self.report.decode += begun.elapsed();
        let stream = self.stream;
        match decoded {
            Ok(batch) => {
                self.handle.send(Command::Consumed { stream, cost });
                self.report.rows += batch.num_rows() as u64;
                Ok(batch)
            }
            Err(reason) => {
                self.handle.send(Command::Rejected { stream, seq, reason: reason.clone() });
                self.ended();
                Err(ClientError::Transfer { message: format!("batch {seq} is invalid: {reason}") })
            }
        }
    }
}

/// The buffers of a batch that has been read, its views rebased in the slab.
fn read_buffers(mut slab: Slab, descriptor: &mut CheckedDescriptor) -> Result<Vec<Buffer>, String> {
    // The slab was taken with the layout's length, which is a usize.
    for rebase in descriptor.rebases() {
        let (offset, len) = (rebase.range.offset as usize, rebase.range.len as usize);
        slab.edit(offset, len, |views| rebase.apply(views)).map_err(|e| e.to_string())?;
    }
    let held = |_| "the fabric reported a read as done, and holds its memory still".to_owned();
    let whole = slab.into_buffer().map_err(held)?;
    let cut = |range: &Range| whole.slice_with_length(range.offset as usize, range.len as usize);
    Ok(descriptor.layout().ranges.iter().map(cut).collect())
}

/// A batch with its position and its cost, as it came.
type Delivered = (u64, u64, Arrived);

impl PartStream {
    fn poll_arrived(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Delivered, ClientError>>> {
        let this = self;
        if this.over {
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
            Some(Item::Batch { seq, cost, arrived }) => Some(Ok((seq, cost, arrived))),
            Some(Item::End { stats, read, registrations }) => {
                this.ended();
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
                    Some(Err(ClientError::Transfer { message: format!("{got} rows arrived of {sent} that were sent") }))
                }
            }
            Some(Item::Failed(error)) => {
                this.ended();
                Some(Err(error.into()))
            }
            Some(Item::Schema { .. }) | None => {
                this.ended();
                Some(Err(ClientError::gone()))
            }
        })
    }
}

impl Stream for PartStream {
    type Item = Result<RecordBatch, ClientError>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        Poll::Ready(match ready!(self.poll_arrived(cx)) {
            Some(Ok((seq, cost, arrived))) => Some(self.batch(seq, cost, arrived)),
            Some(Err(error)) => Some(Err(error)),
            None => None,
        })
    }
}

impl Drop for PartStream {
    fn drop(&mut self) {
        self.give_up();
    }
}
