//! The driver of a borrower's half: its reads, and applications that hold what they get against what was sent.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use thallus_protocol::borrower::{
    Borrower, BorrowerCommand, BorrowerEvent, BorrowerTask, Payload, ReadBatch, ReadProblem,
};
use thallus_protocol::credit::batch_cost;
use thallus_protocol::layout::Piece as Part;
use thallus_protocol::message::{Access, OpenOptions, Region};
use thallus_protocol::{LeaseId, PartId, ReadId, RegionId, RemoteRange, StreamError, StreamId};

use super::memory::{CELL, Memory, WORDS, tag};
use super::script::*;

/// A stream, as its application sees it.
#[derive(Debug)]
pub(crate) struct App {
    pub(crate) script: Script,
    pub(crate) options: OpenOptions,
    pub(crate) next: u64,
    pub(crate) schema: bool,
    pub(crate) over: Option<Result<(), StreamError>>,
    /// Cost of what was delivered and not taken.
    pub(crate) untaken: VecDeque<u64>,
    /// Batches on demand that were delivered and not given up.
    pub(crate) held: BTreeMap<u64, Held>,
    /// Mapped batches that it looks at, and where they are.
    pub(crate) mapped: BTreeMap<u64, Vec<(usize, RemoteRange)>>,
    /// Of parts, in their order.
    pub(crate) answers: Vec<Result<(), StreamError>>,
    /// Of an upload: whether the engine has accepted it, and what it answered.
    pub(crate) accepted: bool,
    pub(crate) answered: Option<bool>,
    /// Of an upload: the client does not want its rows taken any more.
    pub(crate) withdrawn: bool,
}

/// A batch on demand, as the application sees it.
#[derive(Debug)]
pub(crate) struct Held {
    cost: u64,
    rows: u64,
    /// Not answered yet.
    parts: BTreeMap<PartId, Vec<Part>>,
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
/// A read that has completed.
pub(crate) type Completed = (ReadId, Result<Option<u64>, ReadProblem>);

#[derive(Debug)]
struct Reading {
    stream: StreamId,
    pieces: Vec<Piece>,
    /// The lease word, read last.
    word: Option<RemoteRange>,
    word_found: Option<u64>,
    failed: bool,
}

impl Reading {
    fn has_begun(&self) -> bool {
        self.pieces.iter().any(|piece| piece.found.is_some()) || self.word_found.is_some()
    }
}

#[derive(Debug)]
pub(crate) struct Borrowing {
    pub(crate) apps: BTreeMap<StreamId, App>,
    reading: BTreeMap<ReadId, Reading>,
    slabs: BTreeMap<ReadId, (StreamId, Vec<Found>)>,
    /// Those of them that are mapped, and where.
    maps: BTreeMap<ReadId, Vec<(usize, RemoteRange)>>,
    regions: BTreeSet<RegionId>,
    knobs: Knobs,
    last_part: u64,
    /// Whether the peer sends what its script says.
    pub(crate) trusts: bool,
}

impl Borrowing {
    pub(crate) fn new(knobs: Knobs) -> Self {
        Borrowing {
            apps: BTreeMap::new(),
            reading: BTreeMap::new(),
            slabs: BTreeMap::new(),
            maps: BTreeMap::new(),
            regions: BTreeSet::new(),
            knobs,
            last_part: 0,
            trusts: true,
        }
    }

    /// A stream begins, to be borrowed.
    pub(crate) fn begin(&mut self, stream: StreamId, script: Script, options: OpenOptions) {
        let app = App {
            script,
            options,
            next: 0,
            schema: false,
            over: None,
            untaken: VecDeque::new(),
            held: BTreeMap::new(),
            mapped: BTreeMap::new(),
            answers: Vec::new(),
            accepted: false,
            answered: None,
            withdrawn: false,
        };
        assert!(self.apps.insert(stream, app).is_none());
    }

    /// Takes in the region of the words.
    pub(crate) fn import(&mut self, region: &Region) {
        assert!(self.regions.insert(region.id), "{:?} is imported twice", region.id);
    }

    /// Whether a task is one of those that need no data plane any more.
    pub(crate) fn is_tidying(&self, task: &BorrowerTask) -> bool {
        matches!(task, BorrowerTask::Discard { .. } | BorrowerTask::Import(_) | BorrowerTask::Forget(_))
    }

    pub(crate) fn task(&mut self, task: BorrowerTask, memory: &Memory) {
        match task {
            BorrowerTask::Import(region) => self.import(&region),
            BorrowerTask::Forget(region) => {
                assert!(self.regions.remove(&region), "{region:?} is forgotten, and was not there");
            }
            BorrowerTask::Read(batch) => self.read(batch, memory),
            // As a read, that has found what it will when it is done; and what it found must stay.
            BorrowerTask::Map(batch) => {
                self.maps.insert(batch.read, batch.places.clone());
                self.read(batch, memory);
            }
            BorrowerTask::Discard { read } => {
                assert!(!self.reading.contains_key(&read), "{read:?} is discarded while it is read");
                assert!(self.slabs.remove(&read).is_some(), "{read:?} is discarded, and has no slab");
                self.maps.remove(&read);
            }
        }
    }

    fn read(&mut self, batch: ReadBatch, memory: &Memory) {
        let ReadBatch { read, stream, layout, places, then_word } = batch;
        assert!(layout.len <= self.knobs.max_batch_bytes.max(self.knobs.max_loan_bytes), "{} bytes", layout.len);
        let on_demand = self.apps[&stream].options.access == Access::OnDemand;
        for (index, from) in &places {
            assert_eq!(layout.ranges[*index].len, from.len);
            assert!(on_demand || from.address % CELL == 0, "the machine reads the places that it was given");
        }
        assert!(on_demand || layout.ranges.len() == 2);
        let piece = |(buffer, from): (usize, RemoteRange)| {
            assert!(self.regions.contains(&from.region), "{:?} is read, and was not imported", from.region);
            Piece { buffer, from, lease: memory.lease_at(from.address), found: None }
        };
        let pieces = places.into_iter().map(piece).collect();
        assert!(then_word.is_none_or(|word| self.regions.contains(&word.region)));
        self.slabs.insert(read, (stream, Vec::new()));
        let reading = Reading { stream, pieces, word: then_word, word_found: None, failed: false };
        assert!(self.reading.insert(read, reading).is_none(), "{read:?} is read twice");
    }

    pub(crate) fn all_ended(&self) {
        assert!(self.reading.is_empty(), "reads outlive the connection: {:?}", self.reading);
        assert!(self.slabs.is_empty(), "slabs outlive the connection: {:?}", self.slabs);
        let left: Vec<_> = self.apps.iter().filter(|(_, app)| app.over.is_none()).collect();
        assert!(left.is_empty(), "streams outlive the connection: {left:?}");
    }

    pub(crate) fn event(&mut self, event: BorrowerEvent) {
        let trusts = self.trusts;
        match event {
            BorrowerEvent::Schema { stream, schema: got, .. } => {
                let app = self.live(stream);
                assert!(!std::mem::replace(&mut app.schema, true), "{stream:?} has two schemas");
                assert!(!trusts || *got == schema());
            }
            BorrowerEvent::Batch { stream, seq, cost, payload } => self.delivered(stream, seq, cost, payload),
            BorrowerEvent::End { stream, stats } => {
                let app = self.live(stream);
                app.over = Some(Ok(()));
                if trusts {
                    assert_eq!(app.next as usize, app.script.batches.len(), "{stream:?} ended before its end");
                    assert_eq!(app.script.ending, Ending::Finish);
                    assert_eq!(stats.batches_lent + stats.batches_inline, app.next);
                }
            }
            BorrowerEvent::Failed { stream, error } => {
                // A refused request has no application.
                let Some(app) = self.apps.get_mut(&stream) else { return };
                assert!(app.over.is_none(), "{stream:?} speaks after its end: {app:?}");
                for (seq, held) in &mut app.held {
                    assert!(held.parts.is_empty(), "{stream:?} failed, and batch {seq} owes answers: {held:?}");
                    held.lost = true;
                }
                app.over = Some(Err(error));
            }
            BorrowerEvent::PartRead { stream, seq, part, read } => {
                let parts = self.answered(stream, seq, part);
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
            BorrowerEvent::PartFailed { stream, seq, part, error } => {
                self.answered(stream, seq, part);
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

    /// The pieces of a part, which is answered now, and only now.
    fn answered(&mut self, stream: StreamId, seq: u64, part: PartId) -> Vec<Part> {
        let held = self.apps.get_mut(&stream).and_then(|app| app.held.get_mut(&seq));
        let held = held.unwrap_or_else(|| panic!("{stream:?}: batch {seq} answers, and is not held"));
        held.parts.remove(&part).unwrap_or_else(|| panic!("{part:?} is answered, and was not asked or twice"))
    }

    fn delivered(&mut self, stream: StreamId, seq: u64, cost: u64, payload: Payload) {
        let places = match &payload {
            Payload::Mapped { read, .. } => Some(self.maps.remove(read).expect("it was mapped")),
            _ => None,
        };
        let trusts = self.trusts;
        let app = self.live(stream);
        assert!(app.schema, "{stream:?} delivers before its schema");
        assert_eq!(app.next, seq, "{stream:?} delivers out of order");
        app.next += 1;
        if !trusts {
            app.untaken.push_back(cost);
            if let Payload::Lent { read, .. } = payload {
                assert!(!self.reading.contains_key(&read) && self.slabs.remove(&read).is_some());
            }
            return;
        }
        let batch = app.script.batches[seq as usize];
        let lent = !matches!(payload, Payload::Inline(_));
        assert_eq!(cost, batch_cost(batch.bytes(lent)));
        let on_demand = app.options.access == Access::OnDemand;
        assert_eq!(matches!(payload, Payload::OnDemand { .. }), lent && on_demand);
        if let Payload::OnDemand { descriptor: got } = payload {
            let Batch::Lent { rows, .. } = batch else { panic!("{stream:?} {seq} was inline") };
            assert_eq!(**got, descriptor(rows));
            let held = Held { cost, rows, parts: BTreeMap::new(), lost: false, checked: false };
            assert!(app.held.insert(seq, held).is_none());
            return;
        }
        app.untaken.push_back(cost);
        if let Some(places) = places {
            assert!(app.mapped.insert(seq, places).is_none());
        }
        match payload {
            Payload::OnDemand { .. } => {}
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

    pub(crate) fn readings(&self) -> usize {
        self.reading.len()
    }

    /// The `k`th read makes a step: a piece of it reaches memory, then the lease word, then all of it completes.
    pub(crate) fn step(&mut self, k: usize, refused: bool, memory: &Memory) -> Option<Completed> {
        let read = self.reading.keys().nth(k % self.reading.len().max(1)).copied()?;
        let reading = self.reading.get_mut(&read)?;
        if let Some(piece) = reading.pieces.iter_mut().find(|piece| piece.found.is_none()) {
            reading.failed |= refused;
            piece.found = Some(memory.read(piece.from));
            return None;
        }
        if let Some(word) = reading.word.filter(|_| reading.word_found.is_none() && !reading.failed) {
            reading.failed |= refused;
            reading.word_found = Some(memory.read(word));
            return None;
        }
        let reading = self.reading.remove(&read)?;
        Some(self.complete(read, reading))
    }

    fn complete(&mut self, read: ReadId, reading: Reading) -> Completed {
        let unread = reading.pieces.iter().any(|piece| piece.found.is_none());
        let unproven = reading.word.is_some() && reading.word_found.is_none();
        if reading.failed || unread || unproven {
            return (read, Err(ReadProblem::failed("flushed")));
        }
        let found = |piece: &Piece| (piece.buffer, piece.from.address % CELL, piece.from.len, piece.found.unwrap_or(0));
        let found = reading.pieces.iter().map(found).collect();
        self.slabs.get_mut(&read).expect("a slab under the read").1 = found;
        (read, Ok(reading.word_found))
    }

    /// All reads complete, as they do when an endpoint closes.
    pub(crate) fn flush(&mut self) -> Vec<Completed> {
        let reading = std::mem::take(&mut self.reading);
        reading.into_keys().map(|read| (read, Err(ReadProblem::failed("flushed")))).collect()
    }

    /// A driver that loses its reads.
    pub(crate) fn forget_reads(&mut self) -> usize {
        std::mem::take(&mut self.reading).len()
    }

    /// There is no memory for the `k`th read, which has not begun.
    pub(crate) fn no_memory(&mut self, k: usize) -> Option<Completed> {
        let fresh: Vec<_> = self.reading.iter().filter(|(_, r)| !r.has_begun()).map(|(read, _)| *read).collect();
        let read = *fresh.get(k % fresh.len().max(1))?;
        self.reading.remove(&read);
        Some((read, Err(ReadProblem::NoMemory("the pool is empty".into()))))
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

    /// The application asks the `k`th batch on demand for parts: each of a buffer, from so far in it, so many bytes.
    pub(crate) fn ask(&mut self, k: usize, parts: &[(usize, u64, u64)]) -> Option<BorrowerCommand> {
        let (stream, seq, held) = self.held().nth(k % self.held().count().max(1))?;
        let bytes = held.rows * 8;
        let part = |&(buffer, offset, len): &(usize, u64, u64)| {
            let offset = offset % (bytes + 1);
            Part { buffer: buffer % 2, offset, len: len.min(bytes - offset) }
        };
        Some(self.asking(stream, seq, parts.iter().map(part).collect()))
    }

    fn asking(&mut self, stream: StreamId, seq: u64, pieces: Vec<Part>) -> BorrowerCommand {
        self.last_part += 1;
        let part = PartId(self.last_part);
        if let Some(held) = self.apps.get_mut(&stream).and_then(|app| app.held.get_mut(&seq)) {
            held.parts.insert(part, pieces.clone());
        }
        BorrowerCommand::ReadPart { stream, seq, part, pieces }
    }

    /// The `k`th batch on demand or mapped.
    pub(crate) fn pick_held(&self, k: usize) -> Option<(StreamId, u64)> {
        let held = || self.held().map(|(stream, seq, _)| (stream, seq)).chain(self.mapped());
        held().nth(k % held().count().max(1))
    }

    fn mapped(&self) -> impl Iterator<Item = (StreamId, u64)> {
        self.apps.iter().flat_map(|(stream, app)| app.mapped.keys().map(|seq| (*stream, *seq)))
    }

    /// The application is done with a batch on demand or mapped, and looks at it once more if it is mapped.
    pub(crate) fn giving_up(&mut self, (stream, seq): (StreamId, u64), memory: &Memory) -> BorrowerCommand {
        let mapped = self.apps.get_mut(&stream).and_then(|app| app.mapped.remove(&seq));
        for (buffer, place) in mapped.iter().flatten() {
            let found = memory.read(*place);
            assert_eq!(found, tag(stream, seq, *buffer), "{stream:?}: batch {seq} changed while it was mapped");
        }
        BorrowerCommand::GiveUp { stream, seq }
    }

    /// And has been told what is due.
    pub(crate) fn given_up(&mut self, (stream, seq): (StreamId, u64)) {
        let held = self.apps.get_mut(&stream).and_then(|app| app.held.remove(&seq));
        assert!(
            held.is_none_or(|held| held.parts.is_empty()),
            "{stream:?}: batch {seq} was given up, and owes answers"
        );
    }

    /// What an application does that looks at a mapped batch, or wants all of one on demand, and then no more of it:
    /// asks for it, if it is there to be had.
    pub(crate) fn lazy_step(&mut self) -> Option<Result<BorrowerCommand, (StreamId, u64)>> {
        if let Some(mapped) = self.mapped().next() {
            return Some(Err(mapped));
        }
        let idle = self.held().find(|(_, _, held)| held.parts.is_empty());
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

    /// The `k`th application takes a batch: its cost.
    pub(crate) fn take(&mut self, k: usize) -> Option<(StreamId, u64)> {
        let full: Vec<_> = self.apps.iter().filter(|(_, app)| !app.untaken.is_empty()).map(|(id, _)| *id).collect();
        let stream = *full.get(k % full.len().max(1))?;
        let cost = self.apps.get_mut(&stream)?.untaken.pop_front()?;
        Some((stream, cost))
    }

    pub(crate) fn withdrawn(&mut self, stream: StreamId) {
        let app = self.apps.get_mut(&stream).expect("an upload that began");
        assert!(app.over == Some(Ok(())) && app.answered != Some(true), "{stream:?} is withdrawn: {app:?}");
        assert!(!std::mem::replace(&mut app.withdrawn, true), "{stream:?} is withdrawn twice");
    }

    pub(crate) fn check(&self, machine: &Borrower) {
        assert_eq!(machine.outstanding_reads(), self.reading.len());
        for (stream, app) in &self.apps {
            // Memory that a stream has here: within its window, which is widened for one large batch at most.
            let slabs = self.slabs.keys().filter(|read| self.slabs[read].0 == *stream).count() as u64;
            // Parts of batches on demand are apart: the batches are in the window as long as they are held.
            let slabs = if app.options.access == Access::OnDemand { 0 } else { slabs };
            let held: u64 = app.held.values().map(|held| held.cost).sum();
            let most = batch_cost(self.knobs.max_batch_bytes).max(app.options.credit);
            let taken: u64 = app.untaken.iter().sum::<u64>() + held + slabs * batch_cost(0);
            assert!(app.over.is_some() || taken <= most, "{stream:?} has {taken} bytes here, of {most}");
        }
        let undelivered = self.slabs.keys().filter(|read| self.maps.contains_key(read)).count();
        assert!((self.mapped().count()..=self.mapped().count() + undelivered).contains(&machine.mapped_batches()));
        assert!(self.regions.is_empty() || self.regions.contains(&WORDS));
    }

    /// As the machine sees it.
    pub(crate) fn check_held(&self, machine: &Borrower) {
        assert_eq!(machine.on_demand_batches(), self.held().count());
    }
}
