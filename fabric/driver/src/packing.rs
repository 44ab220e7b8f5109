//! Prepares the batches of one stream for sending: lent, or inline.

use std::fmt;
use std::sync::Arc;

use arrow_array::RecordBatch;
use arrow_schema::Schema;
use bytes::Bytes;
use thallus_fabric::count::thread_registrations;
use thallus_fabric::memory::UncheckedAssembler;
use thallus_protocol::codes::StreamCode;
use thallus_protocol::inline::InlineEncoder;
use thallus_protocol::layout::{self, Described, LayoutError, LentDictionaries};
use thallus_protocol::lender::LoanCost;
use thallus_protocol::message::{Access, Failure};
use tracing::{debug, warn};

use crate::loans::{LoanPool, PreparedLoan};

/// The parameters of a stream's packing.
#[derive(Clone, Debug)]
pub struct PackingContext {
    /// The pool that makes batches readable. `None`: all batches travel inline.
    pub pool: Option<Arc<LoanPool>>,
    /// Maximum number of bytes of one batch, lent or inline, at the lender.
    pub max_loan_bytes: u64,
    /// Maximum number of bytes of one batch, lent or inline, at the borrower, if it has stated one. [`Packing::cut`]
    /// cuts batches that are beyond either limit.
    pub largest_batch: Option<u64>,
    /// How the borrower accesses lent batches.
    pub access: Access,
    /// Returns the number of page faults of the calling thread so far.
    pub page_faults: fn() -> u64,
}

/// A batch that is ready to be sent.
#[derive(Debug)]
pub enum PreparedBatch {
    /// A batch to be lent.
    Lent {
        /// The memory of the batch.
        loan: PreparedLoan,
        /// The work that preparing the loan took.
        cost: LoanCost,
        /// Number of rows.
        rows: u64,
    },
    /// A batch to be sent inline.
    Inline {
        /// The batch as Arrow IPC.
        ipc: Bytes,
        /// Number of rows.
        rows: u64,
    },
}

/// The state that the batches of one stream share.
pub struct Packing {
    context: PackingContext,
    encoder: InlineEncoder,
    /// Dictionaries of the last lent batch; `None` if each batch must be complete.
    dictionaries: Option<LentDictionaries>,
    /// Bits per row, with validity, if all columns are numbers.
    row_bits: Option<u64>,
    /// True if a warning has reported that a batch could not be lent. The next ones of the stream are not worth one: a
    /// result of a thousand batches has the same reason a thousand times.
    inline_warned: bool,
}

impl fmt::Debug for Packing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Packing").field("context", &self.context).finish_non_exhaustive()
    }
}

impl Packing {
    /// Packing for batches of `schema`, and the schema message that the stream begins with.
    ///
    /// # Errors
    /// Arrow IPC cannot carry the schema.
    pub fn new(schema: &Schema, context: PackingContext) -> Result<(Self, Bytes), Failure> {
        let (encoder, message) = InlineEncoder::new(schema).map_err(unencodable)?;
        let encoder = encoder.with_assemble(&UncheckedAssembler);
        let dictionaries = (!context.access.needs_complete_batches()).then(LentDictionaries::default);
        let widths = schema.fields().iter().map(|field| field.data_type().primitive_width());
        let row_bits = widths.map(|width| Some(width? as u64 * 8 + 1)).sum();
        Ok((Packing { context, encoder, dictionaries, row_bits, inline_warned: false }, message.into()))
    }

    /// An upper bound of a batch's live bytes. It takes less time than the exact number, and is sufficient for most
    /// small results.
    fn at_most(&self, batch: &RecordBatch) -> u64 {
        let held = batch.get_array_memory_size() as u64;
        let Some(bits) = self.row_bits else { return held };
        // Bitmaps may begin and end within a byte.
        let rows = (batch.num_rows() as u64).saturating_mul(bits) / 8 + 2 * batch.num_columns() as u64;
        held.min(rows)
    }

    /// Splits off the rows beyond the limit of bytes of a batch. Most batches are within the limit, and stay whole.
    ///
    /// # Errors
    /// A single row is beyond the limit.
    pub fn cut(&self, batch: RecordBatch) -> Result<(RecordBatch, Option<RecordBatch>), Failure> {
        let (lender, borrower) = (self.context.max_loan_bytes, self.context.largest_batch);
        let limit = borrower.map_or(lender, |borrower| borrower.min(lender));
        // The framing of an inline batch takes less than this share.
        let target = limit - limit / 16;
        let mut rows = batch.num_rows();
        let mut bytes = self.at_most(&batch);
        if bytes > target {
            bytes = self.measure(&batch)?;
        }
        while bytes > target && rows > 1 {
            // In proportion first; at least by half, so that rows of very different sizes end it soon too.
            let share = (rows as u128 * u128::from(target) / u128::from(bytes)) as usize;
            rows = share.clamp(1, rows.div_ceil(2).max(share.min(rows - 1)));
            bytes = self.measure(&batch.slice(0, rows))?;
        }
        if bytes > limit {
            let message = match borrower {
                Some(borrower) => format!(
                    "one row takes {bytes} bytes, and the limits of a batch are {lender} bytes at the sender and \
                     {borrower} bytes at the receiver"
                ),
                None => format!("one row takes {bytes} bytes, and the sender's limit of a batch is {lender} bytes"),
            };
            return Err(Failure::new(StreamCode::BatchTooLarge, message));
        }
        let rest = (rows < batch.num_rows()).then(|| batch.slice(rows, batch.num_rows() - rows));
        Ok((if rest.is_some() { batch.slice(0, rows) } else { batch }, rest))
    }

    /// The bytes that a batch takes at the borrower, with all its dictionaries.
    fn measure(&self, batch: &RecordBatch) -> Result<u64, Failure> {
        let described = layout::describe_compact(self.encoder.plan(), batch).map_err(unencodable)?;
        Ok(described.descriptor.slab_bytes())
    }

    /// Prepares a batch for sending. It is lent if it has at least `lend_from` live bytes.
    ///
    /// # Errors
    /// Arrow IPC cannot carry the batch, or it cannot be described.
    pub fn pack(&mut self, batch: &RecordBatch, lend_from: Option<u64>) -> Result<PreparedBatch, Failure> {
        let rows = batch.num_rows() as u64;
        let page_faults = self.context.page_faults;
        let before = (thread_registrations(), page_faults());
        let loan = self.prepare(batch, lend_from).map_err(unencodable)?;
        let (registrations, page_faults) = (thread_registrations() - before.0, page_faults() - before.1);
        Ok(match loan {
            Some(loan) => PreparedBatch::Lent { loan, cost: LoanCost { registrations, page_faults }, rows },
            None => PreparedBatch::Inline { ipc: self.encoder.encode(batch).map_err(unencodable)?.into(), rows },
        })
    }

    /// Prepares the batch as a loan, if it is to be lent and can be lent.
    fn prepare(&mut self, batch: &RecordBatch, lend_from: Option<u64>) -> Result<Option<PreparedLoan>, LayoutError> {
        let (Some(threshold), Some(pool)) = (lend_from, &self.context.pool) else { return Ok(None) };
        if self.at_most(batch) < threshold {
            return Ok(None);
        }
        let Described { descriptor, buffers, copied, omitted_dictionary_bytes, dictionaries } = match &self.dictionaries
        {
            Some(before) => layout::describe_after(self.encoder.plan(), batch, before),
            None => layout::describe_compact(self.encoder.plan(), batch),
        }?;
        // Dictionaries that were left out count too: inline they might have to be sent, and the borrower keeps them.
        let [live, all] = [descriptor.live_bytes(), descriptor.slab_bytes()]
            .map(|bytes| bytes.saturating_add(omitted_dictionary_bytes));
        if live < threshold || all > self.context.max_loan_bytes {
            return Ok(None);
        }
        let bytes = descriptor.slab_bytes();
        match pool.prepare(descriptor, &buffers, matches!(self.context.access, Access::Map(_))) {
            Ok(Some(mut loan)) => {
                loan.staged += copied;
                // The borrower keeps the dictionaries that were lent last; these replace them.
                if let Some(lent) = &mut self.dictionaries {
                    *lent = dictionaries;
                }
                Ok(Some(loan))
            }
            Ok(None) => {
                let fabric = pool.fabric().kind();
                self.report_inline(bytes, format_args!("the limit of bytes on loan is reached, over {fabric}"));
                Ok(None)
            }
            Err(error) => {
                self.report_inline(bytes, format_args!("{error}"));
                Ok(None)
            }
        }
    }

    /// Reports that a batch of this size is sent inline although it was to be lent.
    fn report_inline(&mut self, bytes: u64, reason: fmt::Arguments<'_>) {
        if std::mem::replace(&mut self.inline_warned, true) {
            debug!(bytes, %reason, "another batch is sent inline");
        } else {
            warn!(bytes, %reason, "a batch cannot be lent: it is sent inline, as are others of this stream if need be");
        }
    }
}

fn unencodable(what: impl fmt::Display) -> Failure {
    Failure::new(StreamCode::Unencodable, what.to_string())
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use arrow_array::{ArrayRef, Int16Array, Int64Array, StringArray};
    use thallus_fabric_sim::{SimNetwork, SimOptions};
    use tracing::field::{Field, Visit};
    use tracing::{Event, Level, Metadata, Subscriber, span};

    use super::*;
    use crate::budget::LoanBudget;

    fn context() -> PackingContext {
        PackingContext {
            pool: None,
            max_loan_bytes: 1 << 20,
            largest_batch: None,
            access: Access::Read,
            page_faults: || 0,
        }
    }

    #[test]
    fn no_more_lives_in_a_batch_than_it_is_said_to_have_at_most() {
        let numbers: ArrayRef = Arc::new((0..5000).map(|n| (n % 3 > 0).then_some(n)).collect::<Int64Array>());
        let short: ArrayRef = Arc::new((0..5000).map(|n| (n % 5 > 0).then_some(n)).collect::<Int16Array>());
        let names: ArrayRef = Arc::new(StringArray::from_iter_values((0..5000).map(|n| format!("name {n}"))));
        let columns = [("numbers", numbers), ("short", short)];
        let whole = RecordBatch::try_from_iter(columns.clone()).unwrap();
        let named = RecordBatch::try_from_iter(columns.into_iter().chain([("names", names)])).unwrap();
        for (batch, is_tight) in [(whole, true), (named, false)] {
            let (packing, _) = Packing::new(&batch.schema(), context()).unwrap();
            for (start, len) in [(0, 5000), (0, 0), (0, 1), (7, 1), (7, 2), (1, 4095), (3, 1000), (4990, 10)] {
                let part = batch.slice(start, len);
                let live = layout::describe_compact(packing.encoder.plan(), &part).unwrap().descriptor.live_bytes();
                let most = packing.at_most(&part);
                assert!(live <= most, "{live} bytes live, {most} at most: {start}, {len}");
                assert!(!is_tight || most <= live + 8, "{live} bytes live, {most} at most: {start}, {len}");
            }
        }
    }

    #[test]
    fn a_batch_is_cut_until_each_part_is_within_the_limit() {
        let lens = (0..3000usize).map(|n| if n % 500 == 7 { 200_000 } else { n % 300 });
        let texts: ArrayRef = Arc::new(StringArray::from_iter_values(lens.map(|len| "x".repeat(len))));
        let numbers: ArrayRef = Arc::new((0..3000).collect::<Int64Array>());
        let batch = RecordBatch::try_from_iter([("texts", texts), ("numbers", numbers)]).unwrap();
        for limit in [300_000, 1 << 20] {
            let context = PackingContext { largest_batch: Some(limit), ..context() };
            let (mut packing, _) = Packing::new(&batch.schema(), context).unwrap();
            let (mut rest, mut parts) = (Some(batch.clone()), Vec::new());
            while let Some(whole) = rest {
                let part;
                (part, rest) = packing.cut(whole).unwrap();
                let PreparedBatch::Inline { ipc, .. } = packing.pack(&part, None).unwrap() else { unreachable!() };
                assert!(ipc.len() as u64 <= limit, "{} bytes, the limit is {limit}", ipc.len());
                parts.push(part);
            }
            assert!(parts.len() as u64 <= 4 * (batch.get_array_memory_size() as u64 / limit + 1), "{}", parts.len());
            assert_eq!(arrow_select::concat::concat_batches(&batch.schema(), &parts).unwrap(), batch);
        }
    }

    /// Collects the fields of the warnings of this crate.
    struct Warnings(Arc<Mutex<Vec<String>>>);

    impl Visit for Warnings {
        fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
            if field.name() == "reason" {
                self.0.lock().unwrap().push(format!("{value:?}"));
            }
        }
    }

    impl Subscriber for Warnings {
        fn enabled(&self, metadata: &Metadata<'_>) -> bool {
            *metadata.level() == Level::WARN && metadata.target().starts_with("thallus_driver::packing")
        }

        fn new_span(&self, _: &span::Attributes<'_>) -> span::Id {
            span::Id::from_u64(1)
        }

        fn record(&self, _: &span::Id, _: &span::Record<'_>) {}

        fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}

        fn event(&self, event: &Event<'_>) {
            event.record(&mut Warnings(Arc::clone(&self.0)));
        }

        fn enter(&self, _: &span::Id) {}

        fn exit(&self, _: &span::Id) {}
    }

    #[test]
    fn a_stream_warns_once_of_batches_that_cannot_be_lent() {
        let network = SimNetwork::new(1, SimOptions::shared_memory());
        // Less than one batch.
        let pool = Arc::new(LoanPool::new(network.host(), None, LoanBudget::new(4096), None));
        let numbers: ArrayRef = Arc::new((0..5000).collect::<Int64Array>());
        let batch = RecordBatch::try_from_iter([("numbers", numbers)]).unwrap();
        let warnings = Warnings(Arc::default());
        let logged = Arc::clone(&warnings.0);
        tracing::subscriber::with_default(warnings, || {
            for _stream in 0..2 {
                let context = PackingContext { pool: Some(Arc::clone(&pool)), ..context() };
                let (mut packing, _) = Packing::new(&batch.schema(), context).unwrap();
                for _ in 0..10 {
                    assert!(matches!(packing.pack(&batch, Some(0)).unwrap(), PreparedBatch::Inline { .. }));
                }
            }
        });
        let logged = logged.lock().unwrap();
        assert_eq!(logged.len(), 2, "one for each stream: {logged:?}");
        assert!(logged[0].contains("limit of bytes on loan"), "{logged:?}");
    }

    #[test]
    fn one_row_beyond_the_limit_is_an_error_with_both_limits() {
        let texts: ArrayRef = Arc::new(StringArray::from_iter_values(["x".to_owned(), "y".repeat(5000)]));
        let batch = RecordBatch::try_from_iter([("texts", texts)]).unwrap();
        let (packing, _) =
            Packing::new(&batch.schema(), PackingContext { largest_batch: Some(4096), ..context() }).unwrap();
        let (first, rest) = packing.cut(batch).unwrap();
        assert_eq!(first.num_rows(), 1);
        let failure = packing.cut(rest.unwrap()).unwrap_err();
        assert_eq!(failure.code, StreamCode::BatchTooLarge);
        let limits = "1048576 bytes at the sender and 4096 bytes at the receiver";
        assert!(failure.message.contains("one row takes 5") && failure.message.contains(limits), "{failure:?}");
    }
}
