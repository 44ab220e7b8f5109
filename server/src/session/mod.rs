//! One connection's task: drives the protocol's machine over a control connection, a fabric endpoint, queries and
//! uploads.

mod allowance;
mod groups;
mod held;
mod mapped;
mod plane;
mod planning;
mod query;
mod source;
mod upload;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::task::{Context, Poll};

use thallus_driver::{
    Arrived, Clock, Connection, ConnectionInput, ControlIo, EndTask, KeepLoan, LoanBudget, LoanPool, PackingContext,
    PeerBudget, PreparedBatch,
};
use thallus_fabric::process::TcpEnds;
use thallus_protocol::borrower::{BorrowerCommand, BorrowerEvent, Payload};
use thallus_protocol::codes::{CloseCode, StreamCode};
use thallus_protocol::inline::decode_parameters;
use thallus_protocol::lender::{LenderCommand, LenderTask};
use thallus_protocol::message::{Failure, OpenOptions, ProcessId};
use thallus_protocol::server::{ServerCommand, ServerConfig as MachineConfig, ServerConnection, ServerEvent};
use thallus_protocol::{ConnectionError, FabricKind, StreamId};
use tokio::sync::{mpsc, watch};
use tracing::{debug, info, trace, warn};

pub use groups::GroupLimits;
use groups::GroupMember;
pub(crate) use groups::Groups;
use held::HeldByConnection;
pub(crate) use held::HeldBytes;
use mapped::MappingClient;
pub(crate) use mapped::OrphanedLoans;
pub(crate) use plane::SeparatePools;
use planning::Planning;
use query::{Events, Progress, Pull, QueryEvent, RunningQuery};
use upload::{RunningUpload, UploadEvent, UploadEvents, UploadItem, UploadRequest};

use crate::engine::{Engine, QueryRequest};
use crate::entrance::{Admitted, Newcomer};

/// State that all connections of a server share.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) engine: Arc<dyn Engine>,
    /// One pool for each fabric.
    pub(crate) pools: Vec<Arc<LoanPool>>,
    /// Bytes that may be on loan to all clients over all fabrics.
    pub(crate) budget: LoanBudget,
    pub(crate) separate_pools: Arc<SeparatePools>,
    pub(crate) machine: MachineConfig,
    pub(crate) groups: Arc<Groups>,
    /// Whether clients may map lent batches.
    pub(crate) allow_mapped: bool,
    /// Most bytes of an upload's window.
    pub(crate) upload_window: u64,
    /// Memory that clients have mapped and whose connections have ended.
    pub(crate) orphans: Arc<OrphanedLoans>,
    /// Page faults of the calling thread so far.
    pub(crate) page_faults: fn() -> u64,
    /// Announces that the owner of some memory wants it back.
    pub(crate) let_go: Arc<watch::Sender<()>>,
    /// Bytes of memory that clients make the server keep, besides batches on loan.
    pub(crate) held: Arc<HeldBytes>,
    /// Limits of the bytes that wait to be written to one client.
    pub(crate) budget_of_peer: PeerBudget,
}

impl Shared {
    /// The pools of all fabrics, and of peers with separate memory.
    pub(crate) fn all_pools(&self) -> impl Iterator<Item = Arc<LoanPool>> {
        self.pools.iter().cloned().chain(self.separate_pools.all())
    }
}

/// Query events handled before the control connection is polled again, so that their messages share one write.
const MAX_QUERY_EVENTS_PER_TURN: usize = 16;

/// Queries that are spawned immediately after one has stalled its connection, before another may run in the
/// connection's task.
const SPAWN_COOLDOWN_QUERIES: u32 = 16;

/// Initial window of an upload, in bytes.
const FIRST_UPLOAD_WINDOW: u64 = 4 << 20;

/// An event of the connection's task.
enum Event {
    Connection(ConnectionInput),
    Query(StreamId, QueryEvent),
    Upload(StreamId, UploadEvent),
    /// The client has read enough for deferred pulls.
    Relieved,
    Drain,
    /// The owner of some memory wants it back.
    LetGo,
}

/// A connection and all its state.
pub(crate) struct Session<S> {
    shared: Arc<Shared>,
    connection: Connection<ServerConnection, S>,
    queries: BTreeMap<StreamId, RunningQuery>,
    /// For queries whose client maps batches: the function that keeps their loans after the end of the connection.
    keeps: BTreeMap<StreamId, KeepLoan>,
    uploads: BTreeMap<StreamId, RunningUpload>,
    /// The one query that runs in this task, if any.
    inline: Option<StreamId>,
    /// Queries still to be spawned before one may run in this task again.
    cooldown: u32,
    /// The addresses of the control connection, if it is a TCP connection.
    ends: Option<TcpEnds>,
    /// Query events since the control connection was polled.
    query_events: usize,
    /// Pulls that are deferred until the client has read more.
    deferred_pulls: Vec<(StreamId, Pull)>,
    held: HeldByConnection,
    /// The number of this connection among those that may join groups of partitions.
    number: u64,
    newcomer: Option<Newcomer>,
    /// The connection's place among the connections of the server, from its hello on.
    admitted: Option<Admitted>,
    /// The process that mapped batches last. It was found to be the client, so the client's end will be detected.
    mapping_client: Option<(ProcessId, MappingClient)>,
    events: mpsc::UnboundedReceiver<(StreamId, QueryEvent)>,
    report: Events,
    upload_events: mpsc::UnboundedReceiver<(StreamId, UploadEvent)>,
    upload_report: UploadEvents,
    ended: Option<ConnectionError>,
}

/// Serves one connection until it ends, and returns the reason. `word_nonce` is entropy for its lease words.
pub(crate) async fn serve<S: ControlIo>(
    shared: Arc<Shared>,
    io: S,
    ends: Option<TcpEnds>,
    word_nonce: u64,
    newcomer: Newcomer,
    drain: watch::Receiver<bool>,
) -> ConnectionError {
    let mut clock = Clock::new();
    let (report, events) = mpsc::unbounded_channel();
    let (upload_report, upload_events) = mpsc::unbounded_channel();
    let config = MachineConfig { word_nonce, ..shared.machine.clone() };
    let machine = ServerConnection::new(config, clock.now());
    let refusal = newcomer.refusal();
    let mut session = Session {
        connection: Connection::new("server", machine, clock, io, shared.budget_of_peer),
        held: shared.held.add(),
        number: shared.groups.next_number(),
        newcomer: Some(newcomer),
        admitted: None,
        shared,
        queries: BTreeMap::new(),
        keeps: BTreeMap::new(),
        uploads: BTreeMap::new(),
        inline: None,
        cooldown: 0,
        ends,
        query_events: 0,
        deferred_pulls: Vec::new(),
        mapping_client: None,
        events,
        report,
        upload_events,
        upload_report,
        ended: None,
    };
    if let Some(message) = refusal {
        session.refuse(message);
    }
    session.run(drain).await
}

/// Waits for a change, and returns the receiver for the next one.
async fn changed(mut receiver: watch::Receiver<()>) -> watch::Receiver<()> {
    // The session holds the sender.
    if receiver.changed().await.is_err() {
        std::future::pending::<()>().await;
    }
    receiver
}

impl<S: ControlIo> Session<S> {
    async fn run(mut self, mut drain: watch::Receiver<bool>) -> ConnectionError {
        let mut drained = std::pin::pin!(async move {
            // The drop of the server drains too.
            let _gone = drain.wait_for(|drain| *drain).await;
        });
        let mut draining = false;
        let wanted_back = self.shared.let_go.subscribe();
        let mut let_go = Box::pin(changed(wanted_back));
        loop {
            self.carry_out();
            self.held.record(self.connection.held_bytes());
            if let Some(error) = self.ended.take() {
                let ended_all = self.connection.plane.as_ref().is_none_or(|plane| plane.has_no_loans());
                debug_assert!(ended_all, "the machine ended every lease");
                self.connection.finish().await;
                return error;
            }
            let event = std::future::poll_fn(|cx| {
                if !draining && drained.as_mut().poll(cx).is_ready() {
                    draining = true;
                    return Poll::Ready(Event::Drain);
                }
                if let Poll::Ready(wanted_back) = let_go.as_mut().poll(cx) {
                    let_go.set(changed(wanted_back));
                    return Poll::Ready(Event::LetGo);
                }
                self.poll(cx)
            })
            .await;
            self.handle(event);
            // A query that always has a batch ready would block all other tasks of this thread.
            tokio::task::coop::consume_budget().await;
        }
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Event> {
        if self.query_events < MAX_QUERY_EVENTS_PER_TURN
            && let Poll::Ready((stream, event)) = self.poll_queries(cx)
        {
            self.query_events += 1;
            return Poll::Ready(Event::Query(stream, event));
        }
        self.query_events = 0;
        // Sends batches, waits for deadlines, and detects a dead peer.
        if let Poll::Ready(happened) = self.connection.poll_control(cx) {
            return Poll::Ready(Event::Connection(happened));
        }
        if !self.deferred_pulls.is_empty() && self.connection.may_request_batches() {
            return Poll::Ready(Event::Relieved);
        }
        if let Poll::Ready((stream, event)) = self.poll_queries(cx) {
            return Poll::Ready(Event::Query(stream, event));
        }
        if let Poll::Ready(Some((stream, event))) = self.upload_events.poll_recv(cx) {
            return Poll::Ready(Event::Upload(stream, event));
        }
        self.connection.poll_plane(cx).map(Event::Connection)
    }

    /// The next event of the query in this task, or of a spawned query.
    fn poll_queries(&mut self, cx: &mut Context<'_>) -> Poll<(StreamId, QueryEvent)> {
        if let Some(stream) = self.inline {
            let Some(query) = self.queries.get_mut(&stream).and_then(RunningQuery::inline) else {
                self.inline = None;
                return self.poll_spawned(cx);
            };
            let progress = query.poll(cx);
            let held_up = query.has_stalled();
            if held_up || matches!(progress, Poll::Ready(Progress::MustSpawn)) {
                trace!(stream = stream.0, held_up, ?query, "query is spawned");
                self.inline = None;
                self.cooldown = if held_up { SPAWN_COOLDOWN_QUERIES } else { self.cooldown };
                if let Some(query) = self.queries.get_mut(&stream) {
                    query.spawn(stream, self.report.clone());
                }
            }
            if let Poll::Ready(Progress::Event(event)) = progress {
                return Poll::Ready((stream, event));
            }
        }
        self.poll_spawned(cx)
    }

    fn poll_spawned(&mut self, cx: &mut Context<'_>) -> Poll<(StreamId, QueryEvent)> {
        match self.events.poll_recv(cx) {
            Poll::Ready(Some(event)) => Poll::Ready(event),
            // `self` holds a sender, so the channel is never closed.
            Poll::Ready(None) | Poll::Pending => Poll::Pending,
        }
    }

    fn handle(&mut self, event: Event) {
        match event {
            Event::Relieved => {
                for (stream, pull) in std::mem::take(&mut self.deferred_pulls) {
                    self.pull(stream, pull);
                }
            }
            Event::Drain => self.command(ServerCommand::Drain),
            Event::LetGo => self.connection.let_go(),
            Event::Connection(happened) => {
                if let Some(newcomer) = self.newcomer.take() {
                    return self.greet(newcomer, happened);
                }
                if let Some(proven) = self.connection.handle(happened) {
                    self.proven(proven);
                }
            }
            Event::Query(stream, event) => self.query_event(stream, event),
            Event::Upload(stream, event) => self.upload_event(stream, event),
        }
    }

    /// Handles an input of a connection whose hello may be in it. A server without a free place refuses the client
    /// before it answers the hello.
    fn greet(&mut self, newcomer: Newcomer, happened: ConnectionInput) {
        let refused = match newcomer.take_place() {
            Ok(place) => {
                let _proven = self.connection.handle(happened);
                if !self.connection.machine().has_hello() {
                    self.newcomer = Some(newcomer);
                    return;
                }
                self.admitted = Some(place);
                // Nothing of the hello has been carried out yet.
                if newcomer.arrived() { None } else { Some(crate::entrance::DISPLACED.to_owned()) }
            }
            Err(message) => Some(message),
        };
        if let Some(message) = refused {
            self.refuse(message);
        }
    }

    fn refuse(&mut self, message: String) {
        warn!(%message, "connection refused");
        self.newcomer = None;
        self.command(ServerCommand::Close { code: CloseCode::TooManyConnections, message });
    }

    fn command(&mut self, command: ServerCommand) {
        self.connection.command(command);
    }

    fn lender(&mut self, command: LenderCommand) {
        self.connection.lender(command);
    }

    fn fail(&mut self, stream: StreamId, failure: Failure) {
        self.lender(LenderCommand::Fail { stream, failure });
    }

    fn query_event(&mut self, stream: StreamId, event: QueryEvent) {
        if !self.connection.machine().is_open(stream) {
            return;
        }
        match event {
            QueryEvent::Schema { schema, order } => self.lender(LenderCommand::Schema { stream, schema, order }),
            QueryEvent::Batch(PreparedBatch::Inline { ipc, rows }) => {
                self.lender(LenderCommand::Inline { stream, ipc, rows });
            }
            QueryEvent::Batch(PreparedBatch::Lent { loan, cost, rows }) => {
                let keep = self.keeps.get(&stream).cloned();
                let Some(plane) = &mut self.connection.plane else { return };
                let loan = plane.lend(loan, cost, keep);
                self.lender(LenderCommand::Lend { stream, loan, rows });
            }
            QueryEvent::Finish { execute } => {
                if let Some(query) = self.queries.remove(&stream) {
                    query.finish();
                }
                self.keeps.remove(&stream);
                let execute_nanos = u64::try_from(execute.as_nanos()).unwrap_or(u64::MAX);
                self.lender(LenderCommand::Finish { stream, execute_nanos });
            }
            QueryEvent::Fail(failure) => {
                self.queries.remove(&stream);
                self.keeps.remove(&stream);
                self.fail(stream, failure);
            }
        }
    }

    /// Performs the machine's tasks, in order.
    fn carry_out(&mut self) {
        while let Some(task) = self.connection.next_task() {
            match task {
                EndTask::Lender(LenderTask::Pull { stream, lend_from, ahead }) => {
                    self.pull(stream, Pull { lend_from, ahead });
                }
                EndTask::Lender(LenderTask::Stop { stream, reason, failure }) => {
                    debug!(%stream, ?reason, "query stopped");
                    self.keeps.remove(&stream);
                    if let Some(query) = self.queries.remove(&stream) {
                        query.stop(reason, failure);
                    }
                }
                EndTask::Lender(_) => {}
                EndTask::Stream(event) => self.stream_event(event),
                EndTask::Event(event) => self.event(event),
                EndTask::Closed(error) => self.ended = Some(error),
            }
        }
    }

    fn event(&mut self, event: ServerEvent) {
        match event {
            ServerEvent::OpenFabric { .. } if self.connection.machine().is_ending() => {
                let reason = "the connection ends".to_owned();
                self.command(ServerCommand::FabricUnavailable { reason });
            }
            ServerEvent::OpenFabric { kind, peer } => self.open_fabric(&kind, &peer),
            ServerEvent::ProbeClient(lending) => {
                if let Some(plane) = &mut self.connection.plane {
                    plane.prove(&lending, false, false);
                }
            }
            ServerEvent::FabricUp { transport } => info!(%transport, "data plane is up"),
            ServerEvent::NoFabric { offered, reason } if offered == [FabricKind::SHM] => {
                debug!(%reason, "the client tries shared memory first");
            }
            // A client that leaves closes its endpoint first, and then says goodbye.
            ServerEvent::FabricDown { reason } if self.queries.is_empty() && self.uploads.is_empty() => {
                info!(%reason, "the data plane has ended; further batches travel inline");
            }
            ServerEvent::NoFabric { reason, .. } | ServerEvent::FabricDown { reason } => {
                warn!(%reason, "no data plane: batches travel inline")
            }
            ServerEvent::Query { stream, sql, options } => self.execute(stream, sql, &options),
            ServerEvent::Describe { stream, sql, options } => {
                debug!(%stream, %sql, "describe");
                let request = QueryRequest { defaults: options.defaults.clone(), ..QueryRequest::new(sql) };
                let planning = planning::description(Arc::clone(&self.shared.engine), request);
                self.start(stream, planning, &options, None);
            }
            ServerEvent::Objects { stream, request, options } => {
                debug!(%stream, ?request, "objects");
                let planning = planning::objects(Arc::clone(&self.shared.engine), request);
                self.start(stream, planning, &options, None);
            }
            ServerEvent::Upload { stream, table, options } => self.upload(stream, UploadRequest { table, options }),
            ServerEvent::UploadWithdrawn { stream } => drop(self.uploads.remove(&stream)),
        }
    }

    fn pull(&mut self, stream: StreamId, pull: Pull) {
        if !self.connection.may_request_batches() {
            self.deferred_pulls.push((stream, pull));
        } else if let Some(query) = self.queries.get_mut(&stream) {
            query.pull(pull);
        }
    }

    fn execute(&mut self, stream: StreamId, sql: String, options: &OpenOptions) {
        debug!(%stream, %sql, part = ?options.partition.map(|part| (part.index, part.count)), "query");
        match self.keep_mapped(options) {
            Ok(keep) => self.keeps.extend(keep.map(|keep| (stream, keep))),
            Err(message) => {
                info!(%stream, %message, "mapping refused");
                return self.fail(stream, Failure::new(StreamCode::MappingRefused, message));
            }
        }
        let member =
            match options.partition.map(|part| self.shared.groups.join(self.number, part, &sql, options)).transpose() {
                Ok(member) => member.map(Arc::new),
                Err(failure) => {
                    self.keeps.remove(&stream);
                    return self.fail(stream, failure);
                }
            };
        let parameters = options.parameters.as_ref().map(decode_parameters);
        let parameters = match parameters.transpose() {
            Ok(parameters) => parameters,
            Err(error) => {
                self.keeps.remove(&stream);
                return self.fail(stream, Failure::new(StreamCode::Parameters, error.to_string()));
            }
        };
        let batch_rows = options.batch_rows.map(|rows| rows.max(1) as usize);
        let request = QueryRequest { sql, batch_rows, parameters, defaults: options.defaults.clone() };
        let planning = planning::query(Arc::clone(&self.shared.engine), request, member.clone());
        self.start(stream, planning, options, member);
    }

    /// Starts to produce and send the rows of a request.
    fn start(&mut self, stream: StreamId, planning: Planning, options: &OpenOptions, member: Option<Arc<GroupMember>>) {
        let packing = PackingContext {
            pool: self.connection.plane.as_ref().map(|plane| Arc::clone(plane.loan_pool())),
            max_loan_bytes: self.shared.machine.limits.max_loan_bytes,
            largest_batch: options.largest_batch,
            access: options.access,
            page_faults: self.shared.page_faults,
        };
        // The partitions of a result wait for each other.
        let is_partition = member.is_some();
        let mut query = RunningQuery::new(packing, planning, member);
        if !is_partition && self.cooldown == 0 && self.inline.is_none() {
            self.inline = Some(stream);
        } else {
            self.cooldown = self.cooldown.saturating_sub(1);
            query.spawn(stream, self.report.clone());
        }
        self.queries.insert(stream, query);
    }

    fn upload(&mut self, stream: StreamId, request: UploadRequest) {
        debug!(%stream, table = %request.table, mode = ?request.options.ingest.mode, "upload");
        let (engine, max_batch) = (Arc::clone(&self.shared.engine), self.shared.machine.borrow.max_batch_bytes);
        let upload = RunningUpload::start(engine, stream, request, max_batch, self.upload_report.clone());
        self.uploads.insert(stream, upload);
    }

    /// Handles an event of an upload's stream.
    fn stream_event(&mut self, event: BorrowerEvent) {
        match event {
            BorrowerEvent::Schema { stream, plan, .. } => self.push(stream, UploadItem::Schema(plan)),
            BorrowerEvent::Batch { stream, seq, cost, payload } => match self.arrived(payload) {
                Ok(arrived) => self.push(stream, UploadItem::Batch { seq, cost, arrived }),
                Err(reason) => self.connection.borrower(BorrowerCommand::Rejected { stream, seq, reason }),
            },
            BorrowerEvent::End { stream, stats } => self.push(stream, UploadItem::End { rows: stats.rows }),
            BorrowerEvent::Failed { stream, error } => {
                debug!(%stream, %error, "upload failed");
                self.uploads.remove(&stream);
                if let Some(plane) = &mut self.connection.plane {
                    plane.end_reading(stream);
                }
            }
            // Uploads are read whole.
            BorrowerEvent::PartRead { .. } | BorrowerEvent::PartFailed { .. } => {}
        }
    }

    fn push(&mut self, stream: StreamId, item: UploadItem) {
        if let Some(upload) = self.uploads.get(&stream) {
            upload.push(item);
        }
    }

    fn arrived(&mut self, payload: Payload) -> Result<Arrived, String> {
        match payload {
            Payload::Inline(ipc) => Ok(Arrived::Inline(ipc)),
            Payload::Lent { read, descriptor } => {
                let read = self.connection.plane.as_mut().and_then(|plane| plane.take(read));
                let read = read.ok_or("bug: a batch was delivered that had not been read")?;
                Ok(Arrived::Read { read, descriptor })
            }
            Payload::OnDemand { .. } | Payload::Mapped { .. } => Err("bug: an upload is read whole".into()),
        }
    }

    /// Handles an event of an upload's task.
    fn upload_event(&mut self, stream: StreamId, event: UploadEvent) {
        if !self.uploads.contains_key(&stream) {
            return;
        }
        match event {
            UploadEvent::Accepted => {
                let most = self.shared.upload_window;
                let window = FIRST_UPLOAD_WINDOW.min(most);
                self.command(ServerCommand::Accept { stream, window, max_window: most });
            }
            UploadEvent::Consumed { cost } => self.connection.borrower(BorrowerCommand::Consumed { stream, cost }),
            UploadEvent::Rejected { seq, reason } => {
                let failure = Failure::new(StreamCode::InvalidBatch, format!("batch {seq} is invalid: {reason}"));
                self.connection.borrower(BorrowerCommand::Rejected { stream, seq, reason });
                // The machine answers if the stream still runs. Its end may already have been delivered.
                self.upload_event(stream, UploadEvent::Done(Err(failure)));
            }
            UploadEvent::Done(result) => {
                self.uploads.remove(&stream);
                if let Some(plane) = &mut self.connection.plane {
                    plane.end_reading(stream);
                }
                self.command(ServerCommand::Answer { stream, result });
            }
        }
    }
}
