//! The server's end: its machine, the engine behind it, and an account of every lease.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use bytes::Bytes;
use thallus_protocol::message::{Delivery, Fencing, Region, ServerLimits};
use thallus_protocol::server::*;
use thallus_protocol::{
    ApiMisuse, ConnectionError, FabricKind, LeaseEnd, LeaseId, RegionId, RemoteRange, ServerConnection, StreamId,
    Timestamp,
};

use super::memory::{CELL, CELLS, DATA, DATA_BASE, Memory, PROBE, WORDS, WORDS_BASE, tag};
use super::script::*;
use super::{DRAIN_TIMEOUT, LEASE_TIMEOUT, Pipe, timeouts};

/// A query that runs.
#[derive(Debug)]
struct Engine {
    script: Script,
    next: usize,
    schema_said: bool,
    pulled: Option<Option<u64>>,
}

/// Memory that was handed to the machine.
#[derive(Debug)]
struct Held {
    stream: StreamId,
    addresses: Vec<u64>,
    region: Option<RegionId>,
    slot: Option<u32>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Plane {
    None,
    /// The machine waits for it to be opened, or connected.
    Asked,
    Open,
    /// The machine waits for it to be closed.
    Closing,
    Closed,
}

#[derive(Debug)]
pub(crate) struct Lender {
    pub(crate) machine: ServerConnection,
    pub(crate) knobs: Knobs,
    pub(crate) plane: Plane,
    pub(crate) wake: Option<Timestamp>,
    pub(crate) closed: Option<ConnectionError>,
    pub(crate) scripts: Vec<Script>,
    engines: BTreeMap<StreamId, Engine>,
    held: BTreeMap<LeaseId, Held>,
    /// Streams whose batches are mapped.
    mapped: BTreeSet<StreamId>,
    pub(crate) ends: BTreeMap<LeaseId, LeaseEnd>,
    /// Leases that ended in this turn.
    pub(crate) just_ended: Vec<(LeaseId, StreamId, LeaseEnd)>,
    slots: BTreeSet<u32>,
    last_lease: u64,
    last_region: u32,
}

impl Lender {
    pub(crate) fn new(knobs: Knobs, scripts: Vec<Script>) -> Self {
        let fabrics = if knobs.server_has_fabric { vec![FabricKind::SIM] } else { vec![] };
        let config = ServerConfig {
            name: "lender".into(),
            fabrics,
            no_fabric: "none on this host".into(),
            limits: ServerLimits {
                max_streams: knobs.max_streams,
                max_loan_bytes: knobs.max_loan_bytes,
                max_sql_bytes: 100,
            },
            frame: super::frame(),
            inline_threshold: 64,
            max_leases: knobs.max_leases,
            word_nonce: 42,
            timeouts: timeouts(),
            lease_timeout: LEASE_TIMEOUT,
            drain_timeout: DRAIN_TIMEOUT,
        };
        Lender {
            machine: ServerConnection::new(config, Timestamp::ZERO),
            knobs,
            plane: Plane::None,
            wake: None,
            closed: None,
            scripts,
            engines: BTreeMap::new(),
            held: BTreeMap::new(),
            mapped: BTreeSet::new(),
            ends: BTreeMap::new(),
            just_ended: Vec::new(),
            slots: BTreeSet::new(),
            last_lease: 0,
            last_region: DATA.0,
        }
    }

    /// Leases that the machine holds, pending ones included.
    pub(crate) fn leases_held(&self) -> usize {
        self.held.len()
    }

    pub(crate) fn handle(
        &mut self,
        now: Timestamp,
        input: ServerInput<'_>,
        memory: &mut Memory,
        out: &mut Pipe,
    ) -> Result<(), ApiMisuse> {
        let handled = self.machine.handle(now, input);
        self.drain(now, memory, out);
        self.check();
        handled
    }

    fn command(&mut self, now: Timestamp, command: ServerCommand) {
        self.machine.handle(now, ServerInput::Command(command)).expect("this driver keeps the contract");
    }

    fn drain(&mut self, now: Timestamp, memory: &mut Memory, out: &mut Pipe) {
        for turn in 0.. {
            assert!(turn < 100_000, "outputs without end");
            match self.machine.poll_output() {
                ServerOutput::Wait(deadline) => {
                    self.wake = deadline.map(|(at, _)| at);
                    assert!(self.closed.is_none() || self.wake.is_none(), "timers are left over");
                    return;
                }
                ServerOutput::Transmit(frame) => {
                    assert!(self.closed.is_none(), "a frame after the close");
                    out.write(&frame);
                }
                ServerOutput::OpenFabric { kind, .. } => {
                    assert_eq!((kind, self.plane), (FabricKind::SIM, Plane::None));
                    self.plane = Plane::Asked;
                    if self.knobs.instant {
                        self.answer(now, memory);
                    }
                }
                ServerOutput::CloseFabric => {
                    assert_eq!(self.plane, Plane::Open, "closed twice, or never opened");
                    self.plane = Plane::Closing;
                    if self.knobs.instant {
                        self.answer(now, memory);
                    }
                }
                ServerOutput::FabricUp { .. } | ServerOutput::FabricDown { .. } => {}
                ServerOutput::Execute { stream, sql, options } => {
                    self.mapped.extend(matches!(options.delivery, Delivery::Mapped(_)).then_some(stream));
                    let script = self.scripts[sql.parse::<usize>().unwrap_or(0) % self.scripts.len()].clone();
                    let engine = Engine { script, next: 0, schema_said: false, pulled: None };
                    assert!(self.engines.insert(stream, engine).is_none(), "{stream:?} runs twice");
                }
                ServerOutput::Pull { stream, lend_from } => {
                    let engine = self.engines.get_mut(&stream).expect("a pull for a query that runs");
                    assert!(engine.pulled.replace(lend_from).is_none(), "{stream:?} is pulled twice");
                }
                // What still comes for it is ignored: the engine goes on for a batch, as real ones do.
                ServerOutput::StopQuery { .. } => {}
                ServerOutput::OpenLease { lease, word } => {
                    let held = self.held.get_mut(&lease).expect("a lease opens that was lent");
                    assert_eq!(word.is_some(), self.knobs.fencing == Fencing::LeaseWord);
                    if let Some((slot, value)) = word {
                        assert!(self.slots.insert(slot), "slot {slot} is in use");
                        assert!(slot < self.knobs.max_leases && value != 0);
                        memory.words[slot as usize] = value;
                        held.slot = Some(slot);
                    }
                }
                ServerOutput::EndLease { lease, slot, end } => self.end_lease(now, lease, slot, end, memory),
                ServerOutput::Closed(error) => {
                    assert!(self.closed.replace(error).is_none(), "closed twice");
                    assert!(self.held.is_empty(), "leases outlive the connection: {:?}", self.held);
                    assert!(!matches!(self.plane, Plane::Asked | Plane::Open | Plane::Closing), "{:?}", self.plane);
                    out.close();
                }
            }
        }
    }

    fn end_lease(&mut self, now: Timestamp, lease: LeaseId, slot: Option<u32>, end: LeaseEnd, memory: &mut Memory) {
        let held = self.held.remove(&lease).unwrap_or_else(|| panic!("{lease:?} ends, and is not on loan"));
        assert!(self.ends.insert(lease, end).is_none(), "{lease:?} ends twice");
        assert_eq!(held.slot, slot, "{lease:?} has another slot");
        if end == LeaseEnd::TornDown {
            assert_eq!(self.plane, Plane::Closed, "{lease:?} is torn down while the data plane is open");
        }
        self.just_ended.push((lease, held.stream, end));
        if let Some(slot) = slot {
            memory.words[slot as usize] = 0;
            self.slots.remove(&slot);
        }
        // What is mapped and was not given back is never used again: nobody says here that the borrower is gone.
        let kept = end == LeaseEnd::TornDown && self.mapped.contains(&held.stream);
        for address in held.addresses.into_iter().filter(|_| !kept) {
            memory.free(address);
        }
        if let Some(region) = held.region {
            self.command(now, ServerCommand::Retire(region));
        }
    }

    /// Answers what the machine asked of the fabric. `false`: nothing was asked.
    pub(crate) fn answer(&mut self, now: Timestamp, memory: &mut Memory) -> bool {
        match self.plane {
            Plane::Asked if self.knobs.open_works => {
                self.plane = Plane::Open;
                let words = Region {
                    id: WORDS,
                    base: WORDS_BASE,
                    len: (u64::from(self.knobs.max_leases) + 1) * 8,
                    key: Bytes::from_static(b"words"),
                };
                let (address, fencing) = (Bytes::from_static(b"server"), self.knobs.fencing);
                let opened = OpenedFabric { address, fencing, words, probe_value: PROBE };
                self.command(now, ServerCommand::FabricOpened(opened));
                let data = Region { id: DATA, base: DATA_BASE, len: CELL * CELLS, key: Bytes::from_static(b"data") };
                if self.plane == Plane::Open {
                    self.command(now, ServerCommand::Announce(data));
                }
            }
            Plane::Asked => {
                self.plane = Plane::None;
                self.command(now, ServerCommand::FabricUnavailable { reason: "no device".into() });
            }
            Plane::Closing => {
                self.plane = Plane::Closed;
                memory.refuses |= self.knobs.fencing == Fencing::Revocation;
                self.command(now, ServerCommand::FabricClosed);
            }
            Plane::None | Plane::Open | Plane::Closed => return false,
        }
        true
    }

    /// The `k`th query does its next step. `None`: no query can do one.
    pub(crate) fn engine_step(&mut self, k: usize, memory: &mut Memory) -> Option<VecDeque<ServerCommand>> {
        let able = |engine: &Engine| {
            let stalled = engine.next == engine.script.batches.len() && engine.script.ending == Ending::Stall;
            !engine.schema_said || (engine.pulled.is_some() && !stalled)
        };
        let able: Vec<_> = self.engines.iter().filter(|(_, engine)| able(engine)).map(|(id, _)| *id).collect();
        let stream = *able.get(k % able.len().max(1))?;
        let engine = self.engines.get_mut(&stream)?;
        if !std::mem::replace(&mut engine.schema_said, true) {
            return Some([ServerCommand::Schema { stream, schema: schema_message(), order: Vec::new() }].into());
        }
        let lend_from = engine.pulled.take()?;
        let Some(batch) = engine.script.batches.get(engine.next).copied() else {
            let failed = engine.script.ending == Ending::Fail;
            self.engines.remove(&stream);
            let fail = ServerCommand::Fail { stream, code: FAILURE, message: "as it was told".into() };
            let finish = ServerCommand::Finish { stream, execute_nanos: 5 };
            return Some([if failed { fail } else { finish }].into());
        };
        let seq = engine.next as u64;
        engine.next += 1;
        match (batch, lend_from) {
            (Batch::Lent { rows, own_region }, Some(threshold)) if rows * 16 >= threshold => {
                Some(self.lend(stream, seq, rows, own_region, memory))
            }
            _ => {
                let rows = 1;
                let ipc = inline_bytes(stream, seq, batch.inline_len());
                Some([ServerCommand::Inline { stream, ipc, rows }].into())
            }
        }
    }

    /// A batch of `rows` rows, its memory accounted for: what is to be said of it.
    pub(crate) fn lend(
        &mut self,
        stream: StreamId,
        seq: u64,
        rows: u64,
        own_region: bool,
        memory: &mut Memory,
    ) -> VecDeque<ServerCommand> {
        self.last_lease += 1;
        let lease = LeaseId(self.last_lease);
        let descriptor = descriptor(rows);
        let mut commands = VecDeque::new();
        let addresses: Vec<_> =
            (0..if rows > 0 { 2 } else { 0 }).map(|i| memory.put(lease, tag(stream, seq, i))).collect();
        let region = (own_region && rows > 0 && self.machine.is_open(stream)).then(|| {
            self.last_region += 1;
            RegionId(self.last_region)
        });
        if let Some(id) = region {
            let key = Bytes::from_static(b"own");
            commands.push_back(ServerCommand::Announce(Region { id, base: DATA_BASE, len: CELL * CELLS, key }));
        }
        let place = |address: &u64| RemoteRange { region: region.unwrap_or(DATA), address: *address, len: rows * 8 };
        let places = addresses.iter().map(place).collect();
        self.held.insert(lease, Held { stream, addresses, region, slot: None });
        commands.push_back(ServerCommand::Lend {
            stream,
            loan: Loan { lease, descriptor, places, staged: 0, effort: Default::default() },
            rows,
        });
        commands
    }

    fn check(&self) {
        assert!(self.machine.bytes_on_loan() <= self.knobs.max_loan_bytes);
        assert!(self.machine.open_leases() <= self.knobs.max_leases as usize);
        assert!(self.machine.open_streams() <= self.knobs.max_streams as usize);
        if self.closed.is_some() {
            assert_eq!((self.machine.open_leases(), self.machine.open_streams()), (0, 0));
        }
    }
}
