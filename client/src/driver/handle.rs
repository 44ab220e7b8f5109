//! How applications talk to a connection's task.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use arrow::datatypes::SchemaRef;
use bytes::Bytes;
use thallus_fabric::memory::Slab;
use thallus_protocol::layout::{CheckedDescriptor, Piece};
use thallus_protocol::message::{Delivery, ExecuteOptions, SortKey, StreamStats};
use thallus_protocol::{StreamError, StreamId};
use tokio::sync::{mpsc, oneshot};

use super::asks::{Found, Loan};
use super::maps::MappedBatch;

/// What is asked of a connection.
#[derive(Debug)]
pub(crate) enum Command {
    Execute {
        stream: StreamId,
        sql: String,
        options: ExecuteOptions,
        items: mpsc::UnboundedSender<Item>,
        /// How its loans come back.
        commands: mpsc::WeakUnboundedSender<Command>,
    },
    Cancel {
        stream: StreamId,
    },
    Consumed {
        stream: StreamId,
        cost: u64,
    },
    Rejected {
        stream: StreamId,
        seq: u64,
        reason: String,
    },
    Ask {
        stream: StreamId,
        seq: u64,
        pieces: Vec<Piece>,
        answer: oneshot::Sender<Found>,
    },
    GiveUp {
        stream: StreamId,
        seq: u64,
    },
    Ping {
        pong: oneshot::Sender<()>,
    },
    Close {
        done: oneshot::Sender<()>,
    },
}

/// What a connection says of one result. Bounded by the result's credit.
#[derive(Debug)]
pub(crate) enum Item {
    Schema { schema: SchemaRef, ipc: Bytes, order: Vec<SortKey> },
    Batch { seq: u64, cost: u64, arrived: Arrived },
    End { stats: StreamStats, read: std::time::Duration, registrations: u64 },
    Failed(StreamError),
}

/// A batch that is all there, and not yet an array; or one of which nothing is.
#[derive(Debug)]
pub(crate) enum Arrived {
    /// Without a slab where there was no byte to read.
    Lent {
        slab: Option<Slab>,
        descriptor: Arc<CheckedDescriptor>,
    },
    Lazy {
        loan: Loan,
        descriptor: Arc<CheckedDescriptor>,
    },
    Mapped(MappedBatch),
    Inline(Bytes),
}

/// The way to a connection's task. When the last handle, and the last batch that is mapped, is dropped, the connection closes.
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

    /// Whether a result was asked for that is mapped: then loans may be given back when nobody has this handle any more.
    pub(crate) fn maps(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.maps)
    }

    /// `false`: the connection has ended.
    pub(crate) fn send(&self, command: Command) -> bool {
        self.commands.send(command).is_ok()
    }

    /// Whether the connection has not ended.
    pub(crate) fn is_open(&self) -> bool {
        !self.commands.is_closed()
    }

    /// Starts a query. Ids go out in the order in which they are given: hence the lock over both.
    pub(crate) fn execute(
        &self,
        sql: String,
        options: ExecuteOptions,
    ) -> Option<(StreamId, mpsc::UnboundedReceiver<Item>)> {
        let (items, received) = mpsc::unbounded_channel();
        if matches!(options.delivery, Delivery::Mapped(_)) {
            self.maps.store(true, Ordering::Relaxed);
        }
        let mut last = self.last_stream.lock().unwrap_or_else(PoisonError::into_inner);
        *last = last.checked_add(1)?;
        let stream = StreamId(*last);
        let commands = self.commands.downgrade();
        self.send(Command::Execute { stream, sql, options, items, commands }).then_some((stream, received))
    }
}
