//! One-sided reads of a connection: it takes batches, returns slabs, and keeps as many reads in flight as the fabric
//! allows.
//!
//! A batch is read in pieces. After the last piece completes, its lease word is read in the same turn, and only then is
//! the batch reported.

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

/// Maximum number of bytes posted before finished reads are reported and other tasks run. Some fabrics copy within the
/// call, and copied bytes are best used while they are in the cache.
const POST_BYTES: u64 = 1 << 20;
/// Maximum number of bytes in flight. More does not fill any link faster (400 Gb/s for 80 us are 4 MB), and needs more
/// memory; less memory stays in the cache.
const UNDER_WAY: u64 = 4 << 20;
/// While the connections over the same memory together have this many bytes in flight, a connection with nothing in
/// flight may read one batch, and no more: many connections keep a host busy with a little each.
const UNDER_WAY_OF_ALL: u64 = 8 << 20;

/// Bytes that [`Reads::measure`] reads: enough to distinguish a copy or a device from messages that the peer's
/// processor answers.
const MEASURED: u64 = 1 << 20;

const DISCARDED: &str = "the batch was discarded";
const CLOSED: &str = "the data plane was closed";

/// A read has ended.
#[derive(Debug)]
pub(crate) enum Done {
    /// A batch or part has been read and its lease word after it, or one of these reads failed.
    Batch {
        read: ReadId,
        stream: StreamId,
        /// The lease word, if there is one.
        result: Result<Option<u64>, ReadProblem>,
        /// Time that the read of the word took, if it was the only read.
        word_took: Option<Duration>,
    },
    Probe(Result<u64, ReadProblem>),
    /// [`Reads::measure`] has ended: number of bytes, and the time they took.
    Rate(Result<(u64, Duration), ReadProblem>),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Target {
    Batch(ReadId),
    Word(ReadId),
    Probe,
    Rate,
}

/// The state of the reads into one slab.
#[derive(Debug)]
struct Reading {
    /// Length in bytes.
    len: usize,
    /// Allocated when the first piece is posted. A queued batch needs no memory, and the memory that was used last is
    /// in the cache.
    slab: Option<Slab>,
    /// Time of the request, if no other read was in flight. Only then does it show how long a read takes.
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

/// A batch whose bytes have been read or are being read.
#[derive(Debug)]
pub struct ReadSlab {
    /// The bytes; `None` if there was no byte to read.
    pub slab: Option<Slab>,
    /// The position of each buffer or piece in the slab.
    pub layout: SlabLayout,
    stream: StreamId,
    /// The lease word still to be read.
    then_word: Option<RemoteRange>,
}

/// The reads of one connection, over its endpoint.
#[derive(Debug)]
pub(crate) struct Reads {
    endpoint: Box<dyn Endpoint>,
    /// Marks the endpoint, or the queue, as due.
    bell: Doorbell,
    pool: SlabPool,
    /// For reads of eight bytes, which would leave gaps between batches.
    words: SlabPool,
    max_read: u64,
    max_outstanding: usize,
    reading: BTreeMap<Target, Reading>,
    slabs: BTreeMap<ReadId, ReadSlab>,
    /// Outstanding reads, with their lengths in bytes.
    tokens: BTreeMap<ReadToken, (Target, u64)>,
    under_way: u64,
    /// Bytes in flight of all connections over the same memory.
    under_way_of_all: Arc<AtomicU64>,
    queue: VecDeque<Piece>,
    last_token: u64,
    /// Results that need no completion.
    done: Vec<Done>,
    /// Whether the probe is read into memory for batches. Then the proof includes that such memory is available.
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
            // Reads of this region are refused and end their streams, so no stream waits for them in vain.
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
                // The offset lies within the slab, whose length is a usize.
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

    /// The batch was mapped. Only its lease word is to be read.
    pub(crate) fn prove_mapping(&mut self, batch: &ReadBatch) {
        self.bell.ring();
        let ReadBatch { read, stream, layout, then_word, .. } = batch;
        let entry = ReadSlab { slab: None, layout: layout.clone(), stream: *stream, then_word: *then_word };
        self.slabs.insert(*read, entry);
        self.data_done(*read, Ok(None));
    }

    /// All data of a batch has been read, or a read failed. Next, its lease word is read, or the batch is reported.
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

    /// Reads a region of the peer repeatedly, and nothing else, to measure the rate.
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
        // Ahead of the queue: a batch waits for its word, and the lender must keep the memory until then.
        self.queue.push_front(Piece { target, from: at, offset: 0 });
    }

    /// The endpoint's state was changed, so its next poll needs a newly registered waker.
    pub(crate) fn ring(&mut self) {
        self.bell.ring();
    }

    /// Takes the slab of a batch that has been read.
    pub(crate) fn take(&mut self, read: ReadId) -> Option<ReadSlab> {
        self.slabs.remove(&read)
    }

    /// Frees memory that was unused for this time. Returns whether any is left.
    pub(crate) fn trim(&self, idle: Duration) -> bool {
        self.pool.trim(idle);
        self.pool.stats().bytes_total > 0
    }

    /// Begins the teardown: queued pieces fail here, and posted pieces fail as the endpoint flushes them.
    pub(crate) fn close(&mut self) {
        self.bell.ring();
        self.closing = true;
        // Other connections must not wait for reads whose peer is gone.
        self.set_under_way(0);
        self.fail_queued(&CLOSED.into());
        self.endpoint.close();
    }

    /// Whether every read has been reported and the endpoint is closed.
    pub(crate) fn is_closed(&self) -> bool {
        self.closing && self.reading.is_empty() && self.done.is_empty() && self.endpoint.is_closed()
    }

    /// Gives up the reads of an endpoint that does not close. The endpoint keeps their slabs.
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

    /// Posts the pieces that can be posted, and reports finished reads.
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
            // Results are reported before more is posted: a fabric that copies within the call would delay them.
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

    /// Posts queued pieces. Returns `true` if it stopped only to let other tasks run.
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

    /// Words count for no bytes, and batches wait for them.
    fn next_is_a_word(&self) -> bool {
        self.queue.front().is_some_and(|piece| matches!(piece.target, Target::Word(_)))
    }

    /// Whether another read may be posted. The rest of a batch that has been started may: its memory is allocated.
    fn has_room(&self) -> bool {
        let begun = || {
            let next = self.queue.front().and_then(|piece| self.reading.get(&piece.target));
            next.is_some_and(|reading| reading.slab.is_some())
        };
        self.tokens.is_empty() || (self.under_way < UNDER_WAY && (begun() || !self.is_crowded()))
    }

    /// Whether the connections over the same memory together have reached the limit of bytes in flight.
    pub(crate) fn is_crowded(&self) -> bool {
        self.under_way_of_all.load(Ordering::Relaxed) >= UNDER_WAY_OF_ALL
    }

    fn set_under_way(&mut self, bytes: u64) {
        self.under_way_of_all.fetch_add(bytes.wrapping_sub(self.under_way), Ordering::Relaxed);
        self.under_way = bytes;
    }

    /// The local range for a piece, or the reason why it need not be read.
    fn landing(&mut self, piece: &Piece) -> Result<LocalRange, ReadProblem> {
        let failed = ReadProblem::failed;
        let reading = self.reading.get_mut(&piece.target).ok_or_else(|| failed("the read was given up"))?;
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

/// Merges ranges of a batch that are adjacent both in the lender's memory and in the slab, so that each run needs one
/// read. Returns each run with its offset in the slab. The ranges were checked one by one, and nothing lies between
/// neighbours.
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

/// The slab's bytes as an arrow buffer. Fails while the fabric may still write to the slab.
pub fn into_buffer(slab: Slab) -> Result<Buffer, String> {
    slab.into_buffer().map_err(|_| "the fabric reported a read as complete and still holds its memory".to_owned())
}

fn eight_bytes(slab: Slab) -> Result<u64, ReadProblem> {
    let buffer = into_buffer(slab).map_err(|held| ReadProblem::Failed(held.into()))?;
    let word = buffer.as_slice().first_chunk::<8>().copied();
    word.map(u64::from_le_bytes).ok_or_else(|| ReadProblem::failed("fewer than eight bytes"))
}

#[cfg(test)]
#[path = "reads_tests.rs"]
mod tests;
