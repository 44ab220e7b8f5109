//! A client connection's task: drives the protocol's machine over a control connection and a fabric endpoint.

mod handle;
mod messages;
mod offers;
mod parts;

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use thallus_driver::{
    Arrived, Clock, Connection, ConnectionInput, ControlIo, EndTask, LendingParameters, PeerBudget, Plane,
    PreparedBatch, Proof,
};
use thallus_protocol::borrower::{BorrowerCommand, BorrowerEvent, Payload};
use thallus_protocol::client::{ClientCommand, ClientConfig, ClientConnection, ClientEvent, LeaseWordRegion};
use thallus_protocol::lender::{LenderCommand, LenderTask};
use thallus_protocol::message::{FabricChoice, LendFrom};
use thallus_protocol::{ApiMisuse, ConnectionError, StreamError, StreamId};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, Sleep};
use tracing::{debug, info, warn};

pub(crate) use handle::Handle;
pub(crate) use messages::{Command, Delivered, Feed, Item, LoanGuard, MappedBatch};
pub(crate) use offers::{Offer, Offers};
use parts::PartialReads;

use crate::error::ClientError;
use crate::report::{Carrier, ConnectionInfo};

/// Yields to readers after this many delivered bytes. With many connections, yields after every batch: an undelivered
/// batch occupies cache that other connections could reuse.
const YIELD_BYTES: u64 = 2 << 20;
/// Time for which memory without a batch is kept for reuse.
const IDLE_MEMORY: Duration = Duration::from_secs(30);
/// Most leases of uploads at a time on one connection: one page of lease words.
pub(crate) const MAX_LEASES: u32 = 511;

/// A probe in progress.
struct Probing {
    choice: FabricChoice,
    started: Instant,
    timeout: Pin<Box<Sleep>>,
}

/// A running result.
struct Running {
    items: mpsc::UnboundedSender<Item>,
    commands: mpsc::WeakUnboundedSender<Command>,
    /// Registrations of the connection when the result began.
    registrations: u64,
}

/// A running upload.
struct Uploading {
    /// `None` once its source has stopped.
    pulls: Option<mpsc::UnboundedSender<Option<u64>>>,
    answer: oneshot::Sender<Result<u64, StreamError>>,
}

pub(crate) struct Driver<S> {
    connection: Connection<ClientConnection, S>,
    /// `None` once every handle is dropped.
    commands: Option<mpsc::UnboundedReceiver<Command>>,
    offers: Option<Offers>,
    probing: Option<Probing>,
    /// Time of the next search for idle memory.
    tidying: Option<Pin<Box<Sleep>>>,
    results: BTreeMap<StreamId, Running>,
    uploads: BTreeMap<StreamId, Uploading>,
    parts: PartialReads,
    pings: Vec<oneshot::Sender<()>>,
    info: Arc<Mutex<ConnectionInfo>>,
    ready: Option<oneshot::Sender<Result<(), ClientError>>>,
    /// Whether one-sided reads were requested, so that their absence is a fallback.
    wants_fabric: bool,
    /// The reason why this client has no fabric to offer.
    missing: Option<String>,
    /// Whether to use a transport that is no better than inline.
    forced: bool,
    probe_timeout: Duration,
    measure: bool,
    ended: Option<ConnectionError>,
    /// Bytes delivered since the last yield to readers.
    delivered: u64,
}

/// Yields once. `yield_now` would put this task where no other thread can take it over.
///
/// tokio puts the task that was woken last into this worker's LIFO slot, which other workers cannot steal. So the
/// reader would not start until this loop parks, and would find a full window that has left the cache.
async fn yield_to_reader() {
    let mut yielded = false;
    std::future::poll_fn(|cx| {
        if std::mem::replace(&mut yielded, true) {
            return Poll::Ready(());
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

/// The parts of a new driver.
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
    /// The connection measures the rate of the path after the probe.
    pub(crate) measure: bool,
}

#[expect(clippy::large_enum_variant, reason = "an event is moved once, and a box would cost more")]
enum Event {
    Connection(ConnectionInput),
    Command(Option<Command>),
    ProbeTimeout,
    Tidy,
}

impl<S: ControlIo> Driver<S> {
    pub(crate) fn new(parts: Parts<S>) -> Result<Self, ApiMisuse> {
        let mut clock = Clock::new();
        let machine = ClientConnection::new(parts.config, clock.now())?;
        Ok(Driver {
            connection: Connection::new("client", machine, clock, parts.io, PeerBudget::CLIENT),
            commands: Some(parts.commands),
            offers: Some(parts.offers),
            probing: None,
            tidying: None,
            results: BTreeMap::new(),
            uploads: BTreeMap::new(),
            parts: PartialReads::default(),
            pings: Vec::new(),
            info: parts.info,
            ready: Some(parts.ready),
            wants_fabric: parts.wants_fabric,
            missing: parts.missing,
            forced: parts.forced,
            probe_timeout: parts.probe_timeout,
            measure: parts.measure,
            ended: None,
            delivered: 0,
        })
    }

    /// Runs until the connection has ended, because every handle was dropped or because of an error.
    pub(crate) async fn run(mut self) {
        let mut done = None;
        loop {
            self.carry_out();
            if let Some(error) = self.ended.take() {
                debug!(%error, "connection ended");
                if let Some(ready) = self.ready.take() {
                    let _gone = ready.send(Err(ClientError::from(&error)));
                }
                self.connection.finish().await;
                drop(done);
                return;
            }
            if self.delivered >= self.yield_after() {
                self.delivered = 0;
                yield_to_reader().await;
            }
            let event = std::future::poll_fn(|cx| {
                let polled = self.poll(cx);
                if polled.is_pending() {
                    // Other tasks run now in any case.
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

    /// Delivered bytes after which the driver yields to readers.
    fn yield_after(&self) -> u64 {
        if self.connection.plane.as_ref().is_some_and(Plane::is_at_read_limit) { 1 } else { YIELD_BYTES }
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Event> {
        if let Poll::Ready(happened) = self.connection.poll_control(cx) {
            return Poll::Ready(Event::Connection(happened));
        }
        if let Some(commands) = &mut self.commands
            && let Poll::Ready(command) = commands.poll_recv(cx)
        {
            return Poll::Ready(Event::Command(command));
        }
        if let Poll::Ready(happened) = self.connection.poll_plane(cx) {
            return Poll::Ready(Event::Connection(happened));
        }
        // After the plane: a probe that has completed is not late.
        if let Some(probing) = &mut self.probing
            && probing.timeout.as_mut().poll(cx).is_ready()
        {
            return Poll::Ready(Event::ProbeTimeout);
        }
        if let Some(tidying) = &mut self.tidying
            && tidying.as_mut().poll(cx).is_ready()
        {
            return Poll::Ready(Event::Tidy);
        }
        Poll::Pending
    }

    fn handle(&mut self, event: Event) {
        match event {
            Event::Connection(happened) => {
                if let Some(proven) = self.connection.handle(happened) {
                    self.proven(proven);
                }
            }
            Event::Command(Some(command)) => self.command_from_handle(command),
            // Every handle is dropped: the application needs no further result.
            Event::Command(None) => {
                self.commands = None;
                self.command(ClientCommand::Close);
            }
            Event::ProbeTimeout => {
                self.probing = None;
                let reason = format!("the probe, a read of eight bytes, took longer than {:?}", self.probe_timeout);
                self.command(ClientCommand::FabricUnavailable { reason });
            }
            Event::Tidy => {
                self.tidying = None;
                if self.connection.plane.as_ref().is_some_and(|plane| plane.trim(IDLE_MEMORY)) {
                    self.tidy_later();
                }
                self.connection.let_go();
            }
        }
    }

    fn command_from_handle(&mut self, command: Command) {
        match command {
            Command::Machine(command) => self.command(command),
            Command::Open { stream, request, mut options, items, commands } => {
                if options.lend_from == LendFrom::Auto {
                    let plane = self.connection.plane.as_ref();
                    options.measured =
                        Some(plane.map_or_else(|| thallus_driver::Threshold::new().get(), Plane::thresholds));
                }
                let running = Running { items, commands, registrations: self.registrations() };
                self.results.insert(stream, running);
                self.command(ClientCommand::Open { stream, request, options });
            }
            Command::Upload { stream, table, mut options, feed } => {
                let plane = self.connection.plane.as_ref();
                options.measured = plane.map(Plane::thresholds);
                // A dropped source has withdrawn its upload, or will do so next.
                let _gone = feed.begun.send(plane.map(|plane| Arc::clone(plane.loan_pool())));
                self.uploads.insert(stream, Uploading { pulls: Some(feed.pulls), answer: feed.answer });
                self.command(ClientCommand::Upload { stream, table, options });
            }
            Command::Packed { stream, packed } => self.packed(stream, packed),
            Command::ReadPart { stream, seq, pieces, answer } => {
                let part = self.parts.enter(answer);
                self.connection.borrower(BorrowerCommand::ReadPart { stream, seq, part, pieces });
            }
            Command::Ping { pong } => {
                self.pings.push(pong);
                self.command(ClientCommand::Ping);
            }
            Command::Close { .. } => self.command(ClientCommand::Close),
        }
    }

    /// Sends a batch of an upload.
    fn packed(&mut self, stream: StreamId, packed: PreparedBatch) {
        if !self.connection.machine().is_open(stream) {
            return;
        }
        match (packed, &mut self.connection.plane) {
            (PreparedBatch::Inline { ipc, rows }, _) => {
                self.connection.lender(LenderCommand::Inline { stream, ipc, rows });
            }
            (PreparedBatch::Lent { loan, cost, rows }, Some(plane)) => {
                let loan = plane.lend(loan, cost, None);
                self.connection.lender(LenderCommand::Lend { stream, loan, rows });
            }
            // Without a plane there is no pool, so no batch is lent.
            (PreparedBatch::Lent { .. }, None) => {}
        }
    }

    fn command(&mut self, command: ClientCommand) {
        self.connection.command(command);
    }

    /// Performs the machine's tasks, in order.
    fn carry_out(&mut self) {
        while let Some(task) = self.connection.next_task() {
            match task {
                EndTask::Lender(LenderTask::Pull { stream, lend_from, .. }) => {
                    if let Some(pulls) = self.uploads.get(&stream).and_then(|upload| upload.pulls.as_ref()) {
                        // A dropped source has withdrawn its upload, or will do so next.
                        let _gone = pulls.send(lend_from);
                    }
                }
                EndTask::Lender(LenderTask::Stop { stream, .. }) => {
                    if let Some(upload) = self.uploads.get_mut(&stream) {
                        upload.pulls = None;
                    }
                }
                EndTask::Lender(_) => {}
                EndTask::Stream(event) => self.stream_event(event),
                EndTask::Event(event) => self.event(event),
                EndTask::Closed(error) => self.ended = Some(error),
            }
        }
    }

    fn connect_fabric(&mut self, choice: FabricChoice) {
        let chosen = self.offers.take().and_then(|offers| offers.choose(&choice.kind));
        let Some(Offer { mut endpoint, pools, loans, capabilities, .. }) = chosen else {
            let reason = format!("fabric {} is no longer available", choice.kind);
            return self.command(ClientCommand::FabricUnavailable { reason });
        };
        let connected = endpoint.connect(&choice.address).map_err(|error| error.to_string());
        let inferior = endpoint.transport().and_then(|transport| transport.inferior).filter(|_| !self.forced);
        let separate = endpoint.lends_from().map(|separate| Arc::new(loans.over(separate)));
        let mut plane = Plane::new(endpoint, pools, &capabilities, separate.unwrap_or(loans));
        let refused = connected.err().or(inferior);
        if refused.is_none() {
            plane.prove(&choice.lending, true, self.measure);
            let timeout = Box::pin(tokio::time::sleep(self.probe_timeout));
            self.probing = Some(Probing { choice, started: Instant::now(), timeout });
        }
        self.connection.plane = Some(plane);
        if let Some(reason) = refused {
            self.command(ClientCommand::FabricUnavailable { reason });
        }
    }

    fn proven(&mut self, result: Result<Proof, String>) {
        let Some(Probing { choice, started, .. }) = self.probing.take() else { return };
        let Proof { transport, rate } = match result {
            Ok(proof) => proof,
            Err(reason) => return self.command(ClientCommand::FabricUnavailable { reason }),
        };
        {
            let mut info = self.info.lock().unwrap_or_else(PoisonError::into_inner);
            info.carrier = Carrier::OneSided { fabric: choice.kind.to_string(), transport: transport.clone() };
            info.probe = Some(started.elapsed());
            info.rate = rate;
        }
        let opened = self.connection.plane.as_mut().map(|plane| plane.open_words(MAX_LEASES));
        let lending = match opened {
            Some(Ok(LendingParameters { fencing, words, probe_value })) => {
                Some(LeaseWordRegion { fencing, words, probe_value })
            }
            Some(Err(error)) => {
                warn!(%error, "this client cannot lend: uploads travel inline");
                None
            }
            None => None,
        };
        self.command(ClientCommand::FabricUp { transport, lending });
    }

    fn event(&mut self, event: ClientEvent) {
        match event {
            ClientEvent::Welcome { server, version, vendor, .. } => {
                let mut info = self.info.lock().unwrap_or_else(PoisonError::into_inner);
                info.server = server;
                info.protocol = version;
                info.vendor = vendor;
            }
            ClientEvent::ConnectFabric(choice) => self.connect_fabric(choice),
            ClientEvent::FabricUp { transport } => {
                debug!(%transport, "data plane is up");
                self.report_ready();
            }
            ClientEvent::FabricDown { reason } => {
                self.offers = None;
                self.probing = None;
                // The server has received no offer, and does not have the reason.
                let reason = self.missing.take().unwrap_or(reason);
                let fallback = self.wants_fabric.then(|| reason.clone());
                if self.wants_fabric {
                    warn!(%reason, "one-sided reads are not available: results travel inline over TCP");
                }
                self.info.lock().unwrap_or_else(PoisonError::into_inner).carrier = Carrier::Inline { fallback };
                self.report_ready();
            }
            ClientEvent::ReversePathUp { transport } => debug!(%transport, "the server reads uploads one-sidedly"),
            ClientEvent::ReversePathDown { reason } => debug!(%reason, "uploads travel inline"),
            ClientEvent::Uploaded { stream, rows } => self.uploaded(stream, Ok(rows)),
            ClientEvent::UploadFailed { stream, error } => self.uploaded(stream, Err(error)),
            ClientEvent::Draining => info!("the server is shutting down and accepts no new requests"),
            ClientEvent::Pong => {
                for pong in self.pings.drain(..) {
                    let _gone = pong.send(());
                }
            }
        }
    }

    fn uploaded(&mut self, stream: StreamId, result: Result<u64, StreamError>) {
        if let Some(upload) = self.uploads.remove(&stream) {
            let _gone = upload.answer.send(result);
        }
    }

    fn stream_event(&mut self, event: BorrowerEvent) {
        match event {
            BorrowerEvent::Schema { stream, plan, order } => {
                self.item(stream, Item::Schema { plan, order });
            }
            BorrowerEvent::Batch { stream, seq, cost, payload } => self.deliver(stream, seq, cost, payload),
            BorrowerEvent::PartRead { seq, part, read, .. } => {
                let read = self.connection.plane.as_mut().and_then(|plane| plane.take(read));
                self.parts.answer(part, parts::part(seq, read));
            }
            BorrowerEvent::PartFailed { part, error, .. } => self.parts.answer(part, Err(error)),
            BorrowerEvent::End { stream, stats } => {
                let before = self.results.get(&stream).map_or(0, |running| running.registrations);
                let registrations = self.registrations().saturating_sub(before);
                let read = self.connection.plane.as_mut().map_or(Duration::ZERO, |plane| plane.end_reading(stream));
                self.item(stream, Item::End { stats, read, registrations });
                self.result_over(stream);
            }
            BorrowerEvent::Failed { stream, error } => {
                if let Some(plane) = &mut self.connection.plane {
                    plane.end_reading(stream);
                }
                self.item(stream, Item::Failed(error));
                self.result_over(stream);
            }
        }
    }

    /// Registrations so far of memory for reads.
    fn registrations(&self) -> u64 {
        self.connection.plane.as_ref().map_or(0, Plane::read_registrations)
    }

    fn report_ready(&mut self) {
        if let Some(ready) = self.ready.take() {
            let _gone = ready.send(Ok(()));
        }
    }

    fn result_over(&mut self, stream: StreamId) {
        self.results.remove(&stream);
        if self.connection.plane.is_some() && self.tidying.is_none() {
            self.tidy_later();
        }
    }

    /// One timer for the idle memory of all results: one for each would cost more than it saves.
    fn tidy_later(&mut self) {
        self.tidying = Some(Box::pin(tokio::time::sleep(IDLE_MEMORY)));
    }

    fn item(&mut self, stream: StreamId, item: Item) {
        if let Some(running) = self.results.get(&stream) {
            // A dropped result has cancelled its stream, or will do so next.
            let _gone = running.items.send(item);
        }
    }

    fn deliver(&mut self, stream: StreamId, seq: u64, cost: u64, payload: Payload) {
        self.delivered += cost;
        let batch = match payload {
            Payload::Inline(ipc) => Ok(Delivered::Local(Arrived::Inline(ipc))),
            Payload::OnDemand { descriptor } => match self.results.get(&stream) {
                Some(running) => {
                    let guard = LoanGuard::on_demand(running.commands.clone(), stream, seq);
                    Ok(Delivered::OnDemand { guard, descriptor })
                }
                None => return self.connection.borrower(BorrowerCommand::ReleaseBatch { stream, seq }),
            },
            Payload::Mapped { read, descriptor } => {
                let commands = self.results.get(&stream).and_then(|running| running.commands.upgrade());
                let buffers = self.connection.plane.as_mut().and_then(|plane| plane.take_mapped(read));
                match (commands, buffers) {
                    (Some(commands), Some(buffers)) => {
                        let guard = LoanGuard::mapped(commands, stream, seq);
                        Ok(Delivered::Mapped(MappedBatch { buffers, descriptor, guard }))
                    }
                    // The application has dropped the result.
                    _ => return self.connection.borrower(BorrowerCommand::ReleaseBatch { stream, seq }),
                }
            }
            Payload::Lent { read, descriptor } => {
                let read = self.connection.plane.as_mut().and_then(|plane| plane.take(read));
                let read = read.ok_or_else(|| "bug: a batch was delivered that had not been read".to_owned());
                read.map(|read| Delivered::Local(Arrived::Read { read, descriptor }))
            }
        };
        match batch {
            Ok(batch) => self.item(stream, Item::Batch { seq, cost, batch }),
            Err(reason) => {
                // The end of the stream may be queued already, and the result would then seem complete. So report the
                // error here.
                self.item(stream, Item::Failed(StreamError::InvalidBatch { seq, reason: reason.clone() }));
                self.connection.borrower(BorrowerCommand::Rejected { stream, seq, reason });
            }
        }
    }
}
