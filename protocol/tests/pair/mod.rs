//! Both machines under a virtual clock, with pipes that split and delay, a data plane that is late, loses and reuses,
//! and a checker that knows what must have been delivered. Nothing here is random: every choice is an operation.

#![allow(dead_code, reason = "each test binary uses a part of it")]

pub(crate) mod borrower;
pub(crate) mod lender;
pub(crate) mod memory;
pub(crate) mod script;

use std::collections::VecDeque;
use std::time::Duration;

use bytes::Bytes;
use proptest::prelude::*;
use proptest::test_runner::FileFailurePersistence;
use serde::Serialize;
use thallus_protocol::client::{ClientCommand, ClientInput};
use thallus_protocol::codec::{Frame, FrameLimits, Preface, VERSIONS, encode};
use thallus_protocol::codes::CloseCode;
use thallus_protocol::message::ExecuteOptions;
use thallus_protocol::server::{ServerCommand, ServerInput};
use thallus_protocol::{ApiMisuse, ConnectionError, LeaseEnd, LinkTimeouts, StreamId, Timestamp};

use borrower::Borrower;
use lender::{Lender, Plane};
use memory::Memory;
use script::{Batch, Ending, Knobs, Script};

pub(crate) const READ_TIMEOUT: Duration = Duration::from_secs(5);
/// Shorter than a read may take, as no sound configuration has it: leases run out while they are read.
pub(crate) const LEASE_TIMEOUT: Duration = Duration::from_secs(3);
pub(crate) const DRAIN_TIMEOUT: Duration = Duration::from_secs(20);

/// For so long at most releases are held back.
pub(crate) const MOMENT: Duration = Duration::from_millis(2);

pub(crate) fn timeouts() -> LinkTimeouts {
    LinkTimeouts { handshake: Duration::from_secs(3), keepalive: Duration::from_secs(4), idle: Duration::from_secs(10) }
}

/// Pieces of inline batches are small, so that there are many.
pub(crate) fn frame() -> FrameLimits {
    FrameLimits { message: 256 << 10, payload: 4 << 10 }
}

/// One direction of the control connection.
#[derive(Debug, Default)]
pub(crate) struct Pipe {
    bytes: VecDeque<u8>,
    /// What is written is gone: broken, or swallowed by the network.
    deaf: bool,
    /// No more is written; the reader hears of it after the last byte.
    ended: bool,
    /// The reader has heard.
    told: bool,
}

impl Pipe {
    pub(crate) fn write(&mut self, frame: &Frame) {
        if !self.deaf && !self.ended {
            self.bytes.extend(frame.head.iter().chain(frame.payload.iter()));
        }
    }

    pub(crate) fn close(&mut self) {
        self.ended = true;
    }

    pub(crate) fn len(&self) -> usize {
        self.bytes.len()
    }

    pub(crate) fn take(&mut self, most: usize) -> Vec<u8> {
        let len = most.min(self.bytes.len());
        self.bytes.drain(..len).collect()
    }
}

/// One thing that happens. Numbers pick among what there is, whatever that is then.
#[derive(Clone, Debug)]
pub(crate) enum Op {
    ToServer(usize),
    ToClient(usize),
    Engine(usize),
    Read(usize),
    Take(usize),
    /// A lazy batch is asked for parts of its buffers.
    Ask(usize, Vec<(usize, u64, u64)>),
    GiveUp(usize),
    AnswerServer,
    AnswerClient,
    Execute {
        script: usize,
        options: ExecuteOptions,
    },
    LongSql,
    Ping,
    Advance(Duration),
    // From here on: whatever disturbs.
    Cancel(usize),
    Reject(usize),
    ReadFails(usize),
    NoMemory(usize),
    Blackhole,
    ServerFabricFails,
    ClientFabricFails,
    /// Bytes vanish, and nobody is told.
    Silence {
        to_server: bool,
        to_client: bool,
    },
    /// The connection breaks: what is under way arrives or not, and each end hears of it when it does.
    Cut {
        lose: bool,
    },
    ServerHearsCut,
    ClientHearsCut,
    Drain,
    ServerCloses,
    ClientCloses,
}

impl Op {
    /// Whether what follows must still end well.
    fn is_fault(&self) -> bool {
        !matches!(
            self,
            Op::ToServer(_)
                | Op::ToClient(_)
                | Op::Engine(_)
                | Op::Read(_)
                | Op::Take(_)
                | Op::Ask(..)
                | Op::GiveUp(_)
                | Op::AnswerServer
                | Op::AnswerClient
                | Op::Execute { .. }
                | Op::Ping
                | Op::LongSql
        )
    }
}

/// As most connections begin, so that operations are not spent on it.
pub(crate) fn open() -> Vec<Op> {
    let all = usize::MAX;
    vec![Op::ToServer(all), Op::AnswerServer, Op::ToClient(all), Op::AnswerClient, Op::ToServer(all)]
}

pub(crate) struct Pair {
    pub(crate) now: Timestamp,
    pub(crate) server: Lender,
    pub(crate) client: Borrower,
    pub(crate) memory: Memory,
    pub(crate) to_server: Pipe,
    pub(crate) to_client: Pipe,
    /// A connection was cut and the ends have not been told.
    cut: bool,
    waiting: Vec<(usize, ExecuteOptions)>,
    faults: bool,
}

impl Pair {
    pub(crate) fn new(knobs: Knobs, scripts: Vec<Script>) -> Self {
        let mut pair = Pair {
            now: Timestamp::ZERO,
            memory: Memory::new(knobs.max_leases),
            server: Lender::new(knobs.clone(), scripts),
            client: Borrower::new(knobs),
            to_server: Pipe::default(),
            to_client: Pipe::default(),
            cut: false,
            waiting: Vec::new(),
            faults: false,
        };
        pair.server(ServerInput::Time);
        pair.client(ClientInput::Time);
        pair
    }

    pub(crate) fn server(&mut self, input: ServerInput<'_>) {
        let handled = self.server.handle(self.now, input, &mut self.memory, &mut self.to_client);
        handled.expect("this driver keeps the contract");
        for (lease, stream, end) in std::mem::take(&mut self.server.just_ended) {
            if end == LeaseEnd::Released {
                self.client.released(lease, stream);
            }
        }
    }

    pub(crate) fn client(&mut self, input: ClientInput<'_>) {
        let handled = self.client.handle(self.now, input, &self.memory, &mut self.to_server);
        handled.expect("this driver keeps the contract");
    }

    /// A command that breaks the contract.
    pub(crate) fn misuse_server(&mut self, command: ServerCommand) -> Result<(), ApiMisuse> {
        self.faults = true;
        let input = ServerInput::Command(command);
        self.server.handle(self.now, input, &mut self.memory, &mut self.to_client)
    }

    /// A command that breaks the contract.
    pub(crate) fn misuse_client(&mut self, command: ClientCommand) -> Result<(), ApiMisuse> {
        self.faults = true;
        self.client.handle(self.now, ClientInput::Command(command), &self.memory, &mut self.to_server)
    }

    fn server_command(&mut self, command: ServerCommand) {
        self.server(ServerInput::Command(command));
    }

    fn client_command(&mut self, command: ClientCommand) {
        self.client(ClientInput::Command(command));
    }

    pub(crate) fn apply(&mut self, op: Op) {
        self.faults |= op.is_fault();
        match op {
            // Who hears of a cut, and when, is an operation of its own.
            Op::ToServer(most) => drop(self.deliver_to_server(most, !self.cut)),
            Op::ToClient(most) => drop(self.deliver_to_client(most, !self.cut)),
            Op::Engine(k) => drop(self.engine(k)),
            Op::Read(k) => drop(self.read(k, false)),
            Op::ReadFails(k) => drop(self.read(k, true)),
            Op::NoMemory(k) => {
                self.client.no_memory(self.now, k);
                self.client(ClientInput::Time);
            }
            Op::Take(k) => drop(self.take(k)),
            Op::Ask(k, parts) => {
                if let Some(command) = self.client.ask(k, &parts) {
                    self.client_command(command);
                }
            }
            Op::GiveUp(k) => {
                if let Some(batch) = self.client.pick_held(k) {
                    self.give_up(batch);
                }
            }
            Op::AnswerServer => drop(self.answer_server()),
            Op::AnswerClient => drop(self.answer_client()),
            Op::Execute { script, options } => {
                self.waiting.push((script, options));
                self.execute_waiting();
            }
            Op::LongSql => self.long_sql(),
            Op::Ping => self.client_command(ClientCommand::Ping),
            Op::Advance(by) => {
                self.now = self.now + by;
                self.server(ServerInput::Time);
                self.client(ClientInput::Time);
            }
            Op::Cancel(k) => {
                if let Some(stream) = self.client.pick(k) {
                    self.client_command(ClientCommand::Cancel { stream });
                }
            }
            Op::Reject(k) => {
                if let Some(stream) = self.client.pick(k).filter(|stream| self.client.apps[stream].next > 0) {
                    let seq = self.client.apps[&stream].next - 1;
                    self.client_command(ClientCommand::Rejected { stream, seq, reason: "it is not UTF-8".into() });
                }
            }
            Op::Blackhole => self.memory.blackhole = true,
            Op::ServerFabricFails => {
                if self.server.plane == Plane::Open {
                    self.memory.refuses = true;
                    self.server_command(ServerCommand::FabricFailed { reason: "device gone".into() });
                }
            }
            Op::ClientFabricFails => {
                self.client.broken = true;
                if self.client.plane == Plane::Open {
                    self.client_command(ClientCommand::FabricFailed { reason: "device gone".into() });
                }
            }
            Op::Silence { to_server, to_client } => {
                self.to_server.deaf |= to_server;
                self.to_client.deaf |= to_client;
            }
            Op::Cut { lose } => {
                self.cut = true;
                for pipe in [&mut self.to_server, &mut self.to_client] {
                    pipe.deaf = true;
                    pipe.ended = true;
                    if lose {
                        pipe.bytes.clear();
                    }
                }
            }
            Op::ServerHearsCut if self.cut && !std::mem::replace(&mut self.to_server.told, true) => {
                self.server(ServerInput::ControlLost("reset".into()));
            }
            Op::ClientHearsCut if self.cut && !std::mem::replace(&mut self.to_client.told, true) => {
                self.client(ClientInput::ControlLost("reset".into()));
            }
            Op::ServerHearsCut | Op::ClientHearsCut => {}
            Op::Drain => self.server_command(ServerCommand::Drain),
            Op::ServerCloses => {
                self.server_command(ServerCommand::Close { code: CloseCode::Normal, message: "enough".into() });
            }
            Op::ClientCloses => self.client_command(ClientCommand::Close),
        }
        self.execute_waiting();
    }

    fn execute_waiting(&mut self) {
        // A client that has ended says so to whoever asks; one that is still connecting must not be asked.
        if !self.client.ready && self.client.closed.is_none() {
            return;
        }
        for (index, options) in std::mem::take(&mut self.waiting) {
            let scripts = &self.server.scripts;
            let index = index % scripts.len();
            let mut options = options;
            // What nobody would ever end needs a deadline.
            if scripts[index].ending == Ending::Stall {
                options.deadline_ms.get_or_insert(2500);
            }
            self.faults |= options.deadline_ms.is_some();
            let command = self.client.execute(scripts[index].clone(), index, options);
            self.client_command(command);
        }
    }

    fn long_sql(&mut self) {
        if self.client.ready || self.client.closed.is_some() {
            let script = self.server.scripts[0].clone();
            let command = self.client.execute(script, 0, ExecuteOptions::default());
            let ClientCommand::Execute { stream, options, .. } = command else { return };
            self.client_command(ClientCommand::Execute { stream, sql: "x".repeat(1 << 20), options });
            assert!(matches!(self.client.apps[&stream].over, Some(Err(_))));
        }
    }

    fn deliver_to_server(&mut self, most: usize, tell: bool) -> bool {
        let bytes = self.to_server.take(most);
        if !bytes.is_empty() && !self.to_server.told {
            self.server(ServerInput::Received(&bytes));
        }
        if tell
            && self.to_server.bytes.is_empty()
            && self.to_server.ended
            && !std::mem::replace(&mut self.to_server.told, true)
        {
            self.server(ServerInput::ControlLost("end of file".into()));
            return true;
        }
        !bytes.is_empty()
    }

    fn deliver_to_client(&mut self, most: usize, tell: bool) -> bool {
        let bytes = self.to_client.take(most);
        if !bytes.is_empty() && !self.to_client.told {
            self.client(ClientInput::Received(&bytes));
        }
        if tell
            && self.to_client.bytes.is_empty()
            && self.to_client.ended
            && !std::mem::replace(&mut self.to_client.told, true)
        {
            self.client(ClientInput::ControlLost("end of file".into()));
            return true;
        }
        !bytes.is_empty()
    }

    fn engine(&mut self, k: usize) -> bool {
        let Some(commands) = self.server.engine_step(k, &mut self.memory) else { return false };
        for command in commands {
            self.server_command(command);
        }
        true
    }

    fn read(&mut self, k: usize, fail: bool) -> bool {
        let stepped = self.client.read_step(self.now, k, fail, &self.memory);
        self.client(ClientInput::Time);
        stepped
    }

    /// The `k`th application takes a batch.
    fn take(&mut self, k: usize) -> bool {
        let full = self.client.apps.iter().filter(|(_, app)| !app.untaken.is_empty());
        let full: Vec<_> = full.map(|(stream, _)| *stream).collect();
        let Some(&stream) = full.get(k % full.len().max(1)) else { return false };
        let cost = self.client.apps.get_mut(&stream).and_then(|app| app.untaken.pop_front());
        if let Some(cost) = cost {
            self.client_command(ClientCommand::Consumed { stream, cost });
        }
        true
    }

    fn give_up(&mut self, batch: (StreamId, u64)) {
        let handled = self.client.give_up(self.now, batch, &self.memory, &mut self.to_server);
        handled.expect("this driver keeps the contract");
    }

    fn lazy_step(&mut self) -> bool {
        match self.client.lazy_step() {
            Some(Ok(ask)) => self.client_command(ask),
            Some(Err(batch)) => self.give_up(batch),
            None => return false,
        }
        true
    }

    fn answer_server(&mut self) -> bool {
        let answered = self.server.answer(self.now, &mut self.memory);
        self.server(ServerInput::Time);
        answered
    }

    fn answer_client(&mut self) -> bool {
        let answered = self.client.answer(self.now, &self.memory);
        self.client(ClientInput::Time);
        answered
    }

    /// Everything that can happen without time.
    fn anything(&mut self) -> bool {
        self.execute_waiting();
        let moved = [
            self.deliver_to_server(usize::MAX, true),
            self.deliver_to_client(usize::MAX, true),
            self.answer_server(),
            self.answer_client(),
            self.engine(0),
            self.read(0, false),
            self.take(0),
            self.lazy_step(),
        ];
        moved.contains(&true)
    }

    /// Faults have stopped: lets things happen until `done`, and time pass when nothing else does.
    fn settle(&mut self, what: &str, done: impl Fn(&Pair) -> bool) {
        let started = self.now;
        for _ in 0..100_000 {
            if self.anything() {
                continue;
            }
            if done(self) {
                return;
            }
            let wake = [self.server.wake, self.client.wake].into_iter().flatten().min();
            let wake = wake.unwrap_or_else(|| panic!("{what}: nothing will ever happen: {}", self.state()));
            // A lender that has no more leases waits for the moment for which releases are held back.
            let is_soon = self.client.wake.is_some_and(|wake| wake <= self.now + MOMENT);
            assert!(self.faults || is_soon, "{what}: stuck without a fault: {}", self.state());
            self.now = self.now.max(wake);
            self.server(ServerInput::Time);
            self.client(ClientInput::Time);
            let took = self.now - started;
            assert!(took < Duration::from_secs(120), "{what}: not done after {took:?}: {}", self.state());
        }
        panic!("{what}: steps without end");
    }

    /// Releases are not held back for longer.
    fn a_moment_passes(&mut self) {
        self.apply(Op::Advance(MOMENT));
        while self.anything() {}
    }

    fn state(&self) -> String {
        format!("{:#?}\n{:#?}\n{:#?}", self.client.apps, self.client.machine, self.server.machine)
    }

    /// Every stream ends: which ended well.
    pub(crate) fn streams_end(&mut self) -> Vec<bool> {
        self.settle("streams end", |pair| pair.waiting.is_empty() && pair.client.all_over());
        self.client.apps.values().map(|app| matches!(app.over, Some(Ok(())))).collect()
    }

    /// Every stream ends; then both ends close, and nothing is left. Why each closed: the server, the client.
    pub(crate) fn finish(mut self) -> [ConnectionError; 2] {
        // Whoever could not ask yet will be told; whoever asks a connection that never opens is told too.
        self.streams_end();
        self.a_moment_passes();
        if !self.faults {
            self.all_well();
        }
        let connected = [&self.to_server, &self.to_client].iter().all(|pipe| !pipe.deaf && !pipe.ended);
        if connected {
            // Both have heard all, and the connection could live for years.
            let streams = [self.client.machine.open_streams(), self.server.machine.open_streams()];
            assert_eq!(streams, [0, 0], "streams are left over: {}", self.state());
            let reads = self.client.machine.outstanding_reads();
            assert!(self.memory.blackhole || (reads, self.server.leases_held()) == (0, 0), "{}", self.state());
        }
        self.faults = true;
        self.client_command(ClientCommand::Close);
        self.settle("both close", |pair| pair.server.closed.is_some() && pair.client.closed.is_some());
        assert_eq!(self.server.leases_held(), 0);
        assert_eq!(self.client.machine.open_streams(), 0);
        [self.server.closed, self.client.closed].map(|closed| closed.expect("both are closed"))
    }

    /// Without faults, streams end as their scripts say, but for limits that they run into.
    fn all_well(&self) {
        let knobs = &self.server.knobs;
        let most = knobs.max_loan_bytes.min(knobs.max_batch_bytes);
        let large = |batch: &Batch| batch.bytes(true).max(batch.bytes(false)) > most;
        for (stream, app) in &self.client.apps {
            let refused = self.client.apps.len() > knobs.max_streams as usize;
            let large = app.script.batches.iter().any(large);
            match (app.script.ending, &app.over) {
                (Ending::Finish, Some(Ok(()))) | (Ending::Fail, Some(Err(_))) => {}
                (_, Some(Err(error))) if large || refused || app.next == 0 && error.to_string().contains("SQL") => {}
                (_, over) => panic!("{stream:?} ended as {over:?}: {:?}", app.script),
            }
        }
        assert_eq!((self.server.machine.open_streams(), self.server.machine.open_leases()), (0, 0));
    }
}

/// The given number of cases, unless `PROPTEST_CASES` says otherwise. Seeds of failures go to `tests/regressions/`.
pub(crate) fn config(cases: u32, regressions: &'static str) -> ProptestConfig {
    let default = ProptestConfig::default();
    let cases = if std::env::var_os("PROPTEST_CASES").is_some() { default.cases } else { cases };
    let persistence = FileFailurePersistence::Direct(regressions);
    ProptestConfig { cases, failure_persistence: Some(Box::new(persistence)), max_shrink_iters: 20_000, ..default }
}

/// A message's bytes, whatever its length.
pub(crate) fn bytes_of<M: Serialize>(message: &M, payload: Bytes) -> Vec<u8> {
    let frame = encode(message, payload, FrameLimits { message: u32::MAX, payload: u32::MAX }).expect("any message");
    [frame.head, frame.payload].concat()
}

pub(crate) fn preface() -> Vec<u8> {
    Preface { versions: VERSIONS, features: 0 }.encode().to_vec()
}

/// Numbers at which something may overflow.
pub(crate) fn any_edge() -> impl Strategy<Value = u64> {
    prop_oneof![0..4_u64, 200..3000_u64, Just(1 << 20), Just(u64::MAX), Just(u64::MAX - 255), any::<u64>()]
}
