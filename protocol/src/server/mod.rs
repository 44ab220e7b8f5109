//! The server's end of a connection: it lends query results.

mod command;
mod ending;
mod io;
mod mapped;
mod send;
mod stream;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use bytes::Bytes;

pub use io::{Loan, LoanEffort, OpenedFabric, ServerCommand, ServerInput, ServerOutput};
use stream::OutgoingStream;

use crate::codec::{FrameLimits, MAX_ADDRESS};
use crate::codes::{CloseCode, StreamCode};
use crate::credit::batch_cost;
use crate::error::{ApiMisuse, ConnectionError};
use crate::ids::{FabricKind, LeaseId, RegionId, StreamId};
use crate::lease::{LeaseEnd, LeaseTable};
use crate::link::{Incoming, Link, LinkTimeouts, clip, no_payload};
use crate::message::{ClientHello, ExecuteOptions, FabricChoice, ServerHello, ServerLimits, ToClient, ToServer};
use crate::misbehaviour::PeerMisbehaved;
#[cfg(feature = "planted-bugs")]
use crate::planted::{Bug, is_planted};
use crate::time::Timestamp;
use crate::timers::{Timer, Timers};

/// What a server's connection is told at its start.
#[derive(Clone, Debug)]
pub struct ServerConfig {
    /// What the server calls itself.
    pub name: String,
    /// Fabrics that can work on this host.
    pub fabrics: Vec<FabricKind>,
    /// Why there are none, if there are none, for the client to report.
    pub no_fabric: String,
    /// Limits for the client.
    pub limits: ServerLimits,
    /// Limits of frames, both ways.
    pub frame: FrameLimits,
    /// Live bytes from which on a batch is lent, unless the client asks otherwise.
    pub inline_threshold: u64,
    /// Leases at once, at least 1, and slots for lease words.
    pub max_leases: u32,
    /// Entropy: makes lease words unlike anything else that may come to stand in the same memory.
    pub word_nonce: u64,
    /// Times of the control connection.
    pub timeouts: LinkTimeouts,
    /// How long a lease may be kept.
    pub lease_timeout: Duration,
    /// How long what runs may go on after [`ServerCommand::Drain`]. What is being read then has a second more.
    pub drain_timeout: Duration,
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

/// The data plane as this end sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
enum DataPlane {
    /// None was agreed on.
    None,
    /// Opened; the client has not said yet whether it works.
    Unproven(OpenedFabric),
    Up(OpenedFabric),
    /// Was there; nothing is lent on it any more.
    Down(OpenedFabric),
}

impl DataPlane {
    fn opened(&self) -> Option<&OpenedFabric> {
        match self {
            DataPlane::None => None,
            DataPlane::Unproven(fabric) | DataPlane::Up(fabric) | DataPlane::Down(fabric) => Some(fabric),
        }
    }
}

/// The state machine of a server's connection. See the crate's documentation for how to drive it.
#[derive(Debug)]
pub struct ServerConnection {
    config: ServerConfig,
    state: State,
    link: Link,
    timers: Timers,
    chosen: Option<FabricKind>,
    data: DataPlane,
    streams: BTreeMap<StreamId, OutgoingStream>,
    last_stream: Option<StreamId>,
    leases: LeaseTable,
    regions: BTreeSet<RegionId>,
    /// The stream that was served last, so that blocked ones take turns.
    served: Option<StreamId>,
    /// The stream whose batch found no room among the loans: until it has, no other may lend.
    waiting: Option<StreamId>,
    draining: bool,
    ended_by: Option<ConnectionError>,
    out: VecDeque<ServerOutput>,
}

impl ServerConnection {
    /// A connection that was just accepted.
    #[must_use]
    pub fn new(mut config: ServerConfig, now: Timestamp) -> Self {
        config.name = clip(config.name);
        config.no_fabric = clip(config.no_fabric);
        config.max_leases = config.max_leases.max(1);
        let mut timers = Timers::default();
        let (link, preface) = Link::new(config.frame, config.timeouts, now, &mut timers);
        ServerConnection {
            leases: LeaseTable::new(config.max_leases),
            config,
            state: State::AwaitingHello,
            link,
            timers,
            chosen: None,
            data: DataPlane::None,
            streams: BTreeMap::new(),
            last_stream: None,
            regions: BTreeSet::new(),
            served: None,
            waiting: None,
            draining: false,
            ended_by: None,
            out: VecDeque::from([ServerOutput::Transmit(preface)]),
        }
    }

    /// The state of the connection and of its data plane, in words for traces.
    #[must_use]
    pub fn state_names(&self) -> [&'static str; 2] {
        let data = match self.data {
            DataPlane::None => "none",
            DataPlane::Unproven(_) => "unproven",
            DataPlane::Up(_) => "up",
            DataPlane::Down(_) => "down",
        };
        [self.state.name(), data]
    }

    /// Bytes on loan to the client.
    #[must_use]
    pub fn bytes_on_loan(&self) -> u64 {
        self.leases.bytes()
    }

    /// Leases that stand.
    #[must_use]
    pub fn open_leases(&self) -> usize {
        self.leases.len()
    }

    /// Streams that have not ended.
    #[must_use]
    pub fn open_streams(&self) -> usize {
        self.streams.len()
    }

    /// Whether a stream is open: a driver need not prepare a batch for one that is not.
    #[must_use]
    pub fn is_open(&self, stream: StreamId) -> bool {
        self.streams.contains_key(&stream)
    }

    /// The protocol version in use, once the client's preface is there.
    #[must_use]
    pub fn version(&self) -> Option<u16> {
        self.link.version()
    }

    /// Takes in one thing that happened. What follows from it is to be had from [`Self::poll_output`].
    ///
    /// # Errors
    /// [`ApiMisuse`] if the driver broke the contract; the connection then tears itself down.
    pub fn handle(&mut self, now: Timestamp, input: ServerInput<'_>) -> Result<(), ApiMisuse> {
        if self.state == State::Closed {
            // Memory may still be on its way here from an engine that had not heard; it is not kept.
            if let ServerInput::Command(ServerCommand::Lend { loan, .. }) = input {
                self.leases.reserve(loan.lease)?;
                self.withdraw(loan.lease);
            }
            return Ok(());
        }
        // What happened comes before what was due: after a stall of this host the peer is not taken for silent, nor a
        // lease for kept, while the bytes that say otherwise lie here unread.
        match input {
            ServerInput::Time => {}
            ServerInput::ControlLost(reason) => self.end(ConnectionError::ControlLost(reason)),
            ServerInput::Received(bytes) => {
                if !self.is_ending()
                    && let Err(error) = self.received(now, bytes)
                {
                    self.end(error);
                }
            }
            ServerInput::Command(command) => {
                if let Err(misuse) = self.command(now, command) {
                    self.end(misuse.clone().into());
                    return Err(misuse);
                }
            }
        }
        self.fire_timers(now);
        self.send_what_can_be_sent(now);
        self.close_when_drained();
        Ok(())
    }

    /// The next thing to do. To be called until it says [`ServerOutput::Wait`].
    #[must_use]
    pub fn poll_output(&mut self) -> ServerOutput {
        self.out.pop_front().unwrap_or_else(|| ServerOutput::Wait(self.timers.next()))
    }

    fn received(&mut self, now: Timestamp, bytes: &[u8]) -> Result<(), ConnectionError> {
        self.link.push(now, bytes, self.state == State::Open, &mut self.timers);
        while !self.is_ending() {
            match self.link.next::<ToServer>()? {
                Incoming::Nothing => break,
                Incoming::Message(message, payload) => {
                    no_payload(&payload)?;
                    self.message(now, message)?;
                }
            }
        }
        Ok(())
    }

    fn message(&mut self, now: Timestamp, message: ToServer) -> Result<(), ConnectionError> {
        match (self.state, message) {
            (State::AwaitingHello, ToServer::Hello(hello)) => self.hello(now, hello)?,
            (State::Open, ToServer::Execute { stream, sql, options }) => self.execute(now, stream, sql, options)?,
            (State::Open, ToServer::Credit { stream, total }) => {
                if let Some(open) = self.streams.get_mut(&stream) {
                    open.credit.grant(total, batch_cost(self.config.limits.max_loan_bytes))?;
                } else {
                    self.must_have_been(stream)?;
                }
            }
            (State::Open, ToServer::Release { leases }) => self.release(leases)?,
            (State::Open, ToServer::Cancel { stream, reason }) => {
                if self.streams.contains_key(&stream) {
                    self.out.push_back(ServerOutput::StopQuery { stream, reason: Some(reason), failure: None });
                    self.fail_stream(stream, StreamCode::Cancelled, reason.to_string());
                } else {
                    self.must_have_been(stream)?;
                }
            }
            (State::Open, ToServer::FabricUp { transport }) => match &self.data {
                DataPlane::Unproven(fabric) => {
                    self.data = DataPlane::Up(fabric.clone());
                    self.out.push_back(ServerOutput::FabricUp { transport: clip(transport) });
                }
                // This end saw it die while the client said that it works.
                DataPlane::Down(_) => {}
                DataPlane::None | DataPlane::Up(_) => return Err(self.unexpected("fabric-up").into()),
            },
            (State::Open, ToServer::FabricDown { reason }) => {
                if !matches!(self.data, DataPlane::Unproven(_) | DataPlane::Up(_)) {
                    // Both ends may see the fabric die at the same time.
                    if matches!(self.data, DataPlane::Down(_)) {
                        return Ok(());
                    }
                    return Err(self.unexpected("fabric-down").into());
                }
                self.fabric_down(clip(reason));
            }
            #[cfg(feature = "planted-bugs")]
            (State::Open, ToServer::Ping(_)) if is_planted(Bug::PongLost) => {}
            (State::Open, ToServer::Ping(nonce)) => self.transmit(&ToClient::Pong(nonce), Bytes::new()),
            (State::Open, ToServer::Pong(_)) => {}
            (_, ToServer::Goodbye { code, message }) => {
                return Err(ConnectionError::Goodbye { code, message: clip(message) });
            }
            (_, other) => return Err(self.unexpected(name_of(&other)).into()),
        }
        Ok(())
    }

    fn hello(&mut self, now: Timestamp, hello: ClientHello) -> Result<(), PeerMisbehaved> {
        for offer in &hello.fabrics {
            limit("fabric address bytes", offer.address.len(), MAX_ADDRESS)?;
        }
        limit("fabrics offered", hello.fabrics.len(), 16)?;
        let common = hello.fabrics.iter().find(|offer| self.config.fabrics.contains(&offer.kind));
        match common {
            Some(offer) => {
                self.state = State::OpeningFabric;
                self.chosen = Some(offer.kind.clone());
                self.out.push_back(ServerOutput::OpenFabric { kind: offer.kind.clone(), peer: offer.address.clone() });
            }
            None => {
                let offered: Vec<_> = hello.fabrics.iter().map(|offer| offer.kind.as_str()).collect();
                let reason = match (self.config.fabrics.is_empty(), offered.is_empty()) {
                    (true, _) => self.config.no_fabric.clone(),
                    (false, true) => "the client offered no fabric".into(),
                    (false, false) => format!(
                        "no fabric in common: the client offered {}, the server has {:?}",
                        clip(offered.join(", ")),
                        self.config.fabrics
                    ),
                };
                self.welcome(now, Err(reason));
            }
        }
        Ok(())
    }

    fn welcome(&mut self, now: Timestamp, fabric: Result<FabricChoice, String>) {
        self.state = State::Open;
        self.link.established(now, &mut self.timers);
        if let Err(reason) = &fabric {
            self.out.push_back(ServerOutput::FabricDown { reason: reason.clone() });
        }
        let hello = ServerHello { name: self.config.name.clone(), fabric, limits: self.config.limits.clone() };
        self.transmit(&ToClient::Welcome(hello), Bytes::new());
        if self.draining {
            self.say_goodbye(CloseCode::ShuttingDown, "");
        }
    }

    fn execute(
        &mut self,
        now: Timestamp,
        stream: StreamId,
        sql: String,
        options: ExecuteOptions,
    ) -> Result<(), PeerMisbehaved> {
        if self.last_stream.is_some_and(|last| stream <= last) {
            return Err(PeerMisbehaved::StreamReused(stream));
        }
        self.last_stream = Some(stream);
        let most = batch_cost(self.config.limits.max_loan_bytes);
        if options.credit > most {
            return Err(PeerMisbehaved::Limit { what: "unspent credit", value: options.credit, limit: most });
        }
        let refusal = if self.draining {
            Some((StreamCode::ShuttingDown, String::new()))
        } else if self.streams.len() >= self.config.limits.max_streams as usize {
            Some((StreamCode::TooManyStreams, format!("the limit is {} a connection", self.config.limits.max_streams)))
        } else if sql.len() > self.config.limits.max_sql_bytes as usize {
            let limit = self.config.limits.max_sql_bytes;
            Some((StreamCode::SqlTooLong, format!("{} bytes, the limit is {limit}", sql.len())))
        } else {
            None
        };
        if let Some((code, message)) = refusal {
            self.transmit(&ToClient::Failed { stream, code, message }, Bytes::new());
            return Ok(());
        }
        let open = OutgoingStream::new(options.clone(), now);
        #[cfg(feature = "planted-bugs")]
        let open = open.without_deadline_if(is_planted(Bug::DeadlineForgotten));
        if let Some(deadline) = open.deadline() {
            self.timers.set(Timer::Stream(stream), now + deadline);
        }
        self.streams.insert(stream, open);
        self.out.push_back(ServerOutput::Execute { stream, sql, options });
        Ok(())
    }

    fn release(&mut self, leases: Vec<LeaseId>) -> Result<(), PeerMisbehaved> {
        for lease in leases {
            if let Some(ended) = self.leases.release(lease)? {
                self.timers.clear(Timer::Lease(lease));
                self.out.push_back(ServerOutput::EndLease { lease, slot: ended.slot, end: LeaseEnd::Released });
            }
        }
        Ok(())
    }

    fn is_ending(&self) -> bool {
        matches!(self.state, State::Closing | State::Closed)
    }

    fn unexpected(&self, got: &'static str) -> PeerMisbehaved {
        PeerMisbehaved::Unexpected { got, state: self.state.name() }
    }

    /// Messages for a stream that has ended are late, not wrong.
    fn must_have_been(&self, stream: StreamId) -> Result<(), PeerMisbehaved> {
        if self.last_stream.is_some_and(|last| stream <= last) {
            Ok(())
        } else {
            Err(PeerMisbehaved::UnknownStream(stream))
        }
    }
}

fn limit(what: &'static str, value: usize, limit: usize) -> Result<(), PeerMisbehaved> {
    if value <= limit { Ok(()) } else { Err(PeerMisbehaved::Limit { what, value: value as u64, limit: limit as u64 }) }
}

fn name_of(message: &ToServer) -> &'static str {
    match message {
        ToServer::Hello(_) => "hello",
        ToServer::FabricUp { .. } => "fabric-up",
        ToServer::FabricDown { .. } => "fabric-down",
        ToServer::Execute { .. } => "execute",
        ToServer::Credit { .. } => "credit",
        ToServer::Release { .. } => "release",
        ToServer::Cancel { .. } => "cancel",
        ToServer::Ping(_) => "ping",
        ToServer::Pong(_) => "pong",
        ToServer::Goodbye { .. } => "goodbye",
    }
}
