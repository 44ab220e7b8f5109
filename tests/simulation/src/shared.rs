//! The state that all parts of a run share.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use thallus_fabric::fault::FaultInjector;
use thallus_fabric_sim::{SimFabric, SimNetwork};
use thallus_scripted_engine::ScriptedEngine;
use thallus_server::Server;
use tokio::runtime::Handle;
use tokio::sync::mpsc;

use crate::connection_ends::ConnectionEnds;
use crate::ledger::Ledger;
use crate::links::{Links, Process};
use crate::options::Options;
use crate::scripts;
use crate::sockets::Sockets;
use crate::statements::CheckedEngine;
use crate::trace::Trace;

/// Turns of all tasks of a process between its continuing and its look at the sockets.
const TURNS: u32 = 4;
/// Port of the server.
pub const PORT: u16 = 7807;
/// The fabric of a process, which fails by plan.
pub type Faulty = Arc<FaultInjector<Arc<SimFabric>>>;

/// State that all parts of a run share.
pub struct Shared {
    /// Parameters of the run.
    pub options: Options,
    /// Trace of the run.
    pub trace: Trace,
    /// The data plane.
    pub network: SimNetwork,
    /// The ends of the control connections.
    pub connection_ends: ConnectionEnds,
    /// The control connections.
    pub links: Links,
    /// The server's engine, which survives restarts of the server.
    pub engine: ScriptedEngine,
    /// The same engine, which checks what it receives.
    pub checked_engine: CheckedEngine,
    /// Batches that the engine has made for queries without credit.
    pub unpaid_batches: Arc<AtomicU64>,
    /// The address of a client that reads nothing.
    deaf: Mutex<Option<IpAddr>>,
    /// Uploads of the clients.
    pub ledger: Ledger,
    uploads: AtomicU64,
    flipped: AtomicBool,
    healed: AtomicBool,
    state: Mutex<State>,
}

/// A jump of a process's clock.
#[derive(Clone, Copy, Debug)]
pub struct Jump {
    /// Its distance.
    pub by: Duration,
    /// The process, if it has stood still meanwhile.
    pub stood_still: Option<Process>,
}

/// The processes of the run.
#[derive(Default)]
pub struct State {
    pub server: Option<Server>,
    pub server_fabric: Option<Faulty>,
    /// Runtimes of the processes, by name. Their tasks must end.
    pub handles: BTreeMap<String, Handle>,
    pub jumps: BTreeMap<String, mpsc::UnboundedSender<Jump>>,
    pub client_fabrics: BTreeMap<usize, Faulty>,
    pub lives: BTreeMap<String, u64>,
    pub sockets: BTreeMap<String, Sockets>,
    pub finished: BTreeMap<usize, bool>,
}

impl Shared {
    /// The state at the beginning of a run.
    pub fn new(options: Options, trace: Trace) -> Self {
        let unpaid_batches = Arc::default();
        let engine = scripts::engine(&options.scripts, Arc::clone(&unpaid_batches));
        Shared {
            trace,
            network: SimNetwork::new(options.seed, options.network.clone()),
            connection_ends: ConnectionEnds::default(),
            links: Links::default(),
            checked_engine: CheckedEngine::new(engine.clone()),
            engine,
            unpaid_batches,
            deaf: Mutex::default(),
            ledger: Ledger::default(),
            uploads: AtomicU64::new(0),
            flipped: AtomicBool::new(false),
            healed: AtomicBool::new(false),
            state: Mutex::default(),
            options,
        }
    }

    /// Records that faults are over.
    pub fn heal(&self) {
        self.healed.store(true, Ordering::Relaxed);
    }

    /// Whether faults are over.
    pub fn is_healed(&self) -> bool {
        self.healed.load(Ordering::Relaxed)
    }

    /// Sets the client that reads nothing. The server's writes to it wait, as those to a full socket do: the simulated
    /// network has no window.
    pub fn set_deaf(&self, client: Option<IpAddr>) {
        *self.deaf.lock().unwrap_or_else(PoisonError::into_inner) = client;
    }

    /// Returns whether the client of this address reads nothing.
    pub fn is_deaf(&self, client: IpAddr) -> bool {
        *self.deaf.lock().unwrap_or_else(PoisonError::into_inner) == Some(client)
    }

    /// Records that a bit was flipped in transit.
    pub fn flip(&self) {
        self.flipped.store(true, Ordering::Relaxed);
    }

    /// Whether a bit has been flipped in this run.
    pub fn has_flipped(&self) -> bool {
        self.flipped.load(Ordering::Relaxed)
    }

    /// A number for an upload, unique in the run.
    pub fn next_upload(&self) -> u64 {
        self.uploads.fetch_add(1, Ordering::Relaxed)
    }

    /// Collects the uploads that the engine has kept since the last call.
    pub fn collect_uploads(&self) {
        self.ledger.collect(&self.engine, &self.trace);
    }

    /// Records that a client has all its results after the end of the faults.
    pub fn finished(&self, client: usize) {
        self.lock().finished.insert(client, true);
    }

    /// The processes.
    pub fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The sockets of the process of this name.
    pub fn sockets(&self, name: &str) -> Sockets {
        self.lock().sockets.entry(name.to_owned()).or_default().clone()
    }

    /// Records the start of the process of this name. Returns the number of its starts so far.
    pub fn record_start(&self, name: &str) -> u64 {
        let (jump, mut jumps) = mpsc::unbounded_channel();
        let links = self.links.clone();
        tokio::task::spawn_local(async move {
            while let Some(Jump { by, stood_still }) = jumps.recv().await {
                tokio::time::advance(by).await;
                let Some(process) = stood_still else { continue };
                // Timers wake their tasks before the runtime has looked at its sockets, as after a stop.
                for _ in 0..TURNS {
                    tokio::task::yield_now().await;
                }
                links.go_on(process);
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
