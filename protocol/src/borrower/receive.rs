//! Messages of the lender, checked before use.

use std::sync::Arc;

use bytes::Bytes;

use super::announced::{check_order, check_region, is_word};
use super::batches::{Read, Wanted};
use super::stream::BorrowedStream;
use super::{Borrower, BorrowerEvent, BorrowerTask, Payload, ReadBatch};
use crate::codes::CancelReason;
use crate::credit::{BATCH_OVERHEAD, batch_cost};
use crate::error::StreamError;
use crate::ids::{LeaseId, RegionId, RemoteRange, StreamId};
use crate::inline;
use crate::layout::{self, BatchDescriptor};
use crate::link::truncate;
use crate::message::{Access, Extensions, Failure, Fencing, FromBorrower, FromLender, LentBatch, Region, SortKey};
use crate::misbehaviour::PeerMisbehaved;
use crate::time::Timestamp;
use crate::timers::Timer;

impl Borrower {
    pub(super) fn message(
        &mut self,
        now: Timestamp,
        message: FromLender,
        payload: Bytes,
    ) -> Result<(), PeerMisbehaved> {
        match message {
            FromLender::Region(region) => self.region(region),
            FromLender::RegionGone(region) => self.region_gone(region),
            FromLender::Schema { stream, order, extensions } => {
                if self.understands("schema", stream, &extensions)? {
                    self.schema(stream, order, payload)?;
                }
                Ok(())
            }
            FromLender::Inline { stream, seq, bytes, more } => {
                if let Some(open) = self.live(stream)?
                    && let Some(whole) = open.piece(seq, bytes, more, payload)?
                {
                    open.ready(seq, bytes, Payload::Inline(whole));
                    self.deliver(stream);
                }
                Ok(())
            }
            FromLender::Lent { stream, seq, batch } => self.lent(now, stream, seq, batch),
            FromLender::CreditWanted { stream, bytes } => self.credit_wanted(stream, bytes),
            FromLender::End { stream, batches, stats, extensions } => {
                extensions.check()?;
                let Some(open) = self.live(stream)? else { return self.remote_done(stream) };
                open.end(batches, stats)?;
                open.remote_done = true;
                if let Err(extension) = extensions.unknown() {
                    let error = StreamError::Unsupported { message: "end", extension };
                    self.fail(stream, error, CancelReason::Unsupported);
                } else {
                    self.deliver(stream);
                }
                Ok(())
            }
            // A failure is valid whatever extensions it has: the stream ends in any case.
            FromLender::Failed { stream, failure, extensions } => {
                extensions.check()?;
                let Some(open) = self.live(stream)? else { return self.remote_done(stream) };
                open.remote_done = true;
                let failure = Failure { message: truncate(failure.message), ..failure };
                self.fail(stream, StreamError::Remote(failure), CancelReason::Dropped);
                Ok(())
            }
        }
    }

    /// Whether a message has no unknown critical extension. If it has one, its stream ends.
    fn understands(
        &mut self,
        message: &'static str,
        stream: StreamId,
        extensions: &Extensions,
    ) -> Result<bool, PeerMisbehaved> {
        extensions.check()?;
        let Err(extension) = extensions.unknown() else { return Ok(true) };
        if self.live(stream)?.is_some() {
            self.fail(stream, StreamError::Unsupported { message, extension }, CancelReason::Unsupported);
        }
        Ok(false)
    }

    fn region(&mut self, region: Region) -> Result<(), PeerMisbehaved> {
        check_region(&region)?;
        let limit = self.config.max_regions;
        if self.regions.len() >= limit {
            let value = self.regions.len() as u64 + 1;
            return Err(PeerMisbehaved::Limit { what: "regions at once", value, limit: limit as u64 });
        }
        if self.regions.contains_key(&region.id) {
            return Err(PeerMisbehaved::RegionInUse(region.id));
        }
        self.regions.insert(region.id, region.clone());
        if self.is_up() {
            self.task(BorrowerTask::Import(region));
        }
        Ok(())
    }

    fn region_gone(&mut self, region: RegionId) -> Result<(), PeerMisbehaved> {
        if self.regions.remove(&region).is_none() {
            return Err(PeerMisbehaved::UnknownRegion(region));
        }
        if self.is_up() {
            self.task(BorrowerTask::UnimportRegion(region));
        }
        Ok(())
    }

    fn schema(&mut self, stream: StreamId, order: Vec<SortKey>, ipc: Bytes) -> Result<(), PeerMisbehaved> {
        let limits = self.config.inline;
        let Some(open) = self.live(stream)? else { return Ok(()) };
        if open.plan.is_some() {
            return Err(PeerMisbehaved::StreamOrder { stream, what: "a second schema" });
        }
        let plan = inline::decode_plan(&ipc, &limits)
            .map_err(|error| PeerMisbehaved::Schema { stream, reason: error.to_string() })?;
        check_order(stream, &order, plan.schema())?;
        open.plan = Some(plan.clone());
        self.event(BorrowerEvent::Schema { stream, plan, order });
        Ok(())
    }

    fn lent(&mut self, now: Timestamp, stream: StreamId, seq: u64, batch: LentBatch) -> Result<(), PeerMisbehaved> {
        let LentBatch { lease, word, descriptor, places } = batch;
        // Leases arrive in the order in which credit allowed them, not in the order of their numbers.
        if self.loans.has(lease) {
            return Err(PeerMisbehaved::LeaseReused(lease));
        }
        if self.live(stream)?.is_none() || !self.is_up() {
            return self.release_unread(stream, seq, lease);
        }
        if word.is_some() != (self.fencing == Some(Fencing::LeaseWord)) {
            return Err(PeerMisbehaved::Places { stream, what: "an unexpected lease word, or a missing one" });
        }
        if let Some(word) = word {
            if !is_word(word.at) || word.value == 0 {
                return Err(PeerMisbehaved::Places { stream, what: "a malformed lease word" });
            }
            self.check_range(word.at)?;
        }
        let limits = self.config.layout;
        let Some(open) = self.live(stream)? else { return Ok(()) };
        open.arrive(seq, descriptor.slab_bytes())?;
        let Some(plan) = &open.plan else { return Ok(()) };
        let descriptor = layout::check(plan, descriptor, &limits)
            .map_err(|error| PeerMisbehaved::Layout { stream, reason: error.to_string() })?;
        let access = open.access;
        if access.needs_complete_batches() && !descriptor.is_complete() {
            let reason = "a dictionary is that of an earlier batch, but each batch must be complete".to_owned();
            return Err(PeerMisbehaved::Layout { stream, reason });
        }
        let places = self.match_places(stream, &descriptor, places)?;

        let descriptor = Arc::new(descriptor);
        self.loans.take(lease, descriptor.slab_bytes());
        if access == Access::OnDemand {
            self.hold((stream, seq), lease, word, descriptor, places);
            return Ok(());
        }
        let read = self.next_read();
        let batch = ReadBatch {
            read,
            stream,
            layout: descriptor.layout().clone(),
            places,
            lease_word: word.map(|word| word.at),
        };
        let (wanted, task) = match access {
            Access::Map(_) => (Wanted::Mapping(descriptor), BorrowerTask::Map(batch)),
            Access::Read | Access::OnDemand => (Wanted::Batch(descriptor), BorrowerTask::Read(batch)),
        };
        self.reads.insert(read, Read { stream, seq, lease, word, wanted });
        self.timers.set(Timer::Read(read), now + self.config.read_timeout);
        self.task(task);
        Ok(())
    }

    /// Releases a batch that is not wanted any more, or can no longer be read.
    fn release_unread(&mut self, stream: StreamId, seq: u64, lease: LeaseId) -> Result<(), PeerMisbehaved> {
        // The batch's bytes were not counted, because its length was not looked at.
        self.loans.release(lease);
        self.loans.flush_now();
        if self.live(stream)?.is_some() {
            let cause = "it was lent after the data plane had failed".into();
            self.fail(stream, StreamError::Read { seq, cause }, CancelReason::ReadFailed);
        }
        Ok(())
    }

    fn match_places(
        &self,
        stream: StreamId,
        descriptor: &BatchDescriptor,
        places: Vec<RemoteRange>,
    ) -> Result<Vec<(usize, RemoteRange)>, PeerMisbehaved> {
        let filled = descriptor.buffers.iter().enumerate().filter(|(_, len)| **len > 0);
        let mut matched = Vec::with_capacity(places.len());
        let mut given = places.into_iter();
        for (index, len) in filled {
            match given.next() {
                Some(place) if place.len == *len => {
                    self.check_range(place)?;
                    matched.push((index, place));
                }
                _ => return Err(PeerMisbehaved::Places { stream, what: "places that do not match the buffers" }),
            }
        }
        if given.next().is_some() {
            return Err(PeerMisbehaved::Places { stream, what: "more places than buffers" });
        }
        Ok(matched)
    }

    pub(super) fn check_range(&self, range: RemoteRange) -> Result<(), PeerMisbehaved> {
        let region = self.regions.get(&range.region).ok_or(PeerMisbehaved::UnknownRegion(range.region))?;
        let within = range
            .address
            .checked_sub(region.base)
            .and_then(|offset| offset.checked_add(range.len))
            .is_some_and(|end| end <= region.len);
        if within {
            Ok(())
        } else {
            let RemoteRange { region, address, len } = range;
            Err(PeerMisbehaved::OutsideRegion { region, address, len })
        }
    }

    fn credit_wanted(&mut self, stream: StreamId, cost: u64) -> Result<(), PeerMisbehaved> {
        let limit = self.config.max_batch_bytes;
        let Some(open) = self.live(stream)? else { return Ok(()) };
        if cost > batch_cost(limit) {
            let error = StreamError::BatchTooLarge { bytes: cost - BATCH_OVERHEAD, limit };
            self.fail(stream, error, CancelReason::BatchTooLarge);
        } else if let Some(total) = open.wanted(cost) {
            self.send(FromBorrower::Credit { stream, total });
        }
        Ok(())
    }

    /// The stream, if the application still wants it and the lender may still send messages for it.
    fn live(&mut self, stream: StreamId) -> Result<Option<&mut BorrowedStream>, PeerMisbehaved> {
        match self.streams.get_mut(&stream) {
            Some(open) if open.remote_done => {
                Err(PeerMisbehaved::StreamOrder { stream, what: "a message after the end" })
            }
            Some(open) if open.ended => Ok(None),
            Some(open) => Ok(Some(open)),
            None => Err(PeerMisbehaved::UnknownStream(stream)),
        }
    }

    fn remote_done(&mut self, stream: StreamId) -> Result<(), PeerMisbehaved> {
        self.streams.remove(&stream);
        Ok(())
    }
}
