//! A connection's task: drives the protocol's machine over a control connection and a fabric endpoint.

mod asks;
mod handle;
mod maps;
mod offers;
mod reads;
mod threshold;

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use thallus_fabric::driver::{Clock, Control, ControlEvent, ControlIo};
use thallus_protocol::client::{
    ClientCommand, ClientConfig, ClientConnection, ClientEvent, ClientInput, ClientOutput, Payload, ReadProblem,
};
use thallus_protocol::message::{Delivery, FabricChoice};
use thallus_protocol::{ApiMisuse, ConnectionError, StreamError, StreamId, Timestamp};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, Sleep};
use tracing::{debug, error, info, trace, warn};

use asks::Asks;
pub(crate) use asks::Loan;
pub(crate) use handle::{Arrived, Command, Handle, Item};
pub(crate) use maps::MappedBatch;
use maps::Maps;
#[cfg(all(test, feature = "ucx"))]
pub(crate) use offers::Pools;
pub(crate) use offers::{Offer, Offers};
use reads::{Done, ReadSlab, Reads};
pub(crate) use threshold::MAX_THRESHOLD;
use threshold::Threshold;

use crate::error::ClientError;
use crate::report::{Carrier, ConnectionInfo};

/// How long an endpoint may take to close before it is given up.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(10);
/// So many bytes after another, readers get their turn; where connections are many, after each batch: what one has read and its reader
/// has not taken is memory that the others do not find warm.
const TURN: u64 = 2 << 20;
/// Memory of batches that are gone is kept for this long in case of more.
const IDLE_MEMORY: Duration = Duration::from_secs(30);

/// The probe is on its way.
struct Probing {
    choice: FabricChoice,
    started: Instant,
    timeout: Pin<Box<Sleep>>,
}

/// A result, as the driver sees it.
struct Running {
    items: mpsc::UnboundedSender<Item>,
    commands: mpsc::WeakUnboundedSender<Command>,
    /// Batches of it that are being read, since when, and how long before.
    reading: usize,
    since: Timestamp,
    read: Duration,
    /// The connection's, when the result began.
    registrations: u64,
}

pub(crate) struct Driver<S> {
    machine: ClientConnection,
    clock: Clock,
    control: Control<S>,
    /// `None` once every handle is gone.
    commands: Option<mpsc::UnboundedReceiver<Command>>,
    offers: Option<Offers>,
    reads: Option<Reads>,
    probing: Option<Probing>,
    closing: Option<Pin<Box<Sleep>>>,
    /// When memory is looked through for what has been idle.
    tidying: Option<Pin<Box<Sleep>>>,
    threshold: Threshold,
    /// The endpoint is closed: there is nothing to poll any more, only slabs to hand out.
    fabric_over: bool,
    results: BTreeMap<StreamId, Running>,
    asks: Asks,
    maps: Maps,
    pings: Vec<oneshot::Sender<()>>,
    info: Arc<Mutex<ConnectionInfo>>,
    ready: Option<oneshot::Sender<Result<(), ClientError>>>,
    /// Whether one-sided reads were asked for, so that their absence is a fallback.
    wants_fabric: bool,
    /// Why this end has no fabric to offer.
    missing: Option<String>,
    /// A transport no better than inline is used all the same.
    forced: bool,
    probe_timeout: Duration,
    ended: Option<ConnectionError>,
    /// Bytes that readers were given since they last had their turn.
    delivered: u64,
    /// The machine's, as it was traced last.
    state: [&'static str; 2],
}

/// Lets those run whom this task has woken. The runtime keeps the last of them for this thread, to run next, and nobody else can
/// take it over: as long as this task goes on, its reader does not begin, and then finds a whole window at once, gone cold, in as
/// much memory.
async fn make_way() {
    let mut made = false;
    std::future::poll_fn(|cx| {
        if std::mem::replace(&mut made, true) {
            return Poll::Ready(());
        }
        // Not `yield_now`, which puts this task where no other thread takes it over while the reader works.
        cx.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

/// What a driver is made of.
pub(crate) struct Parts<S> {
    pub(crate) io: S,
    pub(crate) config: ClientConfig,
    pub(crate) offers: Offers,
    pub(crate) commands: mpsc::UnboundedReceiver<Command>,
    pub(crate) info: Arc<Mutex<ConnectionInfo>>,
    pub(crate) ready: oneshot::Sender<Result<(), ClientError>>,
    pub(crate) wants_fabric: bool,
    pub(crate) missing: Option<String>,
    pub(crate) forced: bool,
    pub(crate) probe_timeout: Duration,
}

enum Event {
    Time,
    Control(ControlEvent),
    Command(Option<Command>),
    Read(Vec<Done>, Option<String>),
    ProbeTimeout,
    CloseTimeout,
    Tidy,
}

impl<S: ControlIo> Driver<S> {
    pub(crate) fn new(parts: Parts<S>) -> Result<Self, ApiMisuse> {
        let clock = Clock::new();
        let machine = ClientConnection::new(parts.config, clock.now())?;
        Ok(Driver {
            state: machine.state_names(),
            machine,
            clock,
            control: Control::new(parts.io),
            commands: Some(parts.commands),
            offers: Some(parts.offers),
            reads: None,
            probing: None,
            closing: None,
            tidying: None,
            threshold: Threshold::new(),
            fabric_over: false,
            results: BTreeMap::new(),
            asks: Asks::default(),
            maps: Maps::default(),
            pings: Vec::new(),
            info: parts.info,
            ready: Some(parts.ready),
            wants_fabric: parts.wants_fabric,
            missing: parts.missing,
            forced: parts.forced,
            probe_timeout: parts.probe_timeout,
            ended: None,
            delivered: 0,
        })
    }

    /// Runs until the connection has ended, because every handle was dropped or because something broke.
    pub(crate) async fn run(mut self) {
        let mut done = None;
        loop {
            self.carry_out();
            if let Some(error) = self.ended.take() {
                debug!(%error, "connection ended");
                if let Some(ready) = self.ready.take() {
                    let _gone = ready.send(Err(ClientError::from(&error)));
                }
                self.control.finish().await;
                drop(done);
                return;
            }
            if self.delivered >= self.turn() {
                self.delivered = 0;
                make_way().await;
            }
            let event = std::future::poll_fn(|cx| {
                let polled = self.poll(cx);
                if polled.is_pending() {
                    // It is others' turn anyway.
                    self.delivered = 0;
                }
                polled
            });
            match event.await {
                Event::Command(Some(Command::Close { done: closed })) => {
                    done = Some(closed);
                    self.command(ClientCommand::Close);
                }
                event => self.handle(event),
            }
        }
    }

    /// After how many delivered bytes readers get their turn.
    fn turn(&self) -> u64 {
        if self.reads.as_ref().is_some_and(Reads::is_crowded) { 1 } else { TURN }
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Event> {
        if let Poll::Ready(event) = self.control.poll(cx) {
            return Poll::Ready(Event::Control(event));
        }
        if let Some(commands) = &mut self.commands
            && let Poll::Ready(command) = commands.poll_recv(cx)
        {
            return Poll::Ready(Event::Command(command));
        }
        if let Some(probing) = &mut self.probing
            && probing.timeout.as_mut().poll(cx).is_ready()
        {
            return Poll::Ready(Event::ProbeTimeout);
        }
        if let Some(closing) = &mut self.closing
            && closing.as_mut().poll(cx).is_ready()
        {
            return Poll::Ready(Event::CloseTimeout);
        }
        if let Some(tidying) = &mut self.tidying
            && tidying.as_mut().poll(cx).is_ready()
        {
            return Poll::Ready(Event::Tidy);
        }
        if let Some(reads) = &mut self.reads
            && !self.fabric_over
        {
            let mut done = Vec::new();
            match reads.poll(cx, &mut done) {
                Poll::Ready(Ok(())) => return Poll::Ready(Event::Read(done, None)),
                Poll::Ready(Err(error)) if self.closing.is_none() => {
                    return Poll::Ready(Event::Read(done, Some(error.to_string())));
                }
                _ if !done.is_empty() => return Poll::Ready(Event::Read(done, None)),
                _ => {}
            }
            if self.closing.is_some() && reads.is_closed() {
                return Poll::Ready(Event::Read(done, None));
            }
        }
        self.clock.poll(cx).map(|()| Event::Time)
    }

    fn handle(&mut self, event: Event) {
        match event {
            Event::Time => self.input(ClientInput::Time),
            Event::Control(ControlEvent::Lost(reason)) => self.input(ClientInput::ControlLost(reason)),
            Event::Control(ControlEvent::Received(len)) => {
                let now = self.clock.now();
                let taken = self.machine.handle(now, ClientInput::Received(self.control.received(len)));
                self.check(taken);
            }
            Event::Command(Some(command)) => self.asked(command),
            // Every handle is gone: nobody wants anything any more.
            Event::Command(None) => {
                self.commands = None;
                self.command(ClientCommand::Close);
            }
            Event::Read(done, failed) => {
                for done in done {
                    self.read_done(done);
                }
                if let Some(reason) = failed {
                    self.fabric_failed(reason);
                }
                if self.closing.is_some() && self.reads.as_ref().is_none_or(Reads::is_closed) {
                    self.fabric_closed();
                }
            }
            Event::ProbeTimeout => {
                let reason = format!("the probe, a read of eight bytes, was not done within {:?}", self.probe_timeout);
                self.fabric_failed(reason);
            }
            Event::Tidy => {
                self.tidying = None;
                if self.reads.as_ref().is_some_and(|reads| reads.trim(IDLE_MEMORY)) {
                    self.tidy_later();
                }
            }
            Event::CloseTimeout => {
                error!("the fabric endpoint did not close within {CLOSE_TIMEOUT:?}");
                let stuck = self.reads.as_mut().map(Reads::give_up).unwrap_or_default();
                for done in stuck {
                    self.read_done(done);
                }
                self.fabric_closed();
            }
        }
    }

    fn asked(&mut self, command: Command) {
        match command {
            Command::Execute { stream, sql, mut options, items, commands } => {
                if matches!(options.delivery, Delivery::Auto | Delivery::Mapped(_)) {
                    options.inline_threshold.get_or_insert(self.threshold.get());
                }
                let registrations = self.registrations();
                let (since, read) = (Timestamp::ZERO, Duration::ZERO);
                let running = Running { items, commands, reading: 0, since, read, registrations };
                self.results.insert(stream, running);
                self.command(ClientCommand::Execute { stream, sql, options });
            }
            Command::Cancel { stream } => self.command(ClientCommand::Cancel { stream }),
            Command::Consumed { stream, cost } => self.command(ClientCommand::Consumed { stream, cost }),
            Command::Rejected { stream, seq, reason } => {
                self.command(ClientCommand::Rejected { stream, seq, reason });
            }
            Command::Ask { stream, seq, pieces, answer } => {
                let ask = self.asks.enter(answer);
                self.command(ClientCommand::Ask { stream, seq, ask, pieces });
            }
            Command::GiveUp { stream, seq } => self.command(ClientCommand::GiveUp { stream, seq }),
            Command::Ping { pong } => {
                self.pings.push(pong);
                self.command(ClientCommand::Ping);
            }
            Command::Close { .. } => self.command(ClientCommand::Close),
        }
    }

    fn input(&mut self, input: ClientInput<'_>) {
        let taken = self.machine.handle(self.clock.now(), input);
        self.check(taken);
    }

    fn command(&mut self, command: ClientCommand) {
        self.input(ClientInput::Command(command));
    }

    fn check(&mut self, taken: Result<(), ApiMisuse>) {
        let state = self.machine.state_names();
        if state != self.state {
            trace!(end = "client", from = ?self.state, to = ?state, "state");
            self.state = state;
        }
        if let Err(misuse) = taken {
            error!(%misuse, "the connection ends: the protocol's contract was broken");
        }
    }

    /// Does what the machine wants done, in order.
    fn carry_out(&mut self) {
        loop {
            match self.machine.poll_output() {
                ClientOutput::Wait(deadline) => {
                    self.clock.arm(deadline.map(|(at, _)| at));
                    return;
                }
                ClientOutput::Transmit(frame) => self.control.send(frame),
                ClientOutput::ConnectFabric(choice) => self.connect_fabric(choice),
                ClientOutput::ImportRegion(region) => {
                    if let Some(reads) = &mut self.reads {
                        reads.import(&region);
                    }
                }
                ClientOutput::ForgetRegion(region) => {
                    if let Some(reads) = &mut self.reads {
                        reads.forget(region);
                    }
                }
                ClientOutput::Read(batch) => {
                    self.reading(batch.stream, 1);
                    match &mut self.reads {
                        Some(reads) => reads.read_batch(batch),
                        None => {
                            let problem = ReadProblem::Failed("there is no data plane".into());
                            self.read_done(Done::Batch { read: batch.read, result: Err(problem) });
                        }
                    }
                }
                ClientOutput::Map(batch) => {
                    let endpoint = self.reads.as_mut().map(Reads::endpoint);
                    let (read, result) = (batch.read, self.maps.map(endpoint, batch));
                    self.command(ClientCommand::ReadDone { read, result });
                }
                ClientOutput::ReadWord { read, at } => {
                    if let Some(reads) = &mut self.reads {
                        reads.read_word(read, at);
                    }
                }
                ClientOutput::Discard { read } => {
                    self.maps.discard(read);
                    if let Some(reads) = &mut self.reads {
                        reads.take(read);
                    }
                }
                ClientOutput::Event(event) => self.event(event),
                ClientOutput::CloseFabric => self.close_fabric(),
                ClientOutput::Closed(error) => self.ended = Some(error),
            }
        }
    }

    fn connect_fabric(&mut self, choice: FabricChoice) {
        let chosen = self.offers.take().and_then(|offers| offers.choose(&choice.kind));
        let Some(Offer { mut endpoint, pools, capabilities, .. }) = chosen else {
            let reason = format!("fabric {} is not there any more", choice.kind);
            return self.command(ClientCommand::FabricUnavailable { reason });
        };
        let connected = endpoint.connect(&choice.address).map_err(|error| error.to_string());
        let inferior = endpoint.transport().and_then(|transport| transport.inferior).filter(|_| !self.forced);
        if let Some(reason) = connected.err().or(inferior) {
            self.reads = Some(Reads::new(endpoint, pools, 1, 1));
            return self.command(ClientCommand::FabricUnavailable { reason });
        }
        let mut reads = Reads::new(endpoint, pools, capabilities.max_read, capabilities.max_outstanding_reads);
        reads.import(&choice.words);
        reads.probe(choice.probe_at);
        self.reads = Some(reads);
        let timeout = Box::pin(tokio::time::sleep(self.probe_timeout));
        self.probing = Some(Probing { choice, started: Instant::now(), timeout });
    }

    fn probed(&mut self, word: Result<u64, ReadProblem>) {
        let Some(Probing { choice, started, .. }) = self.probing.take() else { return };
        let transport = self.reads.as_mut().and_then(|reads| reads.endpoint().transport());
        let reason = match word {
            Ok(word) if word == choice.probe_value => None,
            Ok(_) => Some("the probe read something else than the server wrote".into()),
            Err(ReadProblem::Failed(reason) | ReadProblem::NoMemory(reason)) => {
                Some(format!("the probe could not be read: {reason}"))
            }
        };
        if let Some(reason) = reason {
            return self.command(ClientCommand::FabricUnavailable { reason });
        }
        let transport = transport.map(|transport| transport.name).unwrap_or_default();
        {
            let mut info = self.info.lock().unwrap_or_else(PoisonError::into_inner);
            info.carrier = Carrier::OneSided { fabric: choice.kind.to_string(), transport: transport.clone() };
            info.probe = Some(started.elapsed());
        }
        self.command(ClientCommand::FabricUp { transport });
    }

    fn fabric_failed(&mut self, reason: String) {
        match self.probing.take() {
            Some(_) => self.command(ClientCommand::FabricUnavailable { reason }),
            None => self.command(ClientCommand::FabricFailed { reason }),
        }
    }

    fn close_fabric(&mut self) {
        self.offers = None;
        self.probing = None;
        match &mut self.reads {
            Some(reads) => {
                reads.close();
                self.closing = Some(Box::pin(tokio::time::sleep(CLOSE_TIMEOUT)));
            }
            None => self.command(ClientCommand::FabricClosed),
        }
    }

    fn fabric_closed(&mut self) {
        self.closing = None;
        self.fabric_over = true;
        self.command(ClientCommand::FabricClosed);
    }

    fn read_done(&mut self, done: Done) {
        match done {
            Done::Probe(word) => self.probed(word),
            Done::Word { read, result, took } => {
                if let (Ok(_), Some(took)) = (&result, took) {
                    self.threshold.observe(took);
                }
                self.command(ClientCommand::WordRead { read, result });
            }
            Done::Batch { read, result } => {
                if let Some(stream) = self.reads.as_ref().and_then(|reads| reads.stream_of(read)) {
                    self.reading(stream, -1);
                }
                self.command(ClientCommand::ReadDone { read, result });
            }
        }
    }

    /// Keeps account of the time in which a result had anything being read.
    fn reading(&mut self, stream: StreamId, change: isize) {
        let now = self.clock.now();
        let Some(running) = self.results.get_mut(&stream) else { return };
        if running.reading == 0 {
            running.since = now;
        }
        running.reading = running.reading.saturating_add_signed(change);
        if running.reading == 0 {
            running.read += now.since(running.since);
        }
    }

    fn event(&mut self, event: ClientEvent) {
        match event {
            ClientEvent::Welcome { server, version, .. } => {
                let mut info = self.info.lock().unwrap_or_else(PoisonError::into_inner);
                info.server = server;
                info.protocol = version;
            }
            ClientEvent::FabricUp { transport } => {
                debug!(%transport, "data plane is up");
                self.say_ready();
            }
            ClientEvent::FabricDown { reason } => {
                // The server only knows that nothing was offered.
                let reason = self.missing.take().unwrap_or(reason);
                let fallback = self.wants_fabric.then(|| reason.clone());
                if self.wants_fabric {
                    warn!(%reason, "no one-sided reads: results travel inline over TCP");
                }
                self.info.lock().unwrap_or_else(PoisonError::into_inner).carrier = Carrier::Inline { fallback };
                self.say_ready();
            }
            ClientEvent::Draining => info!("the server is shutting down, and takes no new queries"),
            ClientEvent::Pong => {
                for pong in self.pings.drain(..) {
                    let _gone = pong.send(());
                }
            }
            ClientEvent::Schema { stream, schema, ipc, order } => {
                self.item(stream, Item::Schema { schema, ipc, order });
            }
            ClientEvent::Batch { stream, seq, cost, payload } => self.deliver(stream, seq, cost, payload),
            ClientEvent::Found { seq, ask, read, .. } => {
                let read = self.reads.as_mut().and_then(|reads| reads.take(read));
                self.asks.answer(ask, asks::found(seq, read));
            }
            ClientEvent::AskFailed { ask, error, .. } => self.asks.answer(ask, Err(error)),
            ClientEvent::End { stream, stats } => {
                let running = self.results.get(&stream);
                let (read, before) = running.map(|running| (running.read, running.registrations)).unwrap_or_default();
                let registrations = self.registrations().saturating_sub(before);
                self.item(stream, Item::End { stats, read, registrations });
                self.result_over(stream);
            }
            ClientEvent::Failed { stream, error } => {
                self.item(stream, Item::Failed(error));
                self.result_over(stream);
            }
        }
    }

    /// Of memory for batches to be read into, so far.
    fn registrations(&self) -> u64 {
        self.reads.as_ref().map_or(0, Reads::registrations)
    }

    fn say_ready(&mut self) {
        if let Some(ready) = self.ready.take() {
            let _gone = ready.send(Ok(()));
        }
    }

    fn result_over(&mut self, stream: StreamId) {
        self.results.remove(&stream);
        if self.reads.is_some() && self.tidying.is_none() {
            self.tidy_later();
        }
    }

    /// One timer for all results of the time in which memory may be idle: a timer for each would cost more than it is worth.
    fn tidy_later(&mut self) {
        self.tidying = Some(Box::pin(tokio::time::sleep(IDLE_MEMORY)));
    }

    fn item(&mut self, stream: StreamId, item: Item) {
        if let Some(running) = self.results.get(&stream) {
            // A result that was dropped has told us so, or is about to.
            let _gone = running.items.send(item);
        }
    }

    fn deliver(&mut self, stream: StreamId, seq: u64, cost: u64, payload: Payload) {
        self.delivered += cost;
        let arrived = match payload {
            Payload::Inline(ipc) => Ok(Arrived::Inline(ipc)),
            Payload::Lazy { descriptor } => match self.results.get(&stream) {
                Some(running) => {
                    let loan = Loan::new(running.commands.clone(), stream, seq);
                    Ok(Arrived::Lazy { loan, descriptor })
                }
                None => return self.command(ClientCommand::GiveUp { stream, seq }),
            },
            Payload::Mapped { read, descriptor } => {
                let commands = self.results.get(&stream).and_then(|running| running.commands.upgrade());
                match commands.and_then(|commands| self.maps.take(read, stream, seq, descriptor, commands)) {
                    Some(batch) => Ok(Arrived::Mapped(batch)),
                    // Nobody is left who could want it.
                    None => {
                        self.maps.discard(read);
                        return self.command(ClientCommand::GiveUp { stream, seq });
                    }
                }
            }
            Payload::Lent { read, descriptor } => {
                let read = self.reads.as_mut().and_then(|reads| reads.take(read));
                let read = read.ok_or_else(|| "bug: a batch was delivered that had not been read".to_owned());
                read.map(|ReadSlab { slab, .. }| Arrived::Lent { slab, descriptor })
            }
        };
        match arrived {
            Ok(arrived) => self.item(stream, Item::Batch { seq, cost, arrived }),
            Err(reason) => {
                // The end of the stream may be queued already, and would pass for its good end: the result hears of it here.
                self.item(stream, Item::Failed(StreamError::InvalidBatch { seq, reason: reason.clone() }));
                self.command(ClientCommand::Rejected { stream, seq, reason });
            }
        }
    }
}
