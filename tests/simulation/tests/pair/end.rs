//! One end of a connection: its machine, the batches that it lends and borrows, and an endpoint of the simulated
//! network.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use arrow_schema::{DataType, Field, Schema};
use bytes::Bytes;
use thallus_fabric::memory::{LeaseWords, RegisteredMemory, Slab, SlabPool};
use thallus_fabric::{Fabric, Fencing, ReadToken, STANDING_LEASE};
use thallus_fabric_sim::SimFabric;
use thallus_fabric_sim::core::{Core, EndpointId, HostId, KeyId, Progress};
use thallus_protocol::borrower::{BorrowerCommand, BorrowerEvent, BorrowerTask, ReadBatch, ReadError};
use thallus_protocol::connection::{Input, Machine, Output};
use thallus_protocol::inline::encode_schema;
use thallus_protocol::layout::{BatchDescriptor, Detail, NodeDescriptor};
use thallus_protocol::lender::{LenderCommand, LenderTask, Loan};
use thallus_protocol::message::{self, Lending, Region};
use thallus_protocol::{LeaseId, ReadId, RegionId, RemoteRange, StreamId, Timestamp};

use super::SLOTS;

pub(super) const PROBE: u64 = 0x5EED;
const WORDS: RegionId = RegionId(1);

/// State shared by both ends.
pub(super) struct Shared {
    pub(super) now: Timestamp,
    pub(super) core: Core,
    /// Allocates memory, which is then added to the core.
    pub(super) fabric: Arc<SimFabric>,
    pub(super) pool: SlabPool,
}

/// The reads of a batch followed by the read of its word, or the read of the probe.
struct Reading {
    slab: Slab,
    remaining: usize,
    failed: bool,
    lease_word: Option<RemoteRange>,
    /// The batch has been read, and this is the read of its word.
    word: bool,
}

/// A source of batches.
#[derive(Default)]
struct Source {
    rows: VecDeque<u64>,
    handed: u64,
}

/// Events for this end's application.
pub(super) enum Happened<E> {
    Stream(BorrowerEvent),
    Event(E),
    /// The probe was read. The value says whether it was right.
    Probe(bool),
}

pub(super) struct End<M: Machine> {
    pub(super) machine: M,
    host: HostId,
    endpoint: EndpointId,
    /// Bytes to be sent to the other end.
    pub(super) out: VecDeque<u8>,
    pub(super) is_cut: bool,
    pub(super) closed: bool,
    sources: BTreeMap<StreamId, Source>,
    pub(super) pulled: VecDeque<(StreamId, Option<u64>)>,
    words: LeaseWords,
    /// Memory of each loan, and whether its region was announced.
    loans: BTreeMap<LeaseId, (Arc<RegisteredMemory>, bool)>,
    last_lease: u64,
    keys: BTreeMap<RegionId, KeyId>,
    reading: BTreeMap<ReadId, Reading>,
    slabs: BTreeMap<ReadId, Slab>,
    tokens: BTreeMap<ReadToken, ReadId>,
    probe: Option<(ReadToken, Slab)>,
    last_token: u64,
    /// Events for the application.
    pub(super) happened: VecDeque<Happened<M::Event>>,
}

/// The only buffer of a batch: numbers that no other batch has.
pub(super) fn content(stream: StreamId, seq: u64, rows: u64) -> Vec<u8> {
    let first = u64::from(stream.0) << 48 | seq << 32;
    (0..rows).flat_map(|row| (first | row).to_le_bytes()).collect()
}

fn key_bytes(key: KeyId) -> Bytes {
    Bytes::copy_from_slice(&key.0.to_le_bytes())
}

impl<M: Machine> End<M> {
    pub(super) fn new(machine: M, host: HostId, endpoint: EndpointId, fabric: &SimFabric) -> Self {
        let words = LeaseWords::new(fabric, SLOTS as usize + 1).expect("there is memory");
        words.open(SLOTS as usize, PROBE).expect("a slot that is free");
        End {
            machine,
            host,
            endpoint,
            out: VecDeque::new(),
            is_cut: false,
            closed: false,
            sources: BTreeMap::new(),
            pulled: VecDeque::new(),
            words,
            loans: BTreeMap::new(),
            last_lease: 0,
            keys: BTreeMap::new(),
            reading: BTreeMap::new(),
            slabs: BTreeMap::new(),
            tokens: BTreeMap::new(),
            probe: None,
            last_token: 0,
            happened: VecDeque::new(),
        }
    }

    pub(super) fn handle(&mut self, shared: &mut Shared, input: Input<'_, M::Command>) {
        self.machine.handle(shared.now, input).expect("this driver calls the machine as specified");
        self.drain(shared);
    }

    pub(super) fn command(&mut self, shared: &mut Shared, command: M::Command) {
        self.handle(shared, Input::Command(command));
    }

    fn lender(&mut self, shared: &mut Shared, command: LenderCommand) {
        self.command(shared, M::lender_command(command));
    }

    pub(super) fn borrower(&mut self, shared: &mut Shared, command: BorrowerCommand) {
        self.command(shared, M::borrower_command(command));
    }

    pub(super) fn receive(&mut self, shared: &mut Shared, bytes: &[u8]) {
        self.handle(shared, Input::Received(bytes));
    }

    /// Number of open leases, without the standing lease of the words.
    pub(super) fn open_leases(&self, shared: &Shared) -> usize {
        shared.core.standing_leases(self.endpoint).saturating_sub(1) + self.loans.len()
    }

    /// Starts a stream that this end lends: sends its schema. `rows` has the numbers of rows of its batches.
    pub(super) fn begin(&mut self, shared: &mut Shared, stream: StreamId, rows: Vec<u64>) {
        self.sources.insert(stream, Source { rows: rows.into(), handed: 0 });
        let schema = Schema::new(vec![Arc::new(Field::new("a", DataType::Int64, false))]);
        let schema = encode_schema(&schema).expect("a schema that IPC carries").into();
        self.lender(shared, LenderCommand::Schema { stream, schema, order: Vec::new() });
    }

    /// Answers the oldest pull from the source.
    pub(super) fn source(&mut self, shared: &mut Shared) -> bool {
        let Some((stream, lend_from)) = self.pulled.pop_front() else { return false };
        let Some(source) = self.sources.get_mut(&stream) else { return true };
        let Some(rows) = source.rows.pop_front() else {
            self.lender(shared, LenderCommand::Finish { stream, execute_nanos: 1 });
            return true;
        };
        let bytes = content(stream, source.handed, rows);
        source.handed += 1;
        if lend_from.is_none() {
            self.lender(shared, LenderCommand::Inline { stream, ipc: bytes.into(), rows });
            return true;
        }
        let memory = shared.fabric.register(bytes.into()).expect("there is memory");
        self.last_lease += 1;
        let lease = LeaseId(self.last_lease);
        self.loans.insert(lease, (memory, false));
        let node = NodeDescriptor { len: rows, nulls: 0, null_bit: 0, detail: Detail::None };
        let descriptor = BatchDescriptor { rows, nodes: vec![node], buffers: vec![rows * 8] };
        let loan = Loan { lease, descriptor, staged: 0, cost: Default::default() };
        self.lender(shared, LenderCommand::Lend { stream, loan, rows });
        true
    }

    fn expose(&mut self, shared: &mut Shared, id: RegionId, memory: &Arc<RegisteredMemory>) -> Region {
        let known = shared.core.new_memory_id();
        shared.core.add_memory(known, self.host, memory);
        let key = shared.core.expose(self.endpoint, known, 0..memory.len());
        Region { id, base: memory.address(), len: memory.len() as u64, key: key_bytes(key) }
    }

    /// Exposes the lease words, with the probe among them.
    pub(super) fn open_words(&mut self, shared: &mut Shared) -> (message::Fencing, Region) {
        let memory = Arc::clone(self.words.memory());
        let words = self.expose(shared, WORDS, &memory);
        let range = RemoteRange { region: WORDS, address: words.base, len: words.len };
        shared.core.lent(self.endpoint, STANDING_LEASE, &[range]);
        let fencing = match shared.core.options().fencing {
            Fencing::Revocation => message::Fencing::Revocation,
            Fencing::LeaseWord => message::Fencing::LeaseWord,
        };
        (fencing, words)
    }

    /// Reads the other end's probe.
    pub(super) fn prove(&mut self, shared: &mut Shared, lending: &Lending) {
        self.import(&lending.words);
        let slab = shared.pool.take(8).expect("there is memory");
        let token = self.post(shared, lending.probe_at, &slab, 0);
        self.probe = Some((token, slab));
    }

    fn import(&mut self, region: &Region) {
        let key = region.key.as_ref().try_into().map(u64::from_le_bytes).unwrap_or_default();
        self.keys.insert(region.id, KeyId(key));
    }

    fn post(&mut self, shared: &mut Shared, from: RemoteRange, slab: &Slab, offset: usize) -> ReadToken {
        self.last_token += 1;
        let token = ReadToken(self.last_token);
        let key = self.keys.get(&from.region).copied().unwrap_or(KeyId(u64::MAX));
        let range = slab.range(offset, from.len as usize).expect("a range of the slab");
        // The endpoint exists until the machine closes it.
        shared.core.post(self.endpoint, token, key, from.address, range).expect("the endpoint is connected");
        token
    }

    fn read(&mut self, shared: &mut Shared, batch: ReadBatch) {
        let ReadBatch { read, layout, places, lease_word, .. } = batch;
        let slab = shared.pool.take(layout.len as usize).expect("there is memory");
        let remaining = places.len();
        for (index, place) in places {
            let token = self.post(shared, place, &slab, layout.ranges[index].offset as usize);
            self.tokens.insert(token, read);
        }
        self.reading.insert(read, Reading { slab, remaining, failed: false, lease_word, word: false });
    }

    /// One step of this end's endpoint.
    pub(super) fn network(&mut self, shared: &mut Shared) -> bool {
        let mut finished = Vec::new();
        let progress = shared.core.step(self.endpoint, &mut finished);
        let moved = progress == Progress::Waiting || !finished.is_empty();
        for done in finished {
            let (token, well) = (done.completion.token, done.completion.result.is_ok());
            drop(done.into);
            if let Some((_, slab)) = self.probe.take_if(|(probe, _)| *probe == token) {
                let word = slab.into_buffer().ok().map(|word| word.as_slice().to_vec());
                self.happened.push_back(Happened::Probe(well && word.as_deref() == Some(&PROBE.to_le_bytes())));
            } else if let Some(read) = self.tokens.remove(&token) {
                self.piece_done(shared, read, well);
            }
        }
        moved
    }

    fn piece_done(&mut self, shared: &mut Shared, read: ReadId, well: bool) {
        let Some(reading) = self.reading.get_mut(&read) else { return };
        reading.remaining -= 1;
        reading.failed |= !well;
        if reading.remaining > 0 {
            return;
        }
        let Some(Reading { slab, failed, lease_word, word, .. }) = self.reading.remove(&read) else { return };
        let result = match (failed, word, lease_word) {
            (true, ..) => Err(ReadError::failed("the simulated network failed the read")),
            (false, true, _) => {
                let found = slab.into_buffer().expect("its read is over");
                Ok(Some(u64::from_le_bytes(found.as_slice()[..8].try_into().expect("eight bytes"))))
            }
            (false, false, Some(at)) => {
                self.slabs.insert(read, slab);
                let slab = shared.pool.take(8).expect("there is memory");
                let token = self.post(shared, at, &slab, 0);
                self.tokens.insert(token, read);
                let word = Reading { slab, remaining: 1, failed: false, lease_word: None, word: true };
                self.reading.insert(read, word);
                return;
            }
            (false, false, None) => {
                self.slabs.insert(read, slab);
                Ok(None)
            }
        };
        self.borrower(shared, BorrowerCommand::ReadDone { read, result });
    }

    /// The bytes of a batch that has been read.
    pub(super) fn take_slab(&mut self, read: ReadId) -> Vec<u8> {
        let slab = self.slabs.remove(&read).expect("it was read");
        slab.into_buffer().expect("its reads are over").to_vec()
    }

    pub(super) fn drain(&mut self, shared: &mut Shared) {
        loop {
            match self.machine.poll_output() {
                Output::Wait(_) => return,
                Output::Transmit(frame) if !self.is_cut => self.out.extend(frame.head.iter().chain(&frame.payload)),
                Output::Transmit(_) => {}
                Output::Lender(task) => self.lender_task(shared, task),
                Output::Borrower(BorrowerTask::Import(region)) => self.import(&region),
                Output::Borrower(BorrowerTask::Read(batch)) => self.read(shared, batch),
                Output::Borrower(BorrowerTask::Discard { read }) => drop(self.slabs.remove(&read)),
                Output::Borrower(BorrowerTask::UnimportRegion(_) | BorrowerTask::Map(_)) => {}
                Output::Stream(event) => self.happened.push_back(Happened::Stream(event)),
                Output::Event(event) => self.happened.push_back(Happened::Event(event)),
                Output::CloseFabric => {
                    shared.core.close(self.endpoint);
                    // The machine is polled again only after this.
                    self.network(shared);
                    self.command(shared, M::fabric_closed());
                }
                Output::Closed(_) => self.closed = true,
            }
        }
    }

    fn lender_task(&mut self, shared: &mut Shared, task: LenderTask) {
        match task {
            LenderTask::Pull { stream, lend_from, .. } => self.pulled.push_back((stream, lend_from)),
            LenderTask::Stop { stream, .. } => {
                self.sources.remove(&stream);
            }
            LenderTask::OpenLease { lease, word } => {
                if let Some((slot, value)) = word {
                    self.words.open(slot as usize, value).expect("a slot that is free");
                }
                let (memory, announced) = self.loans.get_mut(&lease).expect("a loan that was handed over");
                *announced = true;
                let memory = Arc::clone(memory);
                let region = self.expose(shared, RegionId(1 + lease.0 as u32), &memory);
                let place = RemoteRange { region: region.id, address: region.base, len: region.len };
                shared.core.lent(self.endpoint, lease, &[place]);
                self.lender(shared, LenderCommand::Exposed { lease, announce: vec![region], places: vec![place] });
            }
            LenderTask::EndLease { lease, slot, end } => {
                if let Some(slot) = slot {
                    assert_eq!(self.words.revoke(slot as usize), Ok(true), "its word stood");
                }
                shared.core.lease_ended(self.endpoint, lease, end);
                let (_, announced) = self.loans.remove(&lease).expect("a lease ends once");
                if announced && !self.closed {
                    self.lender(shared, LenderCommand::Retire(RegionId(1 + lease.0 as u32)));
                }
            }
        }
    }
}
