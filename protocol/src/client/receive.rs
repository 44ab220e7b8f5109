//! The receiving half of a client's connection: what the server says, and batches on their way to the application.

use std::sync::Arc;

use arrow_schema::Schema;
use bytes::Bytes;

use super::stream::Taking;
use super::{
    ClientConnection, ClientEvent, ClientOutput, DataPlane, Payload, ReadBatch, ReadProblem, State, StreamId, offered,
};
use crate::codec::{MAX_ADDRESS, MAX_KEY};
use crate::codes::{CancelReason, CloseCode};
use crate::credit::{BATCH_OVERHEAD, batch_cost};
use crate::error::{ApiMisuse, ConnectionError, StreamError};
use crate::ids::{AskId, LeaseId, ReadId, RegionId, RemoteRange};
use crate::inline;
use crate::layout::{self, BatchDescriptor, CheckedDescriptor};
use crate::link::{Incoming, clip, no_payload};
use crate::message::{
    FabricChoice, Fencing, LeaseWord, LentBatch, MAX_SORT_KEYS, Region, ServerHello, SortKey, ToClient, ToServer,
};
use crate::misbehaviour::PeerMisbehaved;
#[cfg(feature = "planted-bugs")]
use crate::planted::{Bug, is_planted};
use crate::time::Timestamp;
use crate::timers::Timer;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ReadPhase {
    Data,
    Word,
}

/// What a read is for.
#[derive(Debug)]
pub(super) enum Wanted {
    /// All of a batch of this shape.
    Batch(Arc<CheckedDescriptor>),
    /// A part of a lazy batch.
    Ask(AskId),
    /// Not to be read, but mapped: all of a batch of this shape.
    Mapping(Arc<CheckedDescriptor>),
}

/// A batch, or a part of one, that is being read.
#[derive(Debug)]
pub(super) struct Read {
    pub(super) stream: StreamId,
    pub(super) seq: u64,
    pub(super) phase: ReadPhase,
    pub(super) lease: LeaseId,
    pub(super) word: Option<LeaseWord>,
    pub(super) wanted: Wanted,
}

impl ClientConnection {
    pub(super) fn received(&mut self, now: Timestamp, bytes: &[u8]) -> Result<(), ConnectionError> {
        let established = matches!(self.state, State::Connecting | State::Open);
        self.link.push(now, bytes, established, &mut self.timers);
        while !self.state.is_ending() {
            match self.link.next::<ToClient>()? {
                Incoming::Nothing => break,
                Incoming::Message(message, payload) => self.message(now, message, payload)?,
            }
        }
        Ok(())
    }

    fn message(&mut self, now: Timestamp, message: ToClient, payload: Bytes) -> Result<(), ConnectionError> {
        if !matches!(message, ToClient::Schema { .. } | ToClient::Inline { .. }) {
            no_payload(&payload)?;
        }
        let greeted = self.state != State::AwaitingWelcome;
        match message {
            ToClient::Welcome(hello) if !greeted => self.welcome(now, hello)?,
            ToClient::Goodbye { code: CloseCode::ShuttingDown, .. } if greeted => {
                if !std::mem::replace(&mut self.draining_said, true) {
                    self.event(ClientEvent::Draining);
                }
            }
            ToClient::Goodbye { code, message } => {
                return Err(ConnectionError::Goodbye { code, message: clip(message) });
            }
            other if !greeted => return Err(self.unexpected(name_of(&other)).into()),
            ToClient::Region(region) => self.region(region)?,
            ToClient::RegionGone(region) => self.region_gone(region)?,
            ToClient::Schema { stream, order } => self.schema(stream, order, payload)?,
            ToClient::Inline { stream, seq, bytes, more } => {
                if let Some(open) = self.live(stream)?
                    && let Some(whole) = open.piece(seq, bytes, more, payload)?
                {
                    open.ready(seq, bytes, Payload::Inline(whole));
                    self.deliver(stream);
                }
            }
            ToClient::Lent { stream, seq, batch } => self.lent(now, stream, seq, batch)?,
            ToClient::CreditWanted { stream, bytes } => self.credit_wanted(stream, bytes)?,
            ToClient::End { stream, batches, stats } => {
                if let Some(open) = self.live(stream)? {
                    open.end(batches, stats)?;
                    open.remote_done = true;
                    self.deliver(stream);
                } else {
                    self.remote_done(stream);
                }
            }
            ToClient::Failed { stream, code, message } => {
                if let Some(open) = self.live(stream)? {
                    open.remote_done = true;
                    let error = StreamError::Remote { code, message: clip(message) };
                    self.fail(stream, error, CancelReason::Dropped);
                } else {
                    self.remote_done(stream);
                }
            }
            ToClient::Ping(nonce) => self.transmit(&ToServer::Pong(nonce)),
            ToClient::Pong(nonce) => {
                if self.pings_asked.remove(&nonce) {
                    self.event(ClientEvent::Pong);
                }
            }
            other @ ToClient::Welcome(_) => return Err(self.unexpected(name_of(&other)).into()),
        }
        Ok(())
    }

    fn welcome(&mut self, now: Timestamp, hello: ServerHello) -> Result<(), PeerMisbehaved> {
        self.link.established(now, &mut self.timers);
        let version = self.link.version().unwrap_or_default();
        self.limits = Some(hello.limits.clone());
        self.event(ClientEvent::Welcome { server: clip(hello.name), version, limits: hello.limits });
        match hello.fabric {
            Ok(choice) => {
                check_choice(&choice)?;
                if !offered(&self.config, &choice.kind) {
                    return Err(PeerMisbehaved::FabricNotOffered(clip(choice.kind.to_string())));
                }
                self.fencing = Some(choice.fencing);
                self.regions.insert(choice.words.id, choice.words.clone());
                self.words = Some(choice.words.id);
                self.check_range(choice.probe_at)?;
                self.state = State::Connecting;
                self.timers.set(Timer::Handshake, now + self.link.timeouts().handshake);
                self.out.push_back(ClientOutput::ConnectFabric(choice));
            }
            Err(reason) => {
                self.state = State::Open;
                self.event(ClientEvent::FabricDown { reason: clip(reason) });
                self.close_fabric();
            }
        }
        Ok(())
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
        if self.data == DataPlane::Up {
            self.out.push_back(ClientOutput::ImportRegion(region));
        }
        Ok(())
    }

    fn region_gone(&mut self, region: RegionId) -> Result<(), PeerMisbehaved> {
        if self.regions.remove(&region).is_none() {
            return Err(PeerMisbehaved::UnknownRegion(region));
        }
        if self.data == DataPlane::Up {
            self.out.push_back(ClientOutput::ForgetRegion(region));
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
        let schema = Arc::clone(plan.schema());
        check_order(stream, &order, &schema)?;
        open.plan = Some(plan);
        self.event(ClientEvent::Schema { stream, schema, ipc, order });
        Ok(())
    }

    fn lent(&mut self, now: Timestamp, stream: StreamId, seq: u64, batch: LentBatch) -> Result<(), PeerMisbehaved> {
        let LentBatch { lease, word, descriptor, places } = batch;
        // Leases come in the order in which credit let them go, not in that of their numbers.
        if self.loans.has(lease) {
            return Err(PeerMisbehaved::LeaseReused(lease));
        }
        if self.live(stream)?.is_none() || self.data != DataPlane::Up {
            return self.give_back(stream, seq, lease);
        }
        if word.is_some() != (self.fencing == Some(Fencing::LeaseWord)) {
            return Err(PeerMisbehaved::Places {
                stream,
                what: "a lease word where none belongs, or none where one does",
            });
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
        let taking = open.taking;
        if taking != Taking::Read && !descriptor.is_complete() {
            let reason = "a dictionary is that of an earlier batch, where each batch is to be complete".to_owned();
            return Err(PeerMisbehaved::Layout { stream, reason });
        }
        let places = self.match_places(stream, &descriptor, places)?;

        let descriptor = Arc::new(descriptor);
        self.loans.take(lease, descriptor.slab_bytes());
        if taking == Taking::Lazy {
            self.hold((stream, seq), lease, word, descriptor, places);
            return Ok(());
        }
        let read = self.next_read();
        #[cfg(feature = "planted-bugs")]
        if is_planted(Bug::LeaseReleasedEarly) {
            self.loans.give_back_early(lease);
        }
        let batch = ReadBatch { read, stream, layout: descriptor.layout().clone(), places };
        let (wanted, output) = match taking {
            Taking::Map => (Wanted::Mapping(descriptor), ClientOutput::Map(batch)),
            Taking::Read | Taking::Lazy => (Wanted::Batch(descriptor), ClientOutput::Read(batch)),
        };
        self.reads.insert(read, Read { stream, seq, phase: ReadPhase::Data, lease, word, wanted });
        self.timers.set(Timer::Read(read), now + self.config.read_timeout);
        self.out.push_back(output);
        Ok(())
    }

    pub(super) fn next_read(&mut self) -> ReadId {
        self.last_read += 1;
        ReadId(self.last_read)
    }

    /// A batch that nobody wants any more, or that can no longer be read.
    fn give_back(&mut self, stream: StreamId, seq: u64, lease: LeaseId) -> Result<(), PeerMisbehaved> {
        // How many bytes it has was not looked at.
        self.loans.give_back(lease);
        self.loans.hurry();
        if self.live(stream)?.is_some() {
            let reason = "it was lent after the data plane had gone down".to_owned();
            self.fail(stream, StreamError::Read { seq, reason }, CancelReason::ReadFailed);
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
        #[cfg(feature = "planted-bugs")]
        if is_planted(Bug::PlacesNotChecked) {
            return Ok(());
        }
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
            self.transmit(&ToServer::Credit { stream, total });
        }
        Ok(())
    }

    pub(super) fn read_done(&mut self, read: ReadId, result: Result<(), ReadProblem>) -> Result<(), ApiMisuse> {
        let Some(pending) = self.reads.get(&read).filter(|read| read.is_waiting_for(ReadPhase::Data)) else {
            return Err(ApiMisuse::UnknownRead(read));
        };
        let (stream, seq, word) = (pending.stream, pending.seq, pending.word);
        let wanted = self.is_wanted(pending);
        match (result, word) {
            // The lease is proven by the word: it is read only now that the bytes are there.
            (Ok(()), Some(word)) if wanted && !self.state.is_ending() && self.data == DataPlane::Up => {
                if let Some(pending) = self.reads.get_mut(&read) {
                    pending.phase = ReadPhase::Word;
                }
                self.out.push_back(ClientOutput::ReadWord { read, at: word.at });
            }
            (Ok(()), None) if wanted => self.arrived(read),
            (Ok(()), _) => self.lost(read, "the data plane went down before the lease was proven".into()),
            (Err(ReadProblem::NoMemory(reason)), _) => {
                let error = StreamError::OutOfMemory { seq, reason };
                match self.forget_read(read, true).map(|read| read.wanted) {
                    // The batch is still there: less of it may fit.
                    Some(Wanted::Ask(ask)) => {
                        if self.answer((stream, seq), ask) {
                            self.event(ClientEvent::AskFailed { stream, seq, ask, error });
                        }
                    }
                    _ => self.fail(stream, error, CancelReason::OutOfMemory),
                }
            }
            (Err(ReadProblem::Failed(reason)), _) => self.lost(read, reason),
        }
        Ok(())
    }

    fn is_wanted(&self, read: &Read) -> bool {
        match read.wanted {
            Wanted::Batch(_) | Wanted::Mapping(_) => self.streams.get(&read.stream).is_some_and(|open| !open.over),
            Wanted::Ask(ask) => self.is_asked((read.stream, read.seq), ask),
        }
    }

    pub(super) fn word_read(&mut self, read: ReadId, result: Result<u64, ReadProblem>) -> Result<(), ApiMisuse> {
        let Some(pending) = self.reads.get(&read).filter(|read| read.is_waiting_for(ReadPhase::Word)) else {
            return Err(ApiMisuse::UnknownRead(read));
        };
        #[cfg(feature = "planted-bugs")]
        if is_planted(Bug::WordNotChecked) && result.is_ok() {
            self.arrived(read);
            return Ok(());
        }
        match result {
            Ok(found) if pending.word.is_some_and(|word| word.value == found) => self.arrived(read),
            Ok(_) => {
                let (stream, seq, wanted) = (pending.stream, pending.seq, self.is_wanted(pending));
                self.forget_read(read, true);
                if !wanted {
                    return Ok(());
                }
                self.lose((stream, seq), StreamError::LeaseLost { seq }, CancelReason::LeaseLost);
            }
            Err(ReadProblem::Failed(reason) | ReadProblem::NoMemory(reason)) => self.lost(read, reason),
        }
        Ok(())
    }

    /// All bytes are there and the lease stood: give the lease back, and the batch to the application in its turn; or a part
    /// of a lazy one to whoever asked.
    fn arrived(&mut self, read: ReadId) {
        let Some(Read { stream, seq, lease, wanted, .. }) = self.forget_read(read, false) else { return };
        let descriptor = match wanted {
            Wanted::Batch(descriptor) => descriptor,
            Wanted::Mapping(descriptor) => return self.mapped(read, (stream, seq), lease, descriptor),
            Wanted::Ask(ask) if self.answer((stream, seq), ask) => {
                return self.event(ClientEvent::Found { stream, seq, ask, read });
            }
            Wanted::Ask(_) => return self.out.push_back(ClientOutput::Discard { read }),
        };
        match self.streams.get_mut(&stream).filter(|open| !open.over) {
            Some(open) => {
                let bytes = descriptor.slab_bytes();
                open.ready(seq, bytes, Payload::Lent { read, descriptor });
                self.deliver(stream);
            }
            None => self.out.push_back(ClientOutput::Discard { read }),
        }
    }

    pub(super) fn lost(&mut self, read: ReadId, reason: String) {
        let wanted = self.reads.get(&read).is_some_and(|read| self.is_wanted(read));
        if let Some(Read { stream, seq, .. }) = self.forget_read(read, true)
            && wanted
        {
            self.lose((stream, seq), StreamError::Read { seq, reason }, CancelReason::ReadFailed);
        }
    }

    fn forget_read(&mut self, read: ReadId, discard: bool) -> Option<Read> {
        let ended = self.reads.remove(&read)?;
        self.timers.clear(Timer::Read(read));
        if discard {
            self.out.push_back(ClientOutput::Discard { read });
        }
        if let Wanted::Ask(_) = ended.wanted {
            self.read_less((ended.stream, ended.seq));
            return Some(ended);
        }
        if matches!(ended.wanted, Wanted::Mapping(_)) && !discard {
            return Some(ended);
        }
        self.loans.give_back(ended.lease);
        #[cfg(feature = "planted-bugs")]
        if is_planted(Bug::LeaseReleasedEarly) {
            self.loans.keep_the_last();
        }
        Some(ended)
    }

    pub(super) fn deliver(&mut self, stream: StreamId) {
        let Some(open) = self.streams.get_mut(&stream) else { return };
        while let Some((seq, cost, payload)) = open.deliver() {
            self.out.push_back(ClientOutput::Event(ClientEvent::Batch { stream, seq, cost, payload }));
        }
        if let Some(stats) = open.ended() {
            self.streams.remove(&stream);
            // What of it is held is due by the deadline too.
            if !self.holds_any(stream) {
                self.clear_deadline(stream);
            }
            self.event(ClientEvent::End { stream, stats });
        }
    }

    /// The stream, if the application still wants it and the server may still speak of it.
    fn live(&mut self, stream: StreamId) -> Result<Option<&mut super::stream::IncomingStream>, PeerMisbehaved> {
        match self.streams.get_mut(&stream) {
            Some(open) if open.remote_done => {
                Err(PeerMisbehaved::StreamOrder { stream, what: "a message after the end" })
            }
            Some(open) if open.over => Ok(None),
            Some(open) => Ok(Some(open)),
            None => Err(PeerMisbehaved::UnknownStream(stream)),
        }
    }

    fn remote_done(&mut self, stream: StreamId) {
        self.streams.remove(&stream);
    }

    fn unexpected(&self, got: &'static str) -> PeerMisbehaved {
        PeerMisbehaved::Unexpected { got, state: self.state.name() }
    }
}

fn check_choice(choice: &FabricChoice) -> Result<(), PeerMisbehaved> {
    let (value, limit) = (choice.address.len() as u64, MAX_ADDRESS as u64);
    if value > limit {
        return Err(PeerMisbehaved::Limit { what: "fabric address bytes", value, limit });
    }
    if !is_word(choice.probe_at) {
        let RemoteRange { region, address, len } = choice.probe_at;
        return Err(PeerMisbehaved::OutsideRegion { region, address, len });
    }
    check_region(&choice.words)
}

/// Whoever merges partitions by these keys relies on their columns being there.
fn check_order(stream: StreamId, order: &[SortKey], schema: &Schema) -> Result<(), PeerMisbehaved> {
    let (value, limit) = (order.len() as u64, MAX_SORT_KEYS as u64);
    if value > limit {
        return Err(PeerMisbehaved::Limit { what: "sort keys", value, limit });
    }
    match order.iter().find(|key| key.column as usize >= schema.fields().len()) {
        Some(key) => {
            let reason = format!("sorted by column {} of {}", key.column, schema.fields().len());
            Err(PeerMisbehaved::Schema { stream, reason })
        }
        None => Ok(()),
    }
}

/// Eight bytes, aligned.
fn is_word(range: RemoteRange) -> bool {
    range.len == 8 && range.address.is_multiple_of(8)
}

fn check_region(region: &Region) -> Result<(), PeerMisbehaved> {
    let (value, limit) = (region.key.len() as u64, MAX_KEY as u64);
    if value > limit {
        return Err(PeerMisbehaved::Limit { what: "remote key bytes", value, limit });
    }
    if region.base.checked_add(region.len).is_none() {
        let Region { id, base, len, .. } = *region;
        return Err(PeerMisbehaved::OutsideRegion { region: id, address: base, len });
    }
    Ok(())
}

fn name_of(message: &ToClient) -> &'static str {
    match message {
        ToClient::Welcome(_) => "welcome",
        ToClient::Region(_) => "region",
        ToClient::RegionGone(_) => "region-gone",
        ToClient::Schema { .. } => "schema",
        ToClient::Inline { .. } => "inline",
        ToClient::Lent { .. } => "lent",
        ToClient::CreditWanted { .. } => "credit-wanted",
        ToClient::End { .. } => "end",
        ToClient::Failed { .. } => "failed",
        ToClient::Ping(_) => "ping",
        ToClient::Pong(_) => "pong",
        ToClient::Goodbye { .. } => "goodbye",
    }
}
