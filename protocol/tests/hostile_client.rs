//! The client is arbitrary. The server never panics, ends in a typed error or goes on, keeps every lease until it may end,
//! and says no more than its limits allow.

mod pair;

use bytes::Bytes;
use pair::lender::Lender;
use pair::memory::Memory;
use pair::script::{Batch, Ending, Knobs, Script, arb_knobs, arb_script};
use pair::{Pipe, any_edge, bytes_of, config, preface};
use proptest::prelude::*;
use thallus_protocol::message::*;
use thallus_protocol::server::{ServerCommand, ServerInput};
use thallus_protocol::{FabricKind, LeaseId, StreamId, Timestamp};

/// What happens to a server.
#[derive(Clone, Debug)]
enum ServerOp {
    Say(ToServer),
    Payload(ToServer),
    Bytes(Vec<u8>),
    Engine(usize),
    Answer,
    Advance(u64),
    FabricFails,
    Drain,
}

fn arb_to_server() -> impl Strategy<Value = ToServer> {
    let stream = || (0..7_u32).prop_map(StreamId);
    let offer = prop_oneof![Just("sim"), Just("ucx"), Just("")]
        .prop_map(|kind| FabricOffer { kind: FabricKind::from(kind.to_owned()), address: Bytes::from_static(b"x") });
    let delivery = prop_oneof![Just(Delivery::Lent), Just(Delivery::Auto), Just(Delivery::Inline)];
    let credit = || prop_oneof![3 => 0..7000_u64, 1 => any_edge()];
    prop_oneof![
        1 => prop::collection::vec(offer, 0..20).prop_map(|fabrics| ToServer::Hello(ClientHello { name: "x".into(), fabrics })),
        1 => Just(ToServer::FabricUp { transport: "x".into() }),
        1 => Just(ToServer::FabricDown { reason: "x".into() }),
        8 => (stream(), "[0-3x]{1,5}", delivery, credit(), prop::option::of(any_edge())).prop_map(
            |(stream, sql, delivery, credit, deadline_ms)| {
                let options = ExecuteOptions { delivery, credit, deadline_ms, ..ExecuteOptions::default() };
                ToServer::Execute { stream, sql, options }
            }
        ),
        6 => (stream(), credit()).prop_map(|(stream, total)| ToServer::Credit { stream, total }),
        8 => prop::collection::vec((1..10_u64).prop_map(LeaseId), 0..3).prop_map(|leases| ToServer::Release { leases }),
        2 => (stream(), any::<u16>()).prop_map(|(stream, reason)| ToServer::Cancel { stream, reason: reason.into() }),
        1 => any::<u64>().prop_map(ToServer::Ping),
        1 => any::<u64>().prop_map(ToServer::Pong),
        1 => any::<u16>().prop_map(|code| ToServer::Goodbye { code: code.into(), message: "x".repeat(9000) }),
    ]
}

fn arb_server_op() -> impl Strategy<Value = ServerOp> {
    prop_oneof![
        20 => arb_to_server().prop_map(ServerOp::Say),
        1 => arb_to_server().prop_map(ServerOp::Payload),
        1 => prop::collection::vec(any::<u8>(), 0..40).prop_map(ServerOp::Bytes),
        16 => (0..4_usize).prop_map(ServerOp::Engine),
        2 => Just(ServerOp::Answer),
        2 => (0..9000_u64).prop_map(ServerOp::Advance),
        1 => Just(ServerOp::FabricFails),
        1 => Just(ServerOp::Drain),
    ]
}

struct Server {
    now: Timestamp,
    lender: Lender,
    memory: Memory,
    pipe: Pipe,
}

impl Server {
    fn new(knobs: Knobs, scripts: Vec<Script>) -> Self {
        let memory = Memory::new(knobs.max_leases);
        Server { now: Timestamp::ZERO, lender: Lender::new(knobs, scripts), memory, pipe: Pipe::default() }
    }

    fn handle(&mut self, input: ServerInput<'_>) {
        self.lender.handle(self.now, input, &mut self.memory, &mut self.pipe).expect("this driver keeps the contract");
    }

    fn apply(&mut self, op: ServerOp) {
        match op {
            ServerOp::Say(message) => self.say(&message),
            ServerOp::Payload(message) => {
                let bytes = bytes_of(&message, Bytes::from_static(b"payload"));
                self.handle(ServerInput::Received(&bytes));
            }
            ServerOp::Bytes(bytes) => self.handle(ServerInput::Received(&bytes)),
            ServerOp::Engine(k) => {
                for command in self.lender.engine_step(k, &mut self.memory).unwrap_or_default() {
                    self.handle(ServerInput::Command(command));
                }
            }
            ServerOp::Answer => {
                self.lender.answer(self.now, &mut self.memory);
                self.handle(ServerInput::Time);
            }
            ServerOp::Advance(ms) => {
                self.now = self.now + std::time::Duration::from_millis(ms);
                self.handle(ServerInput::Time);
            }
            ServerOp::FabricFails => {
                let reason = "device gone".into();
                self.handle(ServerInput::Command(ServerCommand::FabricFailed { reason }));
            }
            ServerOp::Drain => self.handle(ServerInput::Command(ServerCommand::Drain)),
        }
    }

    fn say(&mut self, message: &ToServer) {
        let before = self.pipe.len();
        self.handle(ServerInput::Received(&bytes_of(message, Bytes::new())));
        // An answer, a pull's worth of batches that waited, the ends of all streams; each clipped or within the limit.
        let knobs = &self.lender.knobs;
        let most = (u64::from(knobs.max_streams) + 2) * (6000 + 13_000);
        assert!(((self.pipe.len() - before) as u64) < most, "{message:?} makes {} bytes", self.pipe.len() - before);
    }

    /// The client is gone: every lease ends, and the connection with them.
    fn finish(mut self) {
        self.handle(ServerInput::ControlLost("gone".into()));
        while self.lender.answer(self.now, &mut self.memory) {
            self.handle(ServerInput::Time);
        }
        assert!(self.lender.closed.is_some());
        assert_eq!((self.lender.leases_held(), self.lender.machine.open_leases()), (0, 0));
    }
}

/// A hello, and a data plane that works.
fn greeting() -> Vec<ServerOp> {
    let offer = FabricOffer { kind: FabricKind::SIM, address: Bytes::new() };
    let hello = ToServer::Hello(ClientHello { name: String::new(), fabrics: vec![offer] });
    let up = ToServer::FabricUp { transport: String::new() };
    vec![ServerOp::Bytes(preface()), ServerOp::Say(hello), ServerOp::Answer, ServerOp::Say(up)]
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

/// It made the server forget its data plane: leases ended without its being closed.
#[test]
fn a_second_fabric_up_does_not_end_leases_early() {
    let script = Script { batches: vec![Batch::Lent { rows: 10, own_region: false }], ending: Ending::Stall };
    let knobs = Knobs {
        fencing: Fencing::Revocation,
        server_has_fabric: true,
        open_works: true,
        connect_works: true,
        instant: false,
        max_streams: 1,
        max_loan_bytes: 10_000,
        max_leases: 1,
        max_batch_bytes: 10_000,
    };
    let mut server = Server::new(knobs, vec![script]);
    let options = ExecuteOptions { delivery: Delivery::Lent, credit: 5000, ..ExecuteOptions::default() };
    let execute = ToServer::Execute { stream: StreamId(1), sql: "0".into(), options };
    let run = [ServerOp::Say(execute), ServerOp::Engine(0), ServerOp::Engine(0)];
    for op in greeting().into_iter().chain(run) {
        server.apply(op);
    }
    assert_eq!(server.lender.machine.open_leases(), 1);
    server.say(&ToServer::FabricUp { transport: String::new() });
    assert_eq!(server.lender.machine.open_leases(), 1, "the data plane is not closed yet");
    server.finish();
}

/// Credit that no lender could honour is refused before it counts.
#[test]
fn credit_has_the_lenders_limit() {
    let knobs = Knobs {
        fencing: Fencing::LeaseWord,
        server_has_fabric: true,
        open_works: true,
        connect_works: true,
        instant: true,
        max_streams: 1,
        max_loan_bytes: 1000,
        max_leases: 1,
        max_batch_bytes: 1000,
    };
    let script = Script { batches: vec![], ending: Ending::Stall };
    let execute = |credit| {
        let options = ExecuteOptions { credit, ..ExecuteOptions::default() };
        ToServer::Execute { stream: StreamId(1), sql: "0".into(), options }
    };
    let credit = |total| ToServer::Credit { stream: StreamId(1), total };
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
            server.say(message);
        }
        assert_eq!(server.lender.closed.is_some(), ends, "{messages:?}: {:?}", server.lender.closed);
        server.finish();
    }
}
