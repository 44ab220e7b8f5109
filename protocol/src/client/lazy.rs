//! Lazy batches: on loan and announced to the application, but read only as far as it asks.
//!
//! Each ask is read, fenced and timed as a whole batch is: its bytes first, the lease word last, and only if the lease still
//! stood are the bytes handed over. The lease is given back once the application is done with the batch, or once the batch is
//! lost with its stream, its connection or the data plane; in any case not before the last read of it has completed. What was
//! lost stays known, with the reason, until the application has given it up: whoever asks then is told.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::receive::{Read, ReadPhase, Wanted};
use super::{ClientConnection, ClientEvent, ClientOutput, Payload, ReadBatch};
use crate::codes::CancelReason;
use crate::credit::batch_cost;
use crate::error::{ApiMisuse, StreamError};
use crate::ids::{AskId, LeaseId, ReadId, RemoteRange, StreamId};
use crate::layout::{self, CheckedDescriptor, Piece};
use crate::message::{LeaseWord, ToServer};
#[cfg(feature = "planted-bugs")]
use crate::planted::{Bug, is_planted};
use crate::time::Timestamp;
use crate::timers::Timer;

/// A batch by its stream and its position there.
pub(super) type BatchKey = (StreamId, u64);

#[derive(Debug)]
pub(super) struct LazyBatch {
    lease: LeaseId,
    word: Option<LeaseWord>,
    descriptor: Arc<CheckedDescriptor>,
    /// By buffer, those that are not empty, in order.
    places: Vec<(usize, RemoteRange)>,
    /// Not answered yet.
    asks: BTreeMap<AskId, ReadId>,
    /// Reads that have not completed, whether anyone still waits for them or not.
    reads: usize,
    /// Why it cannot be read any more.
    lost: Option<StreamError>,
    /// The application is done with it.
    given_up: bool,
    /// The lease has been given back.
    returned: bool,
}

impl ClientConnection {
    /// Lazy batches that the application has not given up.
    #[must_use]
    pub fn lazy_batches(&self) -> usize {
        self.lazy.values().filter(|batch| !batch.given_up).count()
    }

    /// A batch of a lazy stream is on loan: the application hears of it, and nothing is read.
    pub(super) fn hold(
        &mut self,
        (stream, seq): BatchKey,
        lease: LeaseId,
        word: Option<LeaseWord>,
        descriptor: Arc<CheckedDescriptor>,
        places: Vec<(usize, RemoteRange)>,
    ) {
        let bytes = descriptor.slab_bytes();
        let batch = LazyBatch {
            lease,
            word,
            descriptor: Arc::clone(&descriptor),
            places,
            asks: BTreeMap::new(),
            reads: 0,
            lost: None,
            given_up: false,
            returned: false,
        };
        self.lazy.insert((stream, seq), batch);
        #[cfg(feature = "planted-bugs")]
        if is_planted(Bug::LazyLeaseNotHeld) {
            self.loans.give_back_early(lease);
        }
        if let Some(open) = self.streams.get_mut(&stream) {
            open.ready(seq, bytes, Payload::Lazy { descriptor });
        }
        // A stream's batches are all lazy or inline, and so each is delivered as it arrives.
        self.deliver(stream);
    }

    pub(super) fn ask(
        &mut self,
        now: Timestamp,
        (stream, seq): BatchKey,
        ask: AskId,
        pieces: &[Piece],
    ) -> Result<(), ApiMisuse> {
        let unknown = ApiMisuse::UnknownBatch { stream, seq };
        let limit = self.config.layout.max_bytes;
        let batch = self.lazy.get_mut(&(stream, seq)).filter(|batch| !batch.given_up).ok_or(unknown)?;
        if batch.asks.contains_key(&ask) {
            return Err(ApiMisuse::AskReused(ask));
        }
        if let Some(error) = batch.lost.clone() {
            self.event(ClientEvent::AskFailed { stream, seq, ask, error });
            return Ok(());
        }
        let outside = || ApiMisuse::OutsideBatch { stream, seq };
        let lens: Vec<u64> = pieces.iter().map(|piece| piece.len).collect();
        let layout = layout::slab(&lens, limit).map_err(|_| outside())?;
        let mut places = Vec::with_capacity(pieces.len());
        for (index, piece) in pieces.iter().enumerate() {
            let len = batch.descriptor.buffers.get(piece.buffer).ok_or_else(outside)?;
            if piece.offset.checked_add(piece.len).is_none_or(|end| end > *len) {
                return Err(outside());
            }
            // An empty buffer has no place, and no bytes to read.
            if piece.len > 0
                && let Ok(at) = batch.places.binary_search_by_key(&piece.buffer, |(buffer, _)| *buffer)
            {
                let whole = batch.places[at].1;
                let place = RemoteRange { address: whole.address + piece.offset, len: piece.len, ..whole };
                places.push((index, place));
            }
        }
        let (lease, word) = (batch.lease, batch.word);
        // Between two asks the server may have taken the lease back, and retired the region with it: that is no misbehaviour.
        if places.iter().any(|(_, place)| self.check_range(*place).is_err()) {
            self.event(ClientEvent::AskFailed { stream, seq, ask, error: StreamError::LeaseLost { seq } });
            self.lose((stream, seq), StreamError::LeaseLost { seq }, CancelReason::LeaseLost);
            return Ok(());
        }
        let read = self.next_read();
        if let Some(batch) = self.lazy.get_mut(&(stream, seq)) {
            batch.asks.insert(ask, read);
            batch.reads += 1;
        }
        self.reads.insert(read, Read { stream, seq, phase: ReadPhase::Data, lease, word, wanted: Wanted::Ask(ask) });
        self.timers.set(Timer::Read(read), now + self.config.read_timeout);
        self.out.push_back(ClientOutput::Read(ReadBatch { read, stream, layout, places }));
        Ok(())
    }

    /// The application is done with a batch: what it asked for and has not got is cancelled.
    pub(super) fn give_up(&mut self, key: BatchKey) -> Result<(), ApiMisuse> {
        let (stream, seq) = key;
        if self.unmapped(key) {
            return Ok(());
        }
        let unknown = ApiMisuse::UnknownBatch { stream, seq };
        let batch = self.lazy.get_mut(&key).filter(|batch| !batch.given_up).ok_or(unknown)?;
        batch.given_up = true;
        let cost = batch_cost(batch.descriptor.slab_bytes());
        self.fail_asks(key, &StreamError::Cancelled);
        self.settle(key);
        self.consumed(stream, cost)?;
        if !self.streams.contains_key(&stream) && !self.holds_any(stream) {
            self.clear_deadline(stream);
        }
        Ok(())
    }

    /// Bytes of a batch cannot be had any more: asks for it fail, and the stream, of which something is missing now, ends.
    pub(super) fn lose(&mut self, key: BatchKey, error: StreamError, reason: CancelReason) {
        self.lose_batch(key, &error);
        self.fail(key.0, error, reason);
    }

    /// A stream ended in an error, and with it whatever of it is held.
    pub(super) fn lose_batches(&mut self, stream: StreamId, error: &StreamError) {
        for key in self.held_of(stream) {
            self.lose_batch(key, error);
        }
    }

    /// The data plane is gone.
    pub(super) fn lose_all(&mut self, reason: &str) {
        let held: Vec<_> = self.lazy.iter().filter(|(_, batch)| batch.lost.is_none()).map(|(key, _)| *key).collect();
        for key in held {
            let error = StreamError::Read { seq: key.1, reason: reason.to_owned() };
            self.lose(key, error, CancelReason::ReadFailed);
        }
    }

    fn lose_batch(&mut self, key: BatchKey, error: &StreamError) {
        let Some(batch) = self.lazy.get_mut(&key) else { return };
        if batch.given_up || batch.lost.is_some() {
            return;
        }
        batch.lost = Some(error.clone());
        self.fail_asks(key, error);
        self.settle(key);
    }

    fn fail_asks(&mut self, key: BatchKey, error: &StreamError) {
        let Some(batch) = self.lazy.get_mut(&key) else { return };
        let (stream, seq) = key;
        for ask in std::mem::take(&mut batch.asks).into_keys() {
            self.event(ClientEvent::AskFailed { stream, seq, ask, error: error.clone() });
        }
    }

    /// Whether somebody waits for what an ask reads.
    pub(super) fn is_asked(&self, key: BatchKey, ask: AskId) -> bool {
        self.lazy.get(&key).is_some_and(|batch| batch.asks.contains_key(&ask))
    }

    /// An ask's bytes are there and the lease stood, or it fails alone: whether anyone waited for it.
    pub(super) fn answer(&mut self, key: BatchKey, ask: AskId) -> bool {
        self.lazy.get_mut(&key).is_some_and(|batch| batch.asks.remove(&ask).is_some())
    }

    /// A read of a lazy batch has completed.
    pub(super) fn read_less(&mut self, key: BatchKey) {
        if let Some(batch) = self.lazy.get_mut(&key) {
            batch.reads = batch.reads.saturating_sub(1);
        }
        self.settle(key);
    }

    /// Gives the lease back once nobody reads under it nor will, and forgets the batch once nobody asks for it either.
    fn settle(&mut self, key: BatchKey) {
        let Some(batch) = self.lazy.get_mut(&key) else { return };
        let is_done = batch.given_up || batch.lost.is_some();
        if !is_done || batch.reads > 0 {
            return;
        }
        let (lease, given_up) = (batch.lease, batch.given_up);
        if !std::mem::replace(&mut batch.returned, true) {
            self.loans.give_back(lease);
            #[cfg(feature = "planted-bugs")]
            if is_planted(Bug::LazyLeaseNotHeld) {
                self.loans.keep_the_last();
            }
        }
        if given_up {
            self.lazy.remove(&key);
        }
    }

    fn held_of(&self, stream: StreamId) -> Vec<BatchKey> {
        let of_stream = self.lazy.range((stream, 0)..=(stream, u64::MAX));
        of_stream.filter(|(_, batch)| batch.lost.is_none() && !batch.given_up).map(|(key, _)| *key).collect()
    }

    /// Whether anything of a stream can still be asked for.
    pub(super) fn holds_any(&self, stream: StreamId) -> bool {
        !self.held_of(stream).is_empty()
    }

    /// The application is done with what cost so much: credit for more, once it is worth a message.
    pub(super) fn consumed(&mut self, stream: StreamId, cost: u64) -> Result<(), ApiMisuse> {
        let Some(open) = self.streams.get_mut(&stream) else { return Ok(()) };
        if !open.consumed(cost) {
            return Err(ApiMisuse::OverConsumed(stream));
        }
        if !open.remote_done
            && !open.over
            && let Some(total) = open.grant()
        {
            self.transmit(&ToServer::Credit { stream, total });
        }
        Ok(())
    }
}
