//! One run: a server, its clients, and what is done to them.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, UNIX_EPOCH};

use thallus_fabric::{Fabric, STANDING_LEASE};
use thallus_fabric::fault::FaultInjector;
use thallus_fabric_sim::core::{EndpointId, HostId, What};
use thallus_fabric_sim::{SimFabric, SimNetwork};
use thallus_protocol::LeaseId;
use thallus_protocol::message::ServerLimits;
use thallus_protocol::planted::{Bug, plant};
use thallus_server::config::ServerConfig;
use thallus_server::engine::scripted::ScriptedEngine;
use thallus_server::{Fabrics, Listen, Server, Settings};
use tokio::runtime::Handle;
use tokio::sync::mpsc;
use turmoil::net::TcpListener;
use turmoil::{Builder, Sim};

use crate::app::App;
use crate::dice::Dice;
use crate::hostile;
use crate::options::{Fault, Options, Timed};
use crate::scripts;
use crate::trace::{Counts, Listener, Trace};
use crate::wire::{Gates, Side, Wire};

/// Where the server listens.
pub const PORT: u16 = 7807;
const TICK: Duration = Duration::from_millis(2);
/// After the heal, all clients must have been answered by then, and then all be at rest.
const LIVENESS: Duration = Duration::from_secs(60);

type Faulty = Arc<FaultInjector<Arc<SimFabric>>>;

/// What everything in a run shares.
pub struct Shared {
    /// Of the run.
    pub options: Options,
    /// Of the run.
    pub trace: Trace,
    /// The data plane.
    pub network: SimNetwork,
    /// The control connections' ends.
    pub gates: Gates,
    /// The server's, in all its lives.
    pub engine: ScriptedEngine,
    healed: AtomicBool,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    server: Option<Server>,
    server_fabric: Option<Faulty>,
    /// By name: whose tasks must end.
    handles: BTreeMap<String, Handle>,
    jumps: BTreeMap<String, mpsc::UnboundedSender<Duration>>,
    client_fabrics: BTreeMap<usize, Faulty>,
    lives: BTreeMap<String, u64>,
    finished: BTreeMap<usize, bool>,
}

impl Shared {
    /// Whether faults are over.
    pub fn is_healed(&self) -> bool {
        self.healed.load(Ordering::Relaxed)
    }

    /// A client has been answered after the heal.
    pub fn finished(&self, client: usize) {
        self.lock().finished.insert(client, true);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A process of this name starts: which of its lives it is.
    pub fn born(&self, name: &str) -> u64 {
        let (jump, mut jumps) = mpsc::unbounded_channel();
        tokio::task::spawn_local(async move {
            while let Some(by) = jumps.recv().await {
                tokio::time::advance(by).await;
            }
        });
        let mut state = self.lock();
        state.handles.insert(name.to_owned(), Handle::current());
        state.jumps.insert(name.to_owned(), jump);
        let life = state.lives.entry(name.to_owned()).or_default();
        *life += 1;
        self.trace.line(name, &format_args!("begins its life {life}"));
        *life
    }
}

thread_local! {
    static ENTROPY: RefCell<Dice> = RefCell::new(Dice::new(0, 0));
}

fn entropy() -> u64 {
    ENTROPY.with_borrow_mut(|dice| u64::from(dice.within(0, u32::MAX)) << 32 | u64::from(dice.within(0, u32::MAX)))
}

/// The server's listener.
struct Listener7807 {
    listener: TcpListener,
    shared: Arc<Shared>,
    accepted: u64,
}

impl Listen for Listener7807 {
    type Io = Wire;

    async fn accept(&mut self) -> io::Result<(Wire, String)> {
        let (stream, peer) = self.listener.accept().await?;
        self.accepted += 1;
        let options = &self.shared.options;
        let dice = Dice::new(options.seed, self.accepted | 1 << 41);
        let key = (peer.ip(), Side::Server);
        let wire = Wire::new(stream, Arc::clone(&self.shared), options.server_wire, dice, key, None);
        Ok((wire, peer.to_string()))
    }
}

async fn server(shared: Arc<Shared>) -> turmoil::Result {
    let life = shared.born("server");
    let options = &shared.options;
    let mut fabrics = Fabrics { available: Vec::new(), reason: "the server of this run has no fabric".into() };
    if options.server_fabric {
        let plan = options.server_faults.plan(options.seed ^ life);
        let fabric = Arc::new(FaultInjector::new(shared.network.host(), plan));
        fabrics.available.push(Arc::clone(&fabric) as Arc<dyn Fabric>);
        if shared.is_healed() {
            fabric.stop();
        }
        shared.lock().server_fabric = Some(fabric);
    }
    let mut settings = Settings::new(&ServerConfig::default());
    settings.limits = ServerLimits {
        max_streams: options.max_streams,
        max_loan_bytes: options.max_loan_bytes,
        max_sql_bytes: 1 << 16,
    };
    settings.max_loan_bytes_total = options.max_loan_total;
    settings.max_connections = options.max_connections;
    settings.timeouts = options.timeouts;
    settings.lease_timeout = options.lease_timeout;
    settings.drain_timeout = Duration::from_millis(300);
    settings.entropy = entropy;
    let server = Server::new(Arc::new(shared.engine.clone()), fabrics, settings);
    shared.lock().server = Some(server.clone());
    let listener = TcpListener::bind((IpAddr::from(Ipv4Addr::UNSPECIFIED), PORT)).await?;
    server.serve(Listener7807 { listener, shared: Arc::clone(&shared), accepted: life << 32 }).await?;
    shared.trace.line("server", &"has drained");
    Ok(())
}

async fn client(shared: Arc<Shared>, index: usize) -> turmoil::Result {
    let name = client_name(index);
    let life = shared.born(&name);
    let plan = shared.options.client_faults.plan(shared.options.seed ^ (index as u64 + 1) << 32 ^ life);
    let fabric = Arc::new(FaultInjector::new(shared.network.host(), plan));
    if shared.is_healed() {
        fabric.stop();
    }
    shared.lock().client_fabrics.insert(index, Arc::clone(&fabric));
    App::new(shared, index, life, fabric).run().await;
    // A host whose software has returned stands still, and with it what its connections still have to do.
    std::future::pending().await
}

fn client_name(index: usize) -> String {
    format!("client-{index}")
}

/// What came of a run.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// The seed.
    pub seed: u64,
    /// What was wrong first.
    pub failure: Option<String>,
    /// The last events; all of them, if that was asked for.
    pub lines: Vec<String>,
    /// Of all lines.
    pub hash: u64,
    /// How many there were.
    pub events: u64,
    /// How often what happened.
    pub counts: Counts,
    /// Time that passed for server and clients.
    pub simulated: Duration,
}

/// Runs a seed, with a bug planted or not.
#[must_use]
pub fn run(seed: u64, bug: Option<Bug>, whole_trace: bool) -> Outcome {
    run_options(Options::draw(seed), bug, whole_trace)
}

/// Runs these options.
#[must_use]
pub fn run_options(options: Options, bug: Option<Bug>, whole_trace: bool) -> Outcome {
    let trace = Trace::new(whole_trace);
    let seed = options.seed;
    plant(bug);
    let simulated = tracing::subscriber::with_default(Listener(trace.clone()), || {
        let ran = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| World::new(options, trace.clone()).run()));
        ran.unwrap_or_else(|panic| {
            let said = panic.downcast_ref::<String>().cloned();
            let said = said.or_else(|| panic.downcast_ref::<&str>().map(|&said| said.to_owned()));
            let place = crate::panics::take().or(said).unwrap_or_default();
            trace.violated("nothing panics", place);
            Duration::ZERO
        })
    });
    plant(None);
    let (hash, events, counts) = trace.summary();
    Outcome { seed, failure: trace.failure(), lines: trace.lines(), hash, events, counts, simulated }
}

struct World {
    sim: Sim<'static>,
    shared: Arc<Shared>,
    /// What is undone when.
    undo: Vec<(Duration, Fault, usize)>,
    faults: Vec<Timed>,
    /// What is on loan, by lender.
    loans: BTreeMap<EndpointId, BTreeMap<LeaseId, u64>>,
    violations: usize,
}

impl World {
    fn new(options: Options, trace: Trace) -> Self {
        ENTROPY.set(Dice::new(options.seed, 7));
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
        let shared = Arc::new(Shared {
            trace,
            network: SimNetwork::new(options.seed, options.network.clone()),
            gates: Gates::default(),
            engine: scripts::engine(&options.scripts),
            healed: AtomicBool::new(false),
            state: Mutex::default(),
            options,
        });
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
        let heal_at = self.shared.options.heal_at;
        while self.sim.elapsed() < heal_at && self.step() {
            self.strike();
        }
        self.heal();
        let until = self.sim.elapsed() + LIVENESS;
        let clients = self.shared.options.clients;
        while self.shared.lock().finished.len() < clients {
            // One that drained when all was healed.
            self.start_server();
            if !self.step() {
                break;
            }
            if self.sim.elapsed() > until {
                self.shared.trace.violated("once healed, all ends well", "a client is not done");
                break;
            }
        }
        let until = self.sim.elapsed() + LIVENESS;
        while let Some(left) = self.left_over() {
            if !self.step() {
                break;
            }
            if self.sim.elapsed() > until {
                self.shared.trace.violated("nothing is left over", left);
                break;
            }
        }
        self.count();
        self.sim.elapsed()
    }

    /// One step of everything. `false`: something is wrong.
    fn step(&mut self) -> bool {
        if let Err(error) = self.sim.step() {
            self.shared.trace.violated("no process fails", error);
        }
        let trace = &self.shared.trace;
        trace.set_now(u64::try_from(self.sim.elapsed().as_millis()).unwrap_or(u64::MAX));
        for event in self.shared.network.take_events() {
            trace.line("network", &format_args!("{:?} {:?}", event.endpoint, event.what));
            match event.what {
                What::Lent(lease, bytes) if ![STANDING_LEASE, hostile::LIARS_LEASE].contains(&lease) => {
                    trace.count("lease", "opened");
                    let loans = self.loans.entry(event.endpoint).or_default();
                    loans.insert(lease, bytes);
                    let (on_loan, limit) = (loans.values().sum::<u64>(), self.shared.options.max_loan_bytes);
                    if on_loan > limit {
                        trace.violated("bytes on loan <= limit", format!("{on_loan} > {limit} at {lease:?}"));
                    }
                }
                What::Ended(lease, end) => {
                    trace.count("lease", format!("{end:?}"));
                    self.loans.entry(event.endpoint).or_default().remove(&lease);
                    if self.shared.options.calm && matches!(end, thallus_protocol::LeaseEnd::Revoked) {
                        trace.violated("calm runs go well", format!("{lease:?} was not given back in time"));
                    }
                }
                _ => {}
            }
        }
        let violations = self.shared.network.violations();
        for violation in &violations[self.violations..] {
            let hostile = self.shared.options.hostile.1;
            // What a hostile server exposes, its victim may read in vain.
            if !hostile {
                let how = format!("{:?} by {:?}", violation.access, violation.reader);
                trace.violated("only what is on loan is read, and it does not change", how);
            }
        }
        self.violations = violations.len();
        trace.failure().is_none()
    }

    /// Faults whose time has come, and the end of those whose time is over.
    fn strike(&mut self) {
        let now = self.sim.elapsed();
        let (over, left): (Vec<_>, Vec<_>) = std::mem::take(&mut self.undo).into_iter().partition(|(at, ..)| *at <= now);
        self.undo = left;
        for (_, fault, client) in over {
            self.undo_fault(fault, client);
        }
        while let Some(&Timed { at, fault, client, lasts }) = self.faults.first().filter(|timed| timed.at <= now) {
            self.faults.remove(0);
            self.shared.trace.line("FAULT", &format_args!("{fault:?} of client {client} for {lasts:?}"));
            self.shared.trace.count("fault", format!("{fault:?}"));
            self.do_fault(fault, client, lasts);
            self.undo.push((at + lasts, fault, client));
        }
    }

    fn client_host(&self, client: usize) -> Option<HostId> {
        self.shared.lock().client_fabrics.get(&client).map(|fabric| fabric.inner().id())
    }

    fn server_host(&self) -> Option<HostId> {
        self.shared.lock().server_fabric.as_ref().map(|fabric| fabric.inner().id())
    }

    fn set_path(&self, client: usize, open: bool) {
        if let (Some(reader), Some(lender)) = (self.client_host(client), self.server_host()) {
            self.shared.network.set_path(reader, lender, open);
        }
    }

    fn do_fault(&mut self, fault: Fault, client: usize, lasts: Duration) {
        let name = client_name(client);
        let ip = self.sim.lookup(name.as_str());
        let network = self.shared.network.clone();
        match fault {
            Fault::Partition => self.sim.partition(name.as_str(), "server"),
            Fault::OneWayToServer => self.sim.partition_oneway(name.as_str(), "server"),
            Fault::OneWayToClient => self.sim.partition_oneway("server", name.as_str()),
            Fault::Hold => self.sim.hold(name.as_str(), "server"),
            Fault::Latency => self.sim.set_link_max_message_latency(name.as_str(), "server", lasts.min(Duration::from_millis(200))),
            Fault::Reset => [Side::Server, Side::Client].into_iter().for_each(|side| self.shared.gates.reset(ip, side)),
            Fault::ControlCutAtServer => {
                self.sim.partition_oneway("server", name.as_str());
                self.shared.gates.reset(ip, Side::Server);
            }
            Fault::ControlCutAtClient => {
                self.sim.partition_oneway(name.as_str(), "server");
                self.shared.gates.reset(ip, Side::Client);
            }
            Fault::DataCut => self.set_path(client, false),
            Fault::BothCut => {
                self.sim.partition(name.as_str(), "server");
                self.set_path(client, false);
            }
            Fault::ClientFabricDies => {
                if let Some(host) = self.client_host(client) {
                    network.crash(host);
                }
            }
            Fault::ServerFabricDies => {
                if let Some(host) = self.server_host() {
                    network.crash(host);
                }
            }
            Fault::ClientCrash => {
                if let Some(host) = self.client_host(client) {
                    network.crash(host);
                }
                self.sim.crash(name.as_str());
            }
            Fault::ServerCrash | Fault::ServerPowerLoss => {
                if fault == Fault::ServerPowerLoss {
                    (0..self.shared.options.clients)
                        .for_each(|other| self.sim.partition(client_name(other).as_str(), "server"));
                }
                if let Some(host) = self.server_host() {
                    network.crash(host);
                }
                self.forget_server();
                self.sim.crash("server");
            }
            Fault::ServerDrains => {
                if let Some(server) = &self.shared.lock().server {
                    server.drain();
                }
            }
            Fault::ClientClockJumps | Fault::ServerClockJumps => {
                let who = if fault == Fault::ClientClockJumps { name } else { "server".to_owned() };
                if let Some(jumps) = self.shared.lock().jumps.get(&who) {
                    // A process that is down has no clock.
                    let _down = jumps.send(lasts);
                }
            }
        }
    }

    /// The server's process is gone, and its loans with it.
    fn forget_server(&mut self) {
        self.loans.clear();
        let mut state = self.shared.lock();
        let (server, fabric) = (state.server.take(), state.server_fabric.take());
        drop(state);
        self.count_strikes(fabric.as_ref());
        drop(server);
    }

    fn undo_fault(&mut self, fault: Fault, client: usize) {
        let name = client_name(client);
        self.shared.trace.line("FAULT", &format_args!("{fault:?} of client {client} is over"));
        match fault {
            Fault::Partition | Fault::ControlCutAtServer | Fault::ControlCutAtClient => self.sim.repair(name.as_str(), "server"),
            Fault::OneWayToServer => self.sim.repair_oneway(name.as_str(), "server"),
            Fault::OneWayToClient => self.sim.repair_oneway("server", name.as_str()),
            Fault::Hold => self.sim.release(name.as_str(), "server"),
            Fault::Latency => self.sim.set_link_max_message_latency(name.as_str(), "server", self.shared.options.latency.1),
            Fault::DataCut => self.set_path(client, true),
            Fault::BothCut => {
                self.sim.repair(name.as_str(), "server");
                self.set_path(client, true);
            }
            Fault::ClientCrash => {
                if !self.sim.is_host_running(name.as_str()) {
                    self.sim.bounce(name.as_str());
                }
            }
            Fault::ServerCrash | Fault::ServerPowerLoss | Fault::ServerDrains => {
                (0..self.shared.options.clients).for_each(|other| self.sim.repair(client_name(other).as_str(), "server"));
                self.start_server();
            }
            _ => {}
        }
    }

    fn start_server(&mut self) {
        if !self.sim.is_host_running("server") {
            self.forget_server();
            self.sim.bounce("server");
        }
    }

    /// From now on everything works.
    fn heal(&mut self) {
        for (_, fault, client) in std::mem::take(&mut self.undo) {
            self.undo_fault(fault, client);
        }
        for index in 0..self.shared.options.clients {
            let name = client_name(index);
            self.sim.release(name.as_str(), "server");
            self.sim.repair(name.as_str(), "server");
            self.set_path(index, true);
            if !self.sim.is_host_running(name.as_str()) && !self.shared.lock().finished.contains_key(&index) {
                self.sim.bounce(name.as_str());
            }
        }
        self.start_server();
        self.shared.network.change(|options| {
            options.straggler_one_in = 0;
            options.early_one_in = 0;
            // Fast enough for the shortest lease.
            options.latency = 0..=2;
            options.completion_lag = 0..=1;
            options.bytes_per_step = 0;
            options.max_outstanding_reads = 16;
            options.max_read = 1 << 30;
            options.max_registered = 1 << 36;
        });
        self.shared.healed.store(true, Ordering::Relaxed);
        let state = self.shared.lock();
        state.client_fabrics.values().chain(&state.server_fabric).for_each(|fabric| fabric.stop());
        drop(state);
        self.shared.trace.line("FAULT", &"none any more");
    }

    /// What is still there although nobody wants anything any more.
    fn left_over(&self) -> Option<String> {
        let state = self.shared.lock();
        let engine = &self.shared.engine;
        if engine.running() > 0 {
            return Some(format!("{} queries run", engine.running()));
        }
        let busy = state.handles.iter().find(|(_, handle)| handle.metrics().num_alive_tasks() > 0);
        if let Some((name, handle)) = busy {
            return Some(format!("{} tasks of {name}", handle.metrics().num_alive_tasks()));
        }
        if let Some(server) = &state.server {
            if server.connections() > 0 {
                return Some(format!("{} connections at the server", server.connections()));
            }
            if server.bytes_on_loan() > 0 {
                return Some(format!("{} bytes of the server's loan budget", server.bytes_on_loan()));
            }
            if let Some(fabric) = &state.server_fabric {
                let (registered, staged) = (fabric.inner().registered_bytes(), server.staged_bytes());
                if registered != staged {
                    return Some(format!("{registered} bytes registered at the server, {staged} of them for staging"));
                }
            }
        }
        for (index, fabric) in &state.client_fabrics {
            if fabric.inner().registered_bytes() > 0 {
                return Some(format!("{} bytes registered at client {index}", fabric.inner().registered_bytes()));
            }
        }
        if let Some((endpoint, loans)) = self.loans.iter().find(|(_, loans)| !loans.is_empty()) {
            return Some(format!("leases of {endpoint:?}: {:?}", loans.keys()));
        }
        None
    }

    fn count_strikes(&self, fabric: Option<&Faulty>) {
        for (strike, times) in fabric.iter().flat_map(|fabric| fabric.strikes()) {
            self.shared.trace.count_many("strike", format!("{strike:?}"), times);
        }
    }

    fn count(&self) {
        let state = self.shared.lock();
        state.client_fabrics.values().chain(&state.server_fabric).for_each(|fabric| self.count_strikes(Some(fabric)));
        let stats = self.shared.network.stats();
        let carried = [
            ("reads", stats.reads),
            ("late reads", stats.late),
            ("stragglers", stats.stragglers),
            ("completions before their bytes", stats.early),
            ("endpoints without a path", stats.retry_exceeded),
        ];
        carried.into_iter().for_each(|(what, times)| self.shared.trace.count_many("network", what, times));
    }
}
