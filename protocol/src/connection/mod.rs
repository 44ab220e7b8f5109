//! A connection at either end: a link, requests, and both halves of the data plane. Here is the part that both ends
//! share.

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};

use crate::borrower::{Borrower, BorrowerCommand, BorrowerEvent, BorrowerOutput, BorrowerTask};
use crate::codec::Frame;
use crate::codes::CloseCode;
use crate::error::{ApiMisuse, ConnectionError};
use crate::ids::StreamId;
use crate::lender::{Lender, LenderCommand, LenderOutput, LenderTask};
use crate::link::{Link, clip};
use crate::message::{Extensions, FromBorrower, Message};
use crate::misbehaviour::PeerMisbehaved;
use crate::time::Timestamp;
use crate::timers::{Timer, Timers};

/// Everything that can happen to a connection whose driver has commands `C`.
#[derive(Debug)]
pub enum Input<'a, C> {
    /// Time passed.
    Time,
    /// Bytes came on the control connection.
    Received(&'a [u8]),
    /// Bytes came on the control connection, and were appended to [`Machine::receive_buffer`].
    Buffered,
    /// The control connection is gone: end of file, or an error.
    ControlLost(String),
    /// The driver reports or asks something.
    Command(C),
}

/// Everything that a connection wants done, where `E` is for this end alone.
#[derive(Debug)]
pub enum Output<E> {
    /// Write these bytes, after all before.
    Transmit(Frame),
    /// For whoever lends.
    Lender(LenderTask),
    /// For whoever borrows.
    Borrower(BorrowerTask),
    /// Tell the application of a stream that this end borrows.
    Stream(BorrowerEvent),
    /// For this end alone.
    Event(E),
    /// Close the endpoint, report the reads that complete, then say that it is closed.
    CloseFabric,
    /// All is done: every lease has ended. Close the control connection after what was transmitted.
    Closed(ConnectionError),
    /// Nothing more to do until an input comes, or this deadline passes.
    Wait(Option<(Timestamp, Timer)>),
}

/// A connection's state machine, at either end: what a driver needs to know of it.
pub trait Machine {
    /// What the driver reports or asks.
    type Command;
    /// What only this end wants done.
    type Event;

    /// Takes in one thing that happened. What follows from it is to be had from [`Machine::poll_output`].
    ///
    /// # Errors
    /// [`ApiMisuse`] if the driver broke the contract; the connection then tears itself down.
    fn handle(&mut self, now: Timestamp, input: Input<'_, Self::Command>) -> Result<(), ApiMisuse>;

    /// The next thing to do. To be called until it says [`Output::Wait`].
    fn poll_output(&mut self) -> Output<Self::Event>;

    /// Where bytes that come on the control connection can be appended, before [`Input::Buffered`].
    fn receive_buffer(&mut self) -> &mut BytesMut;

    /// The state of the connection and of its data plane, in words for traces.
    fn state_names(&self) -> [&'static str; 2];

    /// A command to the lender's half.
    fn lender_command(command: LenderCommand) -> Self::Command;

    /// A command to the borrower's half.
    fn borrower_command(command: BorrowerCommand) -> Self::Command;

    /// The endpoint failed as a whole.
    fn fabric_failed(reason: String) -> Self::Command;

    /// Answers [`Output::CloseFabric`].
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

    /// Says something, if there is somebody to hear it.
    pub(crate) fn say(&mut self, message: Message) {
        self.say_with(message, Bytes::new());
    }

    pub(crate) fn say_with(&mut self, message: Message, payload: Bytes) {
        if self.ended_by.is_some() {
            return;
        }
        if !matches!(message, Message::Borrower(FromBorrower::Release { .. })) {
            // Releases that are held back go in the same write.
            self.borrower.flush_releases();
        }
        match self.link.encode(&message, payload) {
            Ok(frame) => self.out.push_back(Output::Transmit(frame)),
            // Everything of variable size is checked before it comes here.
            Err(misuse) => debug_assert!(false, "{misuse}"),
        }
    }

    pub(crate) fn event(&mut self, event: E) {
        self.out.push_back(Output::Event(event));
    }

    pub(crate) fn output(&mut self, output: Output<E>) {
        self.out.push_back(output);
    }

    /// The next thing that was asked for, or the time to wait for.
    pub(crate) fn poll_output(&mut self) -> Output<E> {
        if self.out.is_empty() {
            self.borrower.say_releases();
            while let Some(output) = self.borrower.poll() {
                self.absorb_borrower(output);
            }
        }
        self.out.pop_front().unwrap_or_else(|| {
            let halves = [self.lender.deadline(), self.borrower.deadline(), self.timers.next()];
            Output::Wait(halves.into_iter().flatten().min())
        })
    }

    /// The next output of the lender's half that the connection has to look at itself, everything else moved on.
    pub(crate) fn absorb_lender(&mut self) -> Option<LenderTask> {
        match self.lender.poll()? {
            LenderOutput::Say(message, payload) => {
                self.say_with(Message::Lender(message), payload);
                self.absorb_lender()
            }
            LenderOutput::Do(task) => Some(task),
        }
    }

    /// Moves on an output of the borrower's half; its event, if it is one.
    pub(crate) fn absorb_borrower(&mut self, output: BorrowerOutput) -> Option<BorrowerEvent> {
        match output {
            BorrowerOutput::Say(message) => self.say(Message::Borrower(message)),
            BorrowerOutput::Do(task) => self.out.push_back(Output::Borrower(task)),
            BorrowerOutput::Event(event) => return Some(event),
        }
        None
    }

    /// A message that means the same at both ends. Others are given back.
    pub(crate) fn message(
        &mut self,
        now: Timestamp,
        message: Message,
        payload: Bytes,
    ) -> Result<Option<Message>, ConnectionError> {
        match message {
            Message::Lender(message) => self.borrower.heard(now, message, payload)?,
            Message::Borrower(message @ (FromBorrower::PathUp { .. } | FromBorrower::PathDown { .. })) => {
                return Ok(Some(Message::Borrower(message)));
            }
            Message::Borrower(message) => self.lender.heard(message)?,
            Message::Ping(nonce) => self.say(Message::Pong(nonce)),
            other => return Ok(Some(other)),
        }
        Ok(None)
    }

    pub(crate) fn ping(&mut self, now: Timestamp) -> u64 {
        let nonce = self.link.ping(now, &mut self.timers);
        self.say(Message::Ping(nonce));
        nonce
    }

    pub(crate) fn goodbye(&mut self, code: CloseCode, message: &str) {
        self.say(Message::Goodbye { code, message: clip(message.to_owned()) });
    }

    /// Checks the extensions of a message that concerns the whole connection.
    pub(crate) fn understands(&self, message: &'static str, extensions: &Extensions) -> Result<(), ConnectionError> {
        extensions.check()?;
        extensions.unknown().map_err(|extension| ConnectionError::Unsupported { message, extension })
    }

    /// The connection begins to end: both halves stop, and nothing more is said but what was said before.
    pub(crate) fn shut(&mut self, error: &Arc<ConnectionError>) {
        self.lender.shut();
        self.borrower.shut(error);
        self.timers.clear_all();
        self.ended_by = Some(Arc::clone(error));
    }

    /// The endpoint is closed, or there never was one: leases end, and the connection is over.
    pub(crate) fn closed(&mut self) {
        self.lender.tear_down();
        while let Some(task) = self.absorb_lender() {
            self.out.push_back(Output::Lender(task));
        }
        let error = self.ended_by.as_deref().cloned().unwrap_or(ConnectionError::Closed);
        self.out.push_back(Output::Closed(error));
    }
}

/// A message that does not belong here.
pub(crate) fn unexpected(got: &Message, state: &'static str) -> PeerMisbehaved {
    PeerMisbehaved::Unexpected { got: got.name(), state }
}
