//! Batches that are on loan at an application: on demand, or mapped.

use std::sync::Arc;

use arrow::buffer::Buffer;
use thallus_fabric::memory::buffer_with_guard;
use thallus_protocol::StreamId;
use thallus_protocol::borrower::BorrowerCommand;
use thallus_protocol::client::ClientCommand;
use thallus_protocol::layout::CheckedDescriptor;
use tokio::sync::mpsc;

use super::handle::Command;

/// The way of a guard to its connection.
#[derive(Clone, Debug)]
enum Way {
    /// The connection closes when no handle is left, whatever it has yet to deliver: its loans end with it.
    Weak(mpsc::WeakUnboundedSender<Command>),
    /// The connection stays open for as long as the loan: nothing else could give it back.
    Strong(mpsc::UnboundedSender<Command>),
}

/// A batch on loan at the application. Dropping the guard, wherever it is, gives the batch back.
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
        // A connection that has ended has ended its loans; those that are mapped the server keeps until this process
        // has ended.
        let _gone = match &self.way {
            Way::Weak(commands) => commands.upgrade().map(|commands| commands.send(command).is_ok()),
            Way::Strong(commands) => Some(commands.send(command).is_ok()),
        };
    }
}

/// A batch in the server's memory, not yet arrays.
#[derive(Debug)]
pub(crate) struct MappedBatch {
    // Dropped before the guard that says so.
    pub(super) buffers: Vec<Buffer>,
    pub(super) descriptor: Arc<CheckedDescriptor>,
    pub(super) guard: LoanGuard,
}

impl MappedBatch {
    /// Its shape, and its buffers, each of which keeps the loan.
    pub(crate) fn into_parts(self) -> (Arc<CheckedDescriptor>, Vec<Buffer>) {
        let guard = Arc::new(self.guard);
        let keeps =
            |buffer: Buffer| if buffer.is_empty() { buffer } else { buffer_with_guard(buffer, Arc::clone(&guard)) };
        (self.descriptor, self.buffers.into_iter().map(keeps).collect())
    }
}
