//! The server: accepts connections within its limits, and ends in good order.

use std::fmt;
use std::hash::{BuildHasher, RandomState};
use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};

use thallus_driver::{ControlIo, LoanPool};
use thallus_fabric::Fabric;
use thallus_fabric::count::CountedFabric;
use thallus_fabric::memory::{RegisteredSpace, thread_page_faults};
use thallus_fabric::observe::LoanObserver;
use thallus_fabric::process::{self, Presence};
use thallus_protocol::codec::FrameLimits;
use thallus_protocol::message::{ProcessId, ServerLimits, Thresholds};
use thallus_protocol::server::ServerConfig as MachineConfig;
use thallus_protocol::{ConnectionError, FabricKind, LinkTimeouts};
use thiserror::Error;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tracing::{Instrument, debug, info, info_span, warn};

use crate::config::ServerConfig;
use crate::engine::Engine;
use crate::session::{GroupLimits, Groups, OrphanedLoans, Shared, serve};

/// Leases at once on one connection: more than any window of reasonable batches needs, and one page of lease words.
const MAX_LEASES: u32 = 511;
/// After this an accept that failed for want of descriptors or memory is tried again.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// Memory that no batch lies in is kept for this long in case of more.
const IDLE_MEMORY: Duration = Duration::from_secs(30);
/// Beyond the drain timeout, for connections to close.
const CLOSE_GRACE: Duration = Duration::from_secs(15);

/// Where connections come from.
pub trait Listen: Send {
    /// A connection's bytes.
    type Io: ControlIo;

    /// The next connection, and who it is from, in words.
    fn accept(&mut self) -> impl Future<Output = io::Result<(Self::Io, String)>> + Send;
}

impl Listen for TcpListener {
    type Io = tokio::net::TcpStream;

    async fn accept(&mut self) -> io::Result<(Self::Io, String)> {
        let (stream, peer) = TcpListener::accept(self).await?;
        // Control messages are small and waited for.
        stream.set_nodelay(true)?;
        Ok((stream, peer.to_string()))
    }
}

/// What carries the data plane.
#[derive(Debug, Default)]
pub struct Fabrics {
    /// Those that work on this host.
    pub available: Vec<Arc<dyn Fabric>>,
    /// If there are none, why, for clients to hear.
    pub reason: String,
    /// Memory that one of them has registered, in which the engine's batches may lie: what lies there is not copied.
    pub registered: Option<Registered>,
}

/// Registered memory, and by which fabric.
#[derive(Clone, Debug)]
pub struct Registered {
    /// Peers reach the memory over this one.
    pub fabric: FabricKind,
    /// The memory.
    pub space: Arc<dyn RegisteredSpace>,
}

impl Fabrics {
    fn pool(&self, fabric: &Arc<CountedFabric>, settings: &Settings) -> Arc<LoanPool> {
        let ours = self.registered.as_ref().filter(|registered| registered.fabric == fabric.kind());
        let space = ours.map(|registered| Arc::clone(&registered.space));
        let (budget, clock) = (settings.max_loan_bytes_total, settings.clock);
        let pool = LoanPool::new(Arc::clone(fabric) as Arc<dyn Fabric>, space, budget, clock);
        Arc::new(pool.with_observer(settings.loan_observer.clone()))
    }
}

/// Limits and times of a server.
#[derive(Clone, Debug)]
pub struct Settings {
    /// What the server calls itself.
    pub name: String,
    /// Connections at once.
    pub max_connections: usize,
    /// Bytes on loan at once, to all clients.
    pub max_loan_bytes_total: u64,
    /// What one client may take.
    pub limits: ServerLimits,
    /// What queries in partitions may take.
    pub groups: GroupLimits,
    /// Longest control message.
    pub max_message_bytes: u32,
    /// Live bytes from which on a batch is lent.
    pub inline_threshold: u64,
    /// Times of control connections.
    pub timeouts: LinkTimeouts,
    /// How long a lease may be kept.
    pub lease_timeout: Duration,
    /// Bytes that the window of an upload may grow to.
    pub upload_window: u64,
    /// How long the one-sided reads of one batch of an upload may take.
    pub upload_read_timeout: Duration,
    /// How long running queries may go on once the server shuts down.
    pub drain_timeout: Duration,
    /// Whether clients on this host may map what they are lent, and so reach all of this process's registered memory.
    pub allow_mapped: bool,
    /// Entropy for lease words; a simulation puts its seed here.
    pub entropy: fn() -> u64,
    /// Says whether a client's process is there; a simulation has none, and says it itself.
    pub presence: fn(ProcessId) -> Presence,
    /// Page faults that the calling thread has taken so far. Their number goes out with a result's figures, and depends
    /// on what else the process has done: two runs of a simulation would differ in the length of that message.
    pub page_faults: fn() -> u64,
    /// The time since some moment, by which it is measured what registering a buffer costs on this host, and what
    /// copying it. `None`, as in simulations: buffers outside of registered memory are not copied where they can be
    /// registered.
    pub clock: Option<fn() -> Duration>,
    /// Told of every lease that begins and ends; a simulation checks reads against that.
    pub loan_observer: Option<Arc<dyn LoanObserver>>,
}

/// The time since this was first asked for.
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
    /// As configured.
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
            page_faults: thread_page_faults,
            clock: Some(running),
            loan_observer: None,
        }
    }

    fn machine(&self, fabrics: &Fabrics) -> MachineConfig {
        let frame = FrameLimits::default();
        let mut timeouts = self.timeouts;
        // A peer must be asked before it is taken for dead.
        timeouts.keepalive = timeouts.keepalive.min(timeouts.idle / 3);
        MachineConfig {
            name: self.name.clone(),
            fabrics: fabrics.available.iter().map(|fabric| fabric.kind()).collect(),
            no_fabric: fabrics.reason.clone(),
            limits: self.limits.clone(),
            frame: FrameLimits {
                message: frame.message.min(self.max_message_bytes),
                payload: frame.payload.min(self.max_message_bytes),
            },
            checksum: true,
            thresholds: Thresholds::same(self.inline_threshold),
            max_leases: MAX_LEASES,
            word_nonce: 0,
            timeouts,
            lease_timeout: self.lease_timeout,
            drain_timeout: self.drain_timeout,
            borrow: MachineConfig::borrowing(self.limits.max_loan_bytes, self.upload_read_timeout),
        }
    }
}

/// The listener is beyond use.
#[derive(Debug, Error)]
#[error("cannot accept connections any more: {0}")]
pub struct ServeError(#[from] io::Error);

/// Serves queries. Cheap to clone; all clones are the same server.
#[derive(Clone)]
pub struct Server {
    shared: Arc<Shared>,
    fabrics: Arc<[Arc<CountedFabric>]>,
    settings: Arc<Settings>,
    connections: Arc<AtomicUsize>,
    drain: Arc<watch::Sender<bool>>,
}

impl Server {
    /// A server of this engine's tables.
    #[must_use]
    pub fn new(engine: Arc<dyn Engine>, fabrics: Fabrics, settings: Settings) -> Self {
        let machine = settings.machine(&fabrics);
        let counted: Vec<_> =
            fabrics.available.iter().map(|fabric| Arc::new(CountedFabric::new(Arc::clone(fabric)))).collect();
        let pools = counted.iter().map(|fabric| fabrics.pool(fabric, &settings)).collect();
        Server {
            shared: Arc::new(Shared {
                engine,
                pools,
                machine,
                groups: Arc::new(Groups::new(settings.groups)),
                allow_mapped: settings.allow_mapped,
                upload_window: settings.upload_window,
                orphans: OrphanedLoans::new(settings.presence),
                page_faults: settings.page_faults,
            }),
            fabrics: counted.into(),
            settings: Arc::new(settings),
            connections: Arc::default(),
            drain: Arc::new(watch::Sender::new(false)),
        }
    }

    /// Connections being served.
    #[must_use]
    pub fn connections(&self) -> usize {
        self.connections.load(Ordering::Relaxed)
    }

    /// Queries that run in partitions now, or wait for partitions to be asked for.
    #[must_use]
    pub fn partitioned_queries(&self) -> usize {
        self.shared.groups.len()
    }

    /// Bytes of registered memory that are kept for loans to come: for copies, and of buffers that were lent from where
    /// they lie and may be again.
    #[must_use]
    pub fn kept_bytes(&self) -> usize {
        self.shared.pools.iter().map(|pool| pool.kept_bytes()).sum()
    }

    /// Registrations of memory with fabrics so far, for whatever purpose. Constant in steady state, but for the lease
    /// words of new connections.
    #[must_use]
    pub fn registrations(&self) -> u64 {
        self.fabrics.iter().map(|fabric| fabric.registrations()).sum()
    }

    /// Bytes on loan to all clients now, and in batches that are about to be lent; each batch rounded up to pages. Also
    /// what is kept for processes that have it mapped, and no connection any more.
    #[must_use]
    pub fn bytes_on_loan(&self) -> u64 {
        self.shared.pools.iter().map(|pool| pool.bytes_on_loan()).sum()
    }

    /// Takes no more work: what runs is finished, within the drain timeout, and connections close.
    pub fn drain(&self) {
        self.drain.send_replace(true);
    }

    /// Serves one connection until it ends.
    pub async fn handle<S: ControlIo>(&self, io: S) -> ConnectionError {
        let before = self.connections.fetch_add(1, Ordering::Relaxed);
        let _counted = Counted(&self.connections);
        let limit = self.settings.max_connections;
        let refused =
            (before >= limit).then(|| format!("the server serves {limit} connections at most; try again later"));
        if let Some(message) = &refused {
            warn!(%message, "connection refused");
        }
        serve(Arc::clone(&self.shared), io, (self.settings.entropy)(), refused, self.drain.subscribe()).await
    }

    /// Accepts connections until [`Server::drain`], then waits for them to end.
    ///
    /// # Errors
    /// [`ServeError`] if the listener itself is broken.
    pub async fn serve<L: Listen>(&self, mut listener: L) -> Result<(), ServeError> {
        let mut drained = self.drain.subscribe();
        let mut tasks = JoinSet::new();
        let mut tidying = tokio::time::interval(IDLE_MEMORY);
        loop {
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                _ = drained.wait_for(|drain| *drain) => break,
                _ = tidying.tick() => {
                    self.shared.pools.iter().for_each(|pool| pool.trim(IDLE_MEMORY));
                    continue;
                }
                Some(ended) = tasks.join_next() => {
                    if let Err(error) = ended {
                        tracing::error!(%error, "bug: a connection's task panicked");
                    }
                    continue;
                }
            };
            match accepted {
                Ok((io, peer)) => {
                    let (server, span) = (self.clone(), info_span!("connection", %peer));
                    let connection = async move {
                        info!("connected");
                        match server.handle(io).await {
                            ended @ ConnectionError::Peer(_) => warn!(%ended, "connection ended"),
                            ended => info!(%ended, "connection ended"),
                        }
                        let (registrations, kept) = (server.registrations(), server.kept_bytes());
                        debug!(registrations, kept, on_loan = server.bytes_on_loan(), "memory of all connections");
                        for pool in server.shared.pools.iter().filter(|pool| pool.registers_elsewhere()) {
                            debug!(?pool, "buffers outside of registered memory");
                        }
                    };
                    tasks.spawn(connection.instrument(span));
                }
                Err(error) => {
                    // Out of descriptors, or a connection that was gone before it was accepted: neither is for ever.
                    warn!(%error, "a connection could not be accepted");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
        drop(listener);
        info!(connections = tasks.len(), "draining");
        let all_ended = async { while tasks.join_next().await.is_some() {} };
        if tokio::time::timeout(self.settings.drain_timeout + CLOSE_GRACE, all_ended).await.is_err() {
            warn!("connections were still open when the drain timeout had passed");
        }
        Ok(())
    }
}

impl fmt::Debug for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Server").field("shared", &self.shared).field("connections", &self.connections).finish()
    }
}

/// A connection, counted while it lasts.
struct Counted<'a>(&'a AtomicUsize);

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}
