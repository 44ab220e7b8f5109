//! The client's end: its machine, its reads, and an application that holds what it gets against what was sent.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use bytes::Bytes;
use thallus_protocol::client::*;
use thallus_protocol::credit::batch_cost;
use thallus_protocol::layout::{LayoutLimits, Piece as Part};
use thallus_protocol::message::{ExecuteOptions, FabricChoice, FabricOffer};
use thallus_protocol::{
    ApiMisuse, AskId, ClientConnection, ConnectionError, FabricKind, LeaseId, ReadId, RegionId, RemoteRange,
    StreamError, StreamId, Timestamp,
};

use super::lender::Plane;
use super::memory::{CELL, Memory, WORDS, tag};
use super::script::*;
use super::{Pipe, READ_TIMEOUT, timeouts};

/// A result, as the application sees it.
#[derive(Debug)]
pub(crate) struct App {
    pub(crate) script: Script,
    pub(crate) options: ExecuteOptions,
    pub(crate) next: u64,
    pub(crate) schema: bool,
    pub(crate) over: Option<Result<(), StreamError>>,
    /// Cost of what was delivered and not taken.
    pub(crate) untaken: VecDeque<u64>,
    /// Lazy batches that were delivered and not given up.
    pub(crate) held: BTreeMap<u64, Held>,
    /// Mapped batches that it looks at, and where they are.
    pub(crate) mapped: BTreeMap<u64, Vec<(usize, RemoteRange)>>,
    /// Of asks, in their order.
    pub(crate) answers: Vec<Result<(), StreamError>>,
}

/// A lazy batch, as the application sees it.
#[derive(Debug)]
pub(crate) struct Held {
    cost: u64,
    rows: u64,
    /// Not answered yet.
    asks: BTreeMap<AskId, Vec<Part>>,
    /// Nothing more can be had of it.
    lost: bool,
    /// Asked for once more, to see that it is all there, before it is given up.
    checked: bool,
}

#[derive(Debug)]
struct Piece {
    buffer: usize,
    from: RemoteRange,
    lease: Option<LeaseId>,
    found: Option<u64>,
}

/// What a read brought: of which buffer or piece, from where in the lender's, how much, and what was there.
type Found = (usize, u64, u64, u64);

#[derive(Debug)]
struct Reading {
    stream: StreamId,
    pieces: Vec<Piece>,
    word: bool,
    failed: bool,
}

#[derive(Debug)]
pub(crate) struct Borrower {
    pub(crate) machine: ClientConnection,
    pub(crate) plane: Plane,
    pub(crate) wake: Option<Timestamp>,
    pub(crate) closed: Option<ConnectionError>,
    /// Whether queries may be asked.
    pub(crate) ready: bool,
    /// This end's endpoint is broken.
    pub(crate) broken: bool,
    pub(crate) apps: BTreeMap<StreamId, App>,
    reading: BTreeMap<ReadId, Reading>,
    slabs: BTreeMap<ReadId, (StreamId, Vec<Found>)>,
    /// Those of them that are mapped, and where.
    maps: BTreeMap<ReadId, Vec<(usize, RemoteRange)>>,
    regions: BTreeSet<RegionId>,
    choice: Option<FabricChoice>,
    knobs: Knobs,
    last_stream: u32,
    last_ask: u64,
}

impl Borrower {
    pub(crate) fn new(knobs: Knobs) -> Self {
        let config = ClientConfig {
            name: "borrower".into(),
            fabrics: vec![FabricOffer { kind: FabricKind::SIM, address: Bytes::from_static(b"client") }],
            frame: super::frame(),
            max_batch_bytes: knobs.max_batch_bytes,
            max_regions: 1000,
            layout: LayoutLimits::default(),
            inline: Default::default(),
            timeouts: timeouts(),
            // A batch or two: windows have to grow.
            first_window: 1500,
            read_timeout: READ_TIMEOUT,
        };
        Borrower {
            machine: ClientConnection::new(config, Timestamp::ZERO).expect("a short hello"),
            plane: Plane::None,
            wake: None,
            closed: None,
            ready: false,
            broken: false,
            apps: BTreeMap::new(),
            reading: BTreeMap::new(),
            slabs: BTreeMap::new(),
            maps: BTreeMap::new(),
            regions: BTreeSet::new(),
            choice: None,
            knobs,
            last_stream: 0,
            last_ask: 0,
        }
    }

    pub(crate) fn handle(
        &mut self,
        now: Timestamp,
        input: ClientInput<'_>,
        memory: &Memory,
        out: &mut Pipe,
    ) -> Result<(), ApiMisuse> {
        let handled = self.machine.handle(now, input);
        self.drain(now, memory, out);
        self.check();
        handled
    }

    fn command(&mut self, now: Timestamp, command: ClientCommand) {
        self.machine.handle(now, ClientInput::Command(command)).expect("this driver keeps the contract");
    }

    /// The next query.
    pub(crate) fn execute(&mut self, script: Script, index: usize, options: ExecuteOptions) -> ClientCommand {
        self.last_stream += 1;
        let stream = StreamId(self.last_stream);
        let app = App {
            script,
            options: options.clone(),
            next: 0,
            schema: false,
            over: None,
            untaken: VecDeque::new(),
            held: BTreeMap::new(),
            mapped: BTreeMap::new(),
            answers: Vec::new(),
        };
        self.apps.insert(stream, app);
        ClientCommand::Execute { stream, sql: index.to_string(), options }
    }

    fn drain(&mut self, now: Timestamp, memory: &Memory, out: &mut Pipe) {
        for turn in 0.. {
            assert!(turn < 100_000, "outputs without end");
            match self.machine.poll_output() {
                ClientOutput::Wait(deadline) => {
                    self.wake = deadline.map(|(at, _)| at);
                    assert!(self.closed.is_none() || self.wake.is_none(), "timers are left over");
                    return;
                }
                ClientOutput::Transmit(frame) => {
                    assert!(self.closed.is_none(), "a frame after the close");
                    out.write(&frame);
                }
                ClientOutput::ConnectFabric(choice) => {
                    assert_eq!(self.plane, Plane::None);
                    self.regions.insert(choice.words.id);
                    self.choice = Some(choice);
                    self.plane = Plane::Asked;
                    if self.knobs.instant {
                        self.answer(now, memory);
                    }
                }
                ClientOutput::CloseFabric => {
                    assert!(!matches!(self.plane, Plane::Closing | Plane::Closed), "closed twice");
                    self.plane = Plane::Closing;
                    if self.knobs.instant {
                        self.answer(now, memory);
                    }
                }
                ClientOutput::ImportRegion(region) => {
                    assert!(self.regions.insert(region.id), "{:?} is imported twice", region.id);
                }
                ClientOutput::ForgetRegion(region) => {
                    assert!(self.regions.remove(&region), "{region:?} is forgotten, and was not there");
                }
                ClientOutput::Read(batch) => self.read(batch, memory),
                // As a read, that has found what it will when it is done; and what it found must stay.
                ClientOutput::Map(batch) => {
                    self.maps.insert(batch.read, batch.places.clone());
                    self.read(batch, memory);
                }
                ClientOutput::ReadWord { read, at } => {
                    assert!(self.regions.contains(&at.region));
                    let (stream, _) = self.slabs[&read];
                    let piece = Piece { buffer: 0, from: at, lease: None, found: None };
                    let reading = Reading { stream, pieces: vec![piece], word: true, failed: false };
                    assert!(self.reading.insert(read, reading).is_none());
                }
                ClientOutput::Discard { read } => {
                    assert!(!self.reading.contains_key(&read), "{read:?} is discarded while it is read");
                    assert!(self.slabs.remove(&read).is_some(), "{read:?} is discarded, and has no slab");
                    self.maps.remove(&read);
                }
                ClientOutput::Event(event) => self.event(event),
                ClientOutput::Closed(error) => {
                    assert!(self.closed.replace(error).is_none(), "closed twice");
                    assert!(self.reading.is_empty(), "reads outlive the connection: {:?}", self.reading);
                    assert!(self.slabs.is_empty(), "slabs outlive the connection: {:?}", self.slabs);
                    assert!(!matches!(self.plane, Plane::Asked | Plane::Open | Plane::Closing), "{:?}", self.plane);
                    let left: Vec<_> = self.apps.iter().filter(|(_, app)| app.over.is_none()).collect();
                    assert!(left.is_empty(), "streams outlive the connection: {left:?}");
                    out.close();
                }
            }
        }
    }

    fn read(&mut self, batch: ReadBatch, memory: &Memory) {
        assert_eq!(self.plane, Plane::Open, "a read without a data plane");
        let ReadBatch { read, stream, layout, places } = batch;
        let is_lazy = self.apps[&stream].options.lazy;
        for (index, from) in &places {
            assert_eq!(layout.ranges[*index].len, from.len);
            assert!(is_lazy || from.address % CELL == 0, "the machine reads the places that it was given");
        }
        assert!(is_lazy || layout.ranges.len() == 2);
        let piece = |(buffer, from): (usize, RemoteRange)| {
            assert!(self.regions.contains(&from.region), "{:?} is read, and was not imported", from.region);
            Piece { buffer, from, lease: memory.lease_at(from.address), found: None }
        };
        let pieces = places.into_iter().map(piece).collect();
        self.slabs.insert(read, (stream, Vec::new()));
        let reading = Reading { stream, pieces, word: false, failed: false };
        assert!(self.reading.insert(read, reading).is_none(), "{read:?} is read twice");
    }

    fn event(&mut self, event: ClientEvent) {
        match event {
            ClientEvent::FabricUp { .. } | ClientEvent::FabricDown { .. } => self.ready = true,
            ClientEvent::Welcome { .. } | ClientEvent::Draining | ClientEvent::Pong => {}
            ClientEvent::Schema { stream, schema: got, .. } => {
                let app = self.live(stream);
                assert!(!std::mem::replace(&mut app.schema, true), "{stream:?} has two schemas");
                assert_eq!(*got, schema());
            }
            ClientEvent::Batch { stream, seq, cost, payload } => self.delivered(stream, seq, cost, payload),
            ClientEvent::End { stream, stats } => {
                let app = self.live(stream);
                assert_eq!(app.next as usize, app.script.batches.len(), "{stream:?} ended before its end");
                assert_eq!(app.script.ending, Ending::Finish);
                assert_eq!(stats.batches_lent + stats.batches_inline, app.next);
                app.over = Some(Ok(()));
            }
            ClientEvent::Failed { stream, error } => {
                let app = self.live(stream);
                for (seq, held) in &mut app.held {
                    assert!(held.asks.is_empty(), "{stream:?} failed, and batch {seq} owes answers: {held:?}");
                    held.lost = true;
                }
                app.over = Some(Err(error));
            }
            ClientEvent::Found { stream, seq, ask, read } => {
                let parts = self.answered(stream, seq, ask);
                let (_, found) = self.slabs.remove(&read).expect("a part that was read");
                let filled = parts.iter().enumerate().filter(|(_, part)| part.len > 0);
                let right: Vec<_> =
                    filled.map(|(at, part)| (at, part.offset, part.len, tag(stream, seq, part.buffer))).collect();
                assert_eq!(found, right, "{stream:?}: batch {seq} holds the wrong bytes");
                let app = self.apps.get_mut(&stream).expect("it was there");
                app.answers.push(Ok(()));
                assert!(!app.held[&seq].lost, "{stream:?}: a part of batch {seq}, which is lost");
                assert!(!matches!(app.over, Some(Err(_))), "{stream:?} failed, and a part of batch {seq} came");
            }
            ClientEvent::AskFailed { stream, seq, ask, error } => {
                self.answered(stream, seq, ask);
                let app = self.apps.get_mut(&stream).expect("it was there");
                let held = app.held.get_mut(&seq).expect("it was there");
                held.lost |= !matches!(error, StreamError::OutOfMemory { .. });
                app.answers.push(Err(error));
            }
        }
    }

    /// The stream, which may be spoken of: nothing comes after its end.
    fn live(&mut self, stream: StreamId) -> &mut App {
        let app = self.apps.get_mut(&stream).expect("a stream that was asked for");
        assert!(app.over.is_none(), "{stream:?} speaks after its end: {app:?}");
        app
    }

    /// What an ask was for, which is answered now, and only now.
    fn answered(&mut self, stream: StreamId, seq: u64, ask: AskId) -> Vec<Part> {
        let held = self.apps.get_mut(&stream).and_then(|app| app.held.get_mut(&seq));
        let held = held.unwrap_or_else(|| panic!("{stream:?}: batch {seq} answers, and is not held"));
        held.asks.remove(&ask).unwrap_or_else(|| panic!("{ask:?} is answered, and was not asked or twice"))
    }

    fn delivered(&mut self, stream: StreamId, seq: u64, cost: u64, payload: Payload) {
        let places = match &payload {
            Payload::Mapped { read, .. } => Some(self.maps.remove(read).expect("it was mapped")),
            _ => None,
        };
        let app = self.live(stream);
        assert!(app.schema, "{stream:?} delivers before its schema");
        assert_eq!(app.next, seq, "{stream:?} delivers out of order");
        app.next += 1;
        let batch = app.script.batches[seq as usize];
        let lent = !matches!(payload, Payload::Inline(_));
        assert_eq!(cost, batch_cost(batch.bytes(lent)));
        assert_eq!(matches!(payload, Payload::Lazy { .. }), lent && app.options.lazy);
        if let Payload::Lazy { descriptor: got } = payload {
            let Batch::Lent { rows, .. } = batch else { panic!("{stream:?} {seq} was inline") };
            assert_eq!(**got, descriptor(rows));
            let held = Held { cost, rows, asks: BTreeMap::new(), lost: false, checked: false };
            assert!(app.held.insert(seq, held).is_none());
            return;
        }
        app.untaken.push_back(cost);
        if let Some(places) = places {
            assert!(app.mapped.insert(seq, places).is_none());
        }
        match payload {
            Payload::Lazy { .. } => {}
            Payload::Inline(ipc) => assert_eq!(ipc, inline_bytes(stream, seq, batch.inline_len())),
            Payload::Lent { read, descriptor: got } | Payload::Mapped { read, descriptor: got } => {
                let Batch::Lent { rows, .. } = batch else { panic!("{stream:?} {seq} was inline") };
                assert_eq!(**got, descriptor(rows));
                assert!(!self.reading.contains_key(&read), "delivered while it is read");
                let (_, found) = self.slabs.remove(&read).expect("a batch that was read");
                let right: Vec<_> =
                    (0..if rows > 0 { 2 } else { 0 }).map(|i| (i, 0, rows * 8, tag(stream, seq, i))).collect();
                assert_eq!(found, right, "{stream:?}: batch {seq} holds the wrong bytes");
            }
        }
    }

    /// Answers what the machine asked of the fabric. `false`: nothing was asked.
    pub(crate) fn answer(&mut self, now: Timestamp, memory: &Memory) -> bool {
        match self.plane {
            Plane::Asked => {
                let choice = self.choice.take().expect("a choice to connect to");
                let right = !memory.refuses && memory.read(choice.probe_at) == choice.probe_value;
                if self.knobs.connect_works && right && !self.broken {
                    self.plane = Plane::Open;
                    self.command(now, ClientCommand::FabricUp { transport: "sim".into() });
                } else {
                    self.command(now, ClientCommand::FabricUnavailable { reason: "no path".into() });
                }
            }
            Plane::Closing => {
                for (read, reading) in std::mem::take(&mut self.reading) {
                    self.complete(now, read, reading, true);
                }
                self.plane = Plane::Closed;
                self.command(now, ClientCommand::FabricClosed);
            }
            Plane::None | Plane::Open | Plane::Closed => return false,
        }
        true
    }

    /// The `k`th read makes a step: a piece of it reaches memory, or all of it completes. `false`: there is none.
    pub(crate) fn read_step(&mut self, now: Timestamp, k: usize, fail: bool, memory: &Memory) -> bool {
        if memory.blackhole {
            return false;
        }
        let Some(read) = self.reading.keys().nth(k % self.reading.len().max(1)).copied() else { return false };
        let refused = fail || self.broken || memory.refuses;
        if let Some(reading) = self.reading.get_mut(&read)
            && let Some(piece) = reading.pieces.iter_mut().find(|piece| piece.found.is_none())
        {
            reading.failed |= refused;
            piece.found = Some(memory.read(piece.from));
        } else if let Some(reading) = self.reading.remove(&read) {
            self.complete(now, read, reading, false);
        }
        true
    }

    fn complete(&mut self, now: Timestamp, read: ReadId, reading: Reading, flushed: bool) {
        let unread = reading.pieces.iter().any(|piece| piece.found.is_none());
        assert!(!unread || flushed);
        let failure = (reading.failed || unread).then(|| ReadProblem::Failed("flushed".into()));
        if reading.word {
            let word = reading.pieces[0].found.unwrap_or(0);
            let result = failure.map_or(Ok(word), Err);
            return self.command(now, ClientCommand::WordRead { read, result });
        }
        if failure.is_none() {
            let found =
                |piece: &Piece| (piece.buffer, piece.from.address % CELL, piece.from.len, piece.found.unwrap_or(0));
            let found = reading.pieces.iter().map(found).collect();
            self.slabs.get_mut(&read).expect("a slab under the read").1 = found;
        }
        self.command(now, ClientCommand::ReadDone { read, result: failure.map_or(Ok(()), Err) });
    }

    /// A driver that loses its reads.
    pub(crate) fn forget_reads(&mut self) -> usize {
        self.plane = Plane::Closed;
        std::mem::take(&mut self.reading).len()
    }

    /// There is no memory for the `k`th read, which has not begun.
    pub(crate) fn no_memory(&mut self, now: Timestamp, k: usize) -> bool {
        let fresh = |reading: &Reading| !reading.word && reading.pieces.iter().all(|piece| piece.found.is_none());
        let fresh: Vec<_> = self.reading.iter().filter(|(_, r)| fresh(r)).map(|(read, _)| *read).collect();
        let Some(read) = fresh.get(k % fresh.len().max(1)) else { return false };
        self.reading.remove(read);
        let result = Err(ReadProblem::NoMemory("the pool is empty".into()));
        self.command(now, ClientCommand::ReadDone { read: *read, result });
        true
    }

    /// A lease that the borrower gave back is read no more. What was there when the read began may have been another's
    /// already, but never another of the same stream: a stream whose lease runs out lends nothing more.
    pub(crate) fn released(&self, lease: LeaseId, stream: StreamId) {
        let of_stream = self.reading.values().filter(|reading| reading.stream == stream);
        let late = of_stream.flat_map(|reading| &reading.pieces).find(|piece| piece.lease == Some(lease));
        assert!(late.is_none(), "{lease:?} was released while it is read: {late:?}");
    }

    pub(crate) fn all_over(&self) -> bool {
        self.apps.values().all(|app| app.over.is_some() && app.held.is_empty() && app.mapped.is_empty())
    }

    fn held(&self) -> impl Iterator<Item = (StreamId, u64, &Held)> {
        self.apps.iter().flat_map(|(stream, app)| app.held.iter().map(|(seq, held)| (*stream, *seq, held)))
    }

    /// The application asks the `k`th lazy batch for parts: each of a buffer, from so far in it, so many bytes.
    pub(crate) fn ask(&mut self, k: usize, parts: &[(usize, u64, u64)]) -> Option<ClientCommand> {
        let (stream, seq, held) = self.held().nth(k % self.held().count().max(1))?;
        let bytes = held.rows * 8;
        let part = |&(buffer, offset, len): &(usize, u64, u64)| {
            let offset = offset % (bytes + 1);
            Part { buffer: buffer % 2, offset, len: len.min(bytes - offset) }
        };
        Some(self.asking(stream, seq, parts.iter().map(part).collect()))
    }

    fn asking(&mut self, stream: StreamId, seq: u64, pieces: Vec<Part>) -> ClientCommand {
        self.last_ask += 1;
        let ask = AskId(self.last_ask);
        if let Some(held) = self.apps.get_mut(&stream).and_then(|app| app.held.get_mut(&seq)) {
            held.asks.insert(ask, pieces.clone());
        }
        ClientCommand::Ask { stream, seq, ask, pieces }
    }

    /// The `k`th lazy or mapped batch.
    pub(crate) fn pick_held(&self, k: usize) -> Option<(StreamId, u64)> {
        let held = || self.held().map(|(stream, seq, _)| (stream, seq)).chain(self.mapped());
        held().nth(k % held().count().max(1))
    }

    fn mapped(&self) -> impl Iterator<Item = (StreamId, u64)> {
        self.apps.iter().flat_map(|(stream, app)| app.mapped.keys().map(|seq| (*stream, *seq)))
    }

    /// The application is done with a lazy or mapped batch.
    pub(crate) fn give_up(
        &mut self,
        now: Timestamp,
        (stream, seq): (StreamId, u64),
        memory: &Memory,
        out: &mut Pipe,
    ) -> Result<(), ApiMisuse> {
        let mapped = self.apps.get_mut(&stream).and_then(|app| app.mapped.remove(&seq));
        for (buffer, place) in mapped.iter().flatten() {
            let found = memory.read(*place);
            assert_eq!(found, tag(stream, seq, *buffer), "{stream:?}: batch {seq} changed while it was mapped");
        }
        let handled = self.machine.handle(now, ClientInput::Command(ClientCommand::GiveUp { stream, seq }));
        self.drain(now, memory, out);
        if mapped.is_some() {
            self.check();
            return handled;
        }
        let held = self.apps.get_mut(&stream).and_then(|app| app.held.remove(&seq)).expect("it was held");
        assert!(held.asks.is_empty(), "{stream:?}: batch {seq} was given up, and owes answers: {held:?}");
        self.check();
        handled
    }

    /// What an application does that looks at a mapped batch, or wants all of a lazy batch, and then no more of it: asks for it, if it is there to be had.
    pub(crate) fn lazy_step(&mut self) -> Option<Result<ClientCommand, (StreamId, u64)>> {
        if let Some(mapped) = self.mapped().next() {
            return Some(Err(mapped));
        }
        let idle = self.held().find(|(_, _, held)| held.asks.is_empty());
        let (stream, seq, Held { rows, checked, .. }) = idle?;
        if *checked {
            return Some(Err((stream, seq)));
        }
        let whole = |buffer| Part { buffer, offset: 0, len: rows * 8 };
        let parts = vec![whole(0), whole(1)];
        if let Some(held) = self.apps.get_mut(&stream).and_then(|app| app.held.get_mut(&seq)) {
            held.checked = true;
        }
        Some(Ok(self.asking(stream, seq, parts)))
    }

    /// Streams by the number that an operation names.
    pub(crate) fn pick(&self, k: usize) -> Option<StreamId> {
        self.apps.keys().nth(k % self.apps.len().max(1)).copied()
    }

    fn check(&self) {
        assert_eq!(self.machine.outstanding_reads(), self.reading.len());
        for (stream, app) in &self.apps {
            // Memory that a stream has here: within its window, which is widened for one large batch at most.
            let slabs = self.slabs.keys().filter(|read| self.slabs[read].0 == *stream).count() as u64;
            // What is asked for of lazy batches is apart: they are in the window as long as they are held.
            let slabs = if app.options.lazy { 0 } else { slabs };
            let held: u64 = app.held.values().map(|held| held.cost).sum();
            let most = batch_cost(self.knobs.max_batch_bytes).max(app.options.credit);
            let taken: u64 = app.untaken.iter().sum::<u64>() + held + slabs * batch_cost(0);
            assert!(app.over.is_some() || taken <= most, "{stream:?} has {taken} bytes here, of {most}");
        }
        let undelivered = self.slabs.keys().filter(|read| self.maps.contains_key(read)).count();
        assert!((self.mapped().count()..=self.mapped().count() + undelivered).contains(&self.machine.mapped_batches()));
        assert_eq!(self.machine.lazy_batches(), self.held().count());
        if self.closed.is_some() {
            assert_eq!((self.machine.open_streams(), self.machine.outstanding_reads()), (0, 0));
        }
        assert!(self.regions.is_empty() || self.regions.contains(&WORDS));
    }
}
