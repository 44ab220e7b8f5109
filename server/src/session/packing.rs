//! Batches as they travel: lent, or inline.

use std::fmt;

use arrow_array::RecordBatch;
use arrow_schema::Schema;
use bytes::Bytes;
use thallus_fabric::count::thread_registrations;
use thallus_fabric::memory::Trusting;
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
}

impl Packing {
    /// For batches of `schema`; and the message that the result begins with.
    pub(super) fn new(schema: &Schema, complete: bool) -> Result<(Self, Bytes), Failure> {
        let (encoder, message) = InlineEncoder::new(schema).map_err(unencodable)?;
        let encoder = encoder.with_assemble(&Trusting);
        let dictionaries = (!complete).then(LentDictionaries::default);
        Ok((Packing { encoder, dictionaries }, message.into()))
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
        // What lives in it is no more than what it holds, which is found out sooner: most small results end here.
        if (batch.get_array_memory_size() as u64) < threshold {
            return Ok(None);
        }
        let Described { descriptor, buffers, copied, spared, dictionaries } = match &self.dictionaries {
            Some(before) => layout::describe_after(batch, before),
            None => layout::describe_compact(batch),
        }?;
        if descriptor.live_bytes().saturating_add(spared) < threshold
            || descriptor.slab_bytes() > context.max_loan_bytes
        {
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
