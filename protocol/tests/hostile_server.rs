//! The server sends arbitrary messages. The client never panics, closes with a typed error or continues, reports the
//! end of each stream once, and holds no more bytes than it granted.

mod pair;

use std::collections::{BTreeMap, BTreeSet};

use arrow_schema::{DataType, Field, Schema};
use bytes::Bytes;
use pair::memory::{DATA_BASE, PROBE, WORDS_BASE};
use pair::script::{descriptor, schema_message};
use pair::{any_edge, bytes_of, config, frame, preface};
use proptest::prelude::*;
use thallus_protocol::borrower::{BorrowerCommand, BorrowerEvent, BorrowerTask, Payload, ReadProblem};
use thallus_protocol::client::*;
use thallus_protocol::codec::FrameLimits;
use thallus_protocol::inline::{InlineLimits, decode_schema, encode_schema};
use thallus_protocol::layout::{BatchDescriptor, Detail, NodeDescriptor, Piece};
use thallus_protocol::lender::{LenderCommand, LenderTask, Loan};
use thallus_protocol::message::*;
use thallus_protocol::{
    ClientConnection, ConnectionError, FabricKind, LeaseId, PartId, PeerMisbehaved, ReadId, RegionId, RemoteRange,
    StreamId, Timestamp,
};
use thallus_protocol_testing::mutate_descriptor;

/// An input to a client or an action of its driver.
#[derive(Clone, Debug)]
enum ClientOp {
    Message(Message, usize),
    Schema(u32),
    Lent {
        stream: u32,
        seq: u64,
        lease: u64,
        rows: u64,
        twist: Twist,
    },
    Bytes(Vec<u8>),
    Read(usize, Result<u64, ()>),
    Answer,
    Execute {
        credit: u64,
        lazy: bool,
    },
    Upload {
        lent: bool,
    },
    /// A step of an upload's source.
    Source(usize, bool),
    Withdraw(usize),
    ReadPart(usize, usize),
    GiveUp(usize),
    Take,
    Cancel(u32),
    Advance(u64),
}

/// A fault in a lent batch.
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

fn arb_from_lender() -> impl Strategy<Value = (FromLender, usize)> {
    let stream = || (0..6_u32).prop_map(StreamId);
    let seq = || prop_oneof![6 => 0..3_u64, 1 => Just(u64::MAX), 1 => any::<u64>()];
    let region = (0..6_u32, any_edge(), any_edge()).prop_map(|(id, base, len)| {
        (FromLender::Region(Region { id: RegionId(id), base, len, key: Bytes::from_static(b"k") }), 0)
    });
    let inline_bytes = prop_oneof![4 => prop::sample::select(vec![0_u64, 5, 10, 20]), 1 => any_edge()];
    let inline = (stream(), seq(), inline_bytes, any::<bool>(), prop::sample::select(vec![0_usize, 5, 10, 20]))
        .prop_map(|(stream, seq, bytes, more, len)| (FromLender::Inline { stream, seq, bytes, more }, len));
    prop_oneof![
        2 => region,
        1 => (0..6_u32).prop_map(|id| (FromLender::RegionGone(RegionId(id)), 0)),
        8 => inline,
        3 => (stream(), any_edge()).prop_map(|(stream, bytes)| (FromLender::CreditWanted { stream, bytes }, 0)),
        2 => (stream(), seq(), arb_extensions()).prop_map(|(stream, batches, extensions)| {
            (FromLender::End { stream, batches, stats: StreamStats::default(), extensions }, 0)
        }),
        2 => (stream(), any::<u16>(), arb_extensions()).prop_map(|(stream, code, extensions)| {
            let failure = Failure::new(code.into(), "x".repeat(9000));
            (FromLender::Failed { stream, failure, extensions }, 0)
        }),
    ]
}

fn arb_extensions() -> impl Strategy<Value = Extensions> {
    let keys = prop_oneof![Just(7_u16), Just(CRITICAL | 7), any::<u16>()];
    let extensions = prop::collection::vec(keys, 1..70).prop_map(|keys| {
        keys.into_iter().fold(Extensions::none(), |all, key| all.with(key, Bytes::from_static(b"value")))
    });
    prop_oneof![12 => Just(Extensions::none()), 1 => extensions]
}

/// Messages about streams that the client lends.
fn arb_from_borrower() -> impl Strategy<Value = FromBorrower> {
    let stream = || (0..8_u32).prop_map(StreamId);
    let credit = prop_oneof![3 => 0..7000_u64, 1 => any_edge()];
    prop_oneof![
        6 => (stream(), credit).prop_map(|(stream, total)| FromBorrower::Credit { stream, total }),
        6 => prop::collection::vec((1..10_u64).prop_map(LeaseId), 0..3)
            .prop_map(|leases| FromBorrower::Release { leases }),
        2 => (stream(), any::<u16>())
            .prop_map(|(stream, reason)| FromBorrower::Cancel { stream, reason: reason.into() }),
        2 => Just(up()),
        1 => Just(FromBorrower::PathDown { reason: "x".repeat(9000) }),
    ]
}

fn up() -> FromBorrower {
    FromBorrower::PathUp { transport: "x".into(), lending: None, extensions: Extensions::none() }
}

fn arb_to_client() -> impl Strategy<Value = (Message, usize)> {
    let result = prop_oneof![
        (0..9_u64).prop_map(Ok),
        any::<u16>().prop_map(|code| Err(Failure::new(code.into(), "x".repeat(9000)))),
    ];
    prop_oneof![
        1 => Just((Message::Welcome(hello(Fencing::LeaseWord)), 0)),
        18 => arb_from_lender().prop_map(|(message, payload)| (Message::Lender(message), payload)),
        8 => arb_from_borrower().prop_map(|message| (Message::Borrower(message), 0)),
        2 => (0..8_u32, result, arb_extensions()).prop_map(|(stream, result, extensions)| {
            (Message::Answer(Answer { stream: StreamId(stream), result, extensions }), 0)
        }),
        1 => any::<u64>().prop_map(|nonce| (Message::Ping(nonce), 0)),
        1 => (0..5_u64).prop_map(|nonce| (Message::Pong(nonce), 0)),
        1 => (0..3_u16).prop_map(|code| (Message::Goodbye { code: code.into(), message: "x".repeat(9000) }, 0)),
        1 => Just((Message::Pong(1), 3)),
    ]
}

fn arb_client_op() -> impl Strategy<Value = ClientOp> {
    let lent = (0..4_u32, prop_oneof![9 => 0..4_u64, 1 => any::<u64>()], 0..9_u64, 0..30_u64, arb_twist());
    prop_oneof![
        12 => arb_to_client().prop_map(|(message, payload)| ClientOp::Message(message, payload)),
        3 => (0..4_u32).prop_map(ClientOp::Schema),
        8 => lent.prop_map(|(stream, seq, lease, rows, twist)| ClientOp::Lent { stream, seq, lease, rows, twist }),
        1 => prop::collection::vec(any::<u8>(), 0..40).prop_map(ClientOp::Bytes),
        8 => (0..4_usize, prop_oneof![6 => (0..2_u64).prop_map(Ok), 1 => Just(Err(()))])
            .prop_map(|(k, found)| ClientOp::Read(k, found)),
        1 => Just(ClientOp::Answer),
        2 => (prop::sample::select(vec![0_u64, 1000, 5000, u64::MAX]), any::<bool>())
            .prop_map(|(credit, lazy)| ClientOp::Execute { credit, lazy }),
        2 => any::<bool>().prop_map(|lent| ClientOp::Upload { lent }),
        6 => (0..4_usize, any::<bool>()).prop_map(|(k, ends)| ClientOp::Source(k, ends)),
        1 => (0..4_usize).prop_map(ClientOp::Withdraw),
        4 => (0..4_usize, 0..3_usize).prop_map(|(k, parts)| ClientOp::ReadPart(k, parts)),
        2 => (0..4_usize).prop_map(ClientOp::GiveUp),
        3 => Just(ClientOp::Take),
        1 => (1..4_u32).prop_map(ClientOp::Cancel),
        1 => (0..6000_u64).prop_map(ClientOp::Advance),
    ]
}

const LOAN: u64 = 20_000;
const BATCH: u64 = 10_000;
const REGIONS: usize = 4;

fn hello(fencing: Fencing) -> Welcome {
    let words = Region { id: RegionId(1), base: WORDS_BASE, len: 64, key: Bytes::new() };
    let probe_at = RemoteRange { region: RegionId(1), address: WORDS_BASE + 56, len: 8 };
    let lending = Lending { fencing, words, probe_at, probe_value: PROBE };
    let choice = FabricChoice { kind: FabricKind::SIM, address: Bytes::new(), lending };
    let limits = ServerLimits { max_streams: 4, max_loan_bytes: LOAN, max_sql_bytes: 100 };
    Welcome { name: "x".into(), fabric: Ok(choice), limits, extensions: Extensions::none() }
}

/// State of an upload in its source and its application.
#[derive(Debug, Default)]
struct Source {
    lent: bool,
    begun: bool,
    pulled: Option<bool>,
    over: bool,
    answered: bool,
}

/// A client's driver that keeps the contract, and an application that follows the events.
struct Client {
    now: Timestamp,
    machine: ClientConnection,
    /// Outstanding reads, each with whether it includes a lease word.
    reading: BTreeMap<ReadId, bool>,
    slabs: BTreeSet<ReadId>,
    /// For each stream: the next sequence number, whether it has ended, the costs of batches not consumed yet.
    apps: BTreeMap<StreamId, (u64, bool, Vec<u64>)>,
    uploads: BTreeMap<StreamId, Source>,
    leases: BTreeMap<LeaseId, Option<u32>>,
    last_lease: u64,
    last_stream: u32,
    /// Batches on demand: the lengths of their buffers, and the outstanding reads of their parts.
    held: BTreeMap<(StreamId, u64), (Vec<u64>, BTreeSet<PartId>)>,
    last_part: u64,
    asked: bool,
    ready: bool,
    closing: bool,
    sent: usize,
    closed: Option<ConnectionError>,
}

impl Client {
    fn new(frame: FrameLimits) -> Self {
        let mut config = pair::end::client_config(&pair::script::plain());
        config.frame = frame;
        config.first_window = 2000;
        config.max_loan_bytes = LOAN;
        config.borrow.max_batch_bytes = BATCH;
        config.borrow.max_regions = REGIONS;
        Client {
            now: Timestamp::ZERO,
            machine: ClientConnection::new(config, Timestamp::ZERO).expect("a short hello"),
            reading: BTreeMap::new(),
            slabs: BTreeSet::new(),
            apps: BTreeMap::new(),
            uploads: BTreeMap::new(),
            leases: BTreeMap::new(),
            last_lease: 0,
            last_stream: 0,
            held: BTreeMap::new(),
            last_part: 0,
            asked: false,
            ready: false,
            closing: false,
            sent: 0,
            closed: None,
        }
    }

    fn handle(&mut self, input: ClientInput<'_>) {
        self.machine.handle(self.now, input).expect("this driver keeps the contract");
        let (mut outputs, mut sent) = (0, 0);
        loop {
            outputs += 1;
            assert!(outputs < 1000, "one input makes {outputs} outputs");
            match self.machine.poll_output() {
                ClientOutput::Wait(deadline) => {
                    assert!(self.closed.is_none() || deadline.is_none());
                    break;
                }
                ClientOutput::Transmit(frame) => sent += frame.len(),
                ClientOutput::CloseFabric => assert!(!std::mem::replace(&mut self.closing, true)),
                ClientOutput::Borrower(task) => self.borrower_task(task),
                ClientOutput::Lender(task) => self.lender_task(task),
                ClientOutput::Stream(event) => self.stream_event(event),
                ClientOutput::Event(event) => self.event(event),
                ClientOutput::Closed(error) => {
                    assert!(self.closed.replace(error).is_none());
                    assert!(self.reading.is_empty() && self.slabs.is_empty());
                    assert!(self.apps.values().all(|(_, over, _)| *over), "{:?}", self.apps);
                    assert!(self.uploads.values().all(|upload| upload.answered), "{:?}", self.uploads);
                    assert!(self.leases.is_empty(), "{:?}", self.leases);
                }
            }
        }
        self.sent += sent;
        assert!(sent < 15_000, "one input makes {sent} bytes");
        assert!(self.machine.lender().bytes_on_loan() <= LOAN);
        assert_eq!(self.machine.outstanding_reads(), self.reading.len());
        // Memory stays within the granted credit: the window of each stream, or one batch if that is larger.
        let streams = self.apps.len() as u64;
        assert!((self.slabs.len() as u64) * 256 <= streams * (LOAN + BATCH + 512));
    }

    fn borrower_task(&mut self, task: BorrowerTask) {
        match task {
            BorrowerTask::Import(_) | BorrowerTask::Forget(_) => {}
            BorrowerTask::Read(batch) | BorrowerTask::Map(batch) => {
                let ranges = &batch.layout.ranges;
                assert!(batch.layout.len <= BATCH.max(LOAN), "a slab of {} bytes", batch.layout.len);
                for (index, place) in &batch.places {
                    assert_eq!(ranges[*index].len, place.len);
                }
                assert!(batch.then_word.is_none_or(|at| (at.len, at.address % 8) == (8, 0)));
                assert!(self.slabs.insert(batch.read));
                assert!(self.reading.insert(batch.read, batch.then_word.is_some()).is_none());
            }
            BorrowerTask::Discard { read } => {
                assert!(!self.reading.contains_key(&read));
                assert!(self.slabs.remove(&read));
            }
        }
    }

    fn lender_task(&mut self, task: LenderTask) {
        match task {
            LenderTask::Pull { stream, lend_from } => {
                let upload = self.uploads.get_mut(&stream).expect("an upload");
                assert!(!upload.over && upload.pulled.replace(lend_from.is_some()).is_none());
            }
            LenderTask::Stop { stream, .. } => self.uploads.get_mut(&stream).expect("an upload").over = true,
            LenderTask::OpenLease { lease, word } => {
                let (slot, _) = word.expect("leases are fenced by words");
                *self.leases.get_mut(&lease).expect("a lease that was lent") = Some(slot);
                let place = RemoteRange { region: RegionId(1), address: 0, len: 16 };
                let exposed = LenderCommand::Exposed { lease, announce: Vec::new(), places: vec![place; 2] };
                let input = ClientInput::Command(ClientCommand::Lender(exposed));
                self.machine.handle(self.now, input).expect("this driver keeps the contract");
            }
            LenderTask::EndLease { lease, slot, .. } => assert_eq!(self.leases.remove(&lease), Some(slot)),
        }
    }

    fn stream_event(&mut self, event: BorrowerEvent) {
        match event {
            BorrowerEvent::Batch { stream, seq, cost, payload } => {
                let (next, over, untaken) = self.apps.get_mut(&stream).expect("a requested stream");
                assert!(!*over && *next == seq);
                *next += 1;
                untaken.push(cost);
                assert!(untaken.iter().sum::<u64>() <= LOAN + BATCH + 512, "{untaken:?}");
                match payload {
                    Payload::Lent { read, .. } | Payload::Mapped { read, .. } => {
                        assert!(!self.reading.contains_key(&read));
                        assert!(self.slabs.remove(&read));
                    }
                    Payload::OnDemand { descriptor } => {
                        untaken.pop();
                        let held = (descriptor.buffers.clone(), BTreeSet::new());
                        assert!(self.held.insert((stream, seq), held).is_none());
                    }
                    Payload::Inline(_) => {}
                }
            }
            BorrowerEvent::PartRead { stream, seq, part, read } => {
                assert!(self.slabs.remove(&read));
                assert!(self.held.get_mut(&(stream, seq)).is_some_and(|(_, parts)| parts.remove(&part)));
            }
            BorrowerEvent::PartFailed { stream, seq, part, .. } => {
                assert!(self.held.get_mut(&(stream, seq)).is_some_and(|(_, parts)| parts.remove(&part)));
            }
            BorrowerEvent::End { stream, .. } | BorrowerEvent::Failed { stream, .. } => {
                let (_, over, _) = self.apps.get_mut(&stream).expect("a requested stream");
                assert!(!std::mem::replace(over, true), "{stream:?} ends twice");
            }
            BorrowerEvent::Schema { stream, .. } => assert!(!self.apps[&stream].1),
        }
    }

    fn event(&mut self, event: ClientEvent) {
        match event {
            ClientEvent::ConnectFabric(_) => self.asked = true,
            ClientEvent::FabricUp { .. } | ClientEvent::FabricDown { .. } => self.ready = true,
            ClientEvent::Uploaded { stream, .. } | ClientEvent::UploadFailed { stream, .. } => {
                let upload = self.uploads.get_mut(&stream).expect("an upload");
                assert!(!std::mem::replace(&mut upload.answered, true), "{stream:?} is answered twice");
            }
            ClientEvent::Welcome { .. }
            | ClientEvent::ReversePathUp { .. }
            | ClientEvent::ReversePathDown { .. }
            | ClientEvent::Draining
            | ClientEvent::Pong => {}
        }
    }

    /// The source of the `k`th upload does its next step.
    fn source(&mut self, k: usize, ends: bool) {
        let able = |upload: &Source| !upload.over && (!upload.begun || upload.pulled.is_some());
        let able: Vec<_> = self.uploads.iter().filter(|(_, upload)| able(upload)).map(|(id, _)| *id).collect();
        let Some(&stream) = able.get(k % able.len().max(1)) else { return };
        let Some(upload) = self.uploads.get_mut(&stream) else { return };
        if !std::mem::replace(&mut upload.begun, true) {
            let schema = LenderCommand::Schema { stream, schema: schema_message(), order: Vec::new() };
            return self.command(ClientCommand::Lender(schema));
        }
        let lends = upload.pulled.take() == Some(true) && upload.lent;
        let command = if ends {
            upload.over = true;
            LenderCommand::Finish { stream, execute_nanos: 1 }
        } else if lends {
            self.last_lease += 1;
            let lease = LeaseId(self.last_lease);
            self.leases.insert(lease, None);
            let loan = Loan { lease, descriptor: descriptor(2), staged: 0, effort: Default::default() };
            LenderCommand::Lend { stream, loan, rows: 2 }
        } else {
            LenderCommand::Inline { stream, ipc: vec![7; 50].into(), rows: 2 }
        };
        self.command(ClientCommand::Lender(command));
    }

    fn command(&mut self, command: ClientCommand) {
        self.handle(ClientInput::Command(command));
    }

    fn receive(&mut self, message: &Message, payload: Bytes) {
        self.handle(ClientInput::Received(&bytes_of(message, payload)));
    }

    fn apply(&mut self, op: ClientOp) {
        match op {
            ClientOp::Message(message, payload) => self.receive(&message, vec![7; payload].into()),
            ClientOp::Schema(stream) => self.receive(&schema_of(StreamId(stream), Vec::new()), schema_message()),
            ClientOp::Lent { stream, seq, lease, rows, twist } => {
                let batch = lent(lease, rows, twist);
                self.receive(&lent_as(StreamId(stream), seq, batch), Bytes::new());
            }
            ClientOp::Bytes(bytes) => self.handle(ClientInput::Received(&bytes)),
            ClientOp::Read(k, found) => {
                let Some(read) = self.reading.keys().nth(k % self.reading.len().max(1)).copied() else { return };
                self.complete(read, found.map_err(|()| ReadProblem::failed("no")));
            }
            ClientOp::Answer => self.answer(),
            ClientOp::ReadPart(k, parts) => {
                let k = k % self.held.len().max(1);
                let Some((&(stream, seq), (buffers, due))) = self.held.iter_mut().nth(k) else { return };
                self.last_part += 1;
                let part = PartId(self.last_part);
                due.insert(part);
                let whole = |(buffer, len): (usize, &u64)| Piece { buffer, offset: 0, len: *len };
                let pieces = buffers.iter().enumerate().map(whole).take(parts).collect();
                self.borrower(BorrowerCommand::ReadPart { stream, seq, part, pieces });
            }
            ClientOp::GiveUp(k) => {
                let Some(&(stream, seq)) = self.held.keys().nth(k % self.held.len().max(1)) else { return };
                self.borrower(BorrowerCommand::GiveUp { stream, seq });
                assert_eq!(self.held.remove(&(stream, seq)).map(|(_, parts)| parts.len()), Some(0));
            }
            ClientOp::Upload { lent } if self.ready || self.closed.is_some() => {
                let stream = self.next_stream();
                self.uploads.insert(stream, Source { lent, ..Source::default() });
                let options = UploadOptions { lend_from: LendFrom::Bytes(0), ..UploadOptions::default() };
                self.command(ClientCommand::Upload { stream, table: "t".into(), options });
                if self.uploads[&stream].answered {
                    self.uploads.entry(stream).or_default().over = true;
                }
            }
            ClientOp::Source(k, ends) => self.source(k, ends),
            ClientOp::Withdraw(k) => {
                let Some(stream) = self.uploads.keys().nth(k % self.uploads.len().max(1)).copied() else { return };
                self.uploads.entry(stream).or_default().answered = true;
                self.command(ClientCommand::Withdraw { stream });
            }
            ClientOp::Execute { credit, lazy } if self.ready || self.closed.is_some() => {
                let stream = self.next_stream();
                self.apps.insert(stream, (0, false, Vec::new()));
                let access = if lazy { Access::OnDemand } else { Access::Read };
                let options = OpenOptions { credit, access, ..OpenOptions::default() };
                self.command(ClientCommand::query(stream, "x", options));
            }
            ClientOp::Take => {
                let full = self.apps.iter_mut().find(|(_, (_, _, untaken))| !untaken.is_empty());
                if let Some((&stream, (_, _, untaken))) = full {
                    let cost = untaken.remove(0);
                    self.borrower(BorrowerCommand::Consumed { stream, cost });
                }
            }
            ClientOp::Cancel(stream) if stream <= self.last_stream => {
                self.borrower(BorrowerCommand::Cancel { stream: StreamId(stream) });
            }
            ClientOp::Execute { .. } | ClientOp::Upload { .. } | ClientOp::Cancel(_) => {}
            ClientOp::Advance(ms) => {
                self.now = self.now + std::time::Duration::from_millis(ms);
                self.handle(ClientInput::Time);
            }
        }
    }

    fn next_stream(&mut self) -> StreamId {
        self.last_stream += 1;
        StreamId(self.last_stream)
    }

    fn borrower(&mut self, command: BorrowerCommand) {
        self.command(ClientCommand::Borrower(command));
    }

    fn complete(&mut self, read: ReadId, found: Result<u64, ReadProblem>) {
        if let Some(word) = self.reading.remove(&read) {
            let result = found.map(|found| word.then_some(found));
            self.borrower(BorrowerCommand::ReadDone { read, result });
        }
    }

    fn answer(&mut self) {
        if self.closing {
            for read in self.reading.keys().copied().collect::<Vec<_>>() {
                self.complete(read, Err(ReadProblem::failed("flushed")));
            }
            self.closing = false;
            self.command(ClientCommand::FabricClosed);
        } else if std::mem::take(&mut self.asked) {
            let words = Region { id: RegionId(1), base: 0, len: 1 << 12, key: Bytes::new() };
            let lending = Some(LentWords { fencing: Fencing::LeaseWord, words, probe_value: PROBE });
            self.command(ClientCommand::FabricUp { transport: "sim".into(), lending });
        }
    }

    fn finish(mut self) -> ConnectionError {
        self.handle(ClientInput::ControlLost("gone".into()));
        self.answer();
        assert_eq!((self.machine.open_streams(), self.machine.outstanding_reads()), (0, 0));
        self.closed.expect("the connection closes")
    }
}

fn schema_of(stream: StreamId, order: Vec<SortKey>) -> Message {
    Message::Lender(FromLender::Schema { stream, order, extensions: Extensions::none() })
}

fn lent_as(stream: StreamId, seq: u64, batch: LentBatch) -> Message {
    Message::Lender(FromLender::Lent { stream, seq, batch })
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

/// A welcome with a working data plane, its region, an upload, and three queries, of which two have a schema.
fn welcome() -> Vec<ClientOp> {
    let data = Region { id: RegionId(2), base: DATA_BASE, len: 1 << 20, key: Bytes::new() };
    let mut ops = vec![
        ClientOp::Bytes(preface()),
        ClientOp::Message(Message::Welcome(hello(Fencing::LeaseWord)), 0),
        ClientOp::Message(Message::Lender(FromLender::Region(data)), 0),
        ClientOp::Answer,
    ];
    let credits = [(5000, false), (1000, true), (u64::MAX, false)];
    ops.extend(credits.map(|(credit, lazy)| ClientOp::Execute { credit, lazy }));
    ops.extend([ClientOp::Schema(1), ClientOp::Schema(2), ClientOp::Message(Message::Borrower(up()), 0)]);
    ops.push(ClientOp::Upload { lent: true });
    ops
}

proptest! {
    #![proptest_config(config(6000, "tests/regressions/hostile_server.txt"))]

    #[test]
    fn a_hostile_server(
        welcomed in prop_oneof![9 => Just(11_usize), 1 => 0..11_usize],
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
    let inline = |seq| Message::Lender(FromLender::Inline { stream: StreamId(1), seq, bytes: 20, more: true });
    client.receive(&inline(0), vec![0; 5].into());
    client.receive(&inline(u64::MAX), vec![0; 5].into());
    let error = client.finish();
    assert!(matches!(error, ConnectionError::Peer(PeerMisbehaved::StreamOrder { .. })), "{error}");
}

/// The client's goodbye quotes the error, which may be longer than a message may be.
#[test]
fn an_error_that_quotes_megabytes() {
    let field = Field::new("x".repeat(300_000), DataType::Int64, false);
    let parent = Field::new("parent", DataType::Struct(vec![field].into()), false);
    let ipc = encode_schema(&Schema::new(vec![parent])).expect("IPC supports the schema");
    let mut client = Client::new(FrameLimits { message: 256 << 10, payload: 4 << 20 });
    for op in welcome().into_iter().take(7) {
        client.apply(op);
    }
    client.receive(&schema_of(StreamId(1), Vec::new()), ipc.into());
    let mut batch = lent(1, 3, Twist::Nothing);
    batch.descriptor.nodes[0].detail = Detail::Base(0);
    client.receive(&lent_as(StreamId(1), 0, batch), Bytes::new());
    let error = client.finish();
    assert!(matches!(error, ConnectionError::Peer(PeerMisbehaved::Layout { .. })));
    assert!(error.to_string().len() > 300_000, "{error}");
}

/// Parts of batches are read in any order, so these batches cannot use dictionaries of other batches.
#[test]
fn a_batch_on_demand_with_the_dictionary_of_another() {
    for (stream, refused) in [(StreamId(1), false), (StreamId(2), true)] {
        let field = Field::new("word", DataType::Dictionary(DataType::Int8.into(), DataType::Utf8.into()), false);
        let ipc = encode_schema(&Schema::new(vec![field])).expect("IPC supports the schema");
        let mut client = Client::new(frame());
        for op in welcome().into_iter().take(7) {
            client.apply(op);
        }
        client.receive(&schema_of(stream, Vec::new()), ipc.into());
        let node = NodeDescriptor { len: 16, nulls: 0, null_bit: 0, detail: Detail::SameValues };
        let descriptor = BatchDescriptor { rows: 16, nodes: vec![node], buffers: vec![16] };
        let mut batch = lent(1, 2, Twist::Descriptor(descriptor));
        batch.places.truncate(1);
        client.receive(&lent_as(stream, 0, batch), Bytes::new());
        let error = client.finish();
        assert_eq!(matches!(error, ConnectionError::Peer(PeerMisbehaved::Layout { .. })), refused, "{error}");
    }
}

/// A merge of partitions accesses the columns of the sort order that the server announced.
#[test]
fn a_result_sorted_by_columns_that_it_does_not_have() {
    let sorted_by = |column, keys| {
        let mut client = Client::new(FrameLimits { message: 256 << 10, payload: 4 << 20 });
        for op in welcome().into_iter().take(7) {
            client.apply(op);
        }
        let order = vec![SortKey { column, descending: true, nulls_first: true }; keys];
        client.receive(&schema_of(StreamId(1), order), schema_message());
        client.finish()
    };
    let columns = decode_schema(&schema_message(), &InlineLimits::default()).expect("a valid schema").fields().len();
    let error = sorted_by(columns as u32, 1);
    assert!(matches!(error, ConnectionError::Peer(PeerMisbehaved::Schema { .. })), "{error}");
    let error = sorted_by(0, MAX_SORT_KEYS + 1);
    assert!(matches!(error, ConnectionError::Peer(PeerMisbehaved::Limit { what: "sort keys", .. })), "{error}");
    let error = sorted_by(columns as u32 - 1, MAX_SORT_KEYS);
    assert!(!matches!(error, ConnectionError::Peer(_)), "{error}");
}
