//! One-sided reads of a connection: batches in, slabs out, as many reads in flight as the fabric takes.
//!
//! A batch is read in pieces, and when all of them are there its lease word is read, in the same turn: only then is it
//! reported.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use arrow_buffer::Buffer;
use thallus_fabric::memory::{LocalRange, Slab, SlabPool};
use thallus_fabric::{Completion, Endpoint, FabricError, ReadToken};
use thallus_protocol::borrower::{ReadBatch, ReadProblem};
use thallus_protocol::layout::{Range, SlabLayout};
use thallus_protocol::message::Region;
use thallus_protocol::{Cause, ReadId, RegionId, RemoteRange, StreamId};
use tokio::time::Instant;
use tracing::warn;

use crate::doorbell::Doorbell;
use crate::pools::Pools;

/// Bytes posted at most before what has been read is handed over and others get their turn: some fabrics copy within
/// the call, and what they copied is best looked at while it is in the cache.
const POST_BYTES: u64 = 1 << 20;
/// Bytes under way at once, at most: more fills no link any faster (400 Gb/s for 80 us are 4 MB), and takes as much
/// more memory, which is the warmer the less of it there is.
const UNDER_WAY: u64 = 4 << 20;
/// While all connections over the same memory have so many, one that has none may still read a batch, and no more: many
/// keep a host busy by a little each.
const UNDER_WAY_OF_ALL: u64 = 8 << 20;

/// Bytes that [`Reads::measure`] reads: enough to tell a copy or a device from messages that the peer's processor
/// answers.
const MEASURED: u64 = 1 << 20;

const DISCARDED: &str = "the batch was discarded";
const CLOSED: &str = "the data plane was closed";

/// A read has ended.
#[derive(Debug)]
pub(crate) enum Done {
    /// A batch or a part has been read and its lease word after it, or has failed to be.
    Batch {
        read: ReadId,
        stream: StreamId,
        /// The lease word, where there is one.
        result: Result<Option<u64>, ReadProblem>,
        /// How long the word took, if it was the only read.
        word_took: Option<Duration>,
    },
    Probe(Result<u64, ReadProblem>),
    /// [`Reads::measure`] has ended: bytes, and how long they took.
    Rate(Result<(u64, Duration), ReadProblem>),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Target {
    Batch(ReadId),
    Word(ReadId),
    Probe,
    Rate,
}

/// What is being read into one slab.
#[derive(Debug)]
struct Reading {
    /// Of how many bytes.
    len: usize,
    /// Taken as the first piece is posted: what waits for its turn needs no memory, and the memory that was used last
    /// is warm.
    slab: Option<Slab>,
    /// When it was asked for, if it was alone: only then does it tell how long a read takes.
    asked: Option<Instant>,
    /// Pieces posted or queued.
    remaining: usize,
    problem: Option<ReadProblem>,
}

#[derive(Debug)]
struct Piece {
    target: Target,
    from: RemoteRange,
    offset: usize,
}

/// A batch whose bytes are all there, or on their way.
#[derive(Debug)]
pub struct ReadSlab {
    /// The bytes; none if there was no byte to read.
    pub slab: Option<Slab>,
    /// Where in them each buffer or piece is.
    pub layout: SlabLayout,
    stream: StreamId,
    /// Still to be read.
    then_word: Option<RemoteRange>,
}

/// The reads of one connection, over its endpoint.
#[derive(Debug)]
pub(crate) struct Reads {
    endpoint: Box<dyn Endpoint>,
    /// Rings for the endpoint, and for what is queued.
    bell: Doorbell,
    pool: SlabPool,
    /// For reads of eight bytes, which would leave holes between batches.
    words: SlabPool,
    max_read: u64,
    max_outstanding: usize,
    reading: BTreeMap<Target, Reading>,
    slabs: BTreeMap<ReadId, ReadSlab>,
    /// What is under way, with its length.
    tokens: BTreeMap<ReadToken, (Target, u64)>,
    under_way: u64,
    /// That of all connections over the same memory.
    under_way_of_all: Arc<AtomicU64>,
    queue: VecDeque<Piece>,
    last_token: u64,
    /// Done without a completion.
    done: Vec<Done>,
    /// The probe lands where batches do: that there can be memory for them is part of the proof.
    probe_as_batch: bool,
    closing: bool,
}

impl Reads {
    pub(crate) fn new(endpoint: Box<dyn Endpoint>, pools: Pools, max_read: u64, max_outstanding: usize) -> Self {
        let Pools { batches: pool, words, under_way } = pools;
        Reads {
            endpoint,
            bell: Doorbell::new(),
            pool,
            words,
            max_read: max_read.max(1),
            max_outstanding: max_outstanding.max(1),
            reading: BTreeMap::new(),
            slabs: BTreeMap::new(),
            tokens: BTreeMap::new(),
            under_way: 0,
            under_way_of_all: under_way,
            queue: VecDeque::new(),
            last_token: 0,
            done: Vec::new(),
            probe_as_batch: true,
            closing: false,
        }
    }

    pub(crate) fn endpoint(&mut self) -> &mut dyn Endpoint {
        &mut *self.endpoint
    }

    pub(crate) fn import(&mut self, region: &Region) {
        self.bell.ring();
        if let Err(error) = self.endpoint.import(region.id, region.base, region.len, &region.key) {
            // Reads of it will be refused, and end their streams: no stream waits for them in vain.
            warn!(%error, "a region of the peer cannot be read");
        }
    }

    pub(crate) fn forget(&mut self, region: RegionId) {
        self.bell.ring();
        self.endpoint.forget(region);
    }

    pub(crate) fn read_batch(&mut self, batch: ReadBatch) {
        self.bell.ring();
        let ReadBatch { read, stream, layout, places, then_word } = batch;
        let (len, runs) = (layout.len, runs(&layout.ranges, &places));
        self.slabs.insert(read, ReadSlab { slab: None, layout, stream, then_word });
        let len = match usize::try_from(len) {
            Ok(len) => len,
            Err(error) => {
                return self.finished(Target::Batch(read), Err(ReadProblem::NoMemory(Cause::new(error))), None);
            }
        };
        let target = Target::Batch(read);
        let mut remaining = 0;
        for (place, offset) in runs {
            let mut done = 0;
            while done < place.len {
                let len = (place.len - done).min(self.max_read);
                let from = RemoteRange { region: place.region, address: place.address + done, len };
                // Within the slab, whose length is a usize.
                self.queue.push_back(Piece { target, from, offset: (offset + done) as usize });
                remaining += 1;
                done += len;
            }
        }
        if remaining > 0 {
            self.reading.insert(target, Reading { len, slab: None, asked: None, remaining, problem: None });
        } else {
            // There is no byte to read.
            self.data_done(read, Ok(None));
        }
    }

    /// Nothing is to be read, since it was mapped, but the lease word.
    pub(crate) fn prove_mapping(&mut self, batch: &ReadBatch) {
        self.bell.ring();
        let ReadBatch { read, stream, layout, then_word, .. } = batch;
        let entry = ReadSlab { slab: None, layout: layout.clone(), stream: *stream, then_word: *then_word };
        self.slabs.insert(*read, entry);
        self.data_done(*read, Ok(None));
    }

    /// All data of a batch is there, or failed: its lease word is read next, or it is reported.
    fn data_done(&mut self, read: ReadId, result: Result<Option<Slab>, ReadProblem>) {
        let Some(entry) = self.slabs.get_mut(&read) else { return };
        let then_word = entry.then_word.take();
        match (result, then_word) {
            (Ok(slab), Some(at)) if !self.closing => {
                entry.slab = slab;
                self.read_eight_bytes(Target::Word(read), at);
            }
            (Ok(_), Some(_)) => self.report(read, Err(ReadProblem::failed(CLOSED)), None),
            (Ok(slab), None) => {
                entry.slab = slab;
                self.report(read, Ok(None), None);
            }
            (Err(problem), _) => self.report(read, Err(problem), None),
        }
    }

    fn report(&mut self, read: ReadId, result: Result<Option<u64>, ReadProblem>, word_took: Option<Duration>) {
        let Some(stream) = self.slabs.get(&read).map(|entry| entry.stream) else { return };
        self.done.push(Done::Batch { read, stream, result, word_took });
    }

    /// Reads the peer's probe, into memory for batches or for words.
    pub(crate) fn probe(&mut self, at: RemoteRange, as_batch: bool) {
        self.probe_as_batch = as_batch;
        self.read_eight_bytes(Target::Probe, at);
    }

    /// Reads a region of the peer's again and again, and nothing else, to find out how fast that is.
    pub(crate) fn measure(&mut self, region: RemoteRange) {
        self.bell.ring();
        let len = region.len.min(self.max_read).min(MEASURED);
        let pieces = (MEASURED / len.max(1)).clamp(1, self.max_outstanding as u64);
        let from = RemoteRange { len, ..region };
        let reading = Reading {
            // Both factors are small.
            len: (pieces * len) as usize,
            slab: None,
            asked: Some(Instant::now()),
            remaining: pieces as usize,
            problem: None,
        };
        self.reading.insert(Target::Rate, reading);
        let piece = |index| Piece { target: Target::Rate, from, offset: (index * len) as usize };
        self.queue.extend((0..pieces).map(piece));
    }

    fn read_eight_bytes(&mut self, target: Target, at: RemoteRange) {
        self.bell.ring();
        let asked = self.reading.is_empty().then(Instant::now);
        self.reading.insert(target, Reading { len: 8, slab: None, asked, remaining: 1, problem: None });
        // Ahead of the queue: a batch waits for its word, and with it the lender's memory.
        self.queue.push_front(Piece { target, from: at, offset: 0 });
    }

    /// The waker that the endpoint is polled with next must be a new one: something was done to it.
    pub(crate) fn ring(&mut self) {
        self.bell.ring();
    }

    /// The slab of a batch that has been read.
    pub(crate) fn take(&mut self, read: ReadId) -> Option<ReadSlab> {
        self.slabs.remove(&read)
    }

    /// Gives memory back in which nothing has been for a while. Whether there is any left.
    pub(crate) fn trim(&self, idle: Duration) -> bool {
        self.pool.trim(idle);
        self.pool.stats().bytes_total > 0
    }

    /// Begins the teardown: what is not posted yet fails here, what is posted fails as the endpoint flushes it.
    pub(crate) fn close(&mut self) {
        self.bell.ring();
        self.closing = true;
        // What a peer that is gone does not let go of is no reason for others to wait.
        self.set_under_way(0);
        self.fail_queued(&CLOSED.into());
        self.endpoint.close();
    }

    /// Whether everything that was asked has been answered, and the endpoint is done.
    pub(crate) fn is_closed(&self) -> bool {
        self.closing && self.reading.is_empty() && self.done.is_empty() && self.endpoint.is_closed()
    }

    /// Gives up what an endpoint that does not close still holds. Its slabs stay with it.
    pub(crate) fn give_up(&mut self) -> Vec<Done> {
        let stuck: Vec<_> = self.reading.keys().copied().collect();
        for target in stuck {
            self.reading.remove(&target);
            let problem = ReadProblem::failed("the endpoint did not close in time");
            self.finished(target, Err(problem), None);
        }
        self.tokens.clear();
        std::mem::take(&mut self.done)
    }

    /// Posts what can be posted, and reports what has been read.
    pub(crate) fn poll(&mut self, cx: &mut Context<'_>, done: &mut Vec<Done>) -> Poll<Result<(), FabricError>> {
        if !self.bell.answer(cx) {
            return Poll::Pending;
        }
        let waker = self.bell.waker().clone();
        let polled = self.poll_endpoint(&mut Context::from_waker(&waker), done);
        if polled.is_ready() {
            self.bell.ring();
        }
        polled
    }

    fn poll_endpoint(&mut self, cx: &mut Context<'_>, done: &mut Vec<Done>) -> Poll<Result<(), FabricError>> {
        let mut completions = Vec::new();
        loop {
            // Before more is posted: what copies within the call would have others wait for what is here.
            if self.done.is_empty() && self.post() {
                cx.waker().wake_by_ref();
            }
            if !self.done.is_empty() {
                done.append(&mut self.done);
                return Poll::Ready(Ok(()));
            }
            let polled = self.endpoint.poll(cx, &mut completions);
            for Completion { token, result } in completions.drain(..) {
                if let Some((target, len)) = self.tokens.remove(&token) {
                    self.set_under_way(self.under_way.saturating_sub(len));
                    self.piece_done(target, result.map_err(|error| ReadProblem::Failed(Cause::new(error))));
                }
            }
            match ready!(polled) {
                Ok(()) => {}
                Err(error) => {
                    self.fail_queued(&Cause::new(error.clone()));
                    done.append(&mut self.done);
                    return Poll::Ready(Err(error));
                }
            }
        }
    }

    /// Posts queued pieces; `true` if it stopped only to yield.
    fn post(&mut self) -> bool {
        let mut posted = 0;
        while self.tokens.len() < self.max_outstanding && (self.next_is_a_word() || self.has_room()) {
            if posted >= POST_BYTES {
                return !self.queue.is_empty();
            }
            let Some(piece) = self.queue.pop_front() else { return false };
            let range = match self.landing(&piece) {
                Ok(range) => range,
                Err(problem) => {
                    self.piece_done(piece.target, Err(problem));
                    continue;
                }
            };
            let token = ReadToken(self.last_token + 1);
            match self.endpoint.post_read(token, piece.from, range) {
                Ok(()) => {
                    self.last_token += 1;
                    self.tokens.insert(token, (piece.target, piece.from.len));
                    self.set_under_way(self.under_way + piece.from.len);
                    posted += piece.from.len;
                }
                Err(FabricError::TooManyReads { .. }) if !self.tokens.is_empty() => {
                    self.queue.push_front(piece);
                    return false;
                }
                Err(error) => self.piece_done(piece.target, Err(ReadProblem::Failed(Cause::new(error)))),
            }
        }
        false
    }

    /// Words take up nothing, and batches wait for them.
    fn next_is_a_word(&self) -> bool {
        self.queue.front().is_some_and(|piece| matches!(piece.target, Target::Word(_)))
    }

    /// Whether another read may be under way. What is left of a batch that has been begun may be: its memory is taken.
    fn has_room(&self) -> bool {
        let begun = || {
            let next = self.queue.front().and_then(|piece| self.reading.get(&piece.target));
            next.is_some_and(|reading| reading.slab.is_some())
        };
        self.tokens.is_empty() || (self.under_way < UNDER_WAY && (begun() || !self.is_crowded()))
    }

    /// Whether all connections over the same memory have as much under way as is good for them.
    pub(crate) fn is_crowded(&self) -> bool {
        self.under_way_of_all.load(Ordering::Relaxed) >= UNDER_WAY_OF_ALL
    }

    fn set_under_way(&mut self, bytes: u64) {
        self.under_way_of_all.fetch_add(bytes.wrapping_sub(self.under_way), Ordering::Relaxed);
        self.under_way = bytes;
    }

    /// Where a piece is to land, or why it need not be read.
    fn landing(&mut self, piece: &Piece) -> Result<LocalRange, ReadProblem> {
        let failed = ReadProblem::failed;
        let reading = self.reading.get_mut(&piece.target).ok_or_else(|| failed("it was given up"))?;
        if let Some(problem) = &reading.problem {
            return Err(problem.clone());
        }
        if let Target::Batch(read) = piece.target
            && !self.slabs.contains_key(&read)
        {
            return Err(failed(DISCARDED));
        }
        let slab = match &mut reading.slab {
            Some(slab) => slab,
            none => {
                let as_batch = match piece.target {
                    Target::Batch(_) | Target::Rate => true,
                    Target::Word(_) => false,
                    Target::Probe => self.probe_as_batch,
                };
                let pool = if as_batch { &self.pool } else { &self.words };
                none.insert(pool.take(reading.len).map_err(|error| ReadProblem::NoMemory(Cause::new(error)))?)
            }
        };
        slab.range(piece.offset, piece.from.len as usize).map_err(|error| ReadProblem::Failed(Cause::new(error)))
    }

    fn piece_done(&mut self, target: Target, result: Result<(), ReadProblem>) {
        let Some(reading) = self.reading.get_mut(&target) else { return };
        reading.remaining -= 1;
        if let Err(problem) = result {
            reading.problem.get_or_insert(problem);
        }
        if reading.remaining > 0 {
            return;
        }
        let Some(Reading { slab, asked, problem, .. }) = self.reading.remove(&target) else { return };
        let took = asked.filter(|_| self.reading.is_empty()).map(|asked| asked.elapsed());
        let unread = || ReadProblem::failed("nothing was posted");
        self.finished(target, problem.map_or_else(|| slab.ok_or_else(unread), Err), took);
    }

    fn finished(&mut self, target: Target, result: Result<Slab, ReadProblem>, took: Option<Duration>) {
        match target {
            Target::Batch(read) => self.data_done(read, result.map(Some)),
            Target::Word(read) => self.report(read, result.and_then(eight_bytes).map(Some), took),
            Target::Probe => self.done.push(Done::Probe(result.and_then(eight_bytes))),
            Target::Rate => {
                let measured = result.map(|slab| (slab.len() as u64, took.unwrap_or_default()));
                self.done.push(Done::Rate(measured));
            }
        }
    }

    fn fail_queued(&mut self, cause: &Cause) {
        for piece in std::mem::take(&mut self.queue) {
            self.piece_done(piece.target, Err(ReadProblem::Failed(cause.clone())));
        }
    }
}

impl Drop for Reads {
    fn drop(&mut self) {
        self.set_under_way(0);
    }
}

/// What of a batch is adjacent both in the lender's memory and in the slab, with its place in the slab: one read for
/// each. The ranges were checked one by one, and what lies between neighbours is nothing.
fn runs(ranges: &[Range], places: &[(usize, RemoteRange)]) -> Vec<(RemoteRange, u64)> {
    let mut runs: Vec<(RemoteRange, u64)> = Vec::with_capacity(places.len());
    for (index, place) in places {
        let Some(range) = ranges.get(*index) else { continue };
        match runs.last_mut() {
            Some((run, offset))
                if run.region == place.region
                    && run.address.checked_add(run.len) == Some(place.address)
                    && *offset + run.len == range.offset =>
            {
                run.len += place.len;
            }
            _ => runs.push((*place, range.offset)),
        }
    }
    runs
}

/// The slab's bytes as an arrow buffer, once nothing writes to it any more.
pub fn into_buffer(slab: Slab) -> Result<Buffer, String> {
    slab.into_buffer().map_err(|_| "the fabric reported a read as done, and holds its memory still".to_owned())
}

fn eight_bytes(slab: Slab) -> Result<u64, ReadProblem> {
    let buffer = into_buffer(slab).map_err(|held| ReadProblem::Failed(held.into()))?;
    let word = buffer.as_slice().first_chunk::<8>().copied();
    word.map(u64::from_le_bytes).ok_or_else(|| ReadProblem::failed("fewer than eight bytes"))
}

#[cfg(test)]
#[path = "reads_tests.rs"]
mod tests;
