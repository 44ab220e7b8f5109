//! The server: accepts connections within its limits, and shuts down in good order.

use std::any::Any;
use std::fmt;
use std::hash::{BuildHasher, RandomState};
use std::io;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};

use thallus_driver::{ControlIo, LoanBudget, LoanPool, PeerBudget};
use thallus_fabric::count::CountedFabric;
use thallus_fabric::memory::{RegisteredSpace, thread_page_faults};
use thallus_fabric::observe::LoanObserver;
use thallus_fabric::process::{self, Presence, TcpEnds};
use thallus_fabric::{Fabric, descriptor_limit, is_near_descriptor_limit};
use thallus_protocol::codec::FrameLimits;
use thallus_protocol::message::{ProcessId, ServerLimits, Thresholds, Vendor};
use thallus_protocol::server::ServerConfig as MachineConfig;
use thallus_protocol::{ConnectionError, FabricKind, LinkTimeouts};
use thiserror::Error;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tracing::{Instrument, debug, info, info_span, warn};

use crate::accepting::AcceptFailures;
use crate::config::ServerConfig;
use crate::engine::Engine;
use crate::entrance::{DISPLACED, Entrance};
use crate::session::{GroupLimits, Groups, OrphanedLoans, SeparatePools, Shared, serve};
use crate::trimming::Trimming;

/// Most leases at a time on one connection: more than any window of reasonable batches needs, and one page of lease
/// words.
const MAX_LEASES: u32 = 511;
/// Time for connections to close, after the drain timeout.
const CLOSE_GRACE: Duration = Duration::from_secs(15);

/// The source of connections.
pub trait Listen: Send {
    /// A connection's bytes.
    type Io: ControlIo;

    /// The next connection, and a description of its peer.
    fn accept(&mut self) -> impl Future<Output = io::Result<(Self::Io, String)>> + Send;
}

impl Listen for TcpListener {
    type Io = tokio::net::TcpStream;

    async fn accept(&mut self) -> io::Result<(Self::Io, String)> {
        let (stream, peer) = TcpListener::accept(self).await?;
        // Control messages are small, and the peer waits for them.
        stream.set_nodelay(true)?;
        Ok((stream, peer.to_string()))
    }
}

/// The fabrics of the data plane.
#[derive(Debug, Default)]
pub struct Fabrics {
    /// Fabrics that work on this host.
    pub available: Vec<Arc<dyn Fabric>>,
    /// If there are none, the reason, for clients.
    pub reason: String,
    /// Memory registered with one of the fabrics, from which the engine may allocate batches. Batches in it are lent
    /// without a copy.
    pub registered: Option<Registered>,
}

/// Registered memory, and its fabric.
#[derive(Clone, Debug)]
pub struct Registered {
    /// The fabric over which peers reach the memory.
    pub fabric: FabricKind,
    /// The memory.
    pub space: Arc<dyn RegisteredSpace>,
}

impl Fabrics {
    fn pool(&self, fabric: &Arc<CountedFabric>, budget: LoanBudget, settings: &Settings) -> Arc<LoanPool> {
        let ours = self.registered.as_ref().filter(|registered| registered.fabric == fabric.kind());
        let space = ours.map(|registered| Arc::clone(&registered.space));
        let pool = LoanPool::new(Arc::clone(fabric) as Arc<dyn Fabric>, space, budget, settings.clock);
        Arc::new(pool.with_observer(settings.loan_observer.clone()))
    }
}

/// Limits and timeouts of a server.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Name of the server, sent to clients.
    pub name: String,
    /// Most connections at a time that have sent their hello. As many more, and at least 64, may be without one.
    pub max_connections: usize,
    /// Most bytes on loan at a time, to all clients over all fabrics.
    pub max_loan_bytes_total: u64,
    /// Limits of one client.
    pub limits: ServerLimits,
    /// Limits of the bytes that wait to be written to one client.
    pub budget_of_peer: PeerBudget,
    /// Limits of queries in partitions.
    pub groups: GroupLimits,
    /// Longest control message, in bytes.
    pub max_message_bytes: u32,
    /// Live bytes from which a batch is lent.
    pub inline_threshold: u64,
    /// Timeouts of control connections.
    pub timeouts: LinkTimeouts,
    /// Longest duration of a lease.
    pub lease_timeout: Duration,
    /// Most bytes of an upload's window.
    pub upload_window: u64,
    /// Limit for the one-sided reads of one batch of an upload.
    pub upload_read_timeout: Duration,
    /// Time for which running queries may continue once the server shuts down.
    pub drain_timeout: Duration,
    /// Whether clients on this host may map lent batches, and thereby reach all of this process's registered memory.
    pub allow_mapped: bool,
    /// Returns whether a process has the client's end of a control connection open: over a fabric that does not know
    /// its peer's process, a client may map memory only under the id of such a process. `None`: the connection is no
    /// TCP connection of this host, and the default believes no id. A simulation has no processes, and replaces this.
    pub is_peer: fn(ProcessId, Option<TcpEnds>) -> bool,
    /// Source of entropy for lease words. A simulation returns its seed.
    pub entropy: fn() -> u64,
    /// Returns whether a client's process exists. A simulation has no processes, and replaces this.
    pub presence: fn(ProcessId) -> Presence,
    /// Page faults of the calling thread so far. The number is sent with a result's figures, and depends on the history
    /// of the process: two runs of a simulation would differ in the length of that message.
    pub page_faults: fn() -> u64,
    /// Clock for measuring the costs of registering and of copying a buffer on this host. `None`, as in simulations:
    /// buffers outside of registered memory are registered wherever possible, and not copied.
    pub clock: Option<fn() -> Duration>,
    /// Observer of the begin and end of every lease. A simulation checks reads against it.
    pub loan_observer: Option<Arc<dyn LoanObserver>>,
}

/// The addresses of a control connection.
fn tcp_ends(socket: &TcpStream) -> Option<TcpEnds> {
    Some(TcpEnds { own: socket.local_addr().ok()?, peer: socket.peer_addr().ok()? })
}

/// The time since the first call.
fn running() -> Duration {
    static START: LazyLock<Instant> = LazyLock::new(Instant::now);
    START.elapsed()
}

/// Those of an empty configuration.
impl Default for Settings {
    fn default() -> Self {
        Settings::new(&ServerConfig::default())
    }
}

impl Settings {
    /// The settings of a configuration.
    #[must_use]
    pub fn new(config: &ServerConfig) -> Self {
        let (limits, times) = (&config.limits, &config.timeouts);
        let at_most = |n: u64| u32::try_from(n).unwrap_or(u32::MAX);
        Settings {
            name: format!("thallus-server {}", env!("CARGO_PKG_VERSION")),
            max_connections: limits.max_connections,
            max_loan_bytes_total: limits.max_bytes_on_loan_total.bytes(),
            limits: ServerLimits {
                max_streams: at_most(limits.max_streams_per_connection as u64),
                max_loan_bytes: limits.max_bytes_on_loan_per_connection.bytes(),
                max_sql_bytes: at_most(config.engine.max_sql_bytes.bytes()),
            },
            budget_of_peer: PeerBudget::SERVER,
            groups: GroupLimits {
                max_groups: limits.max_partitioned_queries,
                max_partitions: limits.max_partitions,
                rendezvous: times.rendezvous.0,
            },
            max_message_bytes: at_most(limits.max_message_bytes.bytes()),
            inline_threshold: limits.inline_threshold_bytes.bytes(),
            timeouts: LinkTimeouts { handshake: times.handshake.0, idle: times.idle.0, ..LinkTimeouts::default() },
            lease_timeout: times.lease.0,
            upload_window: limits.upload_window_bytes.bytes(),
            upload_read_timeout: times.upload_read.0,
            drain_timeout: times.drain.0,
            allow_mapped: config.fabric.allow_mapped,
            entropy: || RandomState::new().hash_one(0),
            presence: process::presence,
            is_peer: |client, ends| ends.is_some_and(|ends| process::holds_peer_end(client, ends).unwrap_or(false)),
            page_faults: thread_page_faults,
            clock: Some(running),
            loan_observer: None,
        }
    }

    fn machine(&self, fabrics: &Fabrics, vendor: Vendor) -> MachineConfig {
        let frame = FrameLimits::default();
        MachineConfig {
            name: self.name.clone(),
            fabrics: fabrics.available.iter().map(|fabric| fabric.kind()).collect(),
            no_fabric_reason: fabrics.reason.clone(),
            vendor,
            limits: self.limits.clone(),
            frame: FrameLimits {
                message: frame.message.min(self.max_message_bytes),
                payload: frame.payload.min(self.max_message_bytes),
            },
            checksum: true,
            thresholds: Thresholds::uniform(self.inline_threshold),
            max_leases: MAX_LEASES,
            word_nonce: 0,
            timeouts: self.timeouts,
            lease_timeout: self.lease_timeout,
            drain_timeout: self.drain_timeout,
            borrow: MachineConfig::borrower_config(self.limits.max_loan_bytes, self.upload_read_timeout),
        }
    }
}

/// The listener failed.
#[derive(Debug, Error)]
#[error("cannot accept further connections: {0}")]
pub struct ServeError(#[from] io::Error);

/// Serves queries. Cheap to clone; all clones are the same server.
#[derive(Clone)]
pub struct Server {
    shared: Arc<Shared>,
    fabrics: Arc<[Arc<CountedFabric>]>,
    settings: Arc<Settings>,
    connections: Arc<AtomicUsize>,
    entrance: Arc<Entrance>,
    trimming: Arc<Trimming>,
    drain: Arc<watch::Sender<bool>>,
}

impl Server {
    /// A server for this engine's tables.
    #[must_use]
    pub fn new(engine: Arc<dyn Engine>, fabrics: Fabrics, settings: Settings) -> Self {
        let machine = settings.machine(&fabrics, engine.vendor());
        let counted: Vec<_> =
            fabrics.available.iter().map(|fabric| Arc::new(CountedFabric::new(Arc::clone(fabric)))).collect();
        let budget = LoanBudget::new(settings.max_loan_bytes_total);
        let pools: Vec<_> = counted.iter().map(|fabric| fabrics.pool(fabric, budget.clone(), &settings)).collect();
        let connections = Arc::default();
        let separate_pools: Arc<SeparatePools> = Arc::default();
        let let_go = Arc::new(watch::Sender::new(()));
        let trimming =
            Trimming::new(pools.clone(), Arc::clone(&separate_pools), Arc::clone(&connections), Arc::clone(&let_go));
        Server {
            shared: Arc::new(Shared {
                engine,
                pools,
                budget,
                separate_pools,
                machine,
                groups: Arc::new(Groups::new(settings.groups)),
                allow_mapped: settings.allow_mapped,
                upload_window: settings.upload_window,
                orphans: OrphanedLoans::new(settings.presence, settings.is_peer),
                page_faults: settings.page_faults,
                let_go,
                held: Arc::default(),
                budget_of_peer: settings.budget_of_peer,
            }),
            fabrics: counted.into(),
            entrance: Entrance::new(settings.max_connections),
            settings: Arc::new(settings),
            connections,
            trimming,
            drain: Arc::new(watch::Sender::new(false)),
        }
    }

    /// Number of connections.
    #[must_use]
    pub fn connections(&self) -> usize {
        self.connections.load(Ordering::Relaxed)
    }

    /// Number of queries in partitions that run, or wait for requests for further partitions.
    #[must_use]
    pub fn partitioned_queries(&self) -> usize {
        self.shared.groups.len()
    }

    /// Bytes of registered memory that are kept for later loans: memory for copies, and registrations of buffers that
    /// were lent in place and may be lent again.
    #[must_use]
    pub fn idle_registered_bytes(&self) -> usize {
        self.shared.all_pools().map(|pool| pool.kept_bytes()).sum()
    }

    /// Number of registrations of memory with fabrics so far, for all purposes. Constant in steady state, except for
    /// the lease words of new connections.
    #[must_use]
    pub fn registrations(&self) -> u64 {
        self.fabrics.iter().map(|fabric| fabric.registrations()).sum()
    }

    /// Bytes on loan to all clients, including batches that are about to be lent; each batch rounded up to pages.
    /// Includes memory that is kept for processes that have mapped it after their connection ended.
    #[must_use]
    pub fn bytes_on_loan(&self) -> u64 {
        self.shared.budget.bytes_on_loan()
    }

    /// Bytes of memory that the client of each connection makes the server keep, besides batches on loan: batches that
    /// wait for credit, messages and batches that the client has not read, and messages that have arrived in part.
    #[must_use]
    pub fn held_bytes(&self) -> Vec<u64> {
        self.shared.held.by_connection()
    }

    /// Accepts no more work: running queries complete within the drain timeout, and connections close.
    pub fn drain(&self) {
        self.drain.send_replace(true);
    }

    /// Serves one connection until it ends.
    pub async fn handle<S: ControlIo>(&self, io: S) -> ConnectionError {
        self.connections.fetch_add(1, Ordering::Relaxed);
        let _counted = Counted(&self.connections);
        self.trimming.start();
        let socket = (&io as &dyn Any).downcast_ref::<TcpStream>();
        let newcomer = self.entrance.enter(socket.and_then(|socket| self.out_of_descriptors(socket)));
        let ends = socket.and_then(tcp_ends);
        let displaced = newcomer.displaced();
        let entropy = (self.settings.entropy)();
        tokio::select! {
            biased;
            // Before its hello a connection has nothing that must be ended in order.
            () = displaced.notified() => ConnectionError::ControlLost(DISPLACED.into()),
            ended = serve(Arc::clone(&self.shared), io, ends, entropy, newcomer, self.drain.subscribe()) => ended,
        }
    }

    /// The reason for refusing a connection, if few descriptors are left: a query that opens a file must not fail
    /// because connections have taken the last ones.
    fn out_of_descriptors(&self, socket: &TcpStream) -> Option<String> {
        is_near_descriptor_limit(socket.as_fd()).then(|| {
            let (limit, connections) = (descriptor_limit(), self.connections.load(Ordering::Relaxed));
            format!(
                "the server is near its limit of {limit} open files (`ulimit -n`), with {connections} connections; \
                 try again later"
            )
        })
    }

    /// Accepts connections until [`Server::drain`], then waits for them to end.
    ///
    /// # Errors
    /// [`ServeError`] if the listener itself fails.
    pub async fn serve<L: Listen>(&self, mut listener: L) -> Result<(), ServeError> {
        let mut drained = self.drain.subscribe();
        let mut tasks = JoinSet::new();
        let mut failures = AcceptFailures::new();
        loop {
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                _ = drained.wait_for(|drain| *drain) => break,
                Some(ended) = tasks.join_next() => {
                    if let Err(error) = ended {
                        tracing::error!(%error, "bug: a connection's task panicked");
                    }
                    continue;
                }
            };
            match accepted {
                Ok((io, peer)) => {
                    failures.succeeded();
                    let (server, span) = (self.clone(), info_span!("connection", %peer));
                    let connection = async move {
                        info!("connected");
                        match server.handle(io).await {
                            ended @ ConnectionError::Peer(_) => warn!(%ended, "connection ended"),
                            ended => info!(%ended, "connection ended"),
                        }
                        let (registrations, kept) = (server.registrations(), server.idle_registered_bytes());
                        debug!(registrations, kept, on_loan = server.bytes_on_loan(), "memory of all connections");
                        for pool in server.shared.pools.iter().filter(|pool| pool.has_unregistered_buffers()) {
                            debug!(?pool, "buffers outside of registered memory");
                        }
                    };
                    tasks.spawn(connection.instrument(span));
                }
                Err(error) => tokio::time::sleep(failures.failed(&error)).await,
            }
        }
        drop(listener);
        info!(connections = tasks.len(), "draining");
        let all_ended = async { while tasks.join_next().await.is_some() {} };
        if tokio::time::timeout(self.settings.drain_timeout + CLOSE_GRACE, all_ended).await.is_err() {
            warn!("connections were still open after the drain timeout");
        }
        Ok(())
    }
}

impl fmt::Debug for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Server").field("shared", &self.shared).field("connections", &self.connections).finish()
    }
}

/// Counts a connection while it lasts.
struct Counted<'a>(&'a AtomicUsize);

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}
