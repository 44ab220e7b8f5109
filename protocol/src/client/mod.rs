//! The client's end of a connection: it borrows query results.

mod io;
mod lazy;
mod mapped;
mod receive;
mod releases;
mod stream;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use serde::Serialize;

pub use io::{ClientCommand, ClientEvent, ClientInput, ClientOutput, Payload, ReadBatch, ReadProblem};
use lazy::{BatchKey, LazyBatch};
use receive::{Read, ReadPhase};
use releases::Loans;
use stream::{IncomingStream, Taking};

use crate::codec::{Frame, FrameLimits};
use crate::codes::{CancelReason, CloseCode};
use crate::credit::batch_cost;
use crate::error::{ApiMisuse, ConnectionError, StreamError};
use crate::ids::{FabricKind, LeaseId, ReadId, RegionId, StreamId};
use crate::inline::InlineLimits;
use crate::layout::LayoutLimits;
use crate::link::{Link, LinkTimeouts, clip};
use crate::message::{ClientHello, ExecuteOptions, FabricOffer, Fencing, Region, ServerLimits, ToServer};
#[cfg(feature = "planted-bugs")]
use crate::planted::{Bug, is_planted};
use crate::time::Timestamp;
use crate::timers::{Timer, Timers};

/// What a client's connection is told at its start.
#[derive(Clone, Debug)]
pub struct ClientConfig {
    /// What the client calls itself.
    pub name: String,
    /// Fabrics whose endpoints the driver has open, in order of preference.
    pub fabrics: Vec<FabricOffer>,
    /// Limits of frames, both ways.
    pub frame: FrameLimits,
    /// Bytes that a stream may have in flight at first. From there its window grows to the one that was asked for, as long as
    /// the lender is out of credit while the borrower is out of work.
    pub first_window: u64,
    /// Largest batch, in bytes, for which a stream's window is widened.
    pub max_batch_bytes: u64,
    /// Regions that the server may have announced at once.
    pub max_regions: usize,
    /// Limits of what a descriptor may say.
    pub layout: LayoutLimits,
    /// Limits of what a schema and an inline batch may say.
    pub inline: InlineLimits,
    /// Times of the control connection.
    pub timeouts: LinkTimeouts,
    /// How long a batch's reads may take before the data plane is taken for dead.
    pub read_timeout: Duration,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    AwaitingWelcome,
    /// The welcome came with a fabric, which the driver connects.
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

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum DataPlane {
    None,
    Up,
    /// Failed; the endpoint is being closed or has been.
    Down,
}

/// The state machine of a client's connection. See the crate's documentation for how to drive it.
#[derive(Debug)]
pub struct ClientConnection {
    config: ClientConfig,
    state: State,
    link: Link,
    timers: Timers,
    data: DataPlane,
    fencing: Option<Fencing>,
    words: Option<RegionId>,
    limits: Option<ServerLimits>,
    /// Whether the endpoints that were offered still have to be closed.
    endpoint_open: bool,
    fabric_closing: bool,
    regions: BTreeMap<RegionId, Region>,
    streams: BTreeMap<StreamId, IncomingStream>,
    last_stream: Option<StreamId>,
    reads: BTreeMap<ReadId, Read>,
    last_read: u64,
    /// Lent and read only as far as the application asks, until it has given them up.
    lazy: BTreeMap<BatchKey, LazyBatch>,
    /// Mapped and delivered, or about to be, until the application has given them up.
    mapped: BTreeMap<BatchKey, LeaseId>,
    loans: Loans,
    deadlines: BTreeMap<StreamId, Duration>,
    pings_asked: BTreeSet<u64>,
    draining_said: bool,
    ended_by: Option<Arc<ConnectionError>>,
    out: VecDeque<ClientOutput>,
}

impl ClientConnection {
    /// A connection that was just made.
    ///
    /// # Errors
    /// [`ApiMisuse::Encode`] if the hello is too long.
    pub fn new(config: ClientConfig, now: Timestamp) -> Result<Self, ApiMisuse> {
        let mut timers = Timers::default();
        let (link, preface) = Link::new(config.frame, config.timeouts, now, &mut timers);
        let hello = ClientHello { name: config.name.clone(), fabrics: config.fabrics.clone() };
        let hello = link.encode(&ToServer::Hello(hello), Bytes::new())?;
        Ok(ClientConnection {
            state: State::AwaitingWelcome,
            link,
            timers,
            data: DataPlane::None,
            fencing: None,
            words: None,
            limits: None,
            endpoint_open: !config.fabrics.is_empty(),
            config,
            fabric_closing: false,
            regions: BTreeMap::new(),
            streams: BTreeMap::new(),
            last_stream: None,
            reads: BTreeMap::new(),
            last_read: 0,
            lazy: BTreeMap::new(),
            mapped: BTreeMap::new(),
            loans: Loans::default(),
            deadlines: BTreeMap::new(),
            pings_asked: BTreeSet::new(),
            draining_said: false,
            ended_by: None,
            out: VecDeque::from([ClientOutput::Transmit(preface), ClientOutput::Transmit(hello)]),
        })
    }

    /// The state of the connection and of its data plane, in words for traces.
    #[must_use]
    pub fn state_names(&self) -> [&'static str; 2] {
        let data = match self.data {
            DataPlane::None => "none",
            DataPlane::Up => "up",
            DataPlane::Down => "down",
        };
        [self.state.name(), data]
    }

    /// Batches that are being read.
    #[must_use]
    pub fn outstanding_reads(&self) -> usize {
        self.reads.len()
    }

    /// Streams that have not ended on both sides.
    #[must_use]
    pub fn open_streams(&self) -> usize {
        self.streams.len()
    }

    /// Takes in one thing that happened. What follows from it is to be had from [`Self::poll_output`].
    ///
    /// # Errors
    /// [`ApiMisuse`] if the driver broke the contract; the connection then tears itself down.
    pub fn handle(&mut self, now: Timestamp, input: ClientInput<'_>) -> Result<(), ApiMisuse> {
        if self.state == State::Closed {
            // Whoever asks a connection that is gone hears so, whenever it asks.
            return match input {
                ClientInput::Command(
                    command
                    @ (ClientCommand::Execute { .. } | ClientCommand::Ask { .. } | ClientCommand::GiveUp { .. }),
                ) => self.command(now, command),
                _ => Ok(()),
            };
        }
        // What happened comes before what was due: after a stall of this host the peer is not taken for silent while its
        // bytes lie here unread, nor a read for late that has completed.
        match input {
            ClientInput::Time => {}
            ClientInput::ControlLost(reason) => self.end(ConnectionError::ControlLost(reason)),
            ClientInput::Received(bytes) => {
                if !self.state.is_ending()
                    && let Err(error) = self.received(now, bytes)
                {
                    self.end(error);
                }
            }
            ClientInput::Command(command) => {
                if let Err(misuse) = self.command(now, command) {
                    self.end(misuse.clone().into());
                    return Err(misuse);
                }
            }
        }
        self.fire_timers(now);
        self.time_releases(now);
        Ok(())
    }

    /// The next thing to do. To be called until it says [`ClientOutput::Wait`].
    #[must_use]
    pub fn poll_output(&mut self) -> ClientOutput {
        if self.out.is_empty() {
            self.say_releases();
        }
        self.out.pop_front().unwrap_or_else(|| ClientOutput::Wait(self.timers.next()))
    }

    fn transmit<M: Serialize>(&mut self, message: &M) {
        if self.state == State::Closed || self.ended_by.is_some() {
            return;
        }
        match self.link.encode(message, Bytes::new()) {
            Ok(frame) => self.transmit_frame(frame),
            // Everything of variable size is checked before it comes here.
            Err(misuse) => debug_assert!(false, "{misuse}"),
        }
    }

    fn transmit_frame(&mut self, frame: Frame) {
        self.out.push_back(ClientOutput::Transmit(frame));
        // Those that are held back go in the same write.
        self.loans.hurry();
    }

    fn event(&mut self, event: ClientEvent) {
        self.out.push_back(ClientOutput::Event(event));
    }

    fn command(&mut self, now: Timestamp, command: ClientCommand) -> Result<(), ApiMisuse> {
        match command {
            ClientCommand::FabricUp { transport } => {
                if self.state == State::Connecting {
                    self.fabric_up(clip(transport));
                }
            }
            ClientCommand::FabricUnavailable { reason } | ClientCommand::FabricFailed { reason } => {
                self.fabric_down(reason);
            }
            ClientCommand::FabricClosed => self.fabric_closed()?,
            ClientCommand::Execute { stream, sql, options } => self.execute(now, stream, sql, options)?,
            ClientCommand::Cancel { stream } => {
                if self.last_stream.is_none_or(|last| stream > last) {
                    return Err(ApiMisuse::UnknownStream(stream));
                }
                self.fail(stream, StreamError::Cancelled, CancelReason::Dropped);
            }
            ClientCommand::Consumed { stream, cost } => self.consumed(stream, cost)?,
            ClientCommand::Ask { stream, seq, ask, pieces } => self.ask(now, (stream, seq), ask, &pieces)?,
            ClientCommand::GiveUp { stream, seq } => self.give_up((stream, seq))?,
            ClientCommand::ReadDone { read, result } => self.read_done(read, result)?,
            ClientCommand::WordRead { read, result } => self.word_read(read, result)?,
            ClientCommand::Rejected { stream, seq, reason } => {
                self.lose((stream, seq), StreamError::InvalidBatch { seq, reason }, CancelReason::InvalidBatch);
            }
            ClientCommand::Ping => {
                if self.state == State::Open {
                    let nonce = self.link.ping(now, &mut self.timers);
                    self.pings_asked.insert(nonce);
                    self.transmit(&ToServer::Ping(nonce));
                }
            }
            ClientCommand::Close => {
                self.end(ConnectionError::Closed);
            }
        }
        Ok(())
    }

    fn execute(
        &mut self,
        now: Timestamp,
        stream: StreamId,
        sql: String,
        mut options: ExecuteOptions,
    ) -> Result<(), ApiMisuse> {
        if self.last_stream.is_some_and(|last| stream <= last) {
            return Err(ApiMisuse::StreamReused(stream));
        }
        if self.state != State::Open {
            if let (true, Some(error)) = (self.state.is_ending(), self.ended_by.clone()) {
                self.last_stream = Some(stream);
                self.event(ClientEvent::Failed { stream, error: StreamError::Connection(error) });
                return Ok(());
            }
            return Err(ApiMisuse::State { command: "execute", state: self.state.name() });
        }
        self.last_stream = Some(stream);
        let (most_sql, most_credit) = self
            .limits
            .as_ref()
            .map_or((u32::MAX, u64::MAX), |limits| (limits.max_sql_bytes, batch_cost(limits.max_loan_bytes)));
        // What stands beside the text in its message is much less than this.
        let limit = u64::from(most_sql.min(self.link.limits().message - 1024));
        let bytes = sql.len() as u64;
        if bytes > limit {
            self.event(ClientEvent::Failed { stream, error: StreamError::SqlTooLong { bytes, limit } });
            return Ok(());
        }
        let most = options.credit.min(most_credit);
        let taking = Taking::of(&options);
        // A window begins small for the sake of the memory that batches are read into. These are not read, or not before the reader
        // says so, and that they are held is no sign that it is slow.
        let held = matches!(taking, Taking::Lazy | Taking::Map);
        // Of parts that are merged, most wait for one.
        let shares = options.part.map_or(1, |part| u64::from(part.count).clamp(1, 4));
        options.credit = if held { most } else { most.min((self.config.first_window / shares).max(1)) };
        let (window, deadline_ms) = (options.credit, options.deadline_ms);
        let frame = self.link.encode(&ToServer::Execute { stream, sql, options }, Bytes::new())?;
        #[cfg(feature = "planted-bugs")]
        let deadline_ms = deadline_ms.filter(|_| !is_planted(Bug::DeadlineForgotten));
        if let Some(deadline) = deadline_ms.map(Duration::from_millis) {
            self.timers.set(Timer::Stream(stream), now + deadline);
            self.deadlines.insert(stream, deadline);
        }
        self.streams.insert(stream, IncomingStream::new(stream, window, most, taking));
        self.transmit_frame(frame);
        Ok(())
    }

    /// Ends a stream for the application, and tells the lender if it does not know.
    fn fail(&mut self, stream: StreamId, error: StreamError, reason: CancelReason) {
        let Some(open) = self.streams.get_mut(&stream) else { return };
        if std::mem::replace(&mut open.over, true) {
            return;
        }
        let done = open.remote_done;
        let abandoned = open.abandon();
        // Nobody wants what it has on loan, and others may wait for the room.
        self.loans.hurry();
        for payload in abandoned {
            self.abandon(stream, payload);
        }
        self.clear_deadline(stream);
        self.lose_batches(stream, &error);
        self.event(ClientEvent::Failed { stream, error });
        #[cfg(feature = "planted-bugs")]
        if is_planted(Bug::CancelLost) && reason == CancelReason::Dropped {
            return;
        }
        if done {
            self.streams.remove(&stream);
        } else {
            self.transmit(&ToServer::Cancel { stream, reason });
        }
    }

    fn clear_deadline(&mut self, stream: StreamId) {
        self.timers.clear(Timer::Stream(stream));
        self.deadlines.remove(&stream);
    }

    fn fire_timers(&mut self, now: Timestamp) {
        while let Some(timer) = self.timers.expired(now) {
            match timer {
                Timer::Handshake if self.state == State::Connecting => {
                    self.fabric_down(format!("it was not connected within {:?}", self.config.timeouts.handshake));
                }
                Timer::Handshake => self.end(ConnectionError::HandshakeTimeout(self.config.timeouts.handshake)),
                Timer::KeepAlive => {
                    let nonce = self.link.ping(now, &mut self.timers);
                    self.transmit(&ToServer::Ping(nonce));
                }
                Timer::Idle => self.end(ConnectionError::IdleTimeout(self.link.timeouts().idle)),
                Timer::Stream(stream) => {
                    let deadline = self.deadlines.remove(&stream).unwrap_or_default();
                    let error = StreamError::DeadlineExceeded(deadline);
                    // Also of a stream that is whole, while some of it is held.
                    self.lose_batches(stream, &error);
                    self.fail(stream, error, CancelReason::DeadlineExceeded);
                }
                Timer::Read(read) => {
                    let after = self.config.read_timeout;
                    if let Some((stream, seq)) = self.reads.get(&read).map(|read| (read.stream, read.seq)) {
                        self.lose((stream, seq), StreamError::ReadTimeout { seq, after }, CancelReason::ReadFailed);
                    }
                    self.fabric_down(format!("a one-sided read was not done within {after:?}"));
                }
                Timer::Releases => self.loans.hurry(),
                Timer::Drain | Timer::Lease(_) | Timer::Room(_) => {}
            }
        }
    }

    fn fabric_up(&mut self, transport: String) {
        self.timers.clear(Timer::Handshake);
        self.state = State::Open;
        self.data = DataPlane::Up;
        // Announced while the endpoint was being connected.
        for region in self.regions.values().filter(|region| Some(region.id) != self.words) {
            self.out.push_back(ClientOutput::ImportRegion(region.clone()));
        }
        self.transmit(&ToServer::FabricUp { transport: transport.clone() });
        self.event(ClientEvent::FabricUp { transport });
    }

    fn fabric_closed(&mut self) -> Result<(), ApiMisuse> {
        if !std::mem::take(&mut self.fabric_closing) {
            return Err(ApiMisuse::State { command: "fabric-closed", state: "nobody asked for it" });
        }
        self.endpoint_open = false;
        let unreported: Vec<_> = self.reads.keys().copied().collect();
        for read in &unreported {
            self.lost(*read, "the data plane was closed".into());
        }
        if self.state == State::Closing {
            self.closed();
        }
        if unreported.is_empty() {
            Ok(())
        } else {
            Err(ApiMisuse::State { command: "fabric-closed", state: "reads are outstanding" })
        }
    }

    /// The data plane is gone, or never came up. What is being read completes in failure when the endpoint closes.
    fn fabric_down(&mut self, reason: String) {
        let was_connecting = self.state == State::Connecting;
        let reason = clip(reason);
        if was_connecting {
            self.timers.clear(Timer::Handshake);
            self.state = State::Open;
        } else if self.data != DataPlane::Up {
            return;
        }
        self.data = DataPlane::Down;
        self.transmit(&ToServer::FabricDown { reason: reason.clone() });
        self.lose_all(&reason);
        self.event(ClientEvent::FabricDown { reason });
        self.close_fabric();
    }

    fn close_fabric(&mut self) {
        if self.endpoint_open && !std::mem::replace(&mut self.fabric_closing, true) {
            self.out.push_back(ClientOutput::CloseFabric);
        }
    }

    /// Begins the end of the connection: streams end, the data plane is shut, its reads complete, then it is closed.
    fn end(&mut self, error: ConnectionError) {
        if self.state.is_ending() {
            return;
        }
        let error = Arc::new(error);
        let holding: BTreeSet<_> = self.lazy.keys().map(|(stream, _)| *stream).collect();
        for stream in holding {
            self.lose_batches(stream, &StreamError::Connection(Arc::clone(&error)));
        }
        for (stream, mut open) in std::mem::take(&mut self.streams) {
            for payload in open.abandon() {
                self.abandon(stream, payload);
            }
            if !open.over {
                self.event(ClientEvent::Failed { stream, error: StreamError::Connection(Arc::clone(&error)) });
            }
        }
        let goodbye = match &*error {
            ConnectionError::ControlLost(_) | ConnectionError::Goodbye { .. } => None,
            ConnectionError::Closed => Some((CloseCode::Normal, String::new())),
            _ if self.state == State::AwaitingWelcome => None,
            // An error's words may hold the peer's: a field name of megabytes.
            _ => Some((error.close_code(), clip(error.to_string()))),
        };
        if let Some((code, message)) = goodbye {
            self.say_all_releases();
            self.transmit(&ToServer::Goodbye { code, message });
        }
        self.ended_by = Some(Arc::clone(&error));
        self.timers.clear_all();
        self.loans.forget_releases();
        self.deadlines.clear();
        self.state = State::Closing;
        if self.endpoint_open {
            self.close_fabric();
        } else {
            self.closed();
        }
    }

    fn closed(&mut self) {
        self.state = State::Closed;
        let error = self.ended_by.as_deref().cloned().unwrap_or(ConnectionError::Closed);
        self.out.push_back(ClientOutput::Closed(error));
    }
}

/// Whether this end offered the fabric.
fn offered(config: &ClientConfig, kind: &FabricKind) -> bool {
    config.fabrics.iter().any(|offer| offer.kind == *kind)
}

impl Read {
    fn is_waiting_for(&self, phase: ReadPhase) -> bool {
        self.phase == phase
    }
}
