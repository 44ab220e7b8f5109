//! The client sends arbitrary messages. The server never panics, closes with a typed error or continues, keeps every
//! lease until it may end, and sends no more bytes than its limits allow.

mod pair;

use bytes::Bytes;
use pair::end::{Driver, Memories};
use pair::memory::{DATA_BASE, Memory, PROBE, WORDS_BASE};
use pair::script::{Batch, Ending, Knobs, Script, arb_knobs, arb_script, descriptor, schema_message};
use pair::{Pipe, any_edge, bytes_of, config, preface};
use proptest::prelude::*;
use thallus_protocol::borrower::BorrowerCommand;
use thallus_protocol::message::*;
use thallus_protocol::server::{ServerCommand, ServerInput};
use thallus_protocol::{FabricKind, LeaseId, RegionId, RemoteRange, ServerConnection, StreamId, Timestamp};

/// An input to a server or an action of its driver.
#[derive(Clone, Debug)]
#[expect(clippy::large_enum_variant, reason = "a case has few of them")]
enum ServerOp {
    Message(Message, usize),
    Schema(u32),
    Bytes(Vec<u8>),
    Engine(usize),
    Read(usize),
    Take(usize),
    Sink(usize),
    Answer,
    Advance(u64),
    FabricFails,
    Drain,
}

fn arb_request() -> impl Strategy<Value = Request> {
    prop_oneof![
        6 => "[0-3x]{1,5}".prop_map(Request::Sql),
        4 => "[0-3x]{1,5}".prop_map(Request::Upload),
        1 => "[0-3x]{1,5}".prop_map(Request::Describe),
        1 => Just(Request::Objects(ObjectsRequest::default())),
        1 => (5..9_u16).prop_map(|kind| Request::Unknown { kind, body: Bytes::from_static(b"what") }),
    ]
}

fn arb_extensions() -> impl Strategy<Value = Extensions> {
    let keys = prop_oneof![Just(7_u16), Just(CRITICAL | 7), CRITICAL | 1..CRITICAL | 6, any::<u16>()];
    let extensions = prop::collection::vec(keys, 1..70).prop_map(|keys| {
        keys.into_iter().fold(Extensions::none(), |all, key| all.with(key, Bytes::from_static(b"value")))
    });
    prop_oneof![12 => Just(Extensions::none()), 1 => extensions]
}

fn arb_lending() -> impl Strategy<Value = Option<Lending>> {
    let words = Region { id: RegionId(1), base: WORDS_BASE, len: 64, key: Bytes::from_static(b"words") };
    let at = prop_oneof![4 => Just(WORDS_BASE + 56), 1 => any_edge()];
    let lending = (at, prop_oneof![4 => Just(8_u64), 1 => any_edge()]).prop_map(move |(address, len)| Lending {
        fencing: Fencing::LeaseWord,
        words: words.clone(),
        probe_at: RemoteRange { region: RegionId(1), address, len },
        probe_value: PROBE,
    });
    prop::option::of(lending)
}

fn arb_from_lender() -> impl Strategy<Value = (FromLender, usize)> {
    let stream = || (0..7_u32).prop_map(StreamId);
    let seq = || prop_oneof![6 => 0..3_u64, 1 => any::<u64>()];
    let extensions = Extensions::none;
    let lent = (stream(), seq(), 0..6_u64, 0..30_u64).prop_map(|(stream, seq, lease, rows)| {
        let place = RemoteRange { region: RegionId(2), address: DATA_BASE, len: rows * 8 };
        let word = LeaseWord { at: RemoteRange { region: RegionId(1), address: WORDS_BASE, len: 8 }, value: 1 };
        let places = vec![place; if rows > 0 { 2 } else { 0 }];
        let batch = LentBatch { lease: LeaseId(lease), word: Some(word), descriptor: descriptor(rows), places };
        (FromLender::Lent { stream, seq, batch }, 0)
    });
    prop_oneof![
        2 => (0..4_u32, any_edge(), any_edge()).prop_map(|(id, base, len)| {
            (FromLender::Region(Region { id: RegionId(id), base, len, key: Bytes::from_static(b"k") }), 0)
        }),
        1 => (0..4_u32).prop_map(|id| (FromLender::RegionGone(RegionId(id)), 0)),
        6 => (stream(), seq(), prop::sample::select(vec![5_u64, 10, 20]), any::<bool>(), 0..30_usize).prop_map(
            |(stream, seq, bytes, more, len)| (FromLender::Inline { stream, seq, bytes, more }, len)
        ),
        4 => lent,
        2 => (stream(), any_edge()).prop_map(|(stream, bytes)| (FromLender::CreditWanted { stream, bytes }, 0)),
        3 => (stream(), seq()).prop_map(move |(stream, batches)| {
            (FromLender::End { stream, batches, stats: StreamStats::default(), extensions: extensions() }, 0)
        }),
        3 => (stream(), any::<u16>()).prop_map(move |(stream, code)| {
            let failure = Failure::new(code.into(), "x".repeat(9000));
            (FromLender::Failed { stream, failure, extensions: extensions() }, 0)
        }),
    ]
}

fn arb_to_server() -> impl Strategy<Value = (Message, usize)> {
    let stream = || (0..7_u32).prop_map(StreamId);
    let offer = prop_oneof![Just("sim"), Just("ucx"), Just("")]
        .prop_map(|kind| FabricOffer { kind: FabricKind::from(kind.to_owned()), address: Bytes::from_static(b"x") });
    let lend_from = prop_oneof![Just(LendFrom::Bytes(0)), Just(LendFrom::Auto), Just(LendFrom::Never)];
    let credit = || prop_oneof![3 => 0..7000_u64, 1 => any_edge()];
    let borrower = |message| (Message::Borrower(message), 0);
    let name = || "x".to_owned();
    prop_oneof![
        1 => (prop::collection::vec(offer, 0..20), arb_extensions(), credit()).prop_map(
            move |(fabrics, extensions, max_loan_bytes)| {
                (Message::Hello(Hello { name: name(), fabrics, max_loan_bytes, extensions }), 0)
            }
        ),
        1 => (arb_lending(), arb_extensions()).prop_map(move |(lending, extensions)| {
            borrower(FromBorrower::PathUp { transport: name(), lending, extensions })
        }),
        1 => Just(borrower(FromBorrower::PathDown { reason: name() })),
        10 => (stream(), arb_request(), lend_from, credit(), prop::option::of(any_edge()), arb_extensions()).prop_map(
            |(stream, request, lend_from, credit, deadline_ms, extensions)| {
                let options = OpenOptions { lend_from, credit, deadline_ms, ..OpenOptions::default() };
                (Message::Open(Open { stream, request, options, extensions }), 0)
            }
        ),
        6 => (stream(), credit()).prop_map(move |(stream, total)| borrower(FromBorrower::Credit { stream, total })),
        8 => prop::collection::vec((1..10_u64).prop_map(LeaseId), 0..3)
            .prop_map(move |leases| borrower(FromBorrower::Release { leases })),
        2 => (stream(), any::<u16>())
            .prop_map(move |(stream, reason)| borrower(FromBorrower::Cancel { stream, reason: reason.into() })),
        12 => arb_from_lender().prop_map(|(message, payload)| (Message::Lender(message), payload)),
        1 => any::<u64>().prop_map(|nonce| (Message::Ping(nonce), 0)),
        1 => any::<u64>().prop_map(|nonce| (Message::Pong(nonce), 0)),
        1 => any::<u16>().prop_map(|code| (Message::Goodbye { code: code.into(), message: "x".repeat(9000) }, 0)),
        1 => Just((Message::Ping(1), 7)),
        1 => Just((Message::Answer(Answer { stream: StreamId(1), result: Ok(1), extensions: Extensions::none() }), 0)),
    ]
}

fn arb_server_op() -> impl Strategy<Value = ServerOp> {
    prop_oneof![
        20 => arb_to_server().prop_map(|(message, payload)| ServerOp::Message(message, payload)),
        3 => (1..7_u32).prop_map(ServerOp::Schema),
        1 => prop::collection::vec(any::<u8>(), 0..40).prop_map(ServerOp::Bytes),
        12 => (0..4_usize).prop_map(ServerOp::Engine),
        8 => (0..4_usize).prop_map(ServerOp::Read),
        3 => (0..4_usize).prop_map(ServerOp::Take),
        5 => (0..4_usize).prop_map(ServerOp::Sink),
        2 => Just(ServerOp::Answer),
        2 => (0..9000_u64).prop_map(ServerOp::Advance),
        1 => Just(ServerOp::FabricFails),
        1 => Just(ServerOp::Drain),
    ]
}

struct Server {
    now: Timestamp,
    driver: Driver<ServerConnection>,
    memory: Memory,
    theirs: Memory,
    pipe: Pipe,
}

impl Server {
    fn new(knobs: Knobs, scripts: Vec<Script>) -> Self {
        let (memory, theirs) = (Memory::new(knobs.max_leases), Memory::new(7));
        let mut driver = Driver::server(knobs, scripts);
        // The batches of a hostile client's uploads match no script.
        driver.borrow.trusts = false;
        Server { now: Timestamp::ZERO, driver, memory, theirs, pipe: Pipe::default() }
    }

    fn handle(&mut self, input: ServerInput<'_>) {
        let mut memories = Memories { mine: &mut self.memory, theirs: &self.theirs };
        let handled = self.driver.handle(self.now, input, &mut memories, &mut self.pipe);
        handled.expect("this driver keeps the contract");
    }

    fn command(&mut self, command: ServerCommand) {
        self.handle(ServerInput::Command(command));
    }

    fn apply(&mut self, op: ServerOp) {
        match op {
            ServerOp::Message(message, payload) => self.receive(&message, payload),
            ServerOp::Schema(stream) => {
                let (stream, order, extensions) = (StreamId(stream), Vec::new(), Extensions::none());
                let message = Message::Lender(FromLender::Schema { stream, order, extensions });
                self.handle(ServerInput::Received(&bytes_of(&message, schema_message())));
            }
            ServerOp::Bytes(bytes) => self.handle(ServerInput::Received(&bytes)),
            ServerOp::Engine(k) => {
                let able = self.driver.lend.able();
                let Some(&stream) = able.get(k % able.len().max(1)) else { return };
                for command in self.driver.lend.step(stream, &mut self.memory).unwrap_or_default() {
                    self.command(ServerCommand::Lender(command));
                }
            }
            ServerOp::Read(k) => {
                if let Some((read, result)) = self.driver.borrow.step(k, false, &self.theirs) {
                    self.command(ServerCommand::Borrower(BorrowerCommand::ReadDone { read, result }));
                }
            }
            ServerOp::Take(k) => {
                let Some((stream, cost)) = self.driver.borrow.take(k) else { return };
                self.command(ServerCommand::Borrower(BorrowerCommand::Consumed { stream, cost }));
            }
            ServerOp::Sink(k) => {
                if let Some(command) = self.driver.sink(k) {
                    self.command(command);
                }
            }
            ServerOp::Answer => {
                let mut memories = Memories { mine: &mut self.memory, theirs: &self.theirs };
                self.driver.answer(self.now, &mut memories);
                self.handle(ServerInput::Time);
            }
            ServerOp::Advance(ms) => {
                self.now = self.now + std::time::Duration::from_millis(ms);
                self.handle(ServerInput::Time);
            }
            ServerOp::FabricFails => self.command(ServerCommand::FabricFailed { reason: "device gone".into() }),
            ServerOp::Drain => self.command(ServerCommand::Drain),
        }
    }

    fn receive(&mut self, message: &Message, payload: usize) {
        let before = self.pipe.len();
        self.handle(ServerInput::Received(&bytes_of(message, vec![7; payload].into())));
        // An answer, the waiting batches of a pull, the ends of all streams: each is clipped or within the limit.
        let knobs = &self.driver.knobs;
        let most = (u64::from(knobs.max_streams) + 4) * (6000 + 13_000);
        assert!(((self.pipe.len() - before) as u64) < most, "{message:?} makes {} bytes", self.pipe.len() - before);
    }

    fn leases(&self) -> usize {
        self.driver.machine.open_leases()
    }

    /// Closes the control connection. All leases and the connection must end.
    fn finish(mut self) {
        self.handle(ServerInput::ControlLost("gone".into()));
        for _ in 0..3 {
            self.apply(ServerOp::Answer);
        }
        assert!(self.driver.closed.is_some());
        assert_eq!((self.driver.lend.leases_held(), self.leases(), self.driver.borrow.readings()), (0, 0, 0));
    }
}

/// A hello, and a working data plane.
fn greeting() -> Vec<ServerOp> {
    let offer = FabricOffer { kind: FabricKind::SIM, address: Bytes::new() };
    let hello = Hello { fabrics: vec![offer], max_loan_bytes: 1 << 20, ..Hello::default() };
    let up = FromBorrower::PathUp { transport: String::new(), lending: None, extensions: Extensions::none() };
    vec![
        ServerOp::Bytes(preface()),
        ServerOp::Message(Message::Hello(hello), 0),
        ServerOp::Answer,
        ServerOp::Message(Message::Borrower(up), 0),
    ]
}

fn execute(credit: u64, lend_from: LendFrom) -> Message {
    let options = OpenOptions { lend_from, credit, ..OpenOptions::default() };
    Message::Open(Open {
        stream: StreamId(1),
        request: Request::Sql("0".into()),
        options,
        extensions: Extensions::none(),
    })
}

proptest! {
    #![proptest_config(config(4000, "tests/regressions/hostile_client.txt"))]

    #[test]
    fn a_hostile_client(
        knobs in arb_knobs(),
        scripts in prop::collection::vec(arb_script(), 1..4),
        greets in prop_oneof![9 => Just(4_usize), 1 => 0..4_usize],
        ops in prop::collection::vec(arb_server_op(), 0..80),
    ) {
        let mut server = Server::new(Knobs { server_has_fabric: true, open_works: true, ..knobs }, scripts);
        for op in greeting().into_iter().take(greets).chain(ops) {
            server.apply(op);
        }
        server.finish();
    }
}

/// Regression: a second `PathUp` made the server lose its data plane, and leases ended before that was closed.
#[test]
fn a_second_fabric_up_does_not_end_leases_early() {
    let script = Script { batches: vec![Batch::Lent { rows: 10, own_region: false }], ending: Ending::Stall };
    let knobs = Knobs {
        fencing: Fencing::Revocation,
        server_has_fabric: true,
        open_works: true,
        connect_works: true,
        client_lends: true,
        instant: false,
        max_streams: 1,
        max_loan_bytes: 10_000,
        max_leases: 1,
        max_batch_bytes: 10_000,
    };
    let mut server = Server::new(knobs, vec![script]);
    let run = [ServerOp::Message(execute(5000, LendFrom::Bytes(0)), 0), ServerOp::Engine(0), ServerOp::Engine(0)];
    for op in greeting().into_iter().chain(run) {
        server.apply(op);
    }
    assert_eq!(server.leases(), 1);
    let Some(ServerOp::Message(again, _)) = greeting().pop() else { panic!("the greeting ends with PathUp") };
    server.receive(&again, 0);
    assert_eq!(server.leases(), 1, "the data plane is not closed yet");
    server.finish();
}

/// Credit beyond the lender's limit is refused before it takes effect.
#[test]
fn credit_has_the_lenders_limit() {
    let knobs = Knobs {
        fencing: Fencing::LeaseWord,
        server_has_fabric: true,
        open_works: true,
        connect_works: true,
        client_lends: true,
        instant: true,
        max_streams: 1,
        max_loan_bytes: 1000,
        max_leases: 1,
        max_batch_bytes: 1000,
    };
    let script = Script { batches: vec![], ending: Ending::Stall };
    let execute = |credit| execute(credit, LendFrom::Auto);
    let credit = |total| Message::Borrower(FromBorrower::Credit { stream: StreamId(1), total });
    for (messages, ends) in [
        (vec![execute(1256)], false),
        (vec![execute(1257)], true),
        (vec![execute(0), credit(1256)], false),
        (vec![execute(0), credit(1257)], true),
        (vec![execute(10), credit(9)], true),
    ] {
        let mut server = Server::new(knobs.clone(), vec![script.clone()]);
        for op in greeting() {
            server.apply(op);
        }
        for message in &messages {
            server.receive(message, 0);
        }
        assert_eq!(server.driver.closed.is_some(), ends, "{messages:?}: {:?}", server.driver.closed);
        server.finish();
    }
}

/// An unknown request or critical extension fails its stream, and the connection continues.
#[test]
fn an_unknown_request_is_refused_and_the_connection_continues() {
    let unknown = Request::Unknown { kind: 77, body: Bytes::from_static(b"what") };
    let critical = Extensions::none().with(CRITICAL | 99, Bytes::new());
    let ignored = Extensions::none().with(3, Bytes::from_static(b"a hint"));
    let sql = || Request::Sql("0".into());
    for (request, extensions, refused) in [
        (unknown, Extensions::none(), true),
        (sql(), critical, true),
        (Request::Upload("0".into()), Extensions::none().with(CRITICAL, Bytes::new()), true),
        (sql(), ignored, false),
        (sql(), Extensions::none().with(DEFAULT_SCHEMA, Bytes::from_static(b"\xff")), true),
        (sql(), Extensions::none().with(DEFAULT_SCHEMA, Bytes::from_static(b"s")), false),
        (Request::Upload("0".into()), Extensions::none().with(INGEST, Bytes::from_static(b"\x04\0")), true),
        (Request::Describe("0".into()), Extensions::none(), false),
        (Request::Objects(ObjectsRequest::default()), Extensions::none(), false),
    ] {
        let script = Script { batches: vec![], ending: Ending::Stall };
        let mut server = Server::new(pair::script::plain(), vec![script]);
        for op in greeting() {
            server.apply(op);
        }
        let open = Open { stream: StreamId(1), request, options: OpenOptions::default(), extensions };
        server.receive(&Message::Open(open), 0);
        assert_eq!(server.driver.closed, None);
        assert_eq!(server.driver.machine.lender().open_streams(), usize::from(!refused));
        let next = Open {
            stream: StreamId(2),
            request: sql(),
            options: OpenOptions::default(),
            extensions: Extensions::none(),
        };
        server.receive(&Message::Open(next), 0);
        assert_eq!(server.driver.machine.lender().open_streams(), 1 + usize::from(!refused));
        server.finish();
    }
}

/// A client that opens more and more uploads, and never acknowledges their refusal.
#[test]
fn refused_uploads_are_bounded() {
    let script = Script { batches: vec![], ending: Ending::Stall };
    let mut server = Server::new(pair::script::plain(), vec![script]);
    for op in greeting() {
        server.apply(op);
    }
    let opened = (1..3000).take_while(|stream| {
        let open = Open {
            stream: StreamId(*stream),
            request: Request::Upload("x".repeat(101)),
            options: OpenOptions::default(),
            extensions: Extensions::none(),
        };
        server.receive(&Message::Open(open), 0);
        server.driver.closed.is_none() && server.driver.plane == pair::end::Plane::Open
    });
    let opened = opened.count();
    assert!((1000..1100).contains(&opened), "{opened} refused uploads are kept");
    server.finish();
}
