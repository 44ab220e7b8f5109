//! The server is arbitrary. The client never panics, ends in a typed error or goes on, tells each stream's end once, and
//! holds no more than it granted.

mod pair;

use std::collections::{BTreeMap, BTreeSet};

use arrow_schema::{DataType, Field, Schema};
use bytes::Bytes;
use pair::memory::{DATA_BASE, PROBE, WORDS_BASE};
use pair::script::{descriptor, schema_message};
use pair::{any_edge, bytes_of, config, frame, preface, timeouts};
use proptest::prelude::*;
use thallus_protocol::client::*;
use thallus_protocol::codec::FrameLimits;
use thallus_protocol::inline::{InlineLimits, decode_schema, encode_schema};
use thallus_protocol::layout::{BatchDescriptor, Detail, NodeDescriptor, Piece};
use thallus_protocol::message::*;
use thallus_protocol::testing::mutate_descriptor;
use thallus_protocol::{
    AskId, ClientConnection, ConnectionError, FabricKind, LeaseId, PeerMisbehaved, ReadId, RegionId, RemoteRange,
    StreamId, Timestamp,
};

/// What happens to a client.
#[derive(Clone, Debug)]
enum ClientOp {
    Say(ToClient, usize),
    Schema(u32),
    Lent { stream: u32, seq: u64, lease: u64, rows: u64, twist: Twist },
    Bytes(Vec<u8>),
    Read(usize, Result<u64, ()>),
    Answer,
    Execute { credit: u64, lazy: bool },
    Ask(usize, usize),
    GiveUp(usize),
    Take,
    Cancel(u32),
    Advance(u64),
}

/// What is wrong with a lent batch.
#[derive(Clone, Debug)]
enum Twist {
    Nothing,
    Descriptor(BatchDescriptor),
    Place { index: usize, place: RemoteRange },
    FewerPlaces,
    MorePlaces,
    Word(Option<LeaseWord>),
}

fn arb_range() -> impl Strategy<Value = RemoteRange> {
    let address = prop_oneof![Just(DATA_BASE), Just(WORDS_BASE), Just(WORDS_BASE + 3), Just(0), any_edge()];
    let len = prop_oneof![Just(8_u64), Just(0), Just(80), any_edge()];
    (0..5_u32, address, len).prop_map(|(region, address, len)| RemoteRange { region: RegionId(region), address, len })
}

fn arb_twist() -> impl Strategy<Value = Twist> {
    prop_oneof![
        20 => Just(Twist::Nothing),
        1 => (0..30_u64).prop_flat_map(|rows| mutate_descriptor(descriptor(rows))).prop_map(Twist::Descriptor),
        1 => (0..2_usize, arb_range()).prop_map(|(index, place)| Twist::Place { index, place }),
        1 => Just(Twist::FewerPlaces),
        1 => Just(Twist::MorePlaces),
        1 => prop::option::of((arb_range(), 0..2_u64)).prop_map(|word| {
            Twist::Word(word.map(|(at, value)| LeaseWord { at, value }))
        }),
    ]
}

fn arb_to_client() -> impl Strategy<Value = (ToClient, usize)> {
    let stream = || (0..4_u32).prop_map(StreamId);
    let seq = || prop_oneof![6 => 0..3_u64, 1 => Just(u64::MAX), 1 => any::<u64>()];
    let region = (0..6_u32, any_edge(), any_edge()).prop_map(|(id, base, len)| {
        (ToClient::Region(Region { id: RegionId(id), base, len, key: Bytes::from_static(b"k") }), 0)
    });
    let inline_bytes = prop_oneof![4 => prop::sample::select(vec![0_u64, 5, 10, 20]), 1 => any_edge()];
    let inline = (stream(), seq(), inline_bytes, any::<bool>(), prop::sample::select(vec![0_usize, 5, 10, 20]))
        .prop_map(|(stream, seq, bytes, more, len)| (ToClient::Inline { stream, seq, bytes, more }, len));
    prop_oneof![
        1 => Just((ToClient::Welcome(hello(Fencing::LeaseWord)), 0)),
        2 => region,
        1 => (0..6_u32).prop_map(|id| (ToClient::RegionGone(RegionId(id)), 0)),
        8 => inline,
        3 => (stream(), any_edge()).prop_map(|(stream, bytes)| (ToClient::CreditWanted { stream, bytes }, 0)),
        2 => (stream(), seq()).prop_map(|(stream, batches)| {
            (ToClient::End { stream, batches, stats: StreamStats::default() }, 0)
        }),
        2 => (stream(), any::<u16>()).prop_map(|(stream, code)| {
            (ToClient::Failed { stream, code: code.into(), message: "x".repeat(9000) }, 0)
        }),
        1 => any::<u64>().prop_map(|nonce| (ToClient::Ping(nonce), 0)),
        1 => (0..5_u64).prop_map(|nonce| (ToClient::Pong(nonce), 0)),
        1 => (0..3_u16).prop_map(|code| (ToClient::Goodbye { code: code.into(), message: "x".repeat(9000) }, 0)),
        1 => Just((ToClient::Pong(1), 3)),
    ]
}

fn arb_client_op() -> impl Strategy<Value = ClientOp> {
    let lent = (0..4_u32, prop_oneof![9 => 0..4_u64, 1 => any::<u64>()], 0..9_u64, 0..30_u64, arb_twist());
    prop_oneof![
        12 => arb_to_client().prop_map(|(message, payload)| ClientOp::Say(message, payload)),
        3 => (0..4_u32).prop_map(ClientOp::Schema),
        8 => lent.prop_map(|(stream, seq, lease, rows, twist)| ClientOp::Lent { stream, seq, lease, rows, twist }),
        1 => prop::collection::vec(any::<u8>(), 0..40).prop_map(ClientOp::Bytes),
        8 => (0..4_usize, prop_oneof![6 => (0..2_u64).prop_map(Ok), 1 => Just(Err(()))])
            .prop_map(|(k, found)| ClientOp::Read(k, found)),
        1 => Just(ClientOp::Answer),
        2 => (prop::sample::select(vec![0_u64, 1000, 5000, u64::MAX]), any::<bool>())
            .prop_map(|(credit, lazy)| ClientOp::Execute { credit, lazy }),
        4 => (0..4_usize, 0..3_usize).prop_map(|(k, parts)| ClientOp::Ask(k, parts)),
        2 => (0..4_usize).prop_map(ClientOp::GiveUp),
        3 => Just(ClientOp::Take),
        1 => (1..4_u32).prop_map(ClientOp::Cancel),
        1 => (0..6000_u64).prop_map(ClientOp::Advance),
    ]
}

const LOAN: u64 = 20_000;
const BATCH: u64 = 10_000;
const REGIONS: usize = 4;

fn hello(fencing: Fencing) -> ServerHello {
    let words = Region { id: RegionId(1), base: WORDS_BASE, len: 64, key: Bytes::new() };
    let choice = FabricChoice {
        kind: FabricKind::SIM,
        address: Bytes::new(),
        fencing,
        words,
        probe_at: RemoteRange { region: RegionId(1), address: WORDS_BASE + 56, len: 8 },
        probe_value: PROBE,
    };
    let limits = ServerLimits { max_streams: 4, max_loan_bytes: LOAN, max_sql_bytes: 100 };
    ServerHello { name: "x".into(), fabric: Ok(choice), limits }
}

/// A client's driver that does what it must, and an application that believes what it is told.
struct Client {
    now: Timestamp,
    machine: ClientConnection,
    reading: BTreeMap<ReadId, bool>,
    slabs: BTreeSet<ReadId>,
    /// Of each stream: the next batch, whether it is over, what was delivered and not taken.
    apps: BTreeMap<StreamId, (u64, bool, Vec<u64>)>,
    /// Lazy batches: their buffers, what they owe.
    held: BTreeMap<(StreamId, u64), (Vec<u64>, BTreeSet<AskId>)>,
    last_ask: u64,
    asked: bool,
    ready: bool,
    closing: bool,
    said: usize,
    closed: Option<ConnectionError>,
}

impl Client {
    fn new(frame: FrameLimits) -> Self {
        let config = ClientConfig {
            name: "victim".into(),
            fabrics: vec![FabricOffer { kind: FabricKind::SIM, address: Bytes::new() }],
            frame,
            max_batch_bytes: BATCH,
            max_regions: REGIONS,
            layout: Default::default(),
            inline: Default::default(),
            timeouts: timeouts(),
            first_window: 2000,
            read_timeout: pair::READ_TIMEOUT,
        };
        Client {
            now: Timestamp::ZERO,
            machine: ClientConnection::new(config, Timestamp::ZERO).expect("a short hello"),
            reading: BTreeMap::new(),
            slabs: BTreeSet::new(),
            apps: BTreeMap::new(),
            held: BTreeMap::new(),
            last_ask: 0,
            asked: false,
            ready: false,
            closing: false,
            said: 0,
            closed: None,
        }
    }

    fn handle(&mut self, input: ClientInput<'_>) {
        self.machine.handle(self.now, input).expect("this driver keeps the contract");
        let (mut outputs, mut said) = (0, 0);
        loop {
            outputs += 1;
            assert!(outputs < 1000, "outputs without end");
            match self.machine.poll_output() {
                ClientOutput::Wait(deadline) => {
                    assert!(self.closed.is_none() || deadline.is_none());
                    break;
                }
                ClientOutput::Transmit(frame) => said += frame.len(),
                ClientOutput::ConnectFabric(_) => self.asked = true,
                ClientOutput::CloseFabric => assert!(!std::mem::replace(&mut self.closing, true)),
                ClientOutput::ImportRegion(_) | ClientOutput::ForgetRegion(_) => {}
                ClientOutput::Read(batch) | ClientOutput::Map(batch) => {
                    let ranges = &batch.layout.ranges;
                    assert!(batch.layout.len <= BATCH.max(LOAN), "a slab of {} bytes", batch.layout.len);
                    for (index, place) in &batch.places {
                        assert_eq!(ranges[*index].len, place.len);
                    }
                    assert!(self.slabs.insert(batch.read));
                    assert!(self.reading.insert(batch.read, false).is_none());
                }
                ClientOutput::ReadWord { read, at } => {
                    assert_eq!((at.len, at.address % 8), (8, 0));
                    assert!(self.slabs.contains(&read));
                    assert!(self.reading.insert(read, true).is_none());
                }
                ClientOutput::Discard { read } => {
                    assert!(!self.reading.contains_key(&read));
                    assert!(self.slabs.remove(&read));
                }
                ClientOutput::Event(event) => self.event(event),
                ClientOutput::Closed(error) => {
                    assert!(self.closed.replace(error).is_none());
                    assert!(self.reading.is_empty() && self.slabs.is_empty());
                    assert!(self.apps.values().all(|(_, over, _)| *over), "{:?}", self.apps);
                }
            }
        }
        self.said += said;
        assert!(said < 10_000, "one input makes {said} bytes");
        assert_eq!(self.machine.outstanding_reads(), self.reading.len());
        // Memory here is within what was granted: the window of each stream, or one batch if that is larger.
        let streams = self.apps.len() as u64;
        assert!((self.slabs.len() as u64) * 256 <= streams * (LOAN + BATCH + 512));
    }

    fn event(&mut self, event: ClientEvent) {
        match event {
            ClientEvent::Batch { stream, seq, cost, payload } => {
                let (next, over, untaken) = self.apps.get_mut(&stream).expect("a stream that was asked for");
                assert!(!*over && *next == seq);
                *next += 1;
                untaken.push(cost);
                assert!(untaken.iter().sum::<u64>() <= LOAN + BATCH + 512, "{untaken:?}");
                match payload {
                    Payload::Lent { read, .. } | Payload::Mapped { read, .. } => {
                        assert!(!self.reading.contains_key(&read));
                        assert!(self.slabs.remove(&read));
                    }
                    Payload::Lazy { descriptor } => {
                        untaken.pop();
                        let held = (descriptor.buffers.clone(), BTreeSet::new());
                        assert!(self.held.insert((stream, seq), held).is_none());
                    }
                    Payload::Inline(_) => {}
                }
            }
            ClientEvent::Found { stream, seq, ask, read } => {
                assert!(self.slabs.remove(&read));
                assert!(self.held.get_mut(&(stream, seq)).is_some_and(|(_, asks)| asks.remove(&ask)));
            }
            ClientEvent::AskFailed { stream, seq, ask, .. } => {
                assert!(self.held.get_mut(&(stream, seq)).is_some_and(|(_, asks)| asks.remove(&ask)));
            }
            ClientEvent::End { stream, .. } | ClientEvent::Failed { stream, .. } => {
                let (_, over, _) = self.apps.get_mut(&stream).expect("a stream that was asked for");
                assert!(!std::mem::replace(over, true), "{stream:?} ends twice");
            }
            ClientEvent::Schema { stream, .. } => assert!(!self.apps[&stream].1),
            ClientEvent::FabricUp { .. } | ClientEvent::FabricDown { .. } => self.ready = true,
            ClientEvent::Welcome { .. } | ClientEvent::Draining | ClientEvent::Pong => {}
        }
    }

    fn command(&mut self, command: ClientCommand) {
        self.handle(ClientInput::Command(command));
    }

    fn say(&mut self, message: &ToClient, payload: Bytes) {
        self.handle(ClientInput::Received(&bytes_of(message, payload)));
    }

    fn apply(&mut self, op: ClientOp) {
        match op {
            ClientOp::Say(message, payload) => self.say(&message, vec![7; payload].into()),
            ClientOp::Schema(stream) => {
                self.say(&ToClient::Schema { stream: StreamId(stream), order: Vec::new() }, schema_message())
            }
            ClientOp::Lent { stream, seq, lease, rows, twist } => {
                let batch = lent(lease, rows, twist);
                self.say(&ToClient::Lent { stream: StreamId(stream), seq, batch }, Bytes::new());
            }
            ClientOp::Bytes(bytes) => self.handle(ClientInput::Received(&bytes)),
            ClientOp::Read(k, found) => {
                let Some(read) = self.reading.keys().nth(k % self.reading.len().max(1)).copied() else { return };
                self.complete(read, found.map_err(|()| ReadProblem::Failed("no".into())));
            }
            ClientOp::Answer => self.answer(),
            ClientOp::Ask(k, parts) => {
                let k = k % self.held.len().max(1);
                let Some((&(stream, seq), (buffers, asks))) = self.held.iter_mut().nth(k) else { return };
                self.last_ask += 1;
                let ask = AskId(self.last_ask);
                asks.insert(ask);
                let whole = |(buffer, len): (usize, &u64)| Piece { buffer, offset: 0, len: *len };
                let pieces = buffers.iter().enumerate().map(whole).take(parts).collect();
                self.command(ClientCommand::Ask { stream, seq, ask, pieces });
            }
            ClientOp::GiveUp(k) => {
                let Some(&(stream, seq)) = self.held.keys().nth(k % self.held.len().max(1)) else { return };
                self.command(ClientCommand::GiveUp { stream, seq });
                assert_eq!(self.held.remove(&(stream, seq)).map(|(_, asks)| asks.len()), Some(0));
            }
            ClientOp::Execute { credit, lazy } if self.ready || self.closed.is_some() => {
                let stream = StreamId(self.apps.len() as u32 + 1);
                self.apps.insert(stream, (0, false, Vec::new()));
                let options = ExecuteOptions { credit, lazy, ..ExecuteOptions::default() };
                self.command(ClientCommand::Execute { stream, sql: "x".into(), options });
            }
            ClientOp::Take => {
                let full = self.apps.iter_mut().find(|(_, (_, _, untaken))| !untaken.is_empty());
                if let Some((&stream, (_, _, untaken))) = full {
                    let cost = untaken.remove(0);
                    self.command(ClientCommand::Consumed { stream, cost });
                }
            }
            ClientOp::Cancel(stream) if (stream as usize) <= self.apps.len() => {
                self.command(ClientCommand::Cancel { stream: StreamId(stream) });
            }
            ClientOp::Execute { .. } | ClientOp::Cancel(_) => {}
            ClientOp::Advance(ms) => {
                self.now = self.now + std::time::Duration::from_millis(ms);
                self.handle(ClientInput::Time);
            }
        }
    }

    fn complete(&mut self, read: ReadId, found: Result<u64, ReadProblem>) {
        match self.reading.remove(&read) {
            Some(true) => self.command(ClientCommand::WordRead { read, result: found }),
            Some(false) => self.command(ClientCommand::ReadDone { read, result: found.map(|_| ()) }),
            None => {}
        }
    }

    fn answer(&mut self) {
        if self.closing {
            for read in self.reading.keys().copied().collect::<Vec<_>>() {
                self.complete(read, Err(ReadProblem::Failed("flushed".into())));
            }
            self.closing = false;
            self.command(ClientCommand::FabricClosed);
        } else if std::mem::take(&mut self.asked) {
            self.command(ClientCommand::FabricUp { transport: "sim".into() });
        }
    }

    fn finish(mut self) -> ConnectionError {
        self.handle(ClientInput::ControlLost("gone".into()));
        self.answer();
        assert_eq!((self.machine.open_streams(), self.machine.outstanding_reads()), (0, 0));
        self.closed.expect("it closes")
    }
}

fn lent(lease: u64, rows: u64, twist: Twist) -> LentBatch {
    let mut descriptor: BatchDescriptor = descriptor(rows);
    let place = RemoteRange { region: RegionId(2), address: DATA_BASE, len: rows * 8 };
    let mut places = vec![place; if rows > 0 { 2 } else { 0 }];
    let at = RemoteRange { region: RegionId(1), address: WORDS_BASE, len: 8 };
    let mut word = Some(LeaseWord { at, value: 1 });
    match twist {
        Twist::Nothing => {}
        Twist::Descriptor(other) => descriptor = other,
        Twist::Place { index, place } => {
            if let Some(found) = places.get_mut(index) {
                *found = place;
            }
        }
        Twist::FewerPlaces => drop(places.pop()),
        Twist::MorePlaces => places.push(place),
        Twist::Word(other) => word = other,
    }
    LentBatch { lease: LeaseId(lease), word, descriptor, places }
}

/// A welcome with a data plane that works, its region, and three queries of which two run.
fn welcome() -> Vec<ClientOp> {
    let data = Region { id: RegionId(2), base: DATA_BASE, len: 1 << 20, key: Bytes::new() };
    let mut ops = vec![
        ClientOp::Bytes(preface()),
        ClientOp::Say(ToClient::Welcome(hello(Fencing::LeaseWord)), 0),
        ClientOp::Say(ToClient::Region(data), 0),
        ClientOp::Answer,
    ];
    let credits = [(5000, false), (1000, true), (u64::MAX, false)];
    ops.extend(credits.map(|(credit, lazy)| ClientOp::Execute { credit, lazy }));
    ops.extend([ClientOp::Schema(1), ClientOp::Schema(2)]);
    ops
}

proptest! {
    #![proptest_config(config(6000, "tests/regressions/hostile_server.txt"))]

    #[test]
    fn a_hostile_server(
        welcomed in prop_oneof![9 => Just(9_usize), 1 => 0..9_usize],
        ops in prop::collection::vec(arb_client_op(), 0..60),
    ) {
        let mut client = Client::new(frame());
        for op in welcome().into_iter().take(welcomed).chain(ops) {
            client.apply(op);
        }
        client.finish();
    }
}

fn welcomed() -> Client {
    let mut client = Client::new(frame());
    for op in welcome() {
        client.apply(op);
    }
    client
}

/// The next sequence number after this one does not exist.
#[test]
fn a_piece_with_the_last_sequence_number() {
    let mut client = welcomed();
    let stream = StreamId(1);
    client.say(&ToClient::Inline { stream, seq: 0, bytes: 20, more: true }, vec![0; 5].into());
    client.say(&ToClient::Inline { stream, seq: u64::MAX, bytes: 20, more: true }, vec![0; 5].into());
    let error = client.finish();
    assert!(matches!(error, ConnectionError::Peer(PeerMisbehaved::StreamOrder { .. })), "{error}");
}

/// The client's own goodbye quotes what is wrong, which may be longer than a message.
#[test]
fn an_error_that_quotes_megabytes() {
    let field = Field::new("x".repeat(300_000), DataType::Int64, false);
    let parent = Field::new("parent", DataType::Struct(vec![field].into()), false);
    let ipc = encode_schema(&Schema::new(vec![parent])).expect("IPC carries it");
    let mut client = Client::new(FrameLimits { message: 256 << 10, payload: 4 << 20 });
    for op in welcome().into_iter().take(7) {
        client.apply(op);
    }
    client.say(&ToClient::Schema { stream: StreamId(1), order: Vec::new() }, ipc.into());
    let mut batch = lent(1, 3, Twist::Nothing);
    batch.descriptor.nodes[0].detail = Detail::Base(0);
    client.say(&ToClient::Lent { stream: StreamId(1), seq: 0, batch }, Bytes::new());
    let error = client.finish();
    assert!(matches!(error, ConnectionError::Peer(PeerMisbehaved::Layout { .. })));
    assert!(error.to_string().len() > 300_000, "{error}");
}

/// Batches that are read in parts, in whatever order, cannot have their dictionaries from others.
#[test]
fn a_lazy_batch_with_the_dictionary_of_another() {
    for (stream, refused) in [(StreamId(1), false), (StreamId(2), true)] {
        let field = Field::new("word", DataType::Dictionary(DataType::Int8.into(), DataType::Utf8.into()), false);
        let ipc = encode_schema(&Schema::new(vec![field])).expect("IPC carries it");
        let mut client = Client::new(frame());
        for op in welcome().into_iter().take(7) {
            client.apply(op);
        }
        client.say(&ToClient::Schema { stream, order: Vec::new() }, ipc.into());
        let node = NodeDescriptor { len: 16, nulls: 0, null_bit: 0, detail: Detail::SameValues };
        let descriptor = BatchDescriptor { rows: 16, nodes: vec![node], buffers: vec![16] };
        let mut batch = lent(1, 2, Twist::Descriptor(descriptor));
        batch.places.truncate(1);
        client.say(&ToClient::Lent { stream, seq: 0, batch }, Bytes::new());
        let error = client.finish();
        assert_eq!(matches!(error, ConnectionError::Peer(PeerMisbehaved::Layout { .. })), refused, "{error}");
    }
}

/// Whoever merges partitions looks at the columns that the server says they are sorted by.
#[test]
fn a_result_sorted_by_columns_that_it_does_not_have() {
    let sorted_by = |column, keys| {
        let mut client = Client::new(FrameLimits { message: 256 << 10, payload: 4 << 20 });
        for op in welcome().into_iter().take(7) {
            client.apply(op);
        }
        let order = vec![SortKey { column, descending: true, nulls_first: true }; keys];
        client.say(&ToClient::Schema { stream: StreamId(1), order }, schema_message());
        client.finish()
    };
    let columns = decode_schema(&schema_message(), &InlineLimits::default()).expect("it decodes").fields().len();
    let error = sorted_by(columns as u32, 1);
    assert!(matches!(error, ConnectionError::Peer(PeerMisbehaved::Schema { .. })), "{error}");
    let error = sorted_by(0, MAX_SORT_KEYS + 1);
    assert!(matches!(error, ConnectionError::Peer(PeerMisbehaved::Limit { what: "sort keys", .. })), "{error}");
    let error = sorted_by(columns as u32 - 1, MAX_SORT_KEYS);
    assert!(!matches!(error, ConnectionError::Peer(_)), "{error}");
}
