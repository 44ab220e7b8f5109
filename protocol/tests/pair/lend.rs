//! The driver of a lender: sources that yield batches, and a record of every lease.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use bytes::Bytes;
use thallus_protocol::codes::StreamCode;
use thallus_protocol::lender::{LenderCommand, LenderTask, Loan};
use thallus_protocol::message::{Access, Failure, Fencing, Region};
use thallus_protocol::{LeaseEnd, LeaseId, RegionId, RemoteRange, StreamId};

use super::end::Plane;
use super::memory::{CELL, CELLS, DATA, DATA_BASE, Memory, tag};
use super::script::*;

/// The source of a stream's batches.
#[derive(Debug)]
struct Engine {
    script: Script,
    next: usize,
    schema_sent: bool,
    pulled: Option<Option<u64>>,
}

/// Memory of a batch that the machine lends.
#[derive(Debug)]
struct Held {
    stream: StreamId,
    rows: u64,
    addresses: Vec<u64>,
    own_region: bool,
    region: Option<RegionId>,
    slot: Option<u32>,
}

#[derive(Debug)]
pub(crate) struct Lending {
    knobs: Knobs,
    engines: BTreeMap<StreamId, Engine>,
    held: BTreeMap<LeaseId, Held>,
    /// Streams whose batches are mapped.
    mapped: BTreeSet<StreamId>,
    pub(crate) ends: BTreeMap<LeaseId, LeaseEnd>,
    /// Leases that ended in this turn.
    pub(crate) just_ended: Vec<(LeaseId, StreamId, LeaseEnd)>,
    slots: BTreeSet<u32>,
    announced: bool,
    last_lease: u64,
    last_region: u32,
    /// Wrong place that is announced for all buffers of the next batch.
    pub(crate) twist: Option<RemoteRange>,
    /// The memory of the next batch cannot be opened.
    pub(crate) exposure_fails: bool,
    /// A stream has failed because the path is down: nothing may be lent any more.
    path_lost: bool,
}

impl Lending {
    pub(crate) fn new(knobs: Knobs) -> Self {
        Lending {
            knobs,
            engines: BTreeMap::new(),
            held: BTreeMap::new(),
            mapped: BTreeSet::new(),
            ends: BTreeMap::new(),
            just_ended: Vec::new(),
            slots: BTreeSet::new(),
            announced: false,
            last_lease: 0,
            last_region: DATA.0,
            twist: None,
            exposure_fails: false,
            path_lost: false,
        }
    }

    /// Number of leases that the machine holds, including pending ones.
    pub(crate) fn leases_held(&self) -> usize {
        self.held.len()
    }

    pub(crate) fn all_ended(&self) {
        assert!(self.held.is_empty(), "leases outlive the connection: {:?}", self.held);
    }

    /// Begins a stream that this end lends.
    pub(crate) fn begin(&mut self, stream: StreamId, script: Script, access: Access) {
        self.mapped.extend(matches!(access, Access::Map(_)).then_some(stream));
        let engine = Engine { script, next: 0, schema_sent: false, pulled: None };
        assert!(self.engines.insert(stream, engine).is_none(), "{stream:?} runs twice");
    }

    /// Runs a task of the machine, and returns the answers.
    pub(crate) fn task(
        &mut self,
        task: LenderTask,
        plane: Plane,
        _scripts: &[Script],
        memory: &mut Memory,
    ) -> Vec<LenderCommand> {
        match task {
            LenderTask::Pull { stream, lend_from, .. } => {
                let engine = self.engines.get_mut(&stream).expect("a running stream is pulled");
                assert!(engine.pulled.replace(lend_from).is_none(), "{stream:?} is pulled twice");
                Vec::new()
            }
            // Like a real source, this one yields one more batch, which the machine ignores.
            LenderTask::Stop { failure, .. } => {
                self.path_lost |= failure.is_some_and(|failure| failure.code == StreamCode::DataPlaneLost);
                Vec::new()
            }
            LenderTask::OpenLease { lease, word } => self.open_lease(lease, word, memory),
            LenderTask::EndLease { lease, slot, end } => self.end_lease(lease, slot, end, plane, memory),
        }
    }

    fn open_lease(&mut self, lease: LeaseId, word: Option<(u32, u64)>, memory: &mut Memory) -> Vec<LenderCommand> {
        let data = |id, key| Region { id, base: DATA_BASE, len: CELL * CELLS, key: Bytes::from_static(key) };
        assert!(!self.path_lost, "{lease:?} begins after the path was lost");
        let held = self.held.get_mut(&lease).expect("a lent batch has this lease");
        assert_eq!(word.is_some(), self.knobs.fencing == Fencing::LeaseWord);
        if let Some((slot, value)) = word {
            assert!(self.slots.insert(slot), "slot {slot} is in use");
            assert!(slot < self.knobs.max_leases && value != 0);
            memory.words[slot as usize] = value;
            held.slot = Some(slot);
        }
        let mut announce = Vec::new();
        if held.own_region && held.rows > 0 {
            self.last_region += 1;
            held.region = Some(RegionId(self.last_region));
            announce.push(data(RegionId(self.last_region), b"own"));
        } else if !std::mem::replace(&mut self.announced, true) {
            announce.push(data(DATA, b"data"));
        }
        if std::mem::take(&mut self.exposure_fails) {
            return vec![LenderCommand::NotExposed { lease, announce, reason: "no memory windows are left".into() }];
        }
        let region = held.region.unwrap_or(DATA);
        let place = |address: &u64| RemoteRange { region, address: *address, len: held.rows * 8 };
        let mut places: Vec<_> = held.addresses.iter().map(place).collect();
        if let Some(twist) = self.twist.take() {
            places.fill(twist);
        }
        vec![LenderCommand::Exposed { lease, announce, places }]
    }

    fn end_lease(
        &mut self,
        lease: LeaseId,
        slot: Option<u32>,
        end: LeaseEnd,
        plane: Plane,
        memory: &mut Memory,
    ) -> Vec<LenderCommand> {
        let held = self.held.remove(&lease).unwrap_or_else(|| panic!("{lease:?} ends, but is not on loan"));
        assert!(self.ends.insert(lease, end).is_none(), "{lease:?} ends twice");
        assert_eq!(held.slot, slot, "{lease:?} has another slot");
        if end == LeaseEnd::TornDown {
            assert_eq!(plane, Plane::Closed, "{lease:?} is torn down while the data plane is open");
        }
        self.just_ended.push((lease, held.stream, end));
        if let Some(slot) = slot {
            memory.words[slot as usize] = 0;
            self.slots.remove(&slot);
        }
        // Mapped memory that was not released is never reused, because this driver does not detect the borrower's end.
        let kept = end == LeaseEnd::TornDown && self.mapped.contains(&held.stream);
        for address in held.addresses.into_iter().filter(|_| !kept) {
            memory.free(address);
        }
        held.region.map(LenderCommand::Retire).into_iter().collect()
    }

    /// Streams whose source can do a step.
    pub(crate) fn able(&self) -> Vec<StreamId> {
        let able = |engine: &Engine| {
            let stalled = engine.next == engine.script.batches.len() && engine.script.ending == Ending::Stall;
            !engine.schema_sent || (engine.pulled.is_some() && !stalled)
        };
        self.engines.iter().filter(|(_, engine)| able(engine)).map(|(id, _)| *id).collect()
    }

    /// Does the next step of a stream's source.
    pub(crate) fn step(&mut self, stream: StreamId, memory: &mut Memory) -> Option<VecDeque<LenderCommand>> {
        let engine = self.engines.get_mut(&stream)?;
        if !std::mem::replace(&mut engine.schema_sent, true) {
            return Some([LenderCommand::Schema { stream, schema: schema_message(), order: Vec::new() }].into());
        }
        let lend_from = engine.pulled.take()?;
        let Some(batch) = engine.script.batches.get(engine.next).copied() else {
            let failed = engine.script.ending == Ending::Fail;
            self.engines.remove(&stream);
            let failure = Failure::new(FAILURE, "as scripted");
            let finish = LenderCommand::Finish { stream, execute_nanos: 5 };
            return Some([if failed { LenderCommand::Fail { stream, failure } } else { finish }].into());
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
                Some([LenderCommand::Inline { stream, ipc, rows }].into())
            }
        }
    }

    /// Stores a batch of `rows` rows in memory, and returns the commands that lend it.
    pub(crate) fn lend(
        &mut self,
        stream: StreamId,
        seq: u64,
        rows: u64,
        own_region: bool,
        memory: &mut Memory,
    ) -> VecDeque<LenderCommand> {
        self.last_lease += 1;
        let lease = LeaseId(self.last_lease);
        let addresses: Vec<_> =
            (0..if rows > 0 { 2 } else { 0 }).map(|i| memory.put(lease, tag(stream, seq, i))).collect();
        self.held.insert(lease, Held { stream, rows, addresses, own_region, region: None, slot: None });
        let loan = Loan { lease, descriptor: descriptor(rows), staged: 0, cost: Default::default() };
        [LenderCommand::Lend { stream, loan, rows }].into()
    }
}
