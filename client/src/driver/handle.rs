//! The interface of applications to a connection's task.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use thallus_protocol::StreamId;
use thallus_protocol::borrower::BorrowerCommand;
use thallus_protocol::client::{ClientCommand, UploadOptions};
use thallus_protocol::lender::LenderCommand;
use thallus_protocol::message::{Access, OpenOptions, Request};
use tokio::sync::mpsc;

use super::messages::{Command, Feed, Item};

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

    /// Sends a request whose rows the server lends.
    pub(crate) fn request(
        &self,
        request: Request,
        options: OpenOptions,
    ) -> Option<(StreamId, mpsc::UnboundedReceiver<Item>)> {
        let (items, received) = mpsc::unbounded_channel();
        if matches!(options.access, Access::Map(_)) {
            self.maps.store(true, Ordering::Relaxed);
        }
        let commands = self.commands.downgrade();
        let stream = self.open(|stream| Command::Open { stream, request, options, items, commands })?;
        Some((stream, received))
    }

    /// Starts an upload.
    pub(crate) fn upload(&self, table: String, options: UploadOptions, feed: Feed) -> Option<StreamId> {
        self.open(|stream| Command::Upload { stream, table, options, feed })
    }
}
