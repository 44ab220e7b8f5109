//! Batches that are mapped: buffers over the server's memory, and the loan that ends with the last array over them.

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::buffer::Buffer;
use thallus_fabric::Endpoint;
use thallus_fabric::memory::{TrustedPeer, buffer_with_guard};
use thallus_protocol::client::{ReadBatch, ReadProblem};
use thallus_protocol::layout::CheckedDescriptor;
use thallus_protocol::{ReadId, StreamId};
use tokio::sync::mpsc;

use super::handle::Command;

/// What is mapped, and not proven or not delivered yet.
#[derive(Debug, Default)]
pub(super) struct Maps(BTreeMap<ReadId, Vec<Buffer>>);

impl Maps {
    /// Maps all places of a batch, or none.
    pub(super) fn map(&mut self, endpoint: Option<&mut dyn Endpoint>, batch: ReadBatch) -> Result<(), ReadProblem> {
        // Only a query with `Delivery::Mapped` comes here, whose documentation says what is promised.
        let peer = TrustedPeer::assume();
        let endpoint = endpoint.ok_or_else(|| ReadProblem::Failed("there is no data plane".into()))?;
        // Empty buffers have no place.
        let mut buffers = vec![Buffer::from(&[][..]); batch.layout.ranges.len()];
        for (index, place) in batch.places {
            let mapped = peer.map(endpoint, place).map_err(|error| ReadProblem::Failed(error.to_string()))?;
            if let Some(buffer) = buffers.get_mut(index) {
                *buffer = mapped;
            }
        }
        self.0.insert(batch.read, buffers);
        Ok(())
    }

    pub(super) fn discard(&mut self, read: ReadId) {
        self.0.remove(&read);
    }

    /// A batch to be delivered. The connection lives for as long as its loan does: hence `commands`.
    pub(super) fn take(
        &mut self,
        read: ReadId,
        stream: StreamId,
        seq: u64,
        descriptor: Arc<CheckedDescriptor>,
        commands: mpsc::UnboundedSender<Command>,
    ) -> Option<MappedBatch> {
        let buffers = self.0.remove(&read)?;
        Some(MappedBatch { buffers, descriptor, loan: MappedLoan { commands, stream, seq } })
    }
}

/// A batch in the server's memory, not yet arrays.
#[derive(Debug)]
pub(crate) struct MappedBatch {
    // Dropped before the loan that says so.
    buffers: Vec<Buffer>,
    descriptor: Arc<CheckedDescriptor>,
    loan: MappedLoan,
}

impl MappedBatch {
    /// Its shape, and its buffers, each of which keeps the loan.
    pub(crate) fn into_parts(self) -> (Arc<CheckedDescriptor>, Vec<Buffer>) {
        let loan = Arc::new(self.loan);
        let keeps =
            |buffer: Buffer| if buffer.is_empty() { buffer } else { buffer_with_guard(buffer, Arc::clone(&loan)) };
        (self.descriptor, self.buffers.into_iter().map(keeps).collect())
    }
}

/// A mapped batch on loan. Dropping it gives the batch back.
#[derive(Debug)]
struct MappedLoan {
    commands: mpsc::UnboundedSender<Command>,
    stream: StreamId,
    seq: u64,
}

impl Drop for MappedLoan {
    fn drop(&mut self) {
        // If the connection has ended, the server keeps the batch until this process has, too.
        let _gone = self.commands.send(Command::GiveUp { stream: self.stream, seq: self.seq });
    }
}
