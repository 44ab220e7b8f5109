//! Batches on demand: on loan and announced to the application, which requests the parts to read.
//!
//! Each part is read, fenced and timed as a whole batch is: its bytes first, the lease word last. The bytes are handed
//! over only if the lease still stood. The lease is released once the application is done with the batch, or once the
//! batch is lost with its stream, its connection or the data plane; but never before the last read of the batch has
//! completed. A lost batch stays in the table, with the reason, until the application has given it up: every later
//! request fails with that reason.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::batches::{BatchKey, OnDemandBatch, Read, Wanted};
use super::{Borrower, BorrowerEvent, BorrowerTask, Payload, ReadBatch};
use crate::codes::CancelReason;
use crate::credit::batch_cost;
use crate::error::{ApiMisuse, StreamError};
use crate::ids::{LeaseId, PartId, RemoteRange, StreamId};
use crate::layout::{self, CheckedDescriptor, Piece};
use crate::message::{FromBorrower, LeaseWord};
use crate::time::Timestamp;
use crate::timers::Timer;

impl Borrower {
    /// Number of batches on demand that the application has not given up.
    #[must_use]
    pub fn on_demand_batches(&self) -> usize {
        self.on_demand.values().filter(|batch| !batch.given_up).count()
    }

    /// Announces a batch on loan to the application. Nothing is read.
    pub(super) fn hold(
        &mut self,
        (stream, seq): BatchKey,
        lease: LeaseId,
        word: Option<LeaseWord>,
        descriptor: Arc<CheckedDescriptor>,
        places: Vec<(usize, RemoteRange)>,
    ) {
        let bytes = descriptor.slab_bytes();
        let batch = OnDemandBatch {
            lease,
            word,
            descriptor: Arc::clone(&descriptor),
            places,
            parts: BTreeMap::new(),
            reads: 0,
            lost: None,
            given_up: false,
            returned: false,
        };
        self.on_demand.insert((stream, seq), batch);
        if let Some(open) = self.streams.get_mut(&stream) {
            open.ready(seq, bytes, Payload::OnDemand { descriptor });
        }
        // All batches of such a stream are on demand or inline, and so each is delivered as it arrives.
        self.deliver(stream);
    }

    pub(super) fn read_part(
        &mut self,
        now: Timestamp,
        (stream, seq): BatchKey,
        part: PartId,
        pieces: &[Piece],
    ) -> Result<(), ApiMisuse> {
        let unknown = ApiMisuse::UnknownBatch { stream, seq };
        let limit = self.config.layout.max_bytes;
        let batch = self.on_demand.get_mut(&(stream, seq)).filter(|batch| !batch.given_up).ok_or(unknown)?;
        if batch.parts.contains_key(&part) {
            return Err(ApiMisuse::PartReused(part));
        }
        if let Some(error) = batch.lost.clone() {
            self.event(BorrowerEvent::PartFailed { stream, seq, part, error });
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
            // An empty buffer has no place and no bytes to read.
            if piece.len > 0
                && let Ok(at) = batch.places.binary_search_by_key(&piece.buffer, |(buffer, _)| *buffer)
            {
                let whole = batch.places[at].1;
                let place = RemoteRange { address: whole.address + piece.offset, len: piece.len, ..whole };
                places.push((index, place));
            }
        }
        let (lease, word) = (batch.lease, batch.word);
        // Between two parts the lender may have revoked the lease and then retired the region: that is not
        // misbehaviour.
        if places.iter().any(|(_, place)| self.check_range(*place).is_err()) {
            self.event(BorrowerEvent::PartFailed { stream, seq, part, error: StreamError::LeaseLost { seq } });
            self.lose((stream, seq), StreamError::LeaseLost { seq }, CancelReason::LeaseLost);
            return Ok(());
        }
        let read = self.next_read();
        if let Some(batch) = self.on_demand.get_mut(&(stream, seq)) {
            batch.parts.insert(part, read);
            batch.reads += 1;
        }
        self.reads.insert(read, Read { stream, seq, lease, word, wanted: Wanted::Part(part) });
        self.timers.set(Timer::Read(read), now + self.config.read_timeout);
        let lease_word = word.map(|word| word.at);
        self.task(BorrowerTask::Read(ReadBatch { read, stream, layout, places, lease_word }));
        Ok(())
    }

    /// The application is done with a batch: cancels parts that are due.
    pub(super) fn give_up(&mut self, key: BatchKey) -> Result<(), ApiMisuse> {
        let (stream, seq) = key;
        if self.unmapped(key) {
            return Ok(());
        }
        let unknown = ApiMisuse::UnknownBatch { stream, seq };
        let batch = self.on_demand.get_mut(&key).filter(|batch| !batch.given_up).ok_or(unknown)?;
        batch.given_up = true;
        let cost = batch_cost(batch.descriptor.slab_bytes());
        self.fail_parts(key, &StreamError::Cancelled);
        self.settle(key);
        self.consumed(stream, cost)?;
        if !self.streams.contains_key(&stream) && !self.holds_any(stream) {
            self.clear_deadline(stream);
        }
        Ok(())
    }

    /// A batch cannot be read any more: its parts fail, and its stream, which now lacks a batch, ends.
    pub(super) fn lose(&mut self, key: BatchKey, error: StreamError, reason: CancelReason) {
        self.lose_batch(key, &error);
        self.fail(key.0, error, reason);
    }

    /// Loses the held batches of a stream that has ended in an error.
    pub(super) fn lose_batches(&mut self, stream: StreamId, error: &StreamError) {
        for key in self.held_of(stream) {
            self.lose_batch(key, error);
        }
    }

    /// Loses all batches, because the data plane has failed.
    pub(super) fn lose_all(&mut self, reason: &str) {
        let held: Vec<_> =
            self.on_demand.iter().filter(|(_, batch)| batch.lost.is_none()).map(|(key, _)| *key).collect();
        for key in held {
            let error = StreamError::Read { seq: key.1, cause: reason.into() };
            self.lose(key, error, CancelReason::ReadFailed);
        }
    }

    fn lose_batch(&mut self, key: BatchKey, error: &StreamError) {
        let Some(batch) = self.on_demand.get_mut(&key) else { return };
        if batch.given_up || batch.lost.is_some() {
            return;
        }
        batch.lost = Some(error.clone());
        self.fail_parts(key, error);
        self.settle(key);
    }

    fn fail_parts(&mut self, key: BatchKey, error: &StreamError) {
        let Some(batch) = self.on_demand.get_mut(&key) else { return };
        let (stream, seq) = key;
        for part in std::mem::take(&mut batch.parts).into_keys() {
            self.event(BorrowerEvent::PartFailed { stream, seq, part, error: error.clone() });
        }
    }

    /// Whether the application still waits for a part.
    pub(super) fn is_wanted_part(&self, key: BatchKey, part: PartId) -> bool {
        self.on_demand.get(&key).is_some_and(|batch| batch.parts.contains_key(&part))
    }

    /// Removes a part that has arrived or has failed alone. Returns whether the application still waited for it.
    pub(super) fn answer(&mut self, key: BatchKey, part: PartId) -> bool {
        self.on_demand.get_mut(&key).is_some_and(|batch| batch.parts.remove(&part).is_some())
    }

    /// A read of a batch on demand has completed.
    pub(super) fn read_completed(&mut self, key: BatchKey) {
        if let Some(batch) = self.on_demand.get_mut(&key) {
            batch.reads = batch.reads.saturating_sub(1);
        }
        self.settle(key);
    }

    /// Releases the lease once no read under it is outstanding or will follow. Forgets the batch once the application
    /// has given it up, too.
    fn settle(&mut self, key: BatchKey) {
        let Some(batch) = self.on_demand.get_mut(&key) else { return };
        let is_done = batch.given_up || batch.lost.is_some();
        if !is_done || batch.reads > 0 {
            return;
        }
        let (lease, given_up) = (batch.lease, batch.given_up);
        if !std::mem::replace(&mut batch.returned, true) {
            self.loans.release(lease);
        }
        if given_up {
            self.on_demand.remove(&key);
        }
    }

    fn held_of(&self, stream: StreamId) -> Vec<BatchKey> {
        let of_stream = self.on_demand.range((stream, 0)..=(stream, u64::MAX));
        of_stream.filter(|(_, batch)| batch.lost.is_none() && !batch.given_up).map(|(key, _)| *key).collect()
    }

    /// Whether a batch of a stream can still be read on demand.
    pub(super) fn holds_any(&self, stream: StreamId) -> bool {
        !self.held_of(stream).is_empty()
    }

    /// The application is done with batches of this cost. Grants the credit again, once it is worth a message.
    pub(super) fn consumed(&mut self, stream: StreamId, cost: u64) -> Result<(), ApiMisuse> {
        let Some(open) = self.streams.get_mut(&stream) else { return Ok(()) };
        if !open.consumed(cost) {
            return Err(ApiMisuse::OverConsumed(stream));
        }
        if !open.remote_done
            && !open.ended
            && let Some(total) = open.grant()
        {
            self.send(FromBorrower::Credit { stream, total });
        }
        Ok(())
    }
}
