//! A client's machine with a driver that does what it must: what holds whatever a server says.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use thallus_protocol::client::{
    ClientCommand, ClientConfig, ClientConnection, ClientEvent, ClientInput, ClientOutput, Payload, ReadProblem,
};
use thallus_protocol::layout::Piece;
use thallus_protocol::message::{ExecuteOptions, FabricOffer};
use thallus_protocol::{AskId, FabricKind, ReadId, StreamId, Timestamp};

use crate::LIMITS;
use crate::frames::{START, Step};

const STREAMS: u32 = 3;
const CREDIT: u64 = 4000;
const BATCH: u64 = 1 << 16;

/// The machine, and what its driver knows.
pub struct Client {
    now: Timestamp,
    machine: ClientConnection,
    /// Outstanding, and whether it is a word.
    reads: BTreeMap<ReadId, bool>,
    slabs: BTreeSet<ReadId>,
    /// The next batch, what was delivered and not taken.
    streams: BTreeMap<StreamId, (u64, Vec<u64>)>,
    /// Lazy batches: their buffers, what they owe.
    held: BTreeMap<(StreamId, u64), (Vec<u64>, BTreeSet<AskId>)>,
    last_ask: u64,
    last_stream: u32,
    connecting: bool,
    closing: bool,
    closed: bool,
}

impl Default for Client {
    fn default() -> Self {
        let config = ClientConfig {
            name: String::new(),
            fabrics: vec![FabricOffer { kind: FabricKind::SIM, address: Bytes::new() }],
            frame: Default::default(),
            max_batch_bytes: BATCH,
            max_regions: 4,
            layout: LIMITS,
            inline: Default::default(),
            timeouts: Default::default(),
            first_window: 1000,
            read_timeout: std::time::Duration::from_secs(9),
        };
        Client {
            now: START,
            machine: ClientConnection::new(config, START).expect("a short hello"),
            reads: BTreeMap::new(),
            slabs: BTreeSet::new(),
            streams: BTreeMap::new(),
            held: BTreeMap::new(),
            last_ask: 0,
            last_stream: 0,
            connecting: false,
            closing: false,
            closed: false,
        }
    }
}

impl Client {
    /// Does a step, and holds what comes of it against what must hold.
    pub fn step(&mut self, step: Step) {
        match step {
            Step::Bytes(bytes) => self.input(ClientInput::Received(&bytes)),
            Step::Pass(time) => {
                self.now = self.now + time;
                self.input(ClientInput::Time);
            }
            Step::Answer(choice) => self.answer(choice),
        }
    }

    /// The server is gone; all must end.
    pub fn finish(mut self) {
        self.input(ClientInput::ControlLost("gone".into()));
        self.close();
        assert!(self.closed && self.reads.is_empty() && self.slabs.is_empty() && self.streams.is_empty());
    }

    fn input(&mut self, input: ClientInput<'_>) {
        self.machine.handle(self.now, input).expect("this driver keeps the contract");
        let mut ready = false;
        loop {
            match self.machine.poll_output() {
                ClientOutput::Wait(deadline) => {
                    assert!(!self.closed || deadline.is_none());
                    break;
                }
                ClientOutput::ConnectFabric(_) => self.connecting = true,
                ClientOutput::CloseFabric => {
                    self.connecting = false;
                    assert!(!std::mem::replace(&mut self.closing, true));
                }
                ClientOutput::Read(batch) | ClientOutput::Map(batch) => {
                    assert!(batch.layout.len <= BATCH);
                    assert!(self.slabs.insert(batch.read) && self.reads.insert(batch.read, false).is_none());
                }
                ClientOutput::ReadWord { read, at } => {
                    assert_eq!((at.len, at.address % 8), (8, 0));
                    assert!(self.slabs.contains(&read) && self.reads.insert(read, true).is_none());
                }
                ClientOutput::Discard { read } => {
                    assert!(!self.reads.contains_key(&read) && self.slabs.remove(&read));
                }
                ClientOutput::Event(ClientEvent::Batch { stream, seq, cost, payload }) => {
                    let (next, untaken) = self.streams.get_mut(&stream).expect("a stream that runs");
                    assert_eq!(*next, seq);
                    *next += 1;
                    untaken.push(cost);
                    assert!(untaken.iter().sum::<u64>() <= CREDIT.max(BATCH + 256));
                    match payload {
                        Payload::Lent { read, .. } | Payload::Mapped { read, .. } => {
                            assert!(!self.reads.contains_key(&read) && self.slabs.remove(&read));
                        }
                        Payload::Lazy { descriptor } => {
                            // Its credit comes back when it is given up.
                            untaken.pop();
                            let held = (descriptor.buffers.clone(), BTreeSet::new());
                            assert!(self.held.insert((stream, seq), held).is_none());
                        }
                        Payload::Inline(_) => {}
                    }
                }
                ClientOutput::Event(ClientEvent::Found { stream, seq, ask, read }) => {
                    assert!(!self.reads.contains_key(&read) && self.slabs.remove(&read));
                    assert!(self.held.get_mut(&(stream, seq)).is_some_and(|(_, asks)| asks.remove(&ask)));
                }
                ClientOutput::Event(ClientEvent::AskFailed { stream, seq, ask, .. }) => {
                    assert!(self.held.get_mut(&(stream, seq)).is_some_and(|(_, asks)| asks.remove(&ask)));
                }
                ClientOutput::Event(ClientEvent::End { stream, .. } | ClientEvent::Failed { stream, .. }) => {
                    assert!(self.streams.remove(&stream).is_some(), "{stream:?} ends twice");
                }
                ClientOutput::Event(ClientEvent::FabricUp { .. } | ClientEvent::FabricDown { .. }) => ready = true,
                ClientOutput::Closed(_) => assert!(!std::mem::replace(&mut self.closed, true)),
                ClientOutput::Transmit(_)
                | ClientOutput::Event(_)
                | ClientOutput::ImportRegion(_)
                | ClientOutput::ForgetRegion(_) => {}
            }
        }
        assert_eq!(self.machine.outstanding_reads(), self.reads.len());
        if ready && self.last_stream == 0 {
            for _ in 0..STREAMS {
                self.last_stream += 1;
                let stream = StreamId(self.last_stream);
                self.streams.insert(stream, (0, Vec::new()));
                // The last is read lazily.
                let lazy = self.last_stream == STREAMS;
                let options = ExecuteOptions { credit: CREDIT, lazy, ..ExecuteOptions::default() };
                self.command(ClientCommand::Execute { stream, sql: String::new(), options });
            }
        }
    }

    fn command(&mut self, command: ClientCommand) {
        self.input(ClientInput::Command(command));
    }

    fn answer(&mut self, choice: u8) {
        if std::mem::take(&mut self.connecting) {
            let transport = String::new();
            return self.command(ClientCommand::FabricUp { transport });
        }
        match choice % 8 {
            0 => self.close(),
            1 => {
                let full = self.streams.iter_mut().find(|(_, (_, untaken))| !untaken.is_empty());
                if let Some((&stream, (_, untaken))) = full {
                    let cost = untaken.remove(0);
                    self.command(ClientCommand::Consumed { stream, cost });
                }
            }
            2 if self.last_stream > 0 => {
                let stream = StreamId(u32::from(choice / 8) % self.last_stream + 1);
                self.command(ClientCommand::Cancel { stream });
            }
            3 => self.complete(Err(ReadProblem::Failed(String::new()))),
            4 if !self.held.is_empty() => self.ask(usize::from(choice / 8)),
            5 if !self.held.is_empty() => {
                let at = usize::from(choice / 8) % self.held.len();
                let Some(&(stream, seq)) = self.held.keys().nth(at) else { return };
                self.command(ClientCommand::GiveUp { stream, seq });
                assert!(self.held.remove(&(stream, seq)).is_some_and(|(_, asks)| asks.is_empty()));
            }
            _ => self.complete(Ok(u64::from(choice / 8))),
        }
    }

    /// Asks a lazy batch for half of each buffer.
    fn ask(&mut self, at: usize) {
        let at = at % self.held.len();
        let Some((&(stream, seq), (buffers, asks))) = self.held.iter_mut().nth(at) else { return };
        self.last_ask += 1;
        let ask = AskId(self.last_ask);
        asks.insert(ask);
        let half = |(buffer, len): (usize, &u64)| Piece { buffer, offset: len / 2, len: len - len / 2 };
        let pieces = buffers.iter().enumerate().map(half).collect();
        self.command(ClientCommand::Ask { stream, seq, ask, pieces });
    }

    fn complete(&mut self, found: Result<u64, ReadProblem>) {
        match self.reads.pop_first() {
            Some((read, true)) => self.command(ClientCommand::WordRead { read, result: found }),
            Some((read, false)) => self.command(ClientCommand::ReadDone { read, result: found.map(|_| ()) }),
            None => {}
        }
    }

    fn close(&mut self) {
        if std::mem::take(&mut self.closing) {
            while !self.reads.is_empty() {
                self.complete(Err(ReadProblem::Failed("flushed".into())));
            }
            self.command(ClientCommand::FabricClosed);
        }
    }
}
