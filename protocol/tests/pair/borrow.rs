//! The driver of a borrower: its reads, and applications that compare received batches with the sent ones.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use thallus_protocol::borrower::{
    Borrower, BorrowerCommand, BorrowerEvent, BorrowerTask, Payload, ReadBatch, ReadError,
};
use thallus_protocol::credit::batch_cost;
use thallus_protocol::layout::Piece as Part;
use thallus_protocol::message::{Access, OpenOptions, Region};
use thallus_protocol::{LeaseId, PartId, ReadId, RegionId, RemoteRange, StreamError, StreamId};

use super::memory::{CELL, Memory, WORDS, tag};
use super::script::*;

/// State of a stream in its application.
#[derive(Debug)]
pub(crate) struct App {
    pub(crate) script: Script,
    pub(crate) options: OpenOptions,
    pub(crate) next: u64,
    pub(crate) schema: bool,
    pub(crate) over: Option<Result<(), StreamError>>,
    /// Costs of delivered batches that were not consumed yet.
    pub(crate) untaken: VecDeque<u64>,
    /// Delivered batches on demand that were not given up yet.
    pub(crate) held: BTreeMap<u64, Held>,
    /// Mapped batches in use, with the places of their buffers.
    pub(crate) mapped: BTreeMap<u64, Vec<(usize, RemoteRange)>>,
    /// Answers to requested parts, in order.
    pub(crate) answers: Vec<Result<(), StreamError>>,
    /// For an upload: whether the engine has accepted it.
    pub(crate) accepted: bool,
    /// For an upload: whether the engine's answer, if any, was a success.
    pub(crate) answered: Option<bool>,
    /// For an upload: whether the client has withdrawn it.
    pub(crate) withdrawn: bool,
}

/// State of a batch on demand in the application.
#[derive(Debug)]
pub(crate) struct Held {
    cost: u64,
    rows: u64,
    /// Requested parts without an answer yet.
    parts: BTreeMap<PartId, Vec<Part>>,
    /// The batch can no longer be read.
    lost: bool,
    /// The whole batch was requested once more, as a check before it is given up.
    checked: bool,
}

#[derive(Debug)]
struct Piece {
    buffer: usize,
    from: RemoteRange,
    lease: Option<LeaseId>,
    found: Option<u64>,
}

/// One piece that was read: index of the buffer or piece, offset in the lender's buffer, length, and content.
type Found = (usize, u64, u64, u64);
/// A read that has completed.
pub(crate) type Completed = (ReadId, Result<Option<u64>, ReadError>);

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
    /// Mapped slabs, with the places of their buffers.
    maps: BTreeMap<ReadId, Vec<(usize, RemoteRange)>>,
    regions: BTreeSet<RegionId>,
    knobs: Knobs,
    last_part: u64,
    /// Whether the peer follows its script.
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

    /// Begins a stream that this end borrows.
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

    /// Imports a region.
    pub(crate) fn import(&mut self, region: &Region) {
        assert!(self.regions.insert(region.id), "{:?} is imported twice", region.id);
    }

    /// Whether a task needs no data plane.
    pub(crate) fn is_tidying(&self, task: &BorrowerTask) -> bool {
        matches!(task, BorrowerTask::Discard { .. } | BorrowerTask::Import(_) | BorrowerTask::UnimportRegion(_))
    }

    pub(crate) fn task(&mut self, task: BorrowerTask, memory: &Memory) {
        match task {
            BorrowerTask::Import(region) => self.import(&region),
            BorrowerTask::UnimportRegion(region) => {
                assert!(self.regions.remove(&region), "{region:?} is forgotten, but was not imported");
            }
            BorrowerTask::Read(batch) => self.read(batch, memory),
            // Like a read. Afterwards the content must stay unchanged.
            BorrowerTask::Map(batch) => {
                self.maps.insert(batch.read, batch.places.clone());
                self.read(batch, memory);
            }
            BorrowerTask::Discard { read } => {
                assert!(!self.reading.contains_key(&read), "{read:?} is discarded while it is read");
                assert!(self.slabs.remove(&read).is_some(), "{read:?} is discarded, but has no slab");
                self.maps.remove(&read);
            }
        }
    }

    fn read(&mut self, batch: ReadBatch, memory: &Memory) {
        let ReadBatch { read, stream, layout, places, lease_word } = batch;
        assert!(layout.len <= self.knobs.max_batch_bytes.max(self.knobs.max_loan_bytes), "{} bytes", layout.len);
        let on_demand = self.apps[&stream].options.access == Access::OnDemand;
        for (index, from) in &places {
            assert_eq!(layout.ranges[*index].len, from.len);
            assert!(on_demand || from.address % CELL == 0, "the machine reads other places than the announced ones");
        }
        assert!(on_demand || layout.ranges.len() == 2);
        let piece = |(buffer, from): (usize, RemoteRange)| {
            assert!(self.regions.contains(&from.region), "{:?} is read, but was not imported", from.region);
            Piece { buffer, from, lease: memory.lease_at(from.address), found: None }
        };
        let pieces = places.into_iter().map(piece).collect();
        assert!(lease_word.is_none_or(|word| self.regions.contains(&word.region)));
        self.slabs.insert(read, (stream, Vec::new()));
        let reading = Reading { stream, pieces, word: lease_word, word_found: None, failed: false };
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
            BorrowerEvent::Schema { stream, plan, .. } => {
                let app = self.live(stream);
                assert!(!std::mem::replace(&mut app.schema, true), "{stream:?} has two schemas");
                assert!(!trusts || *plan.schema() == schema().into());
            }
            BorrowerEvent::Batch { stream, seq, cost, payload } => self.delivered(stream, seq, cost, payload),
            BorrowerEvent::End { stream, stats } => {
                let app = self.live(stream);
                app.over = Some(Ok(()));
                if trusts {
                    assert_eq!(app.next as usize, app.script.batches.len(), "{stream:?} ended too early");
                    assert_eq!(app.script.ending, Ending::Finish);
                    assert_eq!(stats.batches_lent + stats.batches_inline, app.next);
                }
            }
            BorrowerEvent::Failed { stream, error } => {
                // A refused request has no application.
                let Some(app) = self.apps.get_mut(&stream) else { return };
                assert!(app.over.is_none(), "{stream:?} has an event after its end: {app:?}");
                for (seq, held) in &mut app.held {
                    assert!(
                        held.parts.is_empty(),
                        "{stream:?} failed, but parts of batch {seq} have no answer: {held:?}"
                    );
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
                assert_eq!(found, right, "{stream:?}: batch {seq} contains wrong bytes");
                let app = self.apps.get_mut(&stream).expect("checked above");
                app.answers.push(Ok(()));
                assert!(!app.held[&seq].lost, "{stream:?}: a part of batch {seq} was read, but the batch is lost");
                assert!(!matches!(app.over, Some(Err(_))), "{stream:?} failed, but a part of batch {seq} was read");
            }
            BorrowerEvent::PartFailed { stream, seq, part, error } => {
                self.answered(stream, seq, part);
                let app = self.apps.get_mut(&stream).expect("checked above");
                let held = app.held.get_mut(&seq).expect("checked above");
                held.lost |= !matches!(error, StreamError::OutOfMemory { .. });
                app.answers.push(Err(error));
            }
        }
    }

    /// A stream that has not ended: there are no events after the end.
    fn live(&mut self, stream: StreamId) -> &mut App {
        let app = self.apps.get_mut(&stream).expect("a requested stream");
        assert!(app.over.is_none(), "{stream:?} has an event after its end: {app:?}");
        app
    }

    /// Removes an answered part, and returns its pieces. Each part is answered once.
    fn answered(&mut self, stream: StreamId, seq: u64, part: PartId) -> Vec<Part> {
        let held = self.apps.get_mut(&stream).and_then(|app| app.held.get_mut(&seq));
        let held =
            held.unwrap_or_else(|| panic!("{stream:?}: a part of batch {seq} is answered, but the batch is not held"));
        held.parts.remove(&part).unwrap_or_else(|| panic!("{part:?} is answered twice or was not requested"))
    }

    fn delivered(&mut self, stream: StreamId, seq: u64, cost: u64, payload: Payload) {
        let places = match &payload {
            Payload::Mapped { read, .. } => Some(self.maps.remove(read).expect("a mapped batch")),
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
                assert!(!self.reading.contains_key(&read), "{read:?} is delivered while it is read");
                let (_, found) = self.slabs.remove(&read).expect("a batch that was read");
                let right: Vec<_> =
                    (0..if rows > 0 { 2 } else { 0 }).map(|i| (i, 0, rows * 8, tag(stream, seq, i))).collect();
                assert_eq!(found, right, "{stream:?}: batch {seq} contains wrong bytes");
            }
        }
    }

    pub(crate) fn readings(&self) -> usize {
        self.reading.len()
    }

    /// Advances the `k`th read: its pieces are read one by one, then the lease word, and then it completes.
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
            return (read, Err(ReadError::failed("flushed")));
        }
        let found = |piece: &Piece| (piece.buffer, piece.from.address % CELL, piece.from.len, piece.found.unwrap_or(0));
        let found = reading.pieces.iter().map(found).collect();
        self.slabs.get_mut(&read).expect("a read has a slab").1 = found;
        (read, Ok(reading.word_found))
    }

    /// Completes all reads with an error, as a closing endpoint does.
    pub(crate) fn flush(&mut self) -> Vec<Completed> {
        let reading = std::mem::take(&mut self.reading);
        reading.into_keys().map(|read| (read, Err(ReadError::failed("flushed")))).collect()
    }

    /// Loses all reads without completing them.
    pub(crate) fn forget_reads(&mut self) -> usize {
        std::mem::take(&mut self.reading).len()
    }

    /// Fails the `k`th read that has not begun, for lack of memory.
    pub(crate) fn no_memory(&mut self, k: usize) -> Option<Completed> {
        let fresh: Vec<_> = self.reading.iter().filter(|(_, r)| !r.has_begun()).map(|(read, _)| *read).collect();
        let read = *fresh.get(k % fresh.len().max(1))?;
        self.reading.remove(&read);
        Some((read, Err(ReadError::NoMemory("the pool is empty".into()))))
    }

    /// Checks that a released lease is not being read. Memory may be reused before a read begins, but never by the same
    /// stream, because a stream whose lease expires lends nothing more.
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

    /// Requests parts of the `k`th batch on demand: each part has a buffer, an offset and a length.
    pub(crate) fn read_part(&mut self, k: usize, parts: &[(usize, u64, u64)]) -> Option<BorrowerCommand> {
        let (stream, seq, held) = self.held().nth(k % self.held().count().max(1))?;
        let bytes = held.rows * 8;
        let part = |&(buffer, offset, len): &(usize, u64, u64)| {
            let offset = offset % (bytes + 1);
            Part { buffer: buffer % 2, offset, len: len.min(bytes - offset) }
        };
        Some(self.request_part(stream, seq, parts.iter().map(part).collect()))
    }

    fn request_part(&mut self, stream: StreamId, seq: u64, pieces: Vec<Part>) -> BorrowerCommand {
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

    /// Gives up a batch on demand or mapped. A mapped batch is checked before.
    pub(crate) fn giving_up(&mut self, (stream, seq): (StreamId, u64), memory: &Memory) -> BorrowerCommand {
        let mapped = self.apps.get_mut(&stream).and_then(|app| app.mapped.remove(&seq));
        for (buffer, place) in mapped.iter().flatten() {
            let found = memory.read(*place);
            assert_eq!(found, tag(stream, seq, *buffer), "{stream:?}: batch {seq} changed while it was mapped");
        }
        BorrowerCommand::ReleaseBatch { stream, seq }
    }

    /// Removes a batch that was given up. All its parts must have an answer.
    pub(crate) fn given_up(&mut self, (stream, seq): (StreamId, u64)) {
        let held = self.apps.get_mut(&stream).and_then(|app| app.held.remove(&seq));
        assert!(
            held.is_none_or(|held| held.parts.is_empty()),
            "{stream:?}: batch {seq} was given up, but parts have no answer"
        );
    }

    /// The next step of an application that uses its batches once: requests a whole batch on demand (`Ok`), or gives up
    /// a mapped batch or a batch already requested (`Err`).
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
        Some(Ok(self.request_part(stream, seq, parts)))
    }

    /// The `k`th application consumes a batch. Returns the batch's cost.
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
            // The memory of a stream stays within its window, which one large batch may widen.
            let slabs = self.slabs.keys().filter(|read| self.slabs[read].0 == *stream).count() as u64;
            // Parts of batches on demand do not count: a held batch counts as a whole.
            let slabs = if app.options.access == Access::OnDemand { 0 } else { slabs };
            let held: u64 = app.held.values().map(|held| held.cost).sum();
            let most = batch_cost(self.knobs.max_batch_bytes).max(app.options.credit);
            let taken: u64 = app.untaken.iter().sum::<u64>() + held + slabs * batch_cost(0);
            assert!(app.over.is_some() || taken <= most, "{stream:?} holds {taken} bytes, more than {most} bytes");
        }
        let undelivered = self.slabs.keys().filter(|read| self.maps.contains_key(read)).count();
        assert!((self.mapped().count()..=self.mapped().count() + undelivered).contains(&machine.mapped_batches()));
        assert!(self.regions.is_empty() || self.regions.contains(&WORDS));
    }

    /// Checks that the machine counts the same batches on demand.
    pub(crate) fn check_held(&self, machine: &Borrower) {
        assert_eq!(machine.on_demand_batches(), self.held().count());
    }
}
