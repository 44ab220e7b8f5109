//! A client's and a server's machine, with two pipes, a network and an engine between them. Nothing waits: every step is asked for.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use arrow_schema::{DataType, Field, Schema};
use bytes::Bytes;
use thallus_fabric::memory::{LeaseWords, PoolLimits, RegisteredMemory, Slab, SlabPool};
use thallus_fabric::{Fabric, Fencing, ReadToken, STANDING_LEASE};
use thallus_fabric_sim::core::{Core, EndpointId, HostId, KeyId, Progress, Violation};
use thallus_fabric_sim::{SimFabric, SimNetwork, SimOptions};
use thallus_protocol::client::{
    ClientCommand, ClientConfig, ClientConnection, ClientEvent, ClientInput, ClientOutput, Payload, ReadBatch,
    ReadProblem,
};
use thallus_protocol::codec::FrameLimits;
use thallus_protocol::inline::{InlineLimits, encode_schema};
use thallus_protocol::layout::{BatchDescriptor, Detail, LayoutLimits, NodeDescriptor};
use thallus_protocol::message::{self, Delivery, ExecuteOptions, FabricOffer, Region, ServerLimits};
use thallus_protocol::server::{
    Loan, OpenedFabric, ServerCommand, ServerConfig, ServerConnection, ServerInput, ServerOutput,
};
use thallus_protocol::{FabricKind, LeaseId, LinkTimeouts, ReadId, RegionId, RemoteRange, StreamId, Timestamp};

pub const MAX_LOAN: u64 = 4000;
/// Releases are not held back for longer.
const HELD_BACK_MS: u64 = 2;
const SLOTS: u32 = 4;
const PROBE: u64 = 0x5EED;
const WORDS: RegionId = RegionId(1);

/// One result at the client.
#[derive(Default)]
struct App {
    rows: Vec<u64>,
    untaken: VecDeque<u64>,
    over: Option<bool>,
}

/// A batch or a word that is being read.
struct Reading {
    slab: Slab,
    remaining: usize,
    failed: bool,
    word: bool,
}

pub struct Pair {
    now: Timestamp,
    core: Core,
    lender: EndpointId,
    borrower: EndpointId,
    fabric: Arc<SimFabric>,
    pool: SlabPool,
    server: ServerConnection,
    client: ClientConnection,
    up: VecDeque<u8>,
    down: VecDeque<u8>,
    is_cut: bool,
    /// What the engine still has, by stream.
    scripts: BTreeMap<StreamId, VecDeque<u64>>,
    handed: BTreeMap<StreamId, u64>,
    pulled: VecDeque<StreamId>,
    words: LeaseWords,
    loans: BTreeMap<LeaseId, (Arc<RegisteredMemory>, RemoteRange)>,
    last_lease: u64,
    keys: BTreeMap<RegionId, KeyId>,
    reading: BTreeMap<ReadId, Reading>,
    slabs: BTreeMap<ReadId, Slab>,
    tokens: BTreeMap<ReadToken, ReadId>,
    probe: Option<(ReadToken, Slab)>,
    last_token: u64,
    apps: Vec<App>,
    waiting: VecDeque<(usize, Vec<u64>, u64)>,
    is_open: bool,
    closed: [bool; 2],
}

/// A batch's one buffer: numbers that nobody else's has.
fn content(stream: StreamId, seq: u64, rows: u64) -> Vec<u8> {
    let first = u64::from(stream.0) << 48 | seq << 32;
    (0..rows).flat_map(|row| (first | row).to_le_bytes()).collect()
}

fn key_bytes(key: KeyId) -> Bytes {
    Bytes::copy_from_slice(&key.0.to_le_bytes())
}

impl Pair {
    pub fn new(seed: u64, fencing: Fencing) -> Self {
        let options =
            SimOptions { fencing, latency: 0..=6, completion_lag: 0..=3, loans: true, ..SimOptions::default() };
        let mut core = Core::new(seed, options);
        let (here, there) = (core.add_host(), core.add_host());
        let (lender, borrower) = (core.add_endpoint(here), core.add_endpoint(there));
        core.connect(lender, borrower).expect("two new endpoints");
        core.connect(borrower, lender).expect("two new endpoints");
        // Where memory comes from; the core is told of it.
        let fabric = SimNetwork::new(seed, SimOptions::default()).host();
        let pool = SlabPool::new(Arc::clone(&fabric) as Arc<dyn Fabric>, PoolLimits::default());
        let words = LeaseWords::new(&*fabric, SLOTS as usize + 1).expect("there is memory");
        words.open(SLOTS as usize, PROBE).expect("a slot that is free");
        let timeouts = LinkTimeouts {
            handshake: Duration::from_secs(60),
            keepalive: Duration::from_secs(20),
            idle: Duration::from_secs(60),
        };
        let frame = FrameLimits::default();
        let now = Timestamp::ZERO;
        let server = ServerConfig {
            name: "server".into(),
            fabrics: vec![FabricKind::SIM],
            no_fabric: String::new(),
            limits: ServerLimits { max_streams: 8, max_loan_bytes: MAX_LOAN, max_sql_bytes: 100 },
            frame,
            inline_threshold: 0,
            max_leases: SLOTS,
            word_nonce: seed,
            timeouts,
            lease_timeout: Duration::from_secs(3600),
            drain_timeout: Duration::from_secs(3600),
        };
        let client = ClientConfig {
            name: "client".into(),
            fabrics: vec![FabricOffer { kind: FabricKind::SIM, address: Bytes::new() }],
            frame,
            max_batch_bytes: MAX_LOAN,
            max_regions: 1000,
            layout: LayoutLimits::default(),
            inline: InlineLimits::default(),
            timeouts,
            first_window: u64::MAX,
            read_timeout: Duration::from_secs(3600),
        };
        let mut pair = Pair {
            now,
            core,
            lender,
            borrower,
            fabric,
            pool,
            server: ServerConnection::new(server, now),
            client: ClientConnection::new(client, now).expect("a short hello"),
            up: VecDeque::new(),
            down: VecDeque::new(),
            is_cut: false,
            scripts: BTreeMap::new(),
            handed: BTreeMap::new(),
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
            apps: Vec::new(),
            waiting: VecDeque::new(),
            is_open: false,
            closed: [false; 2],
        };
        pair.client_hears(0);
        pair.drain_server();
        pair.drain_client();
        pair
    }

    fn command(&mut self, command: ServerCommand) {
        self.server.handle(self.now, ServerInput::Command(command)).expect("this driver keeps the contract");
        self.drain_server();
    }

    fn ask(&mut self, command: ClientCommand) {
        self.client.handle(self.now, ClientInput::Command(command)).expect("this driver keeps the contract");
        self.drain_client();
    }

    pub fn execute(&mut self, rows: Vec<u64>, credit: u64) {
        self.apps.push(App::default());
        self.waiting.push_back((self.apps.len() - 1, rows, credit));
        self.execute_waiting();
    }

    fn execute_waiting(&mut self) {
        while self.is_open || self.closed[1] {
            let Some((at, rows, credit)) = self.waiting.pop_front() else { return };
            let stream = StreamId(at as u32 + 1);
            self.scripts.insert(stream, rows.into());
            let options = ExecuteOptions { delivery: Delivery::Lent, credit, ..ExecuteOptions::default() };
            self.ask(ClientCommand::Execute { stream, sql: "q".into(), options });
        }
    }

    pub fn cancel(&mut self, at: usize) {
        if self.apps[at].over.is_some() {
            return;
        }
        if let Some(waiting) = self.waiting.iter().position(|(waiting, ..)| *waiting == at) {
            self.waiting.remove(waiting);
            // Ids go up: this one is used all the same.
            self.apps[at].over = Some(false);
            return;
        }
        self.ask(ClientCommand::Cancel { stream: StreamId(at as u32 + 1) });
    }

    pub fn advance(&mut self, millis: u64) {
        self.now = self.now + Duration::from_millis(millis);
        self.server.handle(self.now, ServerInput::Time).expect("time passes");
        self.drain_server();
        self.client.handle(self.now, ClientInput::Time).expect("time passes");
        self.drain_client();
    }

    /// What is under way is lost, and both ends hear of it.
    pub fn cut(&mut self) {
        self.is_cut = true;
        self.up.clear();
        self.down.clear();
        self.server.handle(self.now, ServerInput::ControlLost("cut".into())).expect("a loss is no misuse");
        self.drain_server();
        self.client.handle(self.now, ClientInput::ControlLost("cut".into())).expect("a loss is no misuse");
        self.drain_client();
        self.execute_waiting();
    }

    pub fn server_hears(&mut self, most: usize) -> bool {
        let bytes: Vec<u8> = self.up.drain(..most.min(self.up.len())).collect();
        self.server.handle(self.now, ServerInput::Received(&bytes)).expect("bytes are no misuse");
        self.drain_server();
        !bytes.is_empty()
    }

    pub fn client_hears(&mut self, most: usize) -> bool {
        let bytes: Vec<u8> = self.down.drain(..most.min(self.down.len())).collect();
        self.client.handle(self.now, ClientInput::Received(&bytes)).expect("bytes are no misuse");
        self.drain_client();
        self.execute_waiting();
        !bytes.is_empty()
    }

    /// The engine answers the oldest pull.
    pub fn engine(&mut self) -> bool {
        let Some(stream) = self.pulled.pop_front() else { return false };
        if !self.server.is_open(stream) {
            return true;
        }
        match self.scripts.get_mut(&stream).and_then(VecDeque::pop_front) {
            Some(rows) => self.lend(stream, rows),
            None => self.command(ServerCommand::Finish { stream, execute_nanos: 1 }),
        }
        true
    }

    fn lend(&mut self, stream: StreamId, rows: u64) {
        let seq = self.handed.entry(stream).or_default();
        let memory = self.fabric.register(content(stream, *seq, rows).into()).expect("there is memory");
        *seq += 1;
        let id = self.core.new_memory_id();
        self.core.add_memory(id, HostId(0), &memory);
        let key = self.core.expose(self.lender, id, 0..memory.len());
        self.last_lease += 1;
        let (lease, region) = (LeaseId(self.last_lease), RegionId(1 + self.last_lease as u32));
        let place = RemoteRange { region, address: memory.address(), len: rows * 8 };
        let (base, len) = (memory.address(), memory.len() as u64);
        self.loans.insert(lease, (memory, place));
        self.command(ServerCommand::Announce(Region { id: region, base, len, key: key_bytes(key) }));
        let node = NodeDescriptor { len: rows, nulls: 0, null_bit: 0, detail: Detail::None };
        let descriptor = BatchDescriptor { rows, nodes: vec![node], buffers: vec![rows * 8] };
        let loan = Loan { lease, descriptor, places: vec![place], staged: 0, effort: Default::default() };
        self.command(ServerCommand::Lend { stream, loan, rows });
    }

    /// One step of the borrower's endpoint.
    pub fn network(&mut self) -> bool {
        let mut finished = Vec::new();
        let progress = self.core.step(self.borrower, &mut finished);
        let moved = progress == Progress::Waiting || !finished.is_empty();
        for done in finished {
            let (token, well) = (done.completion.token, done.completion.result.is_ok());
            drop(done.into);
            if let Some((_, slab)) = self.probe.take_if(|(probe, _)| *probe == token) {
                let word = slab.into_buffer().ok().map(|word| word.as_slice().to_vec());
                let right = well && word.as_deref() == Some(&PROBE.to_le_bytes());
                self.ask(if right {
                    ClientCommand::FabricUp { transport: "core".into() }
                } else {
                    ClientCommand::FabricUnavailable { reason: "the probe".into() }
                });
            } else if let Some(read) = self.tokens.remove(&token) {
                self.piece_done(read, well);
            }
        }
        self.execute_waiting();
        moved
    }

    fn piece_done(&mut self, read: ReadId, well: bool) {
        let Some(reading) = self.reading.get_mut(&read) else { return };
        reading.remaining -= 1;
        reading.failed |= !well;
        if reading.remaining > 0 {
            return;
        }
        let Some(Reading { slab, failed, word, .. }) = self.reading.remove(&read) else { return };
        let failure = failed.then(|| ReadProblem::Failed("as the network said".into()));
        if word {
            let found = slab.into_buffer().expect("its read is over");
            let found = u64::from_le_bytes(found.as_slice()[..8].try_into().expect("eight bytes"));
            self.ask(ClientCommand::WordRead { read, result: failure.map_or(Ok(found), Err) });
        } else {
            self.slabs.insert(read, slab);
            self.ask(ClientCommand::ReadDone { read, result: failure.map_or(Ok(()), Err) });
        }
    }

    fn post(&mut self, region: RegionId, address: u64, slab: &Slab, offset: usize, len: usize) -> ReadToken {
        self.last_token += 1;
        let token = ReadToken(self.last_token);
        let key = self.keys.get(&region).copied().unwrap_or(KeyId(u64::MAX));
        let range = slab.range(offset, len).expect("a range of the slab");
        // The endpoint is there until the machine has it closed.
        self.core.post(self.borrower, token, key, address, range).expect("the endpoint is connected");
        token
    }

    fn read(&mut self, batch: ReadBatch) {
        let ReadBatch { read, layout, places, .. } = batch;
        let slab = self.pool.take(layout.len as usize).expect("there is memory");
        let remaining = places.len();
        for (index, place) in places {
            let offset = layout.ranges[index].offset as usize;
            let token = self.post(place.region, place.address, &slab, offset, place.len as usize);
            self.tokens.insert(token, read);
        }
        self.reading.insert(read, Reading { slab, remaining, failed: false, word: false });
    }

    fn drain_client(&mut self) {
        loop {
            match self.client.poll_output() {
                ClientOutput::Wait(_) => return,
                ClientOutput::Transmit(frame) if !self.is_cut => {
                    self.up.extend(frame.head.iter().chain(&frame.payload))
                }
                ClientOutput::ConnectFabric(choice) => {
                    self.import(&choice.words);
                    let slab = self.pool.take(8).expect("there is memory");
                    let token = self.post(choice.probe_at.region, choice.probe_at.address, &slab, 0, 8);
                    self.probe = Some((token, slab));
                }
                ClientOutput::ImportRegion(region) => self.import(&region),
                ClientOutput::Read(batch) => self.read(batch),
                ClientOutput::ReadWord { read, at } => {
                    let data = self.slabs.remove(&read);
                    let slab = self.pool.take(8).expect("there is memory");
                    let token = self.post(at.region, at.address, &slab, 0, 8);
                    self.tokens.insert(token, read);
                    self.reading.insert(read, Reading { slab, remaining: 1, failed: false, word: true });
                    self.slabs.extend(data.map(|data| (read, data)));
                }
                ClientOutput::Discard { read } => drop(self.slabs.remove(&read)),
                ClientOutput::Event(event) => self.event(event),
                ClientOutput::CloseFabric => {
                    self.core.close(self.borrower);
                    // The machine is asked for more only when all of this is done.
                    self.network();
                    self.ask(ClientCommand::FabricClosed);
                }
                ClientOutput::Closed(_) => self.closed[1] = true,
                _ => {}
            }
        }
    }

    fn import(&mut self, region: &Region) {
        let key = region.key.as_ref().try_into().map(u64::from_le_bytes).unwrap_or_default();
        self.keys.insert(region.id, KeyId(key));
    }

    fn event(&mut self, event: ClientEvent) {
        match event {
            ClientEvent::FabricUp { .. } | ClientEvent::FabricDown { .. } => self.is_open = true,
            ClientEvent::Batch { stream, seq, cost, payload } => {
                let Payload::Lent { read, descriptor } = payload else { panic!("all batches are lent") };
                let slab = self.slabs.remove(&read).expect("it was read");
                let buffer = slab.into_buffer().expect("its reads are over");
                let bytes = &buffer[..descriptor.rows as usize * 8];
                assert_eq!(bytes, content(stream, seq, descriptor.rows), "{stream:?}, batch {seq}");
                let app = &mut self.apps[stream.0 as usize - 1];
                assert_eq!(seq, app.rows.len() as u64, "batches come in order");
                app.rows.push(descriptor.rows);
                app.untaken.push_back(cost);
            }
            ClientEvent::End { stream, .. } => self.over_with(stream, true),
            ClientEvent::Failed { stream, .. } => self.over_with(stream, false),
            _ => {}
        }
    }

    fn over_with(&mut self, stream: StreamId, well: bool) {
        let before = self.apps[stream.0 as usize - 1].over.replace(well);
        assert_eq!(before, None, "{stream:?} ended twice");
    }

    fn drain_server(&mut self) {
        loop {
            match self.server.poll_output() {
                ServerOutput::Wait(_) => return,
                ServerOutput::Transmit(frame) if !self.is_cut => {
                    self.down.extend(frame.head.iter().chain(&frame.payload));
                }
                ServerOutput::OpenFabric { .. } => self.open_fabric(),
                ServerOutput::Execute { stream, .. } => {
                    let schema = Schema::new(vec![Arc::new(Field::new("a", DataType::Int64, false))]);
                    let schema = encode_schema(&schema).expect("a schema that IPC carries").into();
                    self.command(ServerCommand::Schema { stream, schema, order: Vec::new() });
                }
                ServerOutput::Pull { stream, .. } => self.pulled.push_back(stream),
                ServerOutput::OpenLease { lease, word } => {
                    if let Some((slot, value)) = word {
                        self.words.open(slot as usize, value).expect("a slot that is free");
                    }
                    let place = self.loans[&lease].1;
                    self.core.lent(self.lender, lease, &[place]);
                }
                ServerOutput::EndLease { lease, slot, end } => {
                    if let Some(slot) = slot {
                        assert_eq!(self.words.revoke(slot as usize), Ok(true), "its word stood");
                    }
                    self.core.lease_ended(self.lender, lease, end);
                    let (_, place) = self.loans.remove(&lease).expect("a lease ends once");
                    if !self.closed[0] {
                        self.command(ServerCommand::Retire(place.region));
                    }
                }
                ServerOutput::CloseFabric => {
                    self.core.close(self.lender);
                    self.command(ServerCommand::FabricClosed);
                }
                ServerOutput::Closed(_) => self.closed[0] = true,
                _ => {}
            }
        }
    }

    fn open_fabric(&mut self) {
        let memory = Arc::clone(self.words.memory());
        let id = self.core.new_memory_id();
        self.core.add_memory(id, HostId(0), &memory);
        let key = self.core.expose(self.lender, id, 0..memory.len());
        let (base, len) = (memory.address(), memory.len() as u64);
        self.core.lent(self.lender, STANDING_LEASE, &[RemoteRange { region: WORDS, address: base, len }]);
        let fencing = match self.core.options().fencing {
            Fencing::Revocation => message::Fencing::Revocation,
            Fencing::LeaseWord => message::Fencing::LeaseWord,
        };
        let words = Region { id: WORDS, base, len, key: key_bytes(key) };
        let opened = OpenedFabric { address: Bytes::new(), fencing, words, probe_value: PROBE };
        self.command(ServerCommand::FabricOpened(opened));
    }

    /// An application takes its next batch.
    pub fn take(&mut self) -> bool {
        let Some(at) = self.apps.iter().position(|app| !app.untaken.is_empty()) else { return false };
        let cost = self.apps[at].untaken.pop_front().unwrap_or_default();
        self.ask(ClientCommand::Consumed { stream: StreamId(at as u32 + 1), cost });
        true
    }

    /// Everything that can happen without time does, but for the moment for which releases are held back.
    pub fn settle(&mut self) {
        for _ in 0..100_000 {
            if !self.anything() {
                self.advance(HELD_BACK_MS);
                if !self.anything() {
                    return;
                }
            }
        }
        panic!("steps without end");
    }

    fn anything(&mut self) -> bool {
        let moved =
            [self.server_hears(usize::MAX), self.client_hears(usize::MAX), self.engine(), self.network(), self.take()];
        moved.contains(&true)
    }

    pub fn close(&mut self) {
        self.ask(ClientCommand::Close);
        self.settle();
        self.server.handle(self.now, ServerInput::ControlLost("closed".into())).expect("a loss is no misuse");
        self.drain_server();
        assert_eq!(self.closed, [true; 2], "both have closed");
    }

    pub fn violations(&self) -> &[Violation] {
        self.core.violations()
    }

    pub fn bytes_on_loan(&self) -> u64 {
        self.server.bytes_on_loan()
    }

    /// Leases that stand, besides that of the words.
    pub fn open_leases(&self) -> usize {
        self.server.open_leases() + self.core.standing_leases(self.lender).saturating_sub(1) + self.loans.len()
    }

    pub fn delivered(&self, at: usize) -> &[u64] {
        self.apps.get(at).map_or(&[], |app| &app.rows)
    }

    pub fn over(&self, at: usize) -> Option<bool> {
        self.apps[at].over
    }
}
