//! The server's end of a connection: it chooses the fabric, answers requests, lends results and borrows uploads.

mod ending;
mod handshake;
mod io;
mod requests;

use std::collections::BTreeMap;
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
use crate::link::{Link, LinkTimeouts, clip};
use crate::message::{FromBorrower, Message, ServerLimits, Thresholds};
use crate::time::Timestamp;
use crate::timers::Timers;

/// Limits, times and facts of a server's connection.
#[derive(Clone, Debug)]
pub struct ServerConfig {
    /// The server's name.
    pub name: String,
    /// Fabrics that can work on this host.
    pub fabrics: Vec<FabricKind>,
    /// Why there are none, if there are none, for the client to report.
    pub no_fabric: String,
    /// Limits for the client.
    pub limits: ServerLimits,
    /// Limits of frames, both ways.
    pub frame: FrameLimits,
    /// Whether frames are to carry checksums, because no layer below has any.
    pub checksum: bool,
    /// Live bytes from which on a batch is lent, unless the client asks otherwise or has measured.
    pub thresholds: Thresholds,
    /// Leases at once, at least 1, and slots for lease words.
    pub max_leases: u32,
    /// Entropy: makes lease words unlike anything else that may come to stand in the same memory.
    pub word_nonce: u64,
    /// Times of the control connection.
    pub timeouts: LinkTimeouts,
    /// How long a lease may be kept.
    pub lease_timeout: Duration,
    /// How long running streams may go on after [`ServerCommand::Drain`]. Reads under way then have a second more.
    pub drain_timeout: Duration,
    /// Limits for what the client lends.
    pub borrow: BorrowerConfig,
}

impl ServerConfig {
    /// Limits for borrowing uploads that suit most servers: batches of `max_batch_bytes`.
    #[must_use]
    pub fn borrowing(max_batch_bytes: u64, read_timeout: Duration) -> BorrowerConfig {
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

/// An upload that has not been answered.
#[derive(Clone, Copy, Debug, Default)]
struct Upload {
    /// Its end has been delivered.
    ended: bool,
}

/// The state machine of a server's connection.
///
/// # Order of calls
/// After [`new`](Self::new), and after every input, call [`poll_output`](Self::poll_output) until it says
/// [`Wait`](crate::connection::Output::Wait), and do each output before the next is taken: the order is what keeps the
/// promises. Commands may be handed in between outputs. `examples/sans_io.rs` is a whole driver.
///
/// # Inputs
/// [`handle`](Self::handle) takes them, with the time: bytes of the control connection ([`Received`], or [`Buffered`]
/// for those that were read into [`receive_buffer`](crate::connection::Machine::receive_buffer)), its end
/// ([`ControlLost`]), the passing of time ([`Time`]), and commands.
///
/// [`Received`]: crate::connection::Input::Received
/// [`Buffered`]: crate::connection::Input::Buffered
/// [`ControlLost`]: crate::connection::Input::ControlLost
/// [`Time`]: crate::connection::Input::Time
///
/// # Commands
/// [`ServerCommand`]: [`Drain`](ServerCommand::Drain) and [`Close`](ServerCommand::Close) end the connection. The
/// others answer outputs:
/// [`OpenFabric`](ServerEvent::OpenFabric) by `FabricOpened` or `FabricUnavailable`, a [`Query`](ServerEvent::Query) by
/// its schema and then each pull by a batch or the end, an [`Upload`](ServerEvent::Upload) by `Accept` and at its end
/// by `Answer`; `OpenLease` by `Exposed` or `NotExposed`, before anything else is done.
///
/// # Outputs
/// [`ServerOutput`]: frames to write; tasks for the data plane, as [lender](crate::lender::LenderTask) of results and
/// [borrower](crate::borrower::BorrowerTask) of uploads; what the application is told of its
/// [streams](crate::borrower::BorrowerEvent) and of the [connection](ServerEvent).
/// [`Closed`](crate::connection::Output::Closed) is the last: every lease has ended.
///
/// # Timers
/// [`Wait`](crate::connection::Output::Wait) names the earliest deadline and its [`Timer`](crate::Timer): `handle` is
/// due then with `Time`. After a stall, hand in what came first: inputs come before deadlines.
#[derive(Debug)]
pub struct ServerConnection {
    config: ServerConfig,
    state: State,
    core: Core<ServerEvent>,
    chosen: Option<FabricKind>,
    uploads: BTreeMap<StreamId, Upload>,
    draining: bool,
}

impl ServerConnection {
    /// A connection that was just accepted.
    #[must_use]
    pub fn new(mut config: ServerConfig, now: Timestamp) -> Self {
        config.name = clip(config.name);
        config.no_fabric = clip(config.no_fabric);
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
            uploads: BTreeMap::new(),
            draining: false,
        }
    }

    /// Bytes on loan to the client.
    #[must_use]
    pub fn bytes_on_loan(&self) -> u64 {
        self.core.lender.bytes_on_loan()
    }

    /// Leases that stand.
    #[must_use]
    pub fn open_leases(&self) -> usize {
        self.core.lender.open_leases()
    }

    /// Streams that have not ended, in either direction, and uploads that were not answered.
    #[must_use]
    pub fn open_streams(&self) -> usize {
        let borrowed = self.uploads.keys().filter(|stream| !self.core.borrower.is_open(**stream)).count();
        self.core.lender.open_streams() + self.core.borrower.open_streams() + borrowed
    }

    /// Whether a result is open: a driver need not prepare a batch for one that is not.
    #[must_use]
    pub fn is_open(&self, stream: StreamId) -> bool {
        self.core.lender.is_open(stream)
    }

    /// Whether an upload has not been answered.
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

    /// The protocol version in use, once the client's preface is there.
    #[must_use]
    pub fn version(&self) -> Option<u16> {
        self.core.link.version()
    }

    /// See [`Machine::state_names`]: the second is the data plane on which this end lends.
    #[must_use]
    pub fn state_names(&self) -> [&'static str; 2] {
        [self.state.name(), self.core.lender.path_name()]
    }

    /// See [`Machine::handle`].
    ///
    /// # Errors
    /// [`ApiMisuse`] if the driver broke the contract; the connection then tears itself down.
    pub fn handle(&mut self, now: Timestamp, input: ServerInput<'_>) -> Result<(), ApiMisuse> {
        if self.state == State::Closed {
            return self.handle_closed(now, input);
        }
        // Events come before deadlines: after a stall of this host the peer is not taken for silent, nor a
        // lease for kept, while the bytes that say otherwise lie here unread.
        match input {
            ServerInput::Time => {}
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
        self.expire(now);
        self.settle(now);
        self.close_when_drained();
        Ok(())
    }

    /// The next thing to do. To be called until it says [`ServerOutput::Wait`].
    #[must_use]
    pub fn poll_output(&mut self) -> ServerOutput {
        self.core.poll_output()
    }

    /// An engine that has not heard of the end may still hand over memory; it is not kept.
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
            self.core.link.heard(now, &mut self.core.timers);
        }
        while !self.is_ending() {
            match self.core.link.next() {
                Ok(None) => return,
                Ok(Some((message, payload))) => {
                    if let Err(error) = self.message(now, message, payload) {
                        self.end(error);
                    }
                    // Each message's consequences come before the next message.
                    self.absorb();
                }
                Err(error) => self.end(error),
            }
        }
    }

    fn message(&mut self, now: Timestamp, message: Message, payload: Bytes) -> Result<(), ConnectionError> {
        match message {
            Message::Goodbye { code, message } => {
                return Err(ConnectionError::Goodbye { code, message: clip(message) });
            }
            Message::Hello(hello) if self.state == State::AwaitingHello => return self.hello(now, hello),
            other if self.state != State::Open => return Err(unexpected(&other, self.state.name()).into()),
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
            ServerCommand::Lender(command) => self.core.lender.command(now, command),
            ServerCommand::Borrower(command) => self.core.borrower.command(now, command),
            ServerCommand::Accept { stream, window, most } => {
                self.core.borrower.admit(stream, window, most);
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

    fn is_ending(&self) -> bool {
        matches!(self.state, State::Closing | State::Closed)
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

    /// Sends whatever can be sent, and moves on what the halves have to say.
    fn settle(&mut self, now: Timestamp) {
        if self.state == State::Open {
            self.core.lender.pump(now);
        }
        self.core.borrower.time_releases(now);
        self.absorb();
    }
}

impl Machine for ServerConnection {
    type Command = ServerCommand;
    type Event = ServerEvent;

    fn handle(&mut self, now: Timestamp, input: ServerInput<'_>) -> Result<(), ApiMisuse> {
        ServerConnection::handle(self, now, input)
    }

    fn poll_output(&mut self) -> ServerOutput {
        ServerConnection::poll_output(self)
    }

    fn receive_buffer(&mut self) -> &mut BytesMut {
        self.core.link.buffer()
    }

    fn state_names(&self) -> [&'static str; 2] {
        ServerConnection::state_names(self)
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

/// Why the connection ended, as both halves are told.
fn shared(error: ConnectionError) -> Arc<ConnectionError> {
    Arc::new(error)
}
