//! Starts and ends faults.

use std::time::Duration;

use thallus_fabric_sim::core::HostId;
use turmoil::Sim;

use super::{World, client_name, process_ends};
use crate::connection_ends::Side;
use crate::links::Process;
use crate::options::{Fault, TimedFault};
use crate::shared::Jump;

impl World {
    /// Starts the faults that are due, and ends those whose time is over.
    pub(super) fn start_due_faults(&mut self) {
        let now = self.sim.elapsed();
        let (over, left): (Vec<_>, Vec<_>) =
            std::mem::take(&mut self.undo).into_iter().partition(|(at, ..)| *at <= now);
        self.undo = left;
        for (_, fault, client) in over {
            self.undo_fault(fault, client);
        }
        while let Some(&TimedFault { at, fault, client, duration }) =
            self.faults.first().filter(|timed| timed.at <= now)
        {
            self.faults.remove(0);
            self.shared.trace.line("FAULT", &format_args!("{fault:?} of client {client} for {duration:?}"));
            self.shared.trace.count("fault", format!("{fault:?}"));
            self.do_fault(fault, client, duration);
            self.undo.push((at + duration, fault, client));
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

    fn do_fault(&mut self, fault: Fault, client: usize, duration: Duration) {
        let name = client_name(client);
        let ip = self.sim.lookup(name.as_str());
        let network = self.shared.network.clone();
        if self.shared.options.half_dead {
            self.shared.links.dies_half(ip, self.sim.elapsed());
        }
        match fault {
            Fault::Partition => self.sim.partition(name.as_str(), "server"),
            Fault::OneWayToServer => self.sim.partition_oneway(name.as_str(), "server"),
            Fault::OneWayToClient => self.sim.partition_oneway("server", name.as_str()),
            Fault::Hold => self.sim.hold(name.as_str(), "server"),
            Fault::Latency => {
                self.sim.set_link_max_message_latency(name.as_str(), "server", duration.min(Duration::from_millis(200)))
            }
            Fault::Reset => {
                [Side::Server, Side::Client].into_iter().for_each(|side| self.shared.connection_ends.reset(ip, side))
            }
            Fault::ControlCutAtServer => {
                self.sim.partition_oneway("server", name.as_str());
                self.shared.connection_ends.reset(ip, Side::Server);
            }
            Fault::ControlCutAtClient => {
                self.sim.partition_oneway(name.as_str(), "server");
                self.shared.connection_ends.reset(ip, Side::Client);
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
                let host = self.client_host(client);
                if let Some(host) = host {
                    network.crash(host);
                }
                self.kill(&name, |sim, name| sim.crash(name));
                self.forget_loans(host);
                process_ends(client);
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
                self.kill("server", |sim, name| sim.crash(name));
            }
            Fault::ServerDrains => {
                if let Some(server) = &self.shared.lock().server {
                    server.drain();
                }
            }
            Fault::ClientClockJumps | Fault::ServerClockJumps => {
                let who = if fault == Fault::ClientClockJumps { &name } else { "server" };
                // The process may be down, and its clock with it.
                let _down = self.jump(who, Jump { by: duration, stood_still: None });
            }
            Fault::ClientStandsStill => self.shared.links.stand_still(Process::Client(ip)),
            Fault::ServerStandsStill => self.shared.links.stand_still(Process::Server),
        }
    }

    /// Lets the clock of a process jump. Whether the process is there.
    fn jump(&self, who: &str, jump: Jump) -> bool {
        self.shared.lock().jumps.get(who).is_some_and(|jumps| jumps.send(jump).is_ok())
    }

    /// A process has stood still. It continues, and for it all this time has passed at once.
    fn go_on(&self, who: &str, process: Process) {
        let jump = Jump { by: self.shared.options.still, stood_still: Some(process) };
        if !self.jump(who, jump) {
            self.shared.links.go_on(process);
        }
    }

    /// Ends a process. Its tasks are dropped in no particular order, which must not show in the trace: it is muted
    /// meanwhile.
    fn kill(&mut self, name: &str, end: impl FnOnce(&mut Sim<'static>, &str)) {
        self.collect_network_events();
        if let Some(sockets) = self.shared.lock().sockets.remove(name) {
            sockets.kill();
        }
        self.shared.trace.set_muted(true);
        end(&mut self.sim, name);
        self.shared.trace.set_muted(false);
        let _in_no_particular_order = self.shared.network.take_events();
    }

    /// Removes the loans of a host whose process has ended.
    fn forget_loans(&mut self, host: Option<HostId>) {
        self.collect_network_events();
        self.loans.retain(|_, loans| loans.host != host);
    }

    /// Removes the server and its loans after the end of its process.
    fn forget_server(&mut self) {
        self.forget_loans(self.server_host());
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
            Fault::Partition | Fault::ControlCutAtServer | Fault::ControlCutAtClient => {
                self.sim.repair(name.as_str(), "server")
            }
            Fault::OneWayToServer => {
                self.shared.links.is_repaired();
                self.sim.repair_oneway(name.as_str(), "server");
            }
            Fault::OneWayToClient => {
                self.shared.links.is_repaired();
                self.sim.repair_oneway("server", name.as_str());
            }
            Fault::ClientStandsStill => {
                let ip = self.sim.lookup(name.as_str());
                self.go_on(&name, Process::Client(ip));
            }
            Fault::ServerStandsStill => self.go_on("server", Process::Server),
            Fault::Hold => self.sim.release(name.as_str(), "server"),
            Fault::Latency => {
                self.sim.set_link_max_message_latency(name.as_str(), "server", self.shared.options.latency.1)
            }
            Fault::DataCut => self.set_path(client, true),
            Fault::BothCut => {
                self.sim.repair(name.as_str(), "server");
                self.set_path(client, true);
            }
            Fault::ClientCrash if !self.sim.is_host_running(name.as_str()) => {
                self.kill(&name, |sim, name| sim.bounce(name))
            }
            Fault::ServerCrash | Fault::ServerPowerLoss | Fault::ServerDrains => {
                (0..self.shared.options.clients)
                    .for_each(|other| self.sim.repair(client_name(other).as_str(), "server"));
                self.start_server();
            }
            _ => {}
        }
    }

    pub(super) fn start_server(&mut self) {
        if !self.sim.is_host_running("server") {
            self.forget_server();
            self.kill("server", |sim, name| sim.bounce(name));
        }
    }

    /// Ends all faults. From now on everything works.
    pub(super) fn heal(&mut self) {
        for (_, fault, client) in std::mem::take(&mut self.undo) {
            self.undo_fault(fault, client);
        }
        for index in 0..self.shared.options.clients {
            let name = client_name(index);
            self.sim.release(name.as_str(), "server");
            self.sim.repair(name.as_str(), "server");
            self.set_path(index, true);
            if !self.sim.is_host_running(name.as_str()) && !self.shared.lock().finished.contains_key(&index) {
                self.kill(&name, |sim, name| sim.bounce(name));
            }
        }
        self.start_server();
        self.shared.network.change(|options| {
            options.straggler_one_in = 0;
            options.early_completion_one_in = 0;
            // Fast enough for the shortest lease timeout.
            options.latency = 0..=2;
            options.completion_lag = 0..=1;
            options.bytes_per_step = 0;
            options.max_outstanding_reads = 16;
            options.max_read = 1 << 30;
            options.max_registered = 1 << 36;
        });
        self.shared.heal();
        let state = self.shared.lock();
        state.client_fabrics.values().chain(&state.server_fabric).for_each(|fabric| fabric.stop());
        drop(state);
        self.shared.trace.line("FAULT", &"all over");
    }
}
