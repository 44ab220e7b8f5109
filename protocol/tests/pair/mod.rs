//! Both machines with a virtual clock, pipes that split and delay bytes, a data plane that delays reads, loses reads
//! and reuses memory, and a check of every delivered batch. The pair has no randomness: every choice is an operation.

#![allow(dead_code, reason = "each test binary uses a part of it")]

pub(crate) mod borrow;
pub(crate) mod end;
mod finish;
pub(crate) mod lend;
pub(crate) mod memory;
pub(crate) mod op;
mod pipe;
pub(crate) mod script;
mod step;

use std::time::Duration;

use bytes::Bytes;
use proptest::prelude::*;
use proptest::test_runner::FileFailurePersistence;
use thallus_protocol::borrower::BorrowerCommand;
use thallus_protocol::client::{ClientCommand, ClientInput, UploadOptions};
use thallus_protocol::codec::{FEATURES, FrameLimits, Preface, VERSIONS, encode};
use thallus_protocol::codes::CloseCode;
use thallus_protocol::connection::Machine;
use thallus_protocol::lender::LenderCommand;
use thallus_protocol::message::{Access, Message, OpenOptions};
use thallus_protocol::server::{ServerCommand, ServerInput};
use thallus_protocol::{
    ApiMisuse, ClientConnection, LeaseEnd, LinkTimeouts, ServerConnection, StreamError, StreamId, Timestamp,
};

use end::{Driver, Memories, Plane};
use memory::Memory;
pub(crate) use op::Op;
#[allow(unused_imports, reason = "each test binary uses a part of it")]
pub(crate) use op::open;
pub(crate) use pipe::Pipe;
use script::{Ending, Knobs, Script};

pub(crate) const READ_TIMEOUT: Duration = Duration::from_secs(5);
/// Shorter than a read may take, so that leases expire during reads. A sensible configuration has a longer timeout.
pub(crate) const LEASE_TIMEOUT: Duration = Duration::from_secs(3);
pub(crate) const DRAIN_TIMEOUT: Duration = Duration::from_secs(20);

/// Longest time for which releases are held back.
pub(crate) const MOMENT: Duration = Duration::from_millis(2);

pub(crate) fn timeouts() -> LinkTimeouts {
    LinkTimeouts { handshake: Duration::from_secs(3), keepalive: Duration::from_secs(4), idle: Duration::from_secs(10) }
}

/// Limits of frames, small so that inline batches have many pieces.
pub(crate) fn frame() -> FrameLimits {
    FrameLimits { message: 256 << 10, payload: 4 << 10 }
}

pub(crate) struct Pair {
    pub(crate) now: Timestamp,
    pub(crate) server: Driver<ServerConnection>,
    pub(crate) client: Driver<ClientConnection>,
    /// Memory of the server.
    pub(crate) memory: Memory,
    /// Memory of the client.
    pub(crate) client_memory: Memory,
    pub(crate) to_server: Pipe,
    pub(crate) to_client: Pipe,
    /// The connection was cut. Each end notices it by an operation.
    cut: bool,
    waiting: Vec<Waiting>,
    last_stream: u32,
    faults: bool,
}

/// A request that waits for the handshake.
#[derive(Debug)]
enum Waiting {
    Execute(usize, OpenOptions),
    Upload(usize, UploadOptions),
}

/// An end of the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum At {
    Server,
    Client,
}

impl Pair {
    pub(crate) fn new(knobs: Knobs, scripts: Vec<Script>) -> Self {
        let mut pair = Pair {
            now: Timestamp::ZERO,
            memory: Memory::new(knobs.max_leases),
            client_memory: Memory::new(knobs.max_leases),
            server: Driver::server(knobs.clone(), scripts.clone()),
            client: Driver::client(knobs, scripts),
            to_server: Pipe::default(),
            to_client: Pipe::default(),
            cut: false,
            waiting: Vec::new(),
            last_stream: 0,
            faults: false,
        };
        pair.server(ServerInput::Time);
        pair.client(ClientInput::Time);
        pair
    }

    pub(crate) fn try_server(&mut self, input: ServerInput<'_>) -> Result<(), ApiMisuse> {
        let mut memories = Memories { mine: &mut self.memory, theirs: &self.client_memory };
        let handled = self.server.handle(self.now, input, &mut memories, &mut self.to_client);
        for (lease, stream, end) in std::mem::take(&mut self.server.lend.just_ended) {
            if end == LeaseEnd::Released {
                self.client.borrow.released(lease, stream);
            }
        }
        handled
    }

    pub(crate) fn try_client(&mut self, input: ClientInput<'_>) -> Result<(), ApiMisuse> {
        let mut memories = Memories { mine: &mut self.client_memory, theirs: &self.memory };
        let handled = self.client.handle(self.now, input, &mut memories, &mut self.to_server);
        for (lease, stream, end) in std::mem::take(&mut self.client.lend.just_ended) {
            if end == LeaseEnd::Released {
                self.server.borrow.released(lease, stream);
            }
        }
        handled
    }

    pub(crate) fn server(&mut self, input: ServerInput<'_>) {
        self.try_server(input).expect("this driver keeps the contract");
    }

    pub(crate) fn client(&mut self, input: ClientInput<'_>) {
        self.try_client(input).expect("this driver keeps the contract");
    }

    /// Flips a bit of one direction, in the byte with this number (counted from 0).
    pub(crate) fn flip(&mut self, to_server: bool, byte: usize, bit: u8) {
        self.faults = true;
        if to_server { &mut self.to_server } else { &mut self.to_client }.flip(byte, bit);
    }

    /// Gives the server's machine a command that breaks the contract.
    pub(crate) fn misuse_server(&mut self, command: ServerCommand) -> Result<(), ApiMisuse> {
        self.faults = true;
        self.try_server(ServerInput::Command(command))
    }

    /// Gives the client's machine a command that breaks the contract.
    pub(crate) fn misuse_client(&mut self, command: ClientCommand) -> Result<(), ApiMisuse> {
        self.faults = true;
        self.try_client(ClientInput::Command(command))
    }

    fn server_command(&mut self, command: ServerCommand) {
        self.server(ServerInput::Command(command));
    }

    fn client_command(&mut self, command: ClientCommand) {
        self.client(ClientInput::Command(command));
    }

    fn lender_command(&mut self, at: At, command: LenderCommand) {
        match at {
            At::Server => self.server_command(ServerCommand::Lender(command)),
            At::Client => self.client_command(ClientCommand::Lender(command)),
        }
    }

    fn borrower_command(&mut self, at: At, command: BorrowerCommand) {
        match at {
            At::Server => self.server_command(ServerCommand::Borrower(command)),
            At::Client => self.client_command(ClientCommand::Borrower(command)),
        }
    }

    pub(crate) fn apply(&mut self, op: Op) {
        self.faults |= op.is_fault();
        match op {
            // After a cut, separate operations report it to each end.
            Op::ToServer(most) => drop(self.deliver_to_server(most, !self.cut)),
            Op::ToClient(most) => drop(self.deliver_to_client(most, !self.cut)),
            Op::Engine(k) => drop(self.engine(k)),
            Op::Read(k) => drop(self.read(k, false)),
            Op::ReadFails(k) => drop(self.read(k, true)),
            Op::NoMemory(k) => self.no_memory(k),
            Op::Take(k) => drop(self.take(k)),
            Op::ReadPart(k, parts) => {
                if let Some(command) = self.client.borrow.read_part(k, &parts) {
                    self.borrower_command(At::Client, command);
                }
            }
            Op::ReleaseBatch(k) => {
                if let Some(batch) = self.client.borrow.pick_held(k) {
                    self.give_up(batch);
                }
            }
            Op::AnswerServer => drop(self.answer_server()),
            Op::AnswerClient => drop(self.answer_client()),
            Op::Execute { script, options } => {
                self.waiting.push(Waiting::Execute(script, options));
                self.execute_waiting();
            }
            Op::Upload { script, options } => {
                self.waiting.push(Waiting::Upload(script, options));
                self.execute_waiting();
            }
            Op::Sink(k) => drop(self.sink(k)),
            Op::Refuse(k) => self.refuse(k),
            Op::Withdraw(k) => self.withdraw(k),
            Op::LongSql => self.long_sql(),
            Op::Ping => self.client_command(ClientCommand::Ping),
            Op::Advance(by) => {
                self.now = self.now + by;
                self.server(ServerInput::Time);
                self.client(ClientInput::Time);
            }
            Op::Cancel(k) => {
                if let Some(stream) = nth(self.client.borrow.apps.keys(), k) {
                    self.borrower_command(At::Client, BorrowerCommand::Cancel { stream });
                }
            }
            Op::Reject(k) => self.reject(k),
            Op::Blackhole => {
                self.memory.blackhole = true;
                self.client_memory.blackhole = true;
            }
            Op::ExposureFails { at_server: true } => self.server.lend.exposure_fails = true,
            Op::ExposureFails { at_server: false } => self.client.lend.exposure_fails = true,
            Op::ServerFabricFails => {
                if self.server.plane == Plane::Open {
                    self.memory.refuses = true;
                    self.server.broken = true;
                    self.server_command(ServerConnection::fabric_failed("device gone".into()));
                }
            }
            Op::ClientFabricFails => {
                self.client.broken = true;
                if self.client.plane == Plane::Open {
                    self.client_memory.refuses = true;
                    self.client_command(ClientConnection::fabric_failed("device gone".into()));
                }
            }
            Op::Silence { to_server, to_client } => {
                self.to_server.discards |= to_server;
                self.to_client.discards |= to_client;
            }
            Op::Cut { lose } => self.cut_connection(lose),
            Op::ServerNoticesCut if self.cut && !std::mem::replace(&mut self.to_server.end_reported, true) => {
                self.server(ServerInput::ControlLost("reset".into()));
            }
            Op::ClientNoticesCut if self.cut && !std::mem::replace(&mut self.to_client.end_reported, true) => {
                self.client(ClientInput::ControlLost("reset".into()));
            }
            Op::ServerNoticesCut | Op::ClientNoticesCut => {}
            Op::Drain => self.server_command(ServerCommand::Drain),
            Op::ServerCloses => {
                self.server_command(ServerCommand::Close { code: CloseCode::Normal, message: "enough".into() });
            }
            Op::ClientCloses => self.client_command(ClientCommand::Close),
        }
        self.execute_waiting();
    }

    fn withdraw(&mut self, k: usize) {
        if let Some(stream) = nth(self.client.uploads.keys(), k) {
            // The application does not wait any more, and gets no event.
            self.client.uploads.entry(stream).or_default().get_or_insert(Err(StreamError::Cancelled));
            self.client_command(ClientCommand::Withdraw { stream });
        }
    }

    /// Cuts the connection. With `lose`, bytes that have not arrived are lost.
    fn cut_connection(&mut self, lose: bool) {
        self.cut = true;
        for pipe in [&mut self.to_server, &mut self.to_client] {
            pipe.discards = true;
            pipe.ended = true;
            if lose {
                pipe.bytes.clear();
            }
        }
    }

    fn execute_waiting(&mut self) {
        // A closed client fails new requests. A connecting client must not get any.
        if !self.client.ready && self.client.closed.is_none() {
            return;
        }
        for waiting in std::mem::take(&mut self.waiting) {
            let stream = self.next_stream();
            let scripts = self.server.scripts.clone();
            match waiting {
                Waiting::Execute(index, mut options) => {
                    let index = index % scripts.len();
                    // A stream that never ends needs a deadline.
                    if scripts[index].ending == Ending::Stall {
                        options.deadline_ms.get_or_insert(2500);
                    }
                    self.faults |= options.deadline_ms.is_some();
                    self.client.borrow.begin(stream, scripts[index].clone(), options.clone());
                    self.client_command(ClientCommand::query(stream, index.to_string(), options));
                }
                Waiting::Upload(index, mut options) => {
                    let index = index % scripts.len();
                    if scripts[index].ending == Ending::Stall {
                        options.deadline.get_or_insert(Duration::from_millis(2500));
                    }
                    self.faults |= options.deadline.is_some();
                    self.client.uploads.insert(stream, None);
                    self.client_command(ClientCommand::Upload { stream, table: index.to_string(), options });
                    if self.client.uploads[&stream].is_none() {
                        self.client.lend.begin(stream, scripts[index].clone(), Access::Read);
                    }
                }
            }
        }
    }

    fn next_stream(&mut self) -> StreamId {
        self.last_stream += 1;
        StreamId(self.last_stream)
    }

    fn long_sql(&mut self) {
        if self.client.ready || self.client.closed.is_some() {
            let stream = self.next_stream();
            let script = self.server.scripts[0].clone();
            self.client.borrow.begin(stream, script, OpenOptions::default());
            self.client_command(ClientCommand::query(stream, "x".repeat(1 << 20), OpenOptions::default()));
            assert!(matches!(self.client.borrow.apps[&stream].over, Some(Err(_))));
        }
    }
}

/// The `k`th stream, modulo the number of streams.
fn nth<'a>(mut keys: impl ExactSizeIterator<Item = &'a StreamId>, k: usize) -> Option<StreamId> {
    keys.nth(k % keys.len().max(1)).copied()
}

/// A configuration with this number of cases, unless `PROPTEST_CASES` is set. Seeds of failures go to
/// `tests/regressions/`.
#[expect(clippy::disallowed_methods, reason = "a test may read its environment, the protocol may not")]
pub(crate) fn config(cases: u32, regressions: &'static str) -> ProptestConfig {
    let default = ProptestConfig::default();
    let cases = if std::env::var_os("PROPTEST_CASES").is_some() { default.cases } else { cases };
    let persistence = FileFailurePersistence::Direct(regressions);
    ProptestConfig { cases, failure_persistence: Some(Box::new(persistence)), max_shrink_iters: 20_000, ..default }
}

/// The bytes of a message of any length.
pub(crate) fn bytes_of(message: &Message, payload: Bytes) -> Vec<u8> {
    let frame = encode(message, payload, FrameLimits { message: u32::MAX, payload: u32::MAX }).expect("any message");
    [frame.head, frame.payload].concat()
}

pub(crate) fn preface() -> Vec<u8> {
    Preface { versions: VERSIONS, features: FEATURES }.encode().to_vec()
}

/// Numbers near limits and overflows.
pub(crate) fn any_edge() -> impl Strategy<Value = u64> {
    prop_oneof![0..4_u64, 200..3000_u64, Just(1 << 20), Just(u64::MAX), Just(u64::MAX - 255), any::<u64>()]
}
