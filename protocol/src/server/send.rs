//! The sending half of a server's connection: batches go out as credit, loan limits and lease words allow.

use bytes::Bytes;
use serde::Serialize;

use super::mapped::Crowd;
use super::stream::{OutgoingStream, Pending};
use super::{DataPlane, Loan, ServerConnection, ServerOutput, State};
use crate::codec::PIECE;
use crate::codes::StreamCode;
use crate::credit::batch_cost;
use crate::error::ApiMisuse;
use crate::ids::{LeaseId, RemoteRange, StreamId};
use crate::lease::LeaseEnd;
use crate::link::clip;
use crate::message::{Fencing, LeaseWord, LentBatch, MAX_SORT_KEYS, Region, SortKey, ToClient};
#[cfg(feature = "planted-bugs")]
use crate::planted::{Bug, is_planted};
use crate::random::SplitMix64;
use crate::time::Timestamp;
use crate::timers::Timer;

impl ServerConnection {
    pub(super) fn transmit<M: Serialize>(&mut self, message: &M, payload: Bytes) {
        match self.link.encode(message, payload) {
            Ok(frame) => self.out.push_back(ServerOutput::Transmit(frame)),
            // Everything of variable size is checked before it comes here.
            Err(misuse) => debug_assert!(false, "{misuse}"),
        }
    }

    /// Commands for streams that were are late; for streams that never were, misuse.
    pub(super) fn known(&self, stream: StreamId) -> Result<(), ApiMisuse> {
        if self.last_stream.is_some_and(|last| stream <= last) { Ok(()) } else { Err(ApiMisuse::UnknownStream(stream)) }
    }

    /// The stream if it is open; misuse if it has not asked for a batch.
    pub(super) fn pulled(&mut self, stream: StreamId) -> Result<Option<&mut OutgoingStream>, ApiMisuse> {
        self.known(stream)?;
        match self.streams.get_mut(&stream) {
            Some(open) if open.is_pulled() => Ok(Some(open)),
            Some(_) => Err(ApiMisuse::NotPulled(stream)),
            None => Ok(None),
        }
    }

    pub(super) fn schema(&mut self, stream: StreamId, schema: Bytes, order: Vec<SortKey>) -> Result<(), ApiMisuse> {
        self.known(stream)?;
        if order.len() > MAX_SORT_KEYS {
            return Err(ApiMisuse::Encode(format!("{} sort keys, the limit is {MAX_SORT_KEYS}", order.len())));
        }
        let Some(open) = self.streams.get_mut(&stream) else { return Ok(()) };
        if open.is_running() {
            return Err(ApiMisuse::State { command: "schema", state: "the stream runs" });
        }
        let limit = self.link.limits().payload;
        if schema.len() > limit as usize {
            let message = format!("a schema of {} bytes, the limit is {limit}", schema.len());
            self.stop(stream, StreamCode::Unencodable, message);
            return Ok(());
        }
        open.running();
        self.transmit(&ToClient::Schema { stream, order }, schema);
        Ok(())
    }

    pub(super) fn lend(&mut self, now: Timestamp, stream: StreamId, loan: Loan, rows: u64) -> Result<(), ApiMisuse> {
        let lease = loan.lease;
        self.leases.reserve(lease)?;
        let up = matches!(self.data, DataPlane::Up(_));
        let limit = self.config.limits.max_loan_bytes;
        let bytes = loan.descriptor.slab_bytes();
        // From here on the lease is this connection's to end, misuse or not.
        match self.pulled(stream).map(|open| open.is_some()) {
            Err(misuse) => {
                self.withdraw(lease);
                return Err(misuse);
            }
            Ok(false) => self.withdraw(lease),
            Ok(true) if !up => {
                self.withdraw(lease);
                self.stop(stream, StreamCode::DataPlaneLost, "run the query again".into());
            }
            Ok(true) if bytes > limit => {
                self.withdraw(lease);
                self.too_large(stream, bytes);
            }
            Ok(true) => {
                if let Err(misuse) = self.check_places(&loan) {
                    self.withdraw(lease);
                    return Err(misuse);
                }
                if let Some(open) = self.streams.get_mut(&stream) {
                    open.handed_over(Some(Pending::Lent(loan)), rows, now);
                }
            }
        }
        Ok(())
    }

    /// The client would end the connection over it: better that the driver hears what it did.
    fn check_places(&self, loan: &Loan) -> Result<(), ApiMisuse> {
        if let Some(place) = loan.places.iter().find(|place| !self.regions.contains(&place.region)) {
            return Err(ApiMisuse::Region(place.region));
        }
        let filled = loan.descriptor.buffers.iter().copied().filter(|len| *len > 0);
        if filled.eq(loan.places.iter().map(|place| place.len)) {
            Ok(())
        } else {
            Err(ApiMisuse::Encode(format!("the places of {:?} do not match its buffers", loan.lease)))
        }
    }

    fn too_large(&mut self, stream: StreamId, bytes: u64) {
        let limit = self.config.limits.max_loan_bytes;
        let message = format!("a batch of {bytes} bytes, the server's limit is {limit}; ask for fewer rows a batch");
        self.stop(stream, StreamCode::BatchTooLarge, message);
    }

    pub(super) fn inline(&mut self, now: Timestamp, stream: StreamId, ipc: Bytes, rows: u64) -> Result<(), ApiMisuse> {
        let (bytes, limit) = (ipc.len() as u64, self.config.limits.max_loan_bytes);
        if let Some(open) = self.pulled(stream)? {
            if bytes > limit {
                self.too_large(stream, bytes);
            } else {
                open.handed_over(Some(Pending::Inline(ipc)), rows, now);
            }
        }
        Ok(())
    }

    pub(super) fn withdraw(&mut self, lease: LeaseId) {
        self.out.push_back(ServerOutput::EndLease { lease, slot: None, end: LeaseEnd::Withdrawn });
    }

    /// Ends a stream in an error that the driver does not know of.
    pub(super) fn stop(&mut self, stream: StreamId, code: StreamCode, message: String) {
        let failure = Some((code, message.clone()));
        self.out.push_back(ServerOutput::StopQuery { stream, reason: None, failure });
        self.fail_stream(stream, code, message);
    }

    /// Ends a stream in an error. What is on loan stays on loan until it is given back.
    pub(super) fn fail_stream(&mut self, stream: StreamId, code: StreamCode, message: String) {
        let Some(open) = self.streams.remove(&stream) else { return };
        self.timers.clear(Timer::Stream(stream));
        self.timers.clear(Timer::Room(stream));
        self.withdraw_pending(open);
        self.transmit(&ToClient::Failed { stream, code, message: clip(message) }, Bytes::new());
    }

    /// What the engine had handed over for a stream that ends here.
    pub(super) fn withdraw_pending(&mut self, ended: OutgoingStream) {
        if let Some(Pending::Lent(loan)) = ended.pending {
            self.withdraw(loan.lease);
        }
    }

    /// Streams take turns, so that none starves while another has credit.
    pub(super) fn send_what_can_be_sent(&mut self, now: Timestamp) {
        if self.state != State::Open {
            return;
        }
        let after = |id: &StreamId| self.served.is_some_and(|served| *id > served);
        let (later, sooner): (Vec<_>, Vec<_>) = self.streams.keys().copied().partition(after);
        self.waiting = self.waiting.filter(|stream| self.streams.contains_key(stream));
        // Small batches of others would take up what is given back, again and again.
        let first = self.waiting;
        for stream in first.into_iter().chain(later).chain(sooner) {
            self.serve(now, stream);
        }
    }

    fn serve(&mut self, now: Timestamp, stream: StreamId) {
        let Some(open) = self.streams.get_mut(&stream) else { return };
        if let Some(pending) = &open.pending {
            let (cost, bytes, lent) = (pending.cost(), pending.bytes(), matches!(pending, Pending::Lent(_)));
            if cost > open.credit.available() {
                open.blocked(now);
                self.want_credit(stream, cost);
                return;
            }
            if lent {
                let room = self.config.limits.max_loan_bytes.saturating_sub(self.leases.bytes());
                #[cfg(feature = "planted-bugs")]
                let room = if is_planted(Bug::LoanLimitIgnored) { u64::MAX } else { room };
                let other = self.waiting.is_some_and(|waiting| waiting != stream);
                if other || bytes > room || !self.leases.has_room() {
                    open.blocked(now);
                    self.waiting.get_or_insert(stream);
                    self.waits_for_room(now, stream);
                    return;
                }
                self.waiting = None;
                self.timers.clear(Timer::Room(stream));
            }
            self.served = Some(stream);
            self.send(now, stream);
        }
        let crowd = self.crowd(stream);
        let Some(open) = self.streams.get_mut(&stream) else { return };
        if crowd == Crowd::PerhapsNot && open.is_idle() {
            // Less than a batch's cost may be held back for as long as nobody asks for it.
            let cost = batch_cost(open.largest);
            self.want_credit(stream, cost);
        } else if crowd != Crowd::PerhapsNot && open.pull() {
            let lends = matches!(self.data, DataPlane::Up(_)) && crowd == Crowd::None;
            let lend_from = if lends { open.lend_from(self.config.inline_threshold) } else { None };
            self.out.push_back(ServerOutput::Pull { stream, lend_from });
        } else if open.finished && open.pending.is_none() {
            let (batches, stats) = (open.seq, open.stats);
            self.streams.remove(&stream);
            self.timers.clear(Timer::Stream(stream));
            self.transmit(&ToClient::End { stream, batches, stats }, Bytes::new());
        }
    }

    /// Tells the borrower, once for each batch, that the stream waits for so much.
    fn want_credit(&mut self, stream: StreamId, bytes: u64) {
        let Some(open) = self.streams.get_mut(&stream) else { return };
        if !std::mem::replace(&mut open.wanted_said, true) {
            self.transmit(&ToClient::CreditWanted { stream, bytes }, Bytes::new());
        }
    }

    fn send(&mut self, now: Timestamp, stream: StreamId) {
        let Some(open) = self.streams.get_mut(&stream) else { return };
        let Some(pending) = open.pending.take() else { return };
        let spent = open.credit.spend(pending.cost());
        debug_assert!(spent.is_ok(), "credit was checked before");
        let seq = open.sent(&pending, now);
        match pending {
            Pending::Inline(ipc) => self.send_inline(stream, seq, ipc),
            Pending::Lent(loan) => self.send_lent(now, stream, seq, loan),
        }
    }

    fn send_inline(&mut self, stream: StreamId, seq: u64, mut ipc: Bytes) {
        let bytes = ipc.len() as u64;
        loop {
            let piece = ipc.split_to(ipc.len().min(PIECE).min(self.link.limits().payload as usize));
            let more = !ipc.is_empty();
            self.transmit(&ToClient::Inline { stream, seq, bytes, more }, piece);
            if !more {
                return;
            }
        }
    }

    fn send_lent(&mut self, now: Timestamp, stream: StreamId, seq: u64, loan: Loan) {
        let Some(fabric) = self.data.opened() else { return };
        let (words, by_word) = (fabric.words.clone(), fabric.fencing == Fencing::LeaseWord);
        let mapped = self.streams.get(&stream).is_some_and(OutgoingStream::is_mapped);
        let lease = loan.lease;
        let slot = self.leases.open(lease, stream, loan.descriptor.slab_bytes(), by_word, mapped);
        let value = word_value(self.config.word_nonce, lease);
        let word = slot.map(|slot| LeaseWord { at: word_at(&words, slot), value });
        if !mapped {
            self.timers.set(Timer::Lease(lease), now + self.config.lease_timeout);
        }
        self.out.push_back(ServerOutput::OpenLease { lease, word: slot.map(|slot| (slot, value)) });
        let batch = LentBatch { lease, word, descriptor: loan.descriptor, places: loan.places };
        match self.link.encode(&ToClient::Lent { stream, seq, batch }, Bytes::new()) {
            Ok(frame) => self.out.push_back(ServerOutput::Transmit(frame)),
            Err(too_long) => {
                if let Ok(Some(ended)) = self.leases.release(lease) {
                    self.timers.clear(Timer::Lease(lease));
                    self.out.push_back(ServerOutput::EndLease { lease, slot: ended.slot, end: LeaseEnd::Withdrawn });
                }
                self.stop(stream, StreamCode::Unencodable, too_long.to_string());
            }
        }
    }
}

/// Where a slot's word is.
pub(super) fn word_at(words: &Region, slot: u32) -> RemoteRange {
    RemoteRange { region: words.id, address: words.base.saturating_add(u64::from(slot) * 8), len: 8 }
}

/// The value of a lease's word. It is never zero, differs from lease to lease, and equals bytes that another user of the memory
/// writes there with a probability of one in 2^64.
fn word_value(nonce: u64, lease: LeaseId) -> u64 {
    #[cfg(feature = "planted-bugs")]
    let lease = if is_planted(Bug::LeaseWordsAlike) { LeaseId(1) } else { lease };
    SplitMix64::nth(nonce, lease.0).max(1)
}
