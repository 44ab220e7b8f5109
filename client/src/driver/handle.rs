//! How applications talk to a connection's task.

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

/// What is asked of a connection.
#[derive(Debug)]
pub(crate) enum Command {
    /// Only passed on to the machine.
    Machine(ClientCommand),
    /// Run a query.
    Query {
        stream: StreamId,
        sql: String,
        options: OpenOptions,
        items: mpsc::UnboundedSender<Item>,
        /// How its loans come back.
        commands: mpsc::WeakUnboundedSender<Command>,
    },
    /// Take an upload to the server.
    Upload {
        stream: StreamId,
        table: String,
        options: UploadOptions,
        feed: Feed,
    },
    /// A batch of an upload is ready to travel.
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

/// How a connection talks to the source of an upload.
#[derive(Debug)]
pub(crate) struct Feed {
    /// What makes batches readable by the server, if there is a data plane.
    pub(crate) begun: oneshot::Sender<Option<Arc<LoanPool>>>,
    /// Asks for the next batch, which is to be lent from this many live bytes on.
    pub(crate) pulls: mpsc::UnboundedSender<Option<u64>>,
    /// How the upload ended: rows taken.
    pub(crate) answer: oneshot::Sender<Result<u64, StreamError>>,
}

/// What a connection says of one result. Bounded by the result's credit.
#[derive(Debug)]
pub(crate) enum Item {
    Schema { schema: SchemaRef, ipc: Bytes, order: Vec<SortKey> },
    Batch { seq: u64, cost: u64, batch: Delivered },
    End { stats: StreamStats, read: std::time::Duration, registrations: u64 },
    Failed(StreamError),
}

/// A batch that is not an array yet.
#[derive(Debug)]
pub(crate) enum Delivered {
    /// It is here.
    Here(Arrived),
    /// It is in the server's memory, to be read on demand.
    OnDemand { guard: LoanGuard, descriptor: Arc<CheckedDescriptor> },
    /// It is in the server's memory, mapped.
    Mapped(MappedBatch),
}

/// The way to a connection's task. When the last handle, and the last mapped batch, is dropped, the connection closes.
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

    /// The caller has asked for a mapped result: loans may then be given back after the last handle is dropped.
    pub(crate) fn maps(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.maps)
    }

    /// `false`: the connection has ended.
    pub(crate) fn send(&self, command: Command) -> bool {
        self.commands.send(command).is_ok()
    }

    /// To the borrower's half.
    pub(crate) fn borrower(&self, command: BorrowerCommand) -> bool {
        self.send(Command::Machine(ClientCommand::Borrower(command)))
    }

    /// To the lender's half.
    pub(crate) fn lender(&self, command: LenderCommand) -> bool {
        self.send(Command::Machine(ClientCommand::Lender(command)))
    }

    /// Whether the connection has not ended.
    pub(crate) fn is_open(&self) -> bool {
        !self.commands.is_closed()
    }

    /// Sends a command for the next stream. Ids go out in the order in which they are given: hence the lock over both.
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
