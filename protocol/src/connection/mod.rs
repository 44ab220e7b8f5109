//! The part of a connection that both ends share. A connection consists of a link, requests, and both halves.

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};

use crate::borrower::{Borrower, BorrowerCommand, BorrowerEvent, BorrowerOutput, BorrowerTask};
use crate::codec::Frame;
use crate::codes::CloseCode;
use crate::error::{ApiMisuse, ConnectionError};
use crate::ids::StreamId;
use crate::lender::{Lender, LenderCommand, LenderOutput, LenderTask};
use crate::link::{Link, truncate};
use crate::message::{Extensions, FromBorrower, FromLender, Message};
use crate::misbehaviour::PeerMisbehaved;
use crate::time::Timestamp;
use crate::timers::{Timer, Timers};

/// Inputs of a connection whose driver has commands `C`.
#[derive(Debug)]
pub enum Input<'a, C> {
    /// Time passed. Only this input makes deadlines expire, so that a late driver can first pass on what has arrived
    /// before: bytes, completed reads, commands.
    Time,
    /// Bytes arrived on the control connection.
    Received(&'a [u8]),
    /// Bytes arrived on the control connection, and were appended to [`Machine::receive_buffer`].
    Buffered,
    /// The control connection takes bytes again, after it had taken no more. So the peer's host has acknowledged
    /// earlier ones.
    Relieved,
    /// The control connection was lost: end of file, or an error.
    ControlLost(String),
    /// A command of the driver, or its report.
    Command(C),
}

/// Outputs of a connection, where `E` is the events of this end alone.
#[derive(Debug)]
pub enum Output<E> {
    /// Write these bytes after all earlier ones; if they are [urgent](Frame::urgent), before all frames that are not
    /// begun.
    Transmit(Frame),
    /// A task of the lender's half.
    Lender(LenderTask),
    /// A task of the borrower's half.
    Borrower(BorrowerTask),
    /// An event for the application of a stream that this end borrows.
    Stream(BorrowerEvent),
    /// An event of this end alone.
    Event(E),
    /// Close the endpoint, report the reads that complete, then report that the endpoint is closed.
    CloseFabric,
    /// Every lease has ended. Close the control connection once all frames have been written.
    Closed(ConnectionError),
    /// Nothing to do until an input arrives, or this deadline passes.
    Wait(Option<(Timestamp, Timer)>),
}

/// The state machine of a connection at either end, as its driver sees it. Its driver brings it into scope.
pub trait Machine {
    /// Commands and reports of the driver.
    type Command;
    /// Events of this end alone.
    type Event;

    /// Processes one input. [`Machine::poll_output`] returns the resulting outputs.
    ///
    /// # Errors
    /// [`ApiMisuse`] if the driver broke the contract; the connection then tears itself down.
    fn handle(&mut self, now: Timestamp, input: Input<'_, Self::Command>) -> Result<(), ApiMisuse>;

    /// The next output. Call it until it returns [`Output::Wait`].
    #[must_use]
    fn poll_output(&mut self) -> Output<Self::Event>;

    /// The buffer to append bytes of the control connection to, before [`Input::Buffered`].
    fn receive_buffer(&mut self) -> &mut BytesMut;

    /// Bytes of memory that the peer makes this machine keep, besides batches on loan: batches that wait for credit,
    /// and a frame that has not arrived completely.
    fn held_bytes(&self) -> u64;

    /// Names of the states of the connection and of its data plane, for traces.
    fn state_names(&self) -> [&'static str; 2];

    /// Wraps a command to the lender's half.
    fn lender_command(command: LenderCommand) -> Self::Command;

    /// Wraps a command to the borrower's half.
    fn borrower_command(command: BorrowerCommand) -> Self::Command;

    /// The report that the endpoint failed as a whole.
    fn fabric_failed(reason: String) -> Self::Command;

    /// The answer to [`Output::CloseFabric`].
    fn fabric_closed() -> Self::Command;
}

/// The part of a connection that both ends share.
#[derive(Debug)]
pub(crate) struct Core<E> {
    pub(crate) link: Link,
    pub(crate) timers: Timers,
    pub(crate) lender: Lender,
    pub(crate) borrower: Borrower,
    pub(crate) last_stream: Option<StreamId>,
    pub(crate) ended_by: Option<Arc<ConnectionError>>,
    out: VecDeque<Output<E>>,
}

impl<E> Core<E> {
    pub(crate) fn new(link: Link, preface: Frame, timers: Timers, lender: Lender, borrower: Borrower) -> Self {
        let out = VecDeque::from([Output::Transmit(preface)]);
        Core { link, timers, lender, borrower, last_stream: None, ended_by: None, out }
    }

    /// See [`Machine::held_bytes`].
    pub(crate) fn held_bytes(&self) -> u64 {
        self.lender.waiting_bytes().saturating_add(self.link.held_bytes() as u64)
    }

    /// Sends a message, unless the connection has ended.
    pub(crate) fn send(&mut self, message: Message) {
        self.send_with(message, Bytes::new());
    }

    pub(crate) fn send_with(&mut self, message: Message, payload: Bytes) {
        if self.ended_by.is_some() {
            return;
        }
        if !matches!(message, Message::Borrower(FromBorrower::Release { .. })) {
            // Held-back releases go in the same write.
            self.borrower.flush_releases();
        }
        let is_batch = matches!(message, Message::Lender(FromLender::Inline { .. }));
        match self.link.encode(&message, payload) {
            Ok(frame) => self.out.push_back(Output::Transmit(Frame { is_batch, ..frame })),
            // The lengths of all variable fields have been checked before this call.
            Err(misuse) => debug_assert!(false, "{misuse}"),
        }
    }

    pub(crate) fn event(&mut self, event: E) {
        self.out.push_back(Output::Event(event));
    }

    pub(crate) fn output(&mut self, output: Output<E>) {
        self.out.push_back(output);
    }

    /// The next output, or the time to wait for.
    pub(crate) fn poll_output(&mut self) -> Output<E> {
        if self.out.is_empty() {
            self.borrower.send_due_releases();
            while let Some(output) = self.borrower.poll() {
                self.absorb_borrower(output);
            }
        }
        self.out.pop_front().unwrap_or_else(|| {
            let halves = [self.lender.deadline(), self.borrower.deadline(), self.timers.next()];
            Output::Wait(halves.into_iter().flatten().min())
        })
    }

    /// Forwards outputs of the lender's half up to the next task, and returns that task: the connection has to handle
    /// it.
    pub(crate) fn absorb_lender(&mut self) -> Option<LenderTask> {
        match self.lender.poll()? {
            LenderOutput::Send(message, payload) => {
                self.send_with(Message::Lender(message), payload);
                self.absorb_lender()
            }
            LenderOutput::Task(task) => Some(task),
        }
    }

    /// Forwards an output of the borrower's half, or returns it if it is an event.
    pub(crate) fn absorb_borrower(&mut self, output: BorrowerOutput) -> Option<BorrowerEvent> {
        match output {
            BorrowerOutput::Send(message) => self.send(Message::Borrower(message)),
            BorrowerOutput::Task(task) => self.out.push_back(Output::Borrower(task)),
            BorrowerOutput::Event(event) => return Some(event),
        }
        None
    }

    /// Handles a message that means the same at both ends. Returns any other message.
    pub(crate) fn message(
        &mut self,
        now: Timestamp,
        message: Message,
        payload: Bytes,
    ) -> Result<Option<Message>, ConnectionError> {
        match message {
            Message::Lender(message) => self.borrower.receive(now, message, payload)?,
            Message::Borrower(message @ (FromBorrower::PathUp { .. } | FromBorrower::PathDown { .. })) => {
                return Ok(Some(Message::Borrower(message)));
            }
            Message::Borrower(message) => self.lender.receive(message)?,
            Message::Ping(nonce) => self.send(Message::Pong(nonce)),
            Message::Pong(nonce) => {
                self.link.pong(nonce, now, &mut self.timers);
                return Ok(Some(Message::Pong(nonce)));
            }
            other => return Ok(Some(other)),
        }
        Ok(None)
    }

    /// Passes a command to the lender's half. Returns the reason if that half lends nothing from now on.
    pub(crate) fn lender_command(
        &mut self,
        now: Timestamp,
        command: LenderCommand,
    ) -> Result<Option<String>, ApiMisuse> {
        let was_up = self.lender.is_up();
        let reason = match &command {
            LenderCommand::NotExposed { reason, .. } => Some(reason.clone()),
            _ => None,
        };
        self.lender.command(now, command)?;
        Ok(reason.filter(|_| was_up && !self.lender.is_up() && self.ended_by.is_none()).map(truncate))
    }

    pub(crate) fn ping(&mut self, now: Timestamp) -> u64 {
        let nonce = self.link.ping(now, &mut self.timers);
        self.send(Message::Ping(nonce));
        nonce
    }

    pub(crate) fn goodbye(&mut self, code: CloseCode, message: &str) {
        self.send(Message::Goodbye { code, message: truncate(message.to_owned()) });
    }

    /// Checks the extensions of a message that concerns the whole connection.
    pub(crate) fn understands(&self, message: &'static str, extensions: &Extensions) -> Result<(), ConnectionError> {
        extensions.check()?;
        extensions.unknown().map_err(|extension| ConnectionError::Unsupported { message, extension })
    }

    /// Begins the end of the connection: both halves stop. Only messages that are already queued are still sent.
    pub(crate) fn shut(&mut self, error: &Arc<ConnectionError>) {
        self.lender.shut();
        self.borrower.shut(error);
        self.timers.clear_all();
        self.ended_by = Some(Arc::clone(error));
    }

    /// The endpoint is closed, or never existed: leases end, and the connection is over.
    pub(crate) fn closed(&mut self) {
        self.lender.tear_down();
        while let Some(task) = self.absorb_lender() {
            self.out.push_back(Output::Lender(task));
        }
        let error = self.ended_by.as_deref().cloned().unwrap_or(ConnectionError::Closed);
        self.out.push_back(Output::Closed(error));
    }
}

/// The error for a message that the state does not allow.
pub(crate) fn unexpected(got: &Message, state: &'static str) -> PeerMisbehaved {
    PeerMisbehaved::Unexpected { got: got.name(), state }
}
