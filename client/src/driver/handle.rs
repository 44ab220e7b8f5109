//! The interface of applications to a connection's task.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use arrow::datatypes::SchemaRef;
use bytes::Bytes;
use thallus_driver::{Arrived, LoanPool, Packed};
use thallus_protocol::borrower::BorrowerCommand;
use thallus_protocol::client::{ClientCommand, UploadOptions};
use thallus_protocol::layout::{CheckedDescriptor, Piece};
use thallus_protocol::lender::LenderCommand;
use thallus_protocol::message::{Access, OpenOptions, SortKey, StreamStats};
use thallus_protocol::{StreamError, StreamId};
use tokio::sync::{mpsc, oneshot};

use super::guard::{LoanGuard, MappedBatch};
use super::parts::Part;

/// A command to a connection.
#[derive(Debug)]
pub(crate) enum Command {
    /// A command for the machine.
    Machine(ClientCommand),
    /// Run a query.
    Query {
        stream: StreamId,
        sql: String,
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
        packed: Packed,
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
    Schema { schema: SchemaRef, ipc: Bytes, order: Vec<SortKey> },
    Batch { seq: u64, cost: u64, batch: Delivered },
    End { stats: StreamStats, read: std::time::Duration, registrations: u64 },
    Failed(StreamError),
}

/// A batch from which no array has been built yet.
#[derive(Debug)]
pub(crate) enum Delivered {
    /// The batch is in this process's memory.
    Here(Arrived),
    /// The batch is in the server's memory, to be read on demand.
    OnDemand { guard: LoanGuard, descriptor: Arc<CheckedDescriptor> },
    /// The batch is in the server's memory, mapped.
    Mapped(MappedBatch),
}

/// The channel to a connection's task. The connection closes when the last handle and the last mapped batch are
/// dropped.
#[derive(Debug)]
pub(crate) struct Handle {
    commands: mpsc::UnboundedSender<Command>,
    last_stream: Mutex<u32>,
    maps: Arc<AtomicBool>,
}

impl Handle {
    pub(crate) fn new(commands: mpsc::UnboundedSender<Command>) -> Arc<Self> {
        Arc::new(Handle { commands, last_stream: Mutex::new(0), maps: Arc::default() })
    }

    /// Set once the caller has requested a mapped result: loans may then be released after the last handle is dropped.
    pub(crate) fn maps(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.maps)
    }

    /// Returns `false` if the connection has ended.
    pub(crate) fn send(&self, command: Command) -> bool {
        self.commands.send(command).is_ok()
    }

    /// Sends a command to the borrower's half.
    pub(crate) fn borrower(&self, command: BorrowerCommand) -> bool {
        self.send(Command::Machine(ClientCommand::Borrower(command)))
    }

    /// Sends a command to the lender's half.
    pub(crate) fn lender(&self, command: LenderCommand) -> bool {
        self.send(Command::Machine(ClientCommand::Lender(command)))
    }

    /// Whether the connection is still open.
    pub(crate) fn is_open(&self) -> bool {
        !self.commands.is_closed()
    }

    /// Sends a command for the next stream. The lock covers both steps, so that ids are sent in the order of their
    /// assignment.
    fn open(&self, command: impl FnOnce(StreamId) -> Command) -> Option<StreamId> {
        let mut last = self.last_stream.lock().unwrap_or_else(PoisonError::into_inner);
        *last = last.checked_add(1)?;
        let stream = StreamId(*last);
        self.send(command(stream)).then_some(stream)
    }

    /// Starts a query.
    pub(crate) fn query(&self, sql: String, options: OpenOptions) -> Option<(StreamId, mpsc::UnboundedReceiver<Item>)> {
        let (items, received) = mpsc::unbounded_channel();
        if matches!(options.access, Access::Map(_)) {
            self.maps.store(true, Ordering::Relaxed);
        }
        let commands = self.commands.downgrade();
        let stream = self.open(|stream| Command::Query { stream, sql, options, items, commands })?;
        Some((stream, received))
    }

    /// Starts an upload.
    pub(crate) fn upload(&self, table: String, options: UploadOptions, feed: Feed) -> Option<StreamId> {
        self.open(|stream| Command::Upload { stream, table, options, feed })
    }
}
