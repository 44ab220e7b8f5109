//! One run: a server, its clients, and the faults.

mod checks;
mod faults;

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use thallus_fabric::Fabric;
use thallus_fabric::fault::FaultInjector;
use thallus_fabric::process::Presence;
use thallus_fabric_sim::core::{EndpointId, HostId};
use thallus_protocol::LeaseId;
use thallus_protocol::message::{ProcessId, ServerLimits};
use thallus_server::{Fabrics, Listen, Server, Settings};
use turmoil::net::TcpListener;
use turmoil::{Builder, Sim};

use crate::app::App;
use crate::connection_ends::Side;
use crate::dice::Dice;
use crate::hostile;
use crate::options::{Fault, Options, Streams, TimedFault};
use crate::planted::{Bug, plant};
use crate::shared::{PORT, Shared};
use crate::trace::{Counts, LogRecorder, Trace};
use crate::wire::Wire;

const TICK: Duration = Duration::from_millis(2);
/// Time limit after the end of all faults: until then every client must have its results, and then all must be at rest.
const LIVENESS: Duration = Duration::from_secs(60);

thread_local! {
    static ENTROPY: RefCell<Dice> = RefCell::new(Dice::new(0, 0));
}

/// The current life of each client's process, by process id.
type Lives = BTreeMap<u32, u64>;

thread_local! {
    static LIVES: RefCell<Lives> = const { RefCell::new(Lives::new()) };
}

fn presence(process: ProcessId) -> Presence {
    let is_there = LIVES.with_borrow(|lives| lives.get(&process.pid) == Some(&process.started));
    if is_there { Presence::Running } else { Presence::Ended }
}

/// Registers the process of a client that has just started.
fn process(index: usize, life: u64) -> ProcessId {
    let pid = index as u32 + 1;
    LIVES.with_borrow_mut(|lives| lives.insert(pid, life));
    ProcessId { pid, started: life }
}

/// Removes the process of a client.
fn process_ends(index: usize) {
    LIVES.with_borrow_mut(|lives| lives.remove(&(index as u32 + 1)));
}

fn entropy() -> u64 {
    ENTROPY.with_borrow_mut(|dice| u64::from(dice.within(0, u32::MAX)) << 32 | u64::from(dice.within(0, u32::MAX)))
}

/// The server's listener.
struct Port {
    listener: TcpListener,
    shared: Arc<Shared>,
    accepted: u64,
}

impl Listen for Port {
    type Io = Wire;

    async fn accept(&mut self) -> io::Result<(Wire, String)> {
        let (stream, peer) = self.listener.accept().await?;
        self.accepted += 1;
        let options = &self.shared.options;
        let dice = Dice::new(options.seed, self.accepted | 1 << 41);
        let end = (peer, Side::Server);
        let io = self.shared.sockets("server").open(stream);
        let wire = Wire::new(io, Arc::clone(&self.shared), options.server_wire, dice, end, None);
        Ok((wire, peer.to_string()))
    }
}

async fn server(shared: Arc<Shared>) -> turmoil::Result {
    let life = shared.record_start("server");
    let options = &shared.options;
    let mut fabrics = Fabrics { reason: "the server of this run has no fabric".into(), ..Fabrics::default() };
    if options.server_fabric {
        let plan = options.server_faults.plan(options.seed ^ life);
        let fabric = Arc::new(FaultInjector::new(shared.network.host(), plan));
        fabrics.available.push(Arc::clone(&fabric) as Arc<dyn Fabric>);
        if shared.is_healed() {
            fabric.stop();
        }
        shared.lock().server_fabric = Some(fabric);
    }
    let limits = ServerLimits {
        max_streams: options.max_streams,
        max_loan_bytes: options.max_loan_bytes,
        max_sql_bytes: 1 << 16,
    };
    let mut settings = Settings {
        limits,
        max_loan_bytes_total: options.max_loan_total,
        max_connections: options.max_connections,
        budget_of_peer: Options::BUDGET,
        timeouts: options.timeouts,
        lease_timeout: options.lease_timeout,
        drain_timeout: Duration::from_millis(300),
        upload_window: options.upload_window,
        upload_read_timeout: options.read_timeout,
        entropy,
        allow_mapped: true,
        presence,
        // Every client sends the id of its own process.
        is_peer: |_, _| true,
        // The real count is that of the whole test process, with everything that it has done before.
        page_faults: || 0,
        clock: None,
        loan_observer: Some(Arc::new(shared.network.clone())),
        ..Settings::default()
    };
    settings.groups.rendezvous = options.timeouts.handshake;
    let server = Server::new(Arc::new(shared.checked_engine.clone()), fabrics, settings);
    shared.lock().server = Some(server.clone());
    let listener = TcpListener::bind((IpAddr::from(Ipv4Addr::UNSPECIFIED), PORT)).await?;
    server.serve(Port { listener, shared: Arc::clone(&shared), accepted: life << 32 }).await?;
    shared.trace.line("server", &"has drained");
    Ok(())
}

async fn client(shared: Arc<Shared>, index: usize) -> turmoil::Result {
    let name = client_name(index);
    let life = shared.record_start(&name);
    let plan = shared.options.client_faults.plan(shared.options.seed ^ (index as u64 + 1) << 32 ^ life);
    let fabric = Arc::new(FaultInjector::new(shared.network.host(), plan));
    if shared.is_healed() {
        fabric.stop();
    }
    shared.lock().client_fabrics.insert(index, Arc::clone(&fabric));
    let process = process(index, life);
    App::new(shared, index, life, fabric, process).run().await;
    // The future must not end: a turmoil host whose software has returned no longer runs the tasks of its connections.
    std::future::pending().await
}

fn client_name(index: usize) -> String {
    format!("client-{index}")
}

/// Result of a run.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// The seed.
    pub seed: u64,
    /// The first violation.
    pub failure: Option<String>,
    /// The last lines of the trace; all lines if the whole trace was requested.
    pub lines: Vec<String>,
    /// Hash of all lines.
    pub hash: u64,
    /// Number of lines.
    pub events: u64,
    /// Number of occurrences of each event.
    /// How often what happened.
    pub counts: Counts,
    /// Simulated time.
    pub simulated: Duration,
}

/// Runs a seed, with a bug planted or not.
#[must_use]
pub fn run(seed: u64, streams: Streams, bug: Option<Bug>, whole_trace: bool) -> Outcome {
    let trace = Trace::new(whole_trace);
    plant(bug);
    let simulated = tracing::subscriber::with_default(LogRecorder(trace.clone()), || {
        let ran = crate::panics::run_recorded(|| World::new(Options::draw(seed, streams), trace.clone()).run());
        ran.unwrap_or_else(|panic| {
            let said = panic.downcast_ref::<String>().cloned();
            let said = said.or_else(|| panic.downcast_ref::<&str>().map(|&said| said.to_owned()));
            let place = crate::panics::take_last().or(said).unwrap_or_default();
            trace.violation("nothing panics", place);
            Duration::ZERO
        })
    });
    plant(None);
    let (hash, events, counts) = trace.summary();
    Outcome { seed, failure: trace.failure(), lines: trace.lines(), hash, events, counts, simulated }
}

impl Drop for World {
    fn drop(&mut self) {
        // All tasks are dropped now, in no particular order.
        self.shared.trace.set_muted(true);
    }
}

/// The loans of one endpoint.
#[derive(Default)]
struct Loans {
    host: Option<HostId>,
    bytes: BTreeMap<LeaseId, u64>,
}

struct World {
    sim: Sim<'static>,
    shared: Arc<Shared>,
    /// Faults to be undone, with their times and clients.
    undo: Vec<(Duration, Fault, usize)>,
    faults: Vec<TimedFault>,
    /// Loans by lender.
    loans: BTreeMap<EndpointId, Loans>,
    violations: usize,
}

impl World {
    fn new(options: Options, trace: Trace) -> Self {
        ENTROPY.set(Dice::new(options.seed, 7));
        LIVES.set(Lives::new());
        let mut builder = Builder::new();
        builder
            .rng_seed(options.seed)
            .epoch(UNIX_EPOCH)
            .tick_duration(TICK)
            .simulation_duration(Duration::from_secs(3600))
            .min_message_latency(options.latency.0)
            .max_message_latency(options.latency.1)
            .tcp_capacity(1 << 16);
        let mut sim = builder.build();
        trace.line("options", &format_args!("{options:?}"));
        let shared = Arc::new(Shared::new(options, trace));
        let of_server = Arc::clone(&shared);
        sim.host("server", move || server(Arc::clone(&of_server)));
        for index in 0..shared.options.clients {
            let of_client = Arc::clone(&shared);
            sim.host(client_name(index), move || client(Arc::clone(&of_client), index));
        }
        hostile::add(&mut sim, &shared);
        let faults = shared.options.faults.clone();
        World { sim, shared, undo: Vec::new(), faults, loans: BTreeMap::new(), violations: 0 }
    }

    fn run(mut self) -> Duration {
        let faults_end_at = self.shared.options.faults_end_at;
        while self.sim.elapsed() < faults_end_at && self.step() {
            self.start_due_faults();
        }
        self.heal();
        let until = self.sim.elapsed() + LIVENESS;
        let clients = self.shared.options.clients;
        while self.shared.lock().finished.len() < clients {
            // The server may have drained when the faults ended.
            self.start_server();
            if !self.step() {
                break;
            }
            if self.sim.elapsed() > until {
                self.shared.trace.violation("once healed, all ends well", "a client is not done");
                break;
            }
        }
        // The processes of finished clients end here. Only then does a server that has lost its connection free mapped
        // memory.
        (0..clients).for_each(process_ends);
        let until = self.sim.elapsed() + LIVENESS;
        while let Some(left) = self.unreleased_resources() {
            self.start_server();
            if !self.step() {
                break;
            }
            if self.sim.elapsed() > until {
                self.shared.trace.violation("nothing is left over", left);
                break;
            }
        }
        self.count();
        self.sim.elapsed()
    }
}
