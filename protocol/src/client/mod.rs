//! The client's end of a connection: it makes requests, borrows results and lends uploads.

mod ending;
mod io;
mod requests;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use bytes::{Bytes, BytesMut};

pub use io::{ClientCommand, ClientEvent, ClientInput, ClientOutput, LeaseWordRegion, UploadOptions};

use crate::borrower::{Borrower, BorrowerCommand, BorrowerConfig};
use crate::codec::{FrameLimits, MAX_ADDRESS};
use crate::codes::CloseCode;
use crate::connection::{Core, Machine, unexpected};
use crate::error::{ApiMisuse, ConnectionError, StreamError};
use crate::ids::{FabricKind, StreamId};
use crate::lender::{Lender, LenderCommand, LenderConfig};
use crate::link::{Link, LinkTimeouts, truncate};
use crate::message::{
    Defaults, Extensions, FabricOffer, FromBorrower, Hello, Message, ServerLimits, Thresholds, Vendor, Welcome,
};
use crate::misbehaviour::PeerMisbehaved;
use crate::time::Timestamp;
use crate::timers::{Timer, Timers};

/// Limits, timeouts and properties of a client's connection.
#[derive(Clone, Debug)]
pub struct ClientConfig {
    /// The client's name.
    pub name: String,
    /// Fabrics whose endpoints the driver has open, in order of preference.
    pub fabrics: Vec<FabricOffer>,
    /// Limits of frames, both ways.
    pub frame: FrameLimits,
    /// Whether frames carry checksums. Needed if no layer below has checksums.
    pub checksum: bool,
    /// Initial window of a result, in bytes. The window grows up to the requested one whenever the lender is out of
    /// credit while the borrower has consumed everything.
    pub first_window: u64,
    /// Limits for data that the server lends.
    pub borrow: BorrowerConfig,
    /// Timeouts of the control connection.
    pub timeouts: LinkTimeouts,
    /// Maximum bytes of uploads on loan at once.
    pub max_loan_bytes: u64,
    /// Maximum number of leases of uploads at once, at least 1. Also the number of slots for lease words.
    pub max_leases: u32,
    /// Entropy for lease words, so that they differ from any other content of the same memory.
    pub word_nonce: u64,
    /// Time limit of a lease.
    pub lease_timeout: Duration,
    /// Live bytes from which on a batch of an upload is lent, if nothing else is configured or measured.
    pub thresholds: Thresholds,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    AwaitingWelcome,
    /// The welcome arrived with a fabric, which the driver now connects.
    Connecting,
    Open,
    /// The endpoint is being closed.
    Closing,
    Closed,
}

impl State {
    fn name(self) -> &'static str {
        match self {
            State::AwaitingWelcome => "awaiting the welcome",
            State::Connecting => "connecting the fabric",
            State::Open => "open",
            State::Closing => "closing",
            State::Closed => "closed",
        }
    }

    fn is_ending(self) -> bool {
        matches!(self, State::Closing | State::Closed)
    }
}

/// The state machine of a client's connection.
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
/// [`ClientCommand`]:
/// - [`Open`](ClientCommand::Open) and [`Upload`](ClientCommand::Upload) begin streams.
/// - [`Close`](ClientCommand::Close) ends the connection.
/// - `FabricUp` or `FabricUnavailable` answers [`ConnectFabric`](ClientEvent::ConnectFabric).
/// - `ReadDone` reports a read, and a batch or the end answers a pull of an upload.
/// - `Consumed` reports that the application has taken a delivered batch.
///
/// # Outputs
/// [`ClientOutput`]: frames to write; tasks of the data plane, as [borrower](crate::borrower::BorrowerTask) of
/// results and [lender](crate::lender::LenderTask) of uploads; events of
/// [streams](crate::borrower::BorrowerEvent) and of the [connection](ClientEvent).
/// [`Closed`](crate::connection::Output::Closed) is the last output: every lease has ended.
///
/// # Timers
/// [`Wait`](crate::connection::Output::Wait) has the earliest deadline and its [`Timer`]. At that time
/// the driver calls `handle` with `Time`, after it has passed on everything that has arrived: bytes, completed reads,
/// commands. No other input makes a deadline expire. Time in which the driver stood still must not count, or the peer
/// seems to have been silent: see [`Input::Time`](crate::connection::Input::Time).
#[derive(Debug)]
pub struct ClientConnection {
    config: ClientConfig,
    state: State,
    core: Core<ClientEvent>,
    limits: Option<ServerLimits>,
    /// Whether the offered endpoints still have to be closed.
    endpoint_open: bool,
    fabric_closing: bool,
    /// Uploads that are not answered yet, with their deadlines.
    uploads: BTreeMap<StreamId, Option<Duration>>,
    pings_asked: BTreeSet<u64>,
    drain_reported: bool,
}

impl ClientConnection {
    /// A new connection.
    ///
    /// # Errors
    /// [`ApiMisuse::Encode`] if the hello is too long.
    pub fn new(config: ClientConfig, now: Timestamp) -> Result<Self, ApiMisuse> {
        let mut timers = Timers::default();
        let (link, preface) = Link::new(config.frame, config.timeouts, config.checksum, now, &mut timers);
        let hello = Message::Hello(Hello {
            name: config.name.clone(),
            fabrics: config.fabrics.clone(),
            max_loan_bytes: config.max_loan_bytes,
            extensions: Extensions::none(),
        });
        let hello = link.encode(&hello, Bytes::new())?;
        let lender = Lender::new(LenderConfig {
            max_loan_bytes: config.max_loan_bytes,
            max_leases: config.max_leases,
            word_nonce: config.word_nonce,
            lease_timeout: config.lease_timeout,
            thresholds: config.thresholds,
            frame: link.limits(),
        });
        let mut core = Core::new(link, preface, timers, lender, Borrower::new(config.borrow.clone()));
        core.output(ClientOutput::Transmit(hello));
        Ok(ClientConnection {
            state: State::AwaitingWelcome,
            core,
            limits: None,
            endpoint_open: !config.fabrics.is_empty(),
            config,
            fabric_closing: false,
            uploads: BTreeMap::new(),
            pings_asked: BTreeSet::new(),
            drain_reported: false,
        })
    }

    /// Number of batches that are being read.
    #[must_use]
    pub fn outstanding_reads(&self) -> usize {
        self.core.borrower.outstanding_reads()
    }

    /// Number of streams that have not ended on both sides, in either direction, and of uploads that are not answered
    /// yet.
    #[must_use]
    pub fn open_streams(&self) -> usize {
        let lent = self.uploads.keys().filter(|stream| !self.core.lender.is_open(**stream)).count();
        self.core.borrower.open_streams() + self.core.lender.open_streams() + lent
    }

    /// Whether batches may still be pulled from an upload's source.
    #[must_use]
    pub fn is_open(&self, stream: StreamId) -> bool {
        self.core.lender.is_open(stream)
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

    /// Requests on a closed connection still fail with the error that ended it. Memory that still arrives for an upload
    /// is not kept.
    fn handle_closed(&mut self, now: Timestamp, input: ClientInput<'_>) -> Result<(), ApiMisuse> {
        let ClientInput::Command(command) = input else { return Ok(()) };
        match command {
            ClientCommand::Open { .. }
            | ClientCommand::Upload { .. }
            | ClientCommand::Lender(_)
            | ClientCommand::Borrower(BorrowerCommand::ReadPart { .. } | BorrowerCommand::ReleaseBatch { .. }) => {
                self.command(now, command)?;
                self.absorb();
            }
            _ => {}
        }
        Ok(())
    }

    fn received(&mut self, now: Timestamp) {
        if self.state.is_ending() {
            self.core.link.buffer().clear();
            return;
        }
        if self.is_established() {
            self.core.link.arrived(now, &mut self.core.timers);
        }
        while !self.state.is_ending() {
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
        let greeted = self.state != State::AwaitingWelcome;
        match message {
            Message::Welcome(welcome) if !greeted => return self.welcome(now, welcome),
            Message::Goodbye { code: CloseCode::ShuttingDown, .. } if greeted => {
                if !std::mem::replace(&mut self.drain_reported, true) {
                    self.core.event(ClientEvent::Draining);
                }
            }
            Message::Goodbye { code, message } => {
                return Err(ConnectionError::Goodbye { code, message: truncate(message) });
            }
            other if !greeted => return Err(self.unexpected(&other).into()),
            Message::Answer(answer) => self.answered(answer)?,
            message => match self.core.message(now, message, payload)? {
                None => {}
                Some(Message::Pong(nonce)) if self.pings_asked.remove(&nonce) => self.core.event(ClientEvent::Pong),
                Some(Message::Pong(_)) => {}
                Some(Message::Borrower(message)) => self.reverse_path(message)?,
                Some(other) => return Err(self.unexpected(&other).into()),
            },
        }
        Ok(())
    }

    fn is_established(&self) -> bool {
        matches!(self.state, State::Connecting | State::Open)
    }

    fn unexpected(&self, got: &Message) -> PeerMisbehaved {
        unexpected(got, self.state.name())
    }

    fn welcome(&mut self, now: Timestamp, welcome: Welcome) -> Result<(), ConnectionError> {
        self.core.understands("welcome", &welcome.extensions)?;
        self.core.link.established(now, &mut self.core.timers);
        // The server answers a Hello.
        self.core.link.greeted();
        self.core.link.accept_payloads();
        let version = self.core.link.version().unwrap_or_default();
        self.limits = Some(welcome.limits.clone());
        self.core.borrower.set_lender_limit(welcome.limits.max_loan_bytes);
        let (server, limits) = (truncate(welcome.name), welcome.limits);
        let Vendor { name, version: engine_version, defaults } = Vendor::of(&welcome.extensions);
        // A name that was cut would be another one.
        let whole = |name: Option<String>| name.filter(|name| truncate(name.clone()) == *name);
        let defaults = Defaults { catalog: whole(defaults.catalog), schema: whole(defaults.schema) };
        let vendor = Vendor { name: truncate(name), version: truncate(engine_version), defaults };
        self.core.event(ClientEvent::Welcome { server, version, limits, vendor });
        match welcome.fabric {
            Ok(choice) => {
                let (value, limit) = (choice.address.len() as u64, MAX_ADDRESS as u64);
                if value > limit {
                    return Err(PeerMisbehaved::Limit { what: "fabric address bytes", value, limit }.into());
                }
                if !offered(&self.config, &choice.kind) {
                    return Err(PeerMisbehaved::FabricNotOffered(truncate(choice.kind.to_string())).into());
                }
                self.core.borrower.set_lease_words(&choice.lending)?;
                self.state = State::Connecting;
                let due = now + self.core.link.timeouts().handshake;
                self.core.timers.set(Timer::Handshake, due);
                self.core.event(ClientEvent::ConnectFabric(choice));
            }
            Err(reason) => {
                self.state = State::Open;
                self.core.event(ClientEvent::FabricDown { reason: truncate(reason) });
                self.close_fabric();
            }
        }
        Ok(())
    }

    fn command(&mut self, now: Timestamp, command: ClientCommand) -> Result<(), ApiMisuse> {
        match command {
            ClientCommand::Lender(command) => {
                let failed = match &command {
                    LenderCommand::Fail { stream, failure } => Some((*stream, failure.clone())),
                    _ => None,
                };
                if let Some(reason) = self.core.lender_command(now, command)? {
                    self.core.event(ClientEvent::ReversePathDown { reason });
                }
                // The source of an upload reported this failure itself. The event still reports how the upload ended.
                if let Some((stream, failure)) = failed {
                    self.upload_failed(stream, StreamError::Remote(failure));
                }
            }
            ClientCommand::Borrower(BorrowerCommand::Cancel { stream }) if !self.is_known(stream) => {
                return Err(ApiMisuse::UnknownStream(stream));
            }
            ClientCommand::Borrower(command) => self.core.borrower.command(now, command)?,
            ClientCommand::FabricUp { transport, lending } => {
                if self.state == State::Connecting {
                    self.fabric_up(truncate(transport), lending)?;
                }
            }
            ClientCommand::FabricUnavailable { reason } | ClientCommand::FabricFailed { reason } => {
                self.fabric_down(&reason);
            }
            ClientCommand::FabricClosed => self.fabric_closed()?,
            ClientCommand::Open { stream, request, options } => self.open(now, stream, request, options)?,
            ClientCommand::Upload { stream, table, options } => self.upload(now, stream, table, options)?,
            ClientCommand::Withdraw { stream } => self.withdraw(stream)?,
            ClientCommand::Ping => {
                if self.state == State::Open {
                    let nonce = self.core.ping(now);
                    self.pings_asked.insert(nonce);
                }
            }
            ClientCommand::Close => self.end(ConnectionError::Closed),
        }
        Ok(())
    }

    fn is_known(&self, stream: StreamId) -> bool {
        self.core.last_stream.is_some_and(|last| stream <= last)
    }

    fn fabric_up(&mut self, transport: String, lending: Option<LeaseWordRegion>) -> Result<(), ApiMisuse> {
        let lending = match lending {
            Some(LeaseWordRegion { fencing, words, probe_value }) => {
                crate::lender::within("remote key", words.key.len(), crate::codec::MAX_KEY)?;
                Some(self.core.lender.path_opened(fencing, words, probe_value)?)
            }
            None => None,
        };
        self.core.timers.clear(Timer::Handshake);
        self.state = State::Open;
        self.core.borrower.path_up();
        let up = FromBorrower::PathUp { transport: transport.clone(), lending, extensions: Extensions::none() };
        self.core.send(Message::Borrower(up));
        self.core.event(ClientEvent::FabricUp { transport });
        Ok(())
    }

    /// The server has proven the reverse path, or cannot read memory that this end lends.
    fn reverse_path(&mut self, message: FromBorrower) -> Result<(), ConnectionError> {
        let was = self.core.lender.path_name();
        match message {
            FromBorrower::PathUp { transport, extensions, .. } => {
                self.core.understands("path-up", &extensions)?;
                if !self.core.lender.path_up() {
                    return Err(PeerMisbehaved::Unexpected { got: "path-up", state: self.state.name() }.into());
                }
                if was == "unproven" {
                    self.core.event(ClientEvent::ReversePathUp { transport: truncate(transport) });
                }
            }
            FromBorrower::PathDown { reason } => {
                let reason = truncate(reason);
                // If this end does not lend, no path exists that could fail.
                self.core.lender.path_down(&reason);
                if matches!(was, "unproven" | "up") {
                    self.core.event(ClientEvent::ReversePathDown { reason });
                }
            }
            other => return Err(self.unexpected(&Message::Borrower(other)).into()),
        }
        Ok(())
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

impl Machine for ClientConnection {
    type Command = ClientCommand;
    type Event = ClientEvent;

    fn handle(&mut self, now: Timestamp, input: ClientInput<'_>) -> Result<(), ApiMisuse> {
        if self.state == State::Closed {
            return self.handle_closed(now, input);
        }
        match input {
            ClientInput::Time => self.expire(now),
            ClientInput::Relieved if self.is_established() => {
                self.core.link.sign_of_life(now, &mut self.core.timers);
            }
            ClientInput::Relieved => {}
            ClientInput::ControlLost(reason) => self.end(ConnectionError::ControlLost(reason)),
            ClientInput::Received(bytes) => {
                self.core.link.push(bytes);
                self.received(now);
            }
            ClientInput::Buffered => self.received(now),
            ClientInput::Command(command) => {
                if let Err(misuse) = self.command(now, command) {
                    self.settle(now);
                    self.end(misuse.clone().into());
                    return Err(misuse);
                }
            }
        }
        self.settle(now);
        Ok(())
    }

    fn poll_output(&mut self) -> ClientOutput {
        self.core.poll_output()
    }

    fn receive_buffer(&mut self) -> &mut BytesMut {
        self.core.link.buffer()
    }

    fn held_bytes(&self) -> u64 {
        self.core.held_bytes()
    }

    /// The second is the data plane on which this end borrows.
    fn state_names(&self) -> [&'static str; 2] {
        [self.state.name(), self.core.borrower.path_name()]
    }

    fn lender_command(command: LenderCommand) -> ClientCommand {
        ClientCommand::Lender(command)
    }

    fn borrower_command(command: BorrowerCommand) -> ClientCommand {
        ClientCommand::Borrower(command)
    }

    fn fabric_failed(reason: String) -> ClientCommand {
        ClientCommand::FabricFailed { reason }
    }

    fn fabric_closed() -> ClientCommand {
        ClientCommand::FabricClosed
    }
}

/// Whether this end offered the fabric.
fn offered(config: &ClientConfig, kind: &FabricKind) -> bool {
    config.fabrics.iter().any(|offer| offer.kind == *kind)
}
