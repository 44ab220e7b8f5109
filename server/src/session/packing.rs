//! Batches as they travel: lent, or inline.

use std::fmt;

use arrow_array::RecordBatch;
use arrow_schema::Schema;
use bytes::Bytes;
use thallus_fabric::count::thread_registrations;
use thallus_fabric::memory::UncheckedAssembler;
use thallus_protocol::FabricKind;
use thallus_protocol::codes::StreamCode;
use thallus_protocol::inline::InlineEncoder;
use thallus_protocol::layout::{self, Described, LayoutError, LentDictionaries};
use thallus_protocol::server::LoanEffort;
use tracing::warn;

use super::lender::{Lender, PreparedLoan};
use super::query::{Failure, Pull, QueryContext, QueryEvent};

/// What the batches of one result have in common on their way.
pub(super) struct Packing {
    encoder: InlineEncoder,
    /// Of the last batch that was lent, unless each is to be complete.
    dictionaries: Option<LentDictionaries>,
    /// Bits of a row and its validity, where all columns are numbers.
    row_bits: Option<u64>,
}

impl Packing {
    /// For batches of `schema`; and the message that the result begins with.
    pub(super) fn new(schema: &Schema, complete: bool) -> Result<(Self, Bytes), Failure> {
        let (encoder, message) = InlineEncoder::new(schema).map_err(unencodable)?;
        let encoder = encoder.with_assemble(&UncheckedAssembler);
        let dictionaries = (!complete).then(LentDictionaries::default);
        let widths = schema.fields().iter().map(|field| field.data_type().primitive_width());
        let row_bits = widths.map(|width| Some(width? as u64 * 8 + 1)).sum();
        Ok((Packing { encoder, dictionaries, row_bits }, message.into()))
    }

    /// At least as many bytes as live in a batch, found out sooner than how many those are: most small results end here.
    fn at_most(&self, batch: &RecordBatch) -> u64 {
        let held = batch.get_array_memory_size() as u64;
        let Some(bits) = self.row_bits else { return held };
        // Bitmaps may begin and end within a byte.
        let rows = (batch.num_rows() as u64).saturating_mul(bits) / 8 + 2 * batch.num_columns() as u64;
        held.min(rows)
    }

    /// Makes a batch ready to travel.
    pub(super) fn pack(
        &mut self,
        context: &QueryContext,
        batch: RecordBatch,
        pull: Pull,
    ) -> Result<QueryEvent, Failure> {
        let rows = batch.num_rows() as u64;
        let before = (thread_registrations(), (context.page_faults)());
        let loan = self.prepare(context, &batch, pull).map_err(unencodable)?;
        let (registrations, page_faults) = (thread_registrations() - before.0, (context.page_faults)() - before.1);
        Ok(match loan {
            Some(loan) => {
                QueryEvent::Lend { loan, effort: LoanEffort { registrations, page_faults, regions: 0 }, rows }
            }
            None => QueryEvent::Inline { ipc: self.encoder.encode(&batch).map_err(unencodable)?.into(), rows },
        })
    }

    /// The batch as a loan, if it is to be lent and can be.
    fn prepare(
        &mut self,
        context: &QueryContext,
        batch: &RecordBatch,
        pull: Pull,
    ) -> Result<Option<PreparedLoan>, LayoutError> {
        let (Some(threshold), Some(lender)) = (pull.lend_from, &context.lender) else { return Ok(None) };
        if self.at_most(batch) < threshold {
            return Ok(None);
        }
        let Described { descriptor, buffers, copied, spared, dictionaries } = match &self.dictionaries {
            Some(before) => layout::describe_after(self.encoder.plan(), batch, before),
            None => layout::describe_compact(self.encoder.plan(), batch),
        }?;
        // With what was spared, which inline it might have to carry, and which the client keeps.
        let [live, all] = [descriptor.live_bytes(), descriptor.slab_bytes()].map(|bytes| bytes.saturating_add(spared));
        if live < threshold || all > context.max_loan_bytes {
            return Ok(None);
        }
        let bytes = descriptor.slab_bytes();
        match lender.prepare(descriptor, &buffers, context.borrower.is_some()) {
            Ok(Some(mut loan)) => {
                loan.staged += copied;
                // What the client has is what was lent; from now on that is this one's.
                if let Some(lent) = &mut self.dictionaries {
                    *lent = dictionaries;
                }
                Ok(Some(loan))
            }
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
}

fn lender_kind(lender: &Lender) -> FabricKind {
    lender.fabric().kind()
}

fn unencodable(what: impl fmt::Display) -> Failure {
    (StreamCode::Unencodable, what.to_string())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow_array::{ArrayRef, Int16Array, Int64Array, StringArray};

    use super::*;

    #[test]
    fn no_more_lives_in_a_batch_than_it_is_said_to_have_at_most() {
        let numbers: ArrayRef = Arc::new((0..5000).map(|n| (n % 3 > 0).then_some(n)).collect::<Int64Array>());
        let short: ArrayRef = Arc::new((0..5000).map(|n| (n % 5 > 0).then_some(n)).collect::<Int16Array>());
        let names: ArrayRef = Arc::new(StringArray::from_iter_values((0..5000).map(|n| format!("name {n}"))));
        let columns = [("numbers", numbers), ("short", short)];
        let whole = RecordBatch::try_from_iter(columns.clone()).unwrap();
        let named = RecordBatch::try_from_iter(columns.into_iter().chain([("names", names)])).unwrap();
        for (batch, is_tight) in [(whole, true), (named, false)] {
            let (packing, _) = Packing::new(&batch.schema(), false).unwrap();
            for (start, len) in [(0, 5000), (0, 0), (0, 1), (7, 1), (7, 2), (1, 4095), (3, 1000), (4990, 10)] {
                let part = batch.slice(start, len);
                let live = layout::describe_compact(packing.encoder.plan(), &part).unwrap().descriptor.live_bytes();
                let most = packing.at_most(&part);
                assert!(live <= most, "{live} bytes live, {most} at most: {start}, {len}");
                assert!(!is_tight || most <= live + 8, "{live} bytes live, {most} at most: {start}, {len}");
            }
        }
    }
}
