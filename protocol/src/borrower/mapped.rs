//! Mapped batches. A mapped batch is a pointer into the lender's memory. Its lease is proven as for reads, and stands
//! until the application has dropped the last array over the memory, even if the stream ends before that.

use std::sync::Arc;

use super::batches::BatchKey;
use super::{Borrower, BorrowerTask, Payload};
use crate::ids::{LeaseId, ReadId, StreamId};
use crate::layout::CheckedDescriptor;

impl Borrower {
    /// Mapped batches that the application has not given up.
    #[must_use]
    pub fn mapped_batches(&self) -> usize {
        self.mapped.len()
    }

    /// A batch has been mapped, and its lease stood after that.
    pub(super) fn mapped(
        &mut self,
        read: ReadId,
        (stream, seq): BatchKey,
        lease: LeaseId,
        descriptor: Arc<CheckedDescriptor>,
    ) {
        self.mapped.insert((stream, seq), lease);
        let bytes = descriptor.slab_bytes();
        let payload = Payload::Mapped { read, descriptor };
        match self.streams.get_mut(&stream).filter(|open| !open.ended) {
            Some(open) => {
                open.ready(seq, bytes, payload);
                self.deliver(stream);
            }
            None => self.abandon(stream, (seq, payload)),
        }
    }

    /// The application has unmapped a batch: releases its lease. `false` if there is no such batch.
    pub(super) fn unmapped(&mut self, key: BatchKey) -> bool {
        let Some(lease) = self.mapped.remove(&key) else { return false };
        self.loans.release(lease);
        true
    }

    /// Drops a batch that is ready and will not be delivered.
    pub(super) fn abandon(&mut self, stream: StreamId, (seq, payload): (u64, Payload)) {
        match payload {
            Payload::Lent { read, .. } => self.task(BorrowerTask::Discard { read }),
            Payload::Mapped { read, .. } => {
                self.task(BorrowerTask::Discard { read });
                self.unmapped((stream, seq));
            }
            Payload::OnDemand { .. } | Payload::Inline(_) => {}
        }
    }
}
