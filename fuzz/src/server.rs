//! A server's machine with a driver that does what it must: what holds whatever a client says.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use bytes::Bytes;
use thallus_protocol::codes::StreamCode;
use thallus_protocol::layout::{BatchDescriptor, Detail, NodeDescriptor};
use thallus_protocol::message::{Fencing, Region, ServerLimits};
use thallus_protocol::server::{
    Loan, OpenedFabric, ServerCommand, ServerConfig, ServerConnection, ServerInput, ServerOutput,
};
use thallus_protocol::{FabricKind, LeaseId, RegionId, RemoteRange, StreamId, Timestamp};

use crate::frames::{START, Step};

const LEASES: u32 = 3;
const LOANS: u64 = 4096;

/// The machine, and what its driver knows.
pub struct Server {
    now: Timestamp,
    machine: ServerConnection,
    asked: VecDeque<Asked>,
    held: BTreeMap<LeaseId, Option<u32>>,
    slots: BTreeSet<u32>,
    last_lease: u64,
    open: bool,
    closed: bool,
}

/// What the machine waits for.
enum Asked {
    Open,
    Close,
    Schema(StreamId),
    Batch(StreamId, bool),
}

impl Default for Server {
    fn default() -> Self {
        let config = ServerConfig {
            name: String::new(),
            fabrics: vec![FabricKind::SIM],
            no_fabric: String::new(),
            limits: ServerLimits { max_streams: 3, max_loan_bytes: LOANS, max_sql_bytes: 64 },
            frame: Default::default(),
            inline_threshold: 64,
            max_leases: LEASES,
            word_nonce: 1,
            timeouts: Default::default(),
            lease_timeout: std::time::Duration::from_secs(9),
            drain_timeout: std::time::Duration::from_secs(9),
        };
        Server {
            now: START,
            machine: ServerConnection::new(config, START),
            asked: VecDeque::new(),
            held: BTreeMap::new(),
            slots: BTreeSet::new(),
            last_lease: 0,
            open: false,
            closed: false,
        }
    }
}

impl Server {
    /// Does a step, and holds what comes of it against what must hold.
    pub fn step(&mut self, step: Step) {
        match step {
            Step::Bytes(bytes) => self.input(ServerInput::Received(&bytes)),
            Step::Pass(time) => {
                self.now = self.now + time;
                self.input(ServerInput::Time);
            }
            Step::Answer(choice) => self.answer(choice),
        }
    }

    /// The client is gone; all must end.
    pub fn finish(mut self) {
        self.input(ServerInput::ControlLost("gone".into()));
        while !self.asked.is_empty() {
            self.answer(0);
        }
        assert!(self.closed && self.held.is_empty());
    }

    fn input(&mut self, input: ServerInput<'_>) {
        self.machine.handle(self.now, input).expect("this driver keeps the contract");
        loop {
            match self.machine.poll_output() {
                ServerOutput::Wait(deadline) => {
                    assert!(!self.closed || deadline.is_none());
                    break;
                }
                ServerOutput::OpenFabric { .. } => self.asked.push_back(Asked::Open),
                ServerOutput::CloseFabric => self.asked.push_back(Asked::Close),
                ServerOutput::Execute { stream, .. } => self.asked.push_back(Asked::Schema(stream)),
                ServerOutput::Pull { stream, lend_from } => {
                    self.asked.push_back(Asked::Batch(stream, lend_from.is_some()));
                }
                ServerOutput::OpenLease { lease, word } => {
                    let slot = word.map(|(slot, _)| slot);
                    assert!(slot.is_some_and(|slot| self.slots.insert(slot)));
                    *self.held.get_mut(&lease).expect("a lease that was lent") = slot;
                }
                ServerOutput::EndLease { lease, slot, .. } => {
                    assert_eq!(self.held.remove(&lease), Some(slot));
                    assert!(slot.is_none_or(|slot| self.slots.remove(&slot)));
                }
                ServerOutput::Closed(_) => {
                    assert!(!std::mem::replace(&mut self.closed, true));
                    assert!(!self.open && self.held.is_empty());
                }
                ServerOutput::Transmit(_)
                | ServerOutput::FabricUp { .. }
                | ServerOutput::FabricDown { .. }
                | ServerOutput::StopQuery { .. } => {}
            }
        }
        assert!(self.machine.bytes_on_loan() <= LOANS);
        assert!(self.machine.open_leases() <= LEASES as usize);
    }

    fn answer(&mut self, choice: u8) {
        let Some(asked) = self.asked.pop_front() else { return };
        let command = match (asked, choice % 8) {
            (Asked::Open, 7) => ServerCommand::FabricUnavailable { reason: String::new() },
            (Asked::Open, _) => {
                self.open = true;
                let words = Region { id: RegionId(1), base: 0, len: 8 * u64::from(LEASES + 1), key: Bytes::new() };
                let fencing = Fencing::LeaseWord;
                ServerCommand::FabricOpened(OpenedFabric { address: Bytes::new(), fencing, words, probe_value: 7 })
            }
            (Asked::Close, _) => {
                self.open = false;
                ServerCommand::FabricClosed
            }
            (Asked::Schema(stream), _) => {
                ServerCommand::Schema { stream, schema: Bytes::from_static(b"schema"), order: Vec::new() }
            }
            (Asked::Batch(stream, _), 6) => ServerCommand::Finish { stream, execute_nanos: 1 },
            (Asked::Batch(stream, _), 7) => {
                ServerCommand::Fail { stream, code: StreamCode::Execution, message: String::new() }
            }
            (Asked::Batch(stream, true), 0..4) => {
                self.last_lease += 1;
                let lease = LeaseId(self.last_lease);
                self.held.insert(lease, None);
                let len = u64::from(choice) * 8;
                let node = NodeDescriptor { len: len / 8, nulls: 0, null_bit: 0, detail: Detail::None };
                let descriptor = BatchDescriptor { rows: len / 8, nodes: vec![node], buffers: vec![len] };
                let place = RemoteRange { region: RegionId(1), address: 0, len };
                let places = if len > 0 { vec![place] } else { vec![] };
                ServerCommand::Lend {
                    stream,
                    loan: Loan { lease, descriptor, places, staged: 0, effort: Default::default() },
                    rows: len / 8,
                }
            }
            (Asked::Batch(stream, _), _) => {
                ServerCommand::Inline { stream, ipc: vec![0; usize::from(choice) * 40].into(), rows: 1 }
            }
        };
        self.input(ServerInput::Command(command));
    }
}
