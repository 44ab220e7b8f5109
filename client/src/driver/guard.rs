//! Batches on loan to an application: on demand, or mapped.

use std::sync::Arc;

use arrow::buffer::Buffer;
use thallus_fabric::memory::buffer_with_guard;
use thallus_protocol::StreamId;
use thallus_protocol::borrower::BorrowerCommand;
use thallus_protocol::client::ClientCommand;
use thallus_protocol::layout::CheckedDescriptor;
use tokio::sync::mpsc;

use super::handle::Command;

/// A guard's channel to its connection.
#[derive(Clone, Debug)]
enum Way {
    /// The connection closes when no handle is left, even with undelivered items, and its loans end with it.
    Weak(mpsc::WeakUnboundedSender<Command>),
    /// The connection stays open for as long as the loan: only the connection can release it.
    Strong(mpsc::UnboundedSender<Command>),
}

/// A batch on loan to the application. Dropping the guard, on any thread, releases the batch.
#[derive(Debug)]
pub(crate) struct LoanGuard {
    way: Way,
    pub(crate) stream: StreamId,
    pub(crate) seq: u64,
}

impl LoanGuard {
    /// For a batch that is read on demand.
    pub(super) fn on_demand(commands: mpsc::WeakUnboundedSender<Command>, stream: StreamId, seq: u64) -> Self {
        LoanGuard { way: Way::Weak(commands), stream, seq }
    }

    /// For a batch that is mapped.
    pub(super) fn mapped(commands: mpsc::UnboundedSender<Command>, stream: StreamId, seq: u64) -> Self {
        LoanGuard { way: Way::Strong(commands), stream, seq }
    }
}

impl Drop for LoanGuard {
    fn drop(&mut self) {
        let give_up = BorrowerCommand::GiveUp { stream: self.stream, seq: self.seq };
        let command = Command::Machine(ClientCommand::Borrower(give_up));
        // The end of a connection ends its loans. Only mapped loans remain: the server keeps their memory until this
        // process ends.
        let _gone = match &self.way {
            Way::Weak(commands) => commands.upgrade().map(|commands| commands.send(command).is_ok()),
            Way::Strong(commands) => Some(commands.send(command).is_ok()),
        };
    }
}

/// A batch in the server's memory, from which no arrays have been built yet.
#[derive(Debug)]
pub(crate) struct MappedBatch {
    // Dropped before the guard that releases the memory.
    pub(super) buffers: Vec<Buffer>,
    pub(super) descriptor: Arc<CheckedDescriptor>,
    pub(super) guard: LoanGuard,
}

impl MappedBatch {
    /// The descriptor and the buffers. Each buffer keeps the loan.
    pub(crate) fn into_parts(self) -> (Arc<CheckedDescriptor>, Vec<Buffer>) {
        let guard = Arc::new(self.guard);
        let keeps =
            |buffer: Buffer| if buffer.is_empty() { buffer } else { buffer_with_guard(buffer, Arc::clone(&guard)) };
        (self.descriptor, self.buffers.into_iter().map(keeps).collect())
    }
}
