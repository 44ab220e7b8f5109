//! The server's end of a connection: it chooses the fabric, answers requests, lends results and borrows uploads.

mod ending;
mod handshake;
mod io;
mod requests;

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};

pub use io::{OpenedFabric, ServerCommand, ServerEvent, ServerInput, ServerOutput};

use crate::borrower::{Borrower, BorrowerCommand, BorrowerConfig};
use crate::codec::FrameLimits;
use crate::codes::CloseCode;
use crate::connection::{Core, Machine, unexpected};
use crate::error::{ApiMisuse, ConnectionError};
use crate::ids::{FabricKind, StreamId};
use crate::inline::InlineLimits;
use crate::layout::LayoutLimits;
use crate::lender::{Lender, LenderCommand, LenderConfig};
use crate::link::{Link, LinkTimeouts, truncate};
use crate::message::{FabricOffer, FromBorrower, Message, ServerLimits, Thresholds, Vendor};
use crate::time::Timestamp;
use crate::timers::Timers;

/// Limits, timeouts and properties of a server's connection.
#[derive(Clone, Debug)]
pub struct ServerConfig {
    /// The server's name.
    pub name: String,
    /// Fabrics that work on this host.
    pub fabrics: Vec<FabricKind>,
    /// If there are none: the reason, which the client reports.
    pub no_fabric_reason: String,
    /// The database behind the server, which clients can ask for.
    pub vendor: Vendor,
    /// Limits that the client must keep.
    pub limits: ServerLimits,
    /// Limits of frames, both ways.
    pub frame: FrameLimits,
    /// Whether frames carry checksums. Needed if no layer below has checksums.
    pub checksum: bool,
    /// Live bytes from which on a batch is lent, unless the client requests another size or has measured one.
    pub thresholds: Thresholds,
    /// Maximum number of leases at once, at least 1. Also the number of slots for lease words.
    pub max_leases: u32,
    /// Entropy for lease words, so that they differ from any other content of the same memory.
    pub word_nonce: u64,
    /// Timeouts of the control connection.
    pub timeouts: LinkTimeouts,
    /// Time limit of a lease.
    pub lease_timeout: Duration,
    /// Time for which running streams may continue after [`ServerCommand::Drain`]. Outstanding reads then have one more
    /// second.
    pub drain_timeout: Duration,
    /// Limits for data that the client lends.
    pub borrow: BorrowerConfig,
}

impl ServerConfig {
    /// Limits for uploads of batches of `max_batch_bytes`, suitable for most servers.
    #[must_use]
    pub fn borrower_config(max_batch_bytes: u64, read_timeout: Duration) -> BorrowerConfig {
        BorrowerConfig {
            max_batch_bytes,
            max_regions: 1 << 14,
            layout: LayoutLimits { max_bytes: max_batch_bytes, ..LayoutLimits::default() },
            inline: InlineLimits::default(),
            read_timeout,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    AwaitingHello,
    OpeningFabric,
    Open,
    /// The endpoint is being closed.
    Closing,
    Closed,
}

impl State {
    fn name(self) -> &'static str {
        match self {
            State::AwaitingHello => "awaiting the hello",
            State::OpeningFabric => "opening the fabric",
            State::Open => "open",
            State::Closing => "closing",
            State::Closed => "closed",
        }
    }
}

/// An upload that is not answered yet.
#[derive(Clone, Copy, Debug, Default)]
struct Upload {
    /// Whether its end has been delivered.
    ended: bool,
}

/// The state machine of a server's connection.
///
/// # Order of calls
/// After [`new`](Self::new), and after every input, call [`poll_output`](Self::poll_output) until it returns
/// [`Wait`](crate::connection::Output::Wait). Carry out each output before the next call: the guarantees depend on this
/// order. Commands may come between outputs. `examples/sans_io.rs` is a complete driver.
///
/// # Inputs
/// [`handle`](Self::handle) takes every input together with the time:
/// - bytes of the control connection: [`Received`], or [`Buffered`] for bytes that the driver has read into
///   [`receive_buffer`](crate::connection::Machine::receive_buffer);
/// - the end of the control connection: [`ControlLost`];
/// - the passing of time: [`Time`];
/// - commands.
///
/// [`Received`]: crate::connection::Input::Received
/// [`Buffered`]: crate::connection::Input::Buffered
/// [`ControlLost`]: crate::connection::Input::ControlLost
/// [`Time`]: crate::connection::Input::Time
///
/// # Commands
/// [`ServerCommand`]:
/// - [`Drain`](ServerCommand::Drain) and [`Close`](ServerCommand::Close) end the connection.
/// - `FabricOpened` or `FabricUnavailable` answers [`OpenFabric`](ServerEvent::OpenFabric).
/// - A schema answers a [`Query`](ServerEvent::Query); a batch or the end answers each pull.
/// - `Accept` answers an [`Upload`](ServerEvent::Upload), and `Answer` its end.
/// - `Exposed` or `NotExposed` answers `OpenLease`, before anything else.
///
/// # Outputs
/// [`ServerOutput`]: frames to write; tasks of the data plane, as [lender](crate::lender::LenderTask) of
/// results and [borrower](crate::borrower::BorrowerTask) of uploads; events of
/// [streams](crate::borrower::BorrowerEvent) and of the [connection](ServerEvent).
/// [`Closed`](crate::connection::Output::Closed) is the last output: every lease has ended.
///
/// # Timers
/// [`Wait`](crate::connection::Output::Wait) has the earliest deadline and its [`Timer`](crate::Timer). At that time
/// the driver calls `handle` with `Time`, after it has passed on everything that has arrived: bytes, completed reads,
/// commands. No other input makes a deadline expire. Time in which the driver stood still must not count, or the peer
/// seems to have been silent: see [`Input::Time`](crate::connection::Input::Time).
#[derive(Debug)]
pub struct ServerConnection {
    config: ServerConfig,
    state: State,
    core: Core<ServerEvent>,
    /// The fabric that is being opened, or was.
    chosen: Option<FabricKind>,
    /// Offers that both ends have and that were not tried, in the client's order.
    candidates: VecDeque<FabricOffer>,
    /// The reasons why fabrics could not be opened.
    refusals: Vec<String>,
    uploads: BTreeMap<StreamId, Upload>,
    draining: bool,
}

impl ServerConnection {
    /// A newly accepted connection.
    #[must_use]
    pub fn new(mut config: ServerConfig, now: Timestamp) -> Self {
        config.name = truncate(config.name);
        config.no_fabric_reason = truncate(config.no_fabric_reason);
        let mut timers = Timers::default();
        let (link, preface) = Link::new(config.frame, config.timeouts, config.checksum, now, &mut timers);
        let lender = Lender::new(LenderConfig {
            max_loan_bytes: config.limits.max_loan_bytes,
            max_leases: config.max_leases,
            word_nonce: config.word_nonce,
            lease_timeout: config.lease_timeout,
            thresholds: config.thresholds,
            frame: link.limits(),
        });
        let borrower = Borrower::new(config.borrow.clone());
        ServerConnection {
            config,
            state: State::AwaitingHello,
            core: Core::new(link, preface, timers, lender, borrower),
            chosen: None,
            candidates: VecDeque::new(),
            refusals: Vec::new(),
            uploads: BTreeMap::new(),
            draining: false,
        }
    }

    /// Returns whether the client's hello has arrived.
    #[must_use]
    pub fn has_hello(&self) -> bool {
        matches!(self.state, State::OpeningFabric | State::Open)
    }

    /// Returns whether the connection is ending, or has ended.
    #[must_use]
    pub fn is_ending(&self) -> bool {
        matches!(self.state, State::Closing | State::Closed)
    }

    /// Bytes on loan to the client.
    #[must_use]
    pub fn bytes_on_loan(&self) -> u64 {
        self.core.lender.bytes_on_loan()
    }

    /// Number of leases that stand.
    #[must_use]
    pub fn open_leases(&self) -> usize {
        self.core.lender.open_leases()
    }

    /// Number of streams that have not ended, in either direction, and of uploads that are not answered yet.
    #[must_use]
    pub fn open_streams(&self) -> usize {
        let borrowed = self.uploads.keys().filter(|stream| !self.core.borrower.is_open(**stream)).count();
        self.core.lender.open_streams() + self.core.borrower.open_streams() + borrowed
    }

    /// Whether a result is open. A driver need not prepare a batch for a closed one.
    #[must_use]
    pub fn is_open(&self, stream: StreamId) -> bool {
        self.core.lender.is_open(stream)
    }

    /// Whether an upload is not answered yet.
    #[must_use]
    pub fn is_upload(&self, stream: StreamId) -> bool {
        self.uploads.contains_key(&stream)
    }

    /// The borrower's half.
    #[must_use]
    pub fn borrower(&self) -> &Borrower {
        &self.core.borrower
    }

    /// The lender's half.
    #[must_use]
    pub fn lender(&self) -> &Lender {
        &self.core.lender
    }

    /// The protocol version in use, once the client's preface has arrived.
    #[must_use]
    pub fn version(&self) -> Option<u16> {
        self.core.link.version()
    }

    /// An engine that is not informed of the end yet may still hand over memory. It is not kept.
    fn handle_closed(&mut self, now: Timestamp, input: ServerInput<'_>) -> Result<(), ApiMisuse> {
        if let ServerInput::Command(ServerCommand::Lender(command)) = input {
            self.core.lender.command(now, command)?;
            self.absorb();
        }
        Ok(())
    }

    fn received(&mut self, now: Timestamp) {
        if self.is_ending() {
            self.core.link.buffer().clear();
            return;
        }
        if self.state == State::Open {
            self.core.link.arrived(now, &mut self.core.timers);
        }
        while !self.is_ending() {
            match self.core.link.next() {
                Ok(None) => return,
                Ok(Some((message, payload))) => {
                    if let Err(error) = self.message(now, message, payload) {
                        self.end(error);
                    }
                    // The outputs of each message come before the next message is handled.
                    self.absorb();
                }
                Err(error) => self.end(error),
            }
        }
    }

    fn message(&mut self, now: Timestamp, message: Message, payload: Bytes) -> Result<(), ConnectionError> {
        match message {
            Message::Goodbye { code, message } => Err(ConnectionError::Goodbye { code, message: truncate(message) }),
            Message::Hello(hello) if self.state == State::AwaitingHello => self.hello(now, hello),
            other if self.state != State::Open => Err(unexpected(&other, self.state.name()).into()),
            message => {
                // The client sends nothing else before it has received the Welcome.
                self.core.link.greeted();
                self.open_message(now, message, payload)
            }
        }
    }

    /// Handles a message of a client that has received the Welcome.
    fn open_message(&mut self, now: Timestamp, message: Message, payload: Bytes) -> Result<(), ConnectionError> {
        match message {
            Message::Open(open) => return Ok(self.open(now, open)?),
            message if self.withdraws_upload(&message) => return Ok(()),
            message => match self.core.message(now, message, payload)? {
                None | Some(Message::Pong(_)) => {}
                Some(Message::Borrower(FromBorrower::PathUp { transport, lending, extensions })) => {
                    self.core.understands("path-up", &extensions)?;
                    self.path_up(transport, lending)?;
                }
                Some(Message::Borrower(FromBorrower::PathDown { reason })) => self.path_down(reason)?,
                Some(other) => return Err(unexpected(&other, self.state.name()).into()),
            },
        }
        Ok(())
    }

    fn command(&mut self, now: Timestamp, command: ServerCommand) -> Result<(), ApiMisuse> {
        match command {
            ServerCommand::Lender(command) => {
                if let Some(reason) = self.core.lender_command(now, command)? {
                    self.core.event(ServerEvent::FabricDown { reason });
                }
                Ok(())
            }
            ServerCommand::Borrower(command) => self.core.borrower.command(now, command),
            ServerCommand::Accept { stream, window, max_window } => {
                self.core.borrower.admit(stream, window, max_window);
                Ok(())
            }
            ServerCommand::Answer { stream, result } => self.answer(stream, result),
            ServerCommand::Drain => {
                self.drain(now);
                Ok(())
            }
            ServerCommand::Close { code, message } => {
                if !self.is_ending() {
                    self.core.goodbye(code, &message);
                    self.end(ConnectionError::Closed);
                }
                Ok(())
            }
            plane => self.plane_command(now, plane),
        }
    }

    fn drain(&mut self, now: Timestamp) {
        if self.draining || self.is_ending() {
            return;
        }
        self.draining = true;
        self.core.timers.set(crate::timers::Timer::Drain, now + self.config.drain_timeout);
        match self.state {
            State::Open => self.core.goodbye(CloseCode::ShuttingDown, ""),
            State::AwaitingHello => self.end(ConnectionError::Closed),
            _ => {}
        }
    }

    /// Sends everything that can be sent, and forwards the outputs of the two halves.
    fn settle(&mut self, now: Timestamp) {
        if self.state == State::Open {
            self.core.lender.pump(now);
        }
        self.core.borrower.schedule_releases(now);
        self.absorb();
    }
}

impl Machine for ServerConnection {
    type Command = ServerCommand;
    type Event = ServerEvent;

    fn handle(&mut self, now: Timestamp, input: ServerInput<'_>) -> Result<(), ApiMisuse> {
        if self.state == State::Closed {
            return self.handle_closed(now, input);
        }
        match input {
            ServerInput::Time => self.expire(now),
            ServerInput::Relieved if self.state == State::Open => {
                self.core.link.sign_of_life(now, &mut self.core.timers);
            }
            ServerInput::Relieved => {}
            ServerInput::ControlLost(reason) => self.end(ConnectionError::ControlLost(reason)),
            ServerInput::Received(bytes) => {
                self.core.link.push(bytes);
                self.received(now);
            }
            ServerInput::Buffered => self.received(now),
            ServerInput::Command(command) => {
                if let Err(misuse) = self.command(now, command) {
                    self.settle(now);
                    self.end(misuse.clone().into());
                    return Err(misuse);
                }
            }
        }
        self.settle(now);
        self.close_when_drained();
        Ok(())
    }

    fn poll_output(&mut self) -> ServerOutput {
        self.core.poll_output()
    }

    fn receive_buffer(&mut self) -> &mut BytesMut {
        self.core.link.buffer()
    }

    fn held_bytes(&self) -> u64 {
        self.core.held_bytes()
    }

    /// The second is the data plane on which this end lends.
    fn state_names(&self) -> [&'static str; 2] {
        [self.state.name(), self.core.lender.path_name()]
    }

    fn lender_command(command: LenderCommand) -> ServerCommand {
        ServerCommand::Lender(command)
    }

    fn borrower_command(command: BorrowerCommand) -> ServerCommand {
        ServerCommand::Borrower(command)
    }

    fn fabric_failed(reason: String) -> ServerCommand {
        ServerCommand::FabricFailed { reason }
    }

    fn fabric_closed() -> ServerCommand {
        ServerCommand::FabricClosed
    }
}

/// Wraps the error that ended the connection, for both halves.
fn shared(error: ConnectionError) -> Arc<ConnectionError> {
    Arc::new(error)
}
