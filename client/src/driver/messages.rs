//! Messages between an application and a connection's task: commands, the items of results, and the loans that items
//! hold. The end of a loan is a command again.

use std::sync::Arc;

use arrow::buffer::Buffer;
use thallus_driver::{Arrived, LoanPool, PreparedBatch};
use thallus_fabric::memory::buffer_with_guard;
use thallus_protocol::borrower::BorrowerCommand;
use thallus_protocol::client::{ClientCommand, UploadOptions};
use thallus_protocol::layout::{CheckedDescriptor, Piece, Plan};
use thallus_protocol::message::{OpenOptions, Request, SortKey, StreamStats};
use thallus_protocol::{StreamError, StreamId};
use tokio::sync::{mpsc, oneshot};

use super::parts::Part;

/// A command to a connection.
#[derive(Debug)]
pub(crate) enum Command {
    /// A command for the machine.
    Machine(ClientCommand),
    /// Send a request whose rows the server lends.
    Open {
        stream: StreamId,
        request: Request,
        options: OpenOptions,
        items: mpsc::UnboundedSender<Item>,
        /// The channel by which its loans are released.
        commands: mpsc::WeakUnboundedSender<Command>,
    },
    /// Send an upload to the server.
    Upload {
        stream: StreamId,
        table: String,
        options: UploadOptions,
        feed: Feed,
    },
    /// A batch of an upload is ready to send.
    Packed {
        stream: StreamId,
        packed: PreparedBatch,
    },
    /// Read a part of a batch on demand.
    ReadPart {
        stream: StreamId,
        seq: u64,
        pieces: Vec<Piece>,
        answer: oneshot::Sender<Part>,
    },
    Ping {
        pong: oneshot::Sender<()>,
    },
    Close {
        done: oneshot::Sender<()>,
    },
}

/// The channels from a connection to the source of an upload.
#[derive(Debug)]
pub(crate) struct Feed {
    /// The pool that makes batches readable by the server, if there is a data plane.
    pub(crate) begun: oneshot::Sender<Option<Arc<LoanPool>>>,
    /// Requests for the next batch. The value is the size in live bytes from which the batch is lent.
    pub(crate) pulls: mpsc::UnboundedSender<Option<u64>>,
    /// The result of the upload: the number of accepted rows.
    pub(crate) answer: oneshot::Sender<Result<u64, StreamError>>,
}

/// An item of one result. The result's credit bounds the number of items.
#[derive(Debug)]
pub(crate) enum Item {
    Schema { plan: Plan, order: Vec<SortKey> },
    Batch { seq: u64, cost: u64, batch: Delivered },
    End { stats: StreamStats, read: std::time::Duration, registrations: u64 },
    Failed(StreamError),
}

/// A batch from which no array has been built yet.
#[derive(Debug)]
pub(crate) enum Delivered {
    /// The batch is in this process's memory.
    Local(Arrived),
    /// The batch is in the server's memory, to be read on demand.
    OnDemand { guard: LoanGuard, descriptor: Arc<CheckedDescriptor> },
    /// The batch is in the server's memory, mapped.
    Mapped(MappedBatch),
}

/// A guard's channel to its connection.
#[derive(Clone, Debug)]
enum CommandSender {
    /// The connection closes when no handle is left, even with undelivered items, and its loans end with it.
    Weak(mpsc::WeakUnboundedSender<Command>),
    /// The connection stays open for as long as the loan: only the connection can release it.
    Strong(mpsc::UnboundedSender<Command>),
}

/// A batch on loan to the application. Dropping the guard, on any thread, releases the batch.
#[derive(Debug)]
pub(crate) struct LoanGuard {
    commands: CommandSender,
    pub(crate) stream: StreamId,
    pub(crate) seq: u64,
}

impl LoanGuard {
    /// For a batch that is read on demand.
    pub(super) fn on_demand(commands: mpsc::WeakUnboundedSender<Command>, stream: StreamId, seq: u64) -> Self {
        LoanGuard { commands: CommandSender::Weak(commands), stream, seq }
    }

    /// For a batch that is mapped.
    pub(super) fn mapped(commands: mpsc::UnboundedSender<Command>, stream: StreamId, seq: u64) -> Self {
        LoanGuard { commands: CommandSender::Strong(commands), stream, seq }
    }
}

impl Drop for LoanGuard {
    fn drop(&mut self) {
        let release = BorrowerCommand::ReleaseBatch { stream: self.stream, seq: self.seq };
        let command = Command::Machine(ClientCommand::Borrower(release));
        // The end of a connection ends its loans. Only mapped loans remain: the server keeps their memory until this
        // process ends.
        let _gone = match &self.commands {
            CommandSender::Weak(commands) => commands.upgrade().map(|commands| commands.send(command).is_ok()),
            CommandSender::Strong(commands) => Some(commands.send(command).is_ok()),
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
