//! One connection's task: drives the protocol's machine over a control connection, a fabric endpoint and the queries.

mod allowance;
mod data_plane;
mod groups;
mod lender;
mod mapped;
mod packing;
mod query;
mod regions;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::task::{Context, Poll};

use thallus_fabric::Maps;
use thallus_fabric::driver::{Clock, Control, ControlEvent, ControlIo};
use thallus_fabric::observe::LoanObserver;
use thallus_protocol::codes::{CloseCode, StreamCode};
use thallus_protocol::message::{Delivery, ExecuteOptions, ProcessId};
#[cfg(feature = "planted-bugs")]
use thallus_protocol::planted::{Bug, is_planted};
use thallus_protocol::server::{
    Loan, LoanEffort, ServerCommand, ServerConfig as MachineConfig, ServerConnection, ServerInput, ServerOutput,
};
use thallus_protocol::{ApiMisuse, ConnectionError, LeaseEnd, LeaseId, RegionId, RemoteRange, StreamId};
use tokio::sync::{mpsc, watch};
use tracing::{debug, info, trace, warn};

use data_plane::{DataPlane, PlaneEvent};
pub use groups::GroupLimits;
pub(crate) use groups::Groups;
pub(crate) use lender::Lender;
use lender::PreparedLoan;
pub(crate) use mapped::Leftovers;
use mapped::{Borrower, Holding};
use query::{Events, Progress, Pull, QueryContext, QueryEvent, RunningQuery};

use crate::engine::{Engine, QueryRequest};

/// What every connection of a server shares.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) engine: Arc<dyn Engine>,
    pub(crate) lenders: Vec<Arc<Lender>>,
    pub(crate) machine: MachineConfig,
    pub(crate) groups: Arc<Groups>,
    /// Whether clients may map what they are lent.
    pub(crate) allow_mapped: bool,
    /// What they have mapped and their connections are gone.
    pub(crate) leftovers: Arc<Leftovers>,
    /// Page faults of the thread so far.
    pub(crate) page_faults: fn() -> u64,
    pub(crate) loan_observer: Option<Arc<dyn LoanObserver>>,
}

/// While more than this is to be written, queries are not asked for more: a client that grants credit without end and never
/// reads costs no more memory than this and a batch for each stream.
const MAX_BACKLOG: usize = 64 << 20;

/// Most that queries are heard of before the control connection has its turn: what they say goes out together.
const HEARD_AT_ONCE: usize = 16;

/// So many queries begin in tasks of their own after one has held its connection up, before another may begin here.
const WARY: u32 = 16;

/// What is on loan under one lease.
#[derive(Debug)]
struct OnLoan {
    regions: Vec<RegionId>,
    places: Vec<RemoteRange>,
    holding: Holding,
}

/// Something happened.
enum Event {
    Time,
    Control(ControlEvent),
    Plane(PlaneEvent),
    Query(StreamId, QueryEvent),
    /// The backlog is small enough again for pulls that were put off.
    Relieved,
    Drain,
}

/// A connection and all that belongs to it.
pub(crate) struct Session<S> {
    shared: Arc<Shared>,
    machine: ServerConnection,
    clock: Clock,
    control: Control<S>,
    plane: Option<DataPlane>,
    queries: BTreeMap<StreamId, RunningQuery>,
    /// The query that runs in this task: one at a time.
    here: Option<StreamId>,
    /// Queries that are not to.
    wary: u32,
    /// What queries have said since the control connection had its turn.
    heard: usize,
    /// Pulls that wait until the backlog is smaller.
    put_off: Vec<(StreamId, Pull)>,
    loans: BTreeMap<LeaseId, OnLoan>,
    last_lease: u64,
    /// The process for which batches were mapped last: it was seen, and if it has ended since, that is noticed later.
    seen: Option<ProcessId>,
    events: mpsc::UnboundedReceiver<(StreamId, QueryEvent)>,
    report: Events,
    ended: Option<ConnectionError>,
    /// The machine's, as it was traced last.
    state: [&'static str; 2],
}

/// Serves one connection until it ends, and says why it did. `word_nonce` is entropy for its lease words.
pub(crate) async fn serve<S: ControlIo>(
    shared: Arc<Shared>,
    io: S,
    word_nonce: u64,
    refused: Option<String>,
    drain: watch::Receiver<bool>,
) -> ConnectionError {
    let clock = Clock::new();
    let (report, events) = mpsc::unbounded_channel();
    let config = MachineConfig { word_nonce, ..shared.machine.clone() };
    let machine = ServerConnection::new(config, clock.now());
    let mut session = Session {
        state: machine.state_names(),
        machine,
        shared,
        clock,
        control: Control::new(io),
        plane: None,
        queries: BTreeMap::new(),
        here: None,
        wary: 0,
        heard: 0,
        put_off: Vec::new(),
        loans: BTreeMap::new(),
        last_lease: 0,
        seen: None,
        events,
        report,
        ended: None,
    };
    if let Some(message) = refused {
        session.command(ServerCommand::Close { code: CloseCode::TooManyConnections, message });
    }
    session.run(drain).await
}

impl<S: ControlIo> Session<S> {
    async fn run(mut self, mut drain: watch::Receiver<bool>) -> ConnectionError {
        let mut drained = std::pin::pin!(async move {
            // A server that is gone without a word drains too.
            let _gone = drain.wait_for(|drain| *drain).await;
        });
        let mut draining = false;
        loop {
            self.carry_out();
            if let Some(error) = self.ended.take() {
                debug_assert!(self.loans.is_empty(), "the machine ended every lease");
                self.control.finish().await;
                return error;
            }
            let event = std::future::poll_fn(|cx| {
                if !draining && drained.as_mut().poll(cx).is_ready() {
                    draining = true;
                    return Poll::Ready(Event::Drain);
                }
                self.poll(cx)
            })
            .await;
            self.handle(event);
            // A query that has a batch whenever it is asked would keep all others of this thread waiting.
            tokio::task::coop::consume_budget().await;
        }
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Event> {
        if self.heard < HEARD_AT_ONCE
            && let Poll::Ready((stream, event)) = self.poll_queries(cx)
        {
            self.heard += 1;
            return Poll::Ready(Event::Query(stream, event));
        }
        self.heard = 0;
        // It is where batches go out, and where a dead peer shows.
        if let Poll::Ready(event) = self.control.poll(cx) {
            return Poll::Ready(Event::Control(event));
        }
        if !self.put_off.is_empty() && self.control.backlog() <= MAX_BACKLOG {
            return Poll::Ready(Event::Relieved);
        }
        if let Poll::Ready((stream, event)) = self.poll_queries(cx) {
            return Poll::Ready(Event::Query(stream, event));
        }
        if let Some(plane) = &mut self.plane
            && let Poll::Ready(event) = plane.poll(cx)
        {
            return Poll::Ready(Event::Plane(event));
        }
        self.clock.poll(cx).map(|()| Event::Time)
    }

    /// What the query in this task, or one in a task of its own, has to say.
    fn poll_queries(&mut self, cx: &mut Context<'_>) -> Poll<(StreamId, QueryEvent)> {
        if let Some(stream) = self.here {
            let Some(query) = self.queries.get_mut(&stream).and_then(RunningQuery::here) else {
                self.here = None;
                return self.poll_tasks(cx);
            };
            let progress = query.poll(cx);
            let held_up = query.has_held_up();
            if held_up || matches!(progress, Poll::Ready(Progress::Grown)) {
                trace!(stream = stream.0, held_up, ?query, "it goes on in a task of its own");
                self.here = None;
                self.wary = if held_up { WARY } else { self.wary };
                if let Some(query) = self.queries.get_mut(&stream) {
                    query.send_away(stream, self.report.clone());
                }
            }
            if let Poll::Ready(Progress::Said(event)) = progress {
                return Poll::Ready((stream, event));
            }
        }
        self.poll_tasks(cx)
    }

    fn poll_tasks(&mut self, cx: &mut Context<'_>) -> Poll<(StreamId, QueryEvent)> {
        match self.events.poll_recv(cx) {
            Poll::Ready(Some(said)) => Poll::Ready(said),
            // This end keeps a sender: the channel is never closed.
            Poll::Ready(None) | Poll::Pending => Poll::Pending,
        }
    }

    fn handle(&mut self, event: Event) {
        match event {
            Event::Time => self.input(ServerInput::Time),
            Event::Relieved => {
                for (stream, pull) in std::mem::take(&mut self.put_off) {
                    self.pull(stream, pull);
                }
            }
            Event::Drain => self.command(ServerCommand::Drain),
            Event::Control(ControlEvent::Lost(reason)) => self.input(ServerInput::ControlLost(reason)),
            Event::Control(ControlEvent::Received(len)) => {
                let now = self.clock.now();
                let taken = self.machine.handle(now, ServerInput::Received(self.control.received(len)));
                self.check(taken);
            }
            Event::Plane(PlaneEvent::Failed(reason)) => self.command(ServerCommand::FabricFailed { reason }),
            Event::Plane(PlaneEvent::Closed) => self.command(ServerCommand::FabricClosed),
            Event::Query(stream, event) => self.query_event(stream, event),
        }
    }

    fn input(&mut self, input: ServerInput<'_>) {
        let taken = self.machine.handle(self.clock.now(), input);
        self.check(taken);
    }

    fn command(&mut self, command: ServerCommand) {
        self.input(ServerInput::Command(command));
    }

    fn check(&mut self, taken: Result<(), ApiMisuse>) {
        let state = self.machine.state_names();
        if state != self.state {
            trace!(end = "server", from = ?self.state, to = ?state, "state");
            self.state = state;
        }
        if let Err(misuse) = taken {
            // A bug of this driver. The machine tears the connection down, and nobody else suffers.
            tracing::error!(%misuse, "bug: the protocol's contract was broken");
        }
    }

    fn query_event(&mut self, stream: StreamId, event: QueryEvent) {
        if !self.machine.is_open(stream) {
            return;
        }
        match event {
            QueryEvent::Schema { schema, order } => self.command(ServerCommand::Schema { stream, schema, order }),
            QueryEvent::Inline { ipc, rows } => self.command(ServerCommand::Inline { stream, ipc, rows }),
            QueryEvent::Lend { loan, effort, rows } => self.lend(stream, loan, effort, rows),
            QueryEvent::Finish { execute } => {
                if let Some(query) = self.queries.remove(&stream) {
                    query.finish();
                }
                let execute_nanos = u64::try_from(execute.as_nanos()).unwrap_or(u64::MAX);
                self.command(ServerCommand::Finish { stream, execute_nanos });
            }
            QueryEvent::Fail { code, message } => {
                self.queries.remove(&stream);
                self.command(ServerCommand::Fail { stream, code, message });
            }
        }
    }

    fn lend(&mut self, stream: StreamId, loan: PreparedLoan, mut effort: LoanEffort, rows: u64) {
        let PreparedLoan { descriptor, parts, staged, held } = loan;
        let mut places = Vec::with_capacity(parts.len());
        let mut regions = Vec::with_capacity(parts.len());
        for part in parts {
            let Some(plane) = &mut self.plane else { break };
            match plane.enter(&part) {
                Ok((region, announcement)) => {
                    regions.push(region);
                    places.push(RemoteRange { region, address: part.address, len: part.len });
                    if let Some(region) = announcement {
                        effort.regions += 1;
                        self.command(ServerCommand::Announce(region));
                    }
                }
                Err(error) => {
                    self.leave(regions);
                    let (code, message) = (StreamCode::DataPlaneLost, error.to_string());
                    if let Some(query) = self.queries.remove(&stream) {
                        query.stop(None, Some((code, message.clone())));
                    }
                    self.command(ServerCommand::Fail { stream, code, message });
                    return;
                }
            }
        }
        self.last_lease += 1;
        let lease = LeaseId(self.last_lease);
        let holding = Holding::new(held, self.queries.get(&stream).and_then(|query| query.borrower().cloned()));
        self.loans.insert(lease, OnLoan { regions, places: places.clone(), holding });
        let loan = Loan { lease, descriptor, places, staged, effort };
        self.command(ServerCommand::Lend { stream, loan, rows });
    }

    fn leave(&mut self, regions: Vec<RegionId>) {
        for region in regions {
            if self.plane.as_mut().is_some_and(|plane| plane.leave(region)) {
                self.command(ServerCommand::Retire(region));
            }
        }
    }

    /// Does what the machine wants done, in order.
    fn carry_out(&mut self) {
        loop {
            match self.machine.poll_output() {
                ServerOutput::Wait(deadline) => {
                    self.clock.arm(deadline.map(|(at, _)| at));
                    return;
                }
                ServerOutput::Transmit(frame) => self.control.send(frame),
                ServerOutput::OpenFabric { kind, peer } => self.open_fabric(&kind, &peer),
                ServerOutput::FabricUp { transport } => info!(%transport, "data plane is up"),
                ServerOutput::FabricDown { reason } => warn!(%reason, "no data plane: results travel inline"),
                ServerOutput::Execute { stream, sql, options } => self.execute(stream, sql, &options),
                ServerOutput::Pull { stream, lend_from } => self.pull(stream, Pull { lend_from }),
                ServerOutput::StopQuery { stream, reason, failure } => {
                    debug!(%stream, ?reason, "query stopped");
                    if let Some(query) = self.queries.remove(&stream) {
                        query.stop(reason, failure);
                    }
                }
                ServerOutput::OpenLease { lease, word } => {
                    if let (Some(loan), Some(plane)) = (self.loans.get(&lease), &mut self.plane) {
                        plane.lent(lease, &loan.places);
                    }
                    #[cfg(feature = "planted-bugs")]
                    if is_planted(Bug::MemoryFreedWhenSent) {
                        self.loans.remove(&lease);
                    }
                    if let (Some((slot, value)), Some(plane)) = (word, &self.plane)
                        && let Err(error) = plane.open_word(slot, value)
                    {
                        tracing::error!(%error, %lease, "bug: a lease word could not be set");
                    }
                }
                ServerOutput::EndLease { lease, slot, end } => self.end_lease(lease, slot, end),
                ServerOutput::CloseFabric => match &mut self.plane {
                    Some(plane) => plane.close(),
                    None => self.command(ServerCommand::FabricClosed),
                },
                ServerOutput::Closed(error) => self.ended = Some(error),
            }
        }
    }

    fn pull(&mut self, stream: StreamId, pull: Pull) {
        if self.control.backlog() > MAX_BACKLOG {
            self.put_off.push((stream, pull));
        } else if let Some(query) = self.queries.get_mut(&stream) {
            query.pull(pull);
        }
    }

    fn execute(&mut self, stream: StreamId, sql: String, options: &ExecuteOptions) {
        debug!(%stream, %sql, part = ?options.part.map(|part| (part.index, part.count)), "query");
        let borrower = match self.borrower(options) {
            Ok(borrower) => borrower,
            Err(message) => {
                info!(%stream, %message, "mapped delivery refused");
                return self.command(ServerCommand::Fail { stream, code: StreamCode::MappingRefused, message });
            }
        };
        let seat = match options.part.map(|part| self.shared.groups.join(part, &sql, options)).transpose() {
            Ok(seat) => seat.map(Arc::new),
            Err((code, message)) => return self.command(ServerCommand::Fail { stream, code, message }),
        };
        let context = QueryContext {
            engine: Arc::clone(&self.shared.engine),
            lender: self.plane.as_ref().map(|plane| Arc::clone(plane.lender())),
            max_loan_bytes: self.shared.machine.limits.max_loan_bytes,
            complete: options.lazy || borrower.is_some(),
            borrower,
            page_faults: self.shared.page_faults,
        };
        let batch_rows = options.batch_rows.map(|rows| rows.max(1) as usize);
        // The partitions of a result wait for one another.
        let is_partition = seat.is_some();
        let mut query = RunningQuery::new(context, QueryRequest { sql, batch_rows }, seat);
        if !is_partition && self.wary == 0 && self.here.is_none() {
            self.here = Some(stream);
        } else {
            self.wary = self.wary.saturating_sub(1);
            query.send_away(stream, self.report.clone());
        }
        self.queries.insert(stream, query);
    }

    fn end_lease(&mut self, lease: LeaseId, slot: Option<u32>, end: LeaseEnd) {
        // The word goes before the memory: a borrower that is still reading must find out.
        #[cfg(feature = "planted-bugs")]
        let slot = slot.filter(|_| !is_planted(Bug::LeaseWordNotCleared));
        if let (Some(slot), Some(plane)) = (slot, &self.plane) {
            plane.clear_word(slot);
        }
        if let Some(plane) = &mut self.plane {
            plane.lease_ended(lease, end);
        }
        #[cfg(feature = "planted-bugs")]
        if is_planted(Bug::LoanLeaked)
            && let Some(loan) = self.loans.remove(&lease)
        {
            std::mem::forget(loan);
            return;
        }
        if end == LeaseEnd::Revoked {
            warn!(%lease, "a client did not release a lease in time; it was revoked");
        }
        if let Some(loan) = self.loans.remove(&lease) {
            loan.holding.end(end);
            self.leave(loan.regions);
        }
    }

    /// Whose process has to be gone before what it maps is free, if the query is to be delivered so; or why it is not.
    fn borrower(&mut self, options: &ExecuteOptions) -> Result<Option<Borrower>, String> {
        let Delivery::Mapped(process) = options.delivery else { return Ok(None) };
        if !self.shared.allow_mapped {
            return Err(
                "this server does not allow it: start it with --allow-mapped, or ask for another delivery".into()
            );
        }
        let Some(plane) = &self.plane else {
            return Err("the connection has no data plane: its results travel inline".into());
        };
        let fabric = plane.lender().fabric();
        if let Maps::Nothing { reason } = fabric.capabilities().maps {
            return Err(format!("fabric {} maps no memory here: {reason}", fabric.kind()));
        }
        let leftovers = Arc::clone(&self.shared.leftovers);
        if self.seen != Some(process) && !leftovers.sees(process) {
            return Err(format!(
                "the server does not see the client's process {}: both must be on one host and in one namespace of processes \
                 (containers have their own unless told otherwise)",
                process.pid
            ));
        }
        self.seen = Some(process);
        Ok(Some(Borrower { process, leftovers }))
    }

    fn open_fabric(&mut self, kind: &thallus_protocol::FabricKind, peer: &[u8]) {
        let lender = self.shared.lenders.iter().find(|lender| lender.fabric().kind() == *kind);
        let opened = match lender {
            Some(lender) => {
                let observer = self.shared.loan_observer.clone();
                DataPlane::open(Arc::clone(lender), self.shared.machine.max_leases, peer, observer)
            }
            None => Err(format!("fabric {kind} is not there any more")),
        };
        match opened {
            Ok((plane, opened)) => {
                self.plane = Some(plane);
                self.command(ServerCommand::FabricOpened(opened));
            }
            Err(reason) => self.command(ServerCommand::FabricUnavailable { reason }),
        }
    }
}
