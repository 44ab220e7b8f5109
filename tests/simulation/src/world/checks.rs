//! Invariants that are checked after every step, and at the end of a run.

use std::sync::atomic::Ordering;
use std::time::Duration;

use thallus_fabric::STANDING_LEASE;
use thallus_fabric_sim::core::EventKind;
use thallus_protocol::LeaseEnd;
use tokio::runtime::Handle;

use super::World;
use crate::connection_ends::Side;
use crate::hostile;
use crate::scripts::UNPAID;
use crate::shared::Faulty;

/// Most time between the idle timeout of an end and the close of its socket. It waits a second for the peer to close.
const SLACK: Duration = Duration::from_millis(1600);

impl World {
    /// Advances the simulation by one step. `false` means that a check has failed.
    pub(super) fn step(&mut self) -> bool {
        if let Err(error) = self.sim.step() {
            self.shared.trace.violation("no process fails", error);
        }
        self.shared.trace.set_now(u64::try_from(self.sim.elapsed().as_millis()).unwrap_or(u64::MAX));
        self.collect_network_events();
        self.shared.collect_uploads();
        self.check_half_dead_link();
        self.check_server();
        self.shared.trace.failure().is_none()
    }

    /// Both ends of a link that is dead in one direction must end their connections after their idle timeouts.
    fn check_half_dead_link(&self) {
        let options = &self.shared.options;
        let limit = |side| SLACK + if side == Side::Server { options.timeouts.idle } else { options.client_idle };
        if let Some(((client, side), age)) = self.shared.links.unnoticed(self.sim.elapsed(), limit) {
            let how = format!("the {} of {client} holds its connection since {age:?}", side.name());
            self.shared.trace.violation("both ends notice a half-dead link", how);
        }
    }

    /// Checks what the server has asked of the engine, and the memory that it keeps for each client.
    fn check_server(&self) {
        let trace = &self.shared.trace;
        if self.shared.unpaid_batches.load(Ordering::Relaxed) > 0 {
            trace.violation("no batch is made before the first credit", UNPAID);
        }
        if let Some(difference) = self.shared.checked_engine.difference() {
            trace.violation("statements arrive as they were sent", difference);
        }
        let limit = self.shared.options.most_held_bytes();
        let server = self.shared.lock().server.clone();
        let most = server.and_then(|server| server.held_bytes().into_iter().max()).unwrap_or(0);
        if most > limit {
            trace.violation("bytes kept for one client <= limit", format!("{most} > {limit}"));
        }
    }

    /// Records and checks the network events since the last call.
    pub(super) fn collect_network_events(&mut self) {
        let trace = &self.shared.trace;
        for event in self.shared.network.take_events() {
            trace.line("network", &format_args!("{:?} {:?}", event.endpoint, event.kind));
            match event.kind {
                EventKind::Lent(lease, bytes) if ![STANDING_LEASE, hostile::HOSTILE_LEASE].contains(&lease) => {
                    trace.count("lease", "opened");
                    let loans = self.loans.entry(event.endpoint).or_default();
                    loans.host = event.host;
                    loans.bytes.insert(lease, bytes);
                    let (on_loan, limit) = (loans.bytes.values().sum::<u64>(), self.shared.options.max_loan_bytes);
                    if on_loan > limit {
                        trace.violation("bytes on loan <= limit", format!("{on_loan} > {limit} at {lease:?}"));
                    }
                }
                EventKind::Ended(lease, end) => {
                    trace.count("lease", format!("{end:?}"));
                    self.loans.entry(event.endpoint).or_default().bytes.remove(&lease);
                    if self.shared.options.fault_free && matches!(end, LeaseEnd::Revoked) {
                        trace.violation("fault-free runs go well", format!("{lease:?} was not released in time"));
                    }
                }
                _ => {}
            }
        }
        let violations = self.shared.network.violations();
        for violation in &violations[self.violations..] {
            let hostile = self.shared.options.hostile.1;
            // The victim of a hostile server may read anything that the server exposes.
            if !hostile {
                let how = format!("{:?} by {:?}", violation.access, violation.reader);
                trace.violation("only what is on loan is read, and it does not change", how);
            }
        }
        self.violations = violations.len();
    }

    /// Resources that are still in use although no client has a request.
    pub(super) fn unreleased_resources(&self) -> Option<String> {
        let state = self.shared.lock();
        let engine = &self.shared.engine;
        if engine.running() > 0 {
            return Some(format!("{} queries or uploads run", engine.running()));
        }
        // The server must not wait for an engine that ignores a cancel.
        let ignoring = |name: &str| if name == "server" { engine.ignoring_cancel() as usize } else { 0 };
        let tasks =
            |(name, handle): (&String, &Handle)| handle.metrics().num_alive_tasks().saturating_sub(ignoring(name));
        if let Some(busy) = state.handles.iter().find(|host| tasks(*host) > 0) {
            return Some(format!("{} tasks of {}", tasks(busy), busy.0));
        }
        if let Some(server) = &state.server {
            if server.connections() > 0 {
                return Some(format!("{} connections at the server", server.connections()));
            }
            if server.partitioned_queries() > 0 {
                return Some(format!("{} queries in partitions", server.partitioned_queries()));
            }
            if server.bytes_on_loan() > 0 {
                return Some(format!("{} bytes of the server's loan budget", server.bytes_on_loan()));
            }
            if let Some(fabric) = &state.server_fabric {
                let (registered, kept) = (fabric.inner().registered_bytes(), server.idle_registered_bytes());
                if registered != kept {
                    return Some(format!(
                        "{registered} bytes registered at the server, {kept} of them kept for later loans"
                    ));
                }
            }
        }
        for (index, fabric) in &state.client_fabrics {
            if fabric.inner().registered_bytes() > 0 {
                return Some(format!("{} bytes registered at client {index}", fabric.inner().registered_bytes()));
            }
        }
        if let Some((endpoint, loans)) = self.loans.iter().find(|(_, loans)| !loans.bytes.is_empty()) {
            return Some(format!("leases of {endpoint:?}: {:?}", loans.bytes.keys()));
        }
        None
    }

    pub(super) fn count_strikes(&self, fabric: Option<&Faulty>) {
        for (strike, times) in fabric.iter().flat_map(|fabric| fabric.injected()) {
            self.shared.trace.count_many("strike", format!("{strike:?}"), times);
        }
    }

    pub(super) fn count(&self) {
        let state = self.shared.lock();
        state.client_fabrics.values().chain(&state.server_fabric).for_each(|fabric| self.count_strikes(Some(fabric)));
        let stats = self.shared.network.stats();
        let carried = [
            ("reads", stats.reads),
            ("maps", stats.maps),
            ("late reads", stats.late),
            ("stragglers", stats.stragglers),
            ("completions before their bytes", stats.early),
            ("endpoints without a path", stats.retry_exceeded),
        ];
        carried.into_iter().for_each(|(what, times)| self.shared.trace.count_many("network", what, times));
    }
}
