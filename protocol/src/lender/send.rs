//! Sends batches as credit, loan limits and lease words allow.

use bytes::Bytes;

use super::room::LoanRoom;
use super::stream::{Exposing, LentStream, Pending};
use super::{LeaseEnd, Lender, LenderCommand, LenderOutput, LenderTask, Loan, word_at};
use crate::codec::{MAX_KEY, PIECE, message_len};
use crate::codes::StreamCode;
use crate::credit::batch_cost;
use crate::error::ApiMisuse;
use crate::ids::{LeaseId, RemoteRange, StreamId};
use crate::layout::BatchDescriptor;
use crate::message::{Extensions, Failure, Fencing, FromLender, LeaseWord, LentBatch, MAX_SORT_KEYS, Region, SortKey};
use crate::random::SplitMix64;
use crate::time::Timestamp;
use crate::timers::Timer;

impl Lender {
    /// Processes a command or a report of the driver.
    ///
    /// # Errors
    /// [`ApiMisuse`] if the driver broke the contract. A lease that came with the command still ends.
    pub fn command(&mut self, now: Timestamp, command: LenderCommand) -> Result<(), ApiMisuse> {
        match command {
            LenderCommand::Schema { stream, schema, order } => self.schema(stream, schema, order),
            LenderCommand::Lend { stream, loan, rows } => self.lend(now, stream, loan, rows),
            LenderCommand::Inline { stream, ipc, rows } => self.inline(now, stream, ipc, rows),
            LenderCommand::Finish { stream, execute_nanos } => {
                if let Some(open) = self.pulled(stream)? {
                    open.stats.execute_nanos = execute_nanos;
                    open.handed_over(None, 0, now);
                }
                Ok(())
            }
            LenderCommand::Fail { stream, failure } => {
                self.ensure_opened(stream)?;
                self.fail(stream, failure);
                Ok(())
            }
            LenderCommand::Exposed { lease, announce, places } => {
                let announced = announce.len() as u64;
                self.announce(announce)?;
                self.exposed(lease, places, announced)
            }
            LenderCommand::NotExposed { lease, announce, reason } => {
                self.announce(announce)?;
                if self.withdraw_unannounced(lease).is_some() {
                    // The failure tells the borrower to run the request again. On a path that is still up, the new
                    // request would meet the same fault.
                    self.path_down(&reason);
                }
                Ok(())
            }
            LenderCommand::Retire(region) => {
                if !self.stopped {
                    if !self.regions.remove(&region) {
                        return Err(ApiMisuse::Region(region));
                    }
                    self.send(FromLender::RegionGone(region), Bytes::new());
                }
                Ok(())
            }
        }
    }

    /// Checks that a stream has existed. A command for a stream that has ended is late; for one that never existed,
    /// misuse.
    fn ensure_opened(&self, stream: StreamId) -> Result<(), ApiMisuse> {
        self.ensure_known(stream).map_err(|_| ApiMisuse::UnknownStream(stream))
    }

    /// The stream, if it is open. An error if it has not requested a batch.
    fn pulled(&mut self, stream: StreamId) -> Result<Option<&mut LentStream>, ApiMisuse> {
        self.ensure_opened(stream)?;
        match self.streams.get_mut(&stream) {
            Some(open) if open.is_pulled() => Ok(Some(open)),
            Some(_) => Err(ApiMisuse::NotPulled(stream)),
            None => Ok(None),
        }
    }

    fn schema(&mut self, stream: StreamId, schema: Bytes, order: Vec<SortKey>) -> Result<(), ApiMisuse> {
        self.ensure_opened(stream)?;
        if order.len() > MAX_SORT_KEYS {
            return Err(ApiMisuse::Encode(format!("{} sort keys, the limit is {MAX_SORT_KEYS}", order.len())));
        }
        let Some(open) = self.streams.get_mut(&stream) else { return Ok(()) };
        if open.is_running() {
            return Err(ApiMisuse::State { command: "schema", state: "the stream runs" });
        }
        let limit = self.config.frame.payload;
        if schema.len() > limit as usize {
            let message = format!("a schema of {} bytes, the limit is {limit} bytes", schema.len());
            self.stop(stream, Failure::new(StreamCode::Unencodable, message));
            return Ok(());
        }
        open.running();
        self.send(FromLender::Schema { stream, order, extensions: Extensions::none() }, schema);
        Ok(())
    }

    fn lend(&mut self, now: Timestamp, stream: StreamId, loan: Loan, rows: u64) -> Result<(), ApiMisuse> {
        let lease = loan.lease;
        self.leases.reserve(lease)?;
        let (up, limit, bytes) = (self.is_up(), self.config.max_loan_bytes, loan.descriptor.slab_bytes());
        // From here on this half must end the lease, also after misuse.
        match self.pulled(stream).map(|open| open.is_some()) {
            Err(misuse) => {
                self.withdraw(lease);
                return Err(misuse);
            }
            Ok(false) => self.withdraw(lease),
            Ok(true) if !up => {
                self.withdraw(lease);
                self.stop(stream, Failure::new(StreamCode::DataPlaneLost, "run the request again"));
            }
            Ok(true) if bytes > limit => {
                self.withdraw(lease);
                self.too_large(stream, bytes);
            }
            Ok(true) if !self.fits_a_frame(&loan.descriptor) => {
                self.withdraw(lease);
                let limit = self.config.frame.message;
                let message = format!("the descriptor of a batch exceeds the limit of {limit} bytes for a message");
                self.stop(stream, Failure::new(StreamCode::Unencodable, message));
            }
            Ok(true) => {
                if let Some(open) = self.streams.get_mut(&stream) {
                    open.handed_over(Some(Pending::Lent(loan)), rows, now);
                }
            }
        }
        Ok(())
    }

    /// Whether the message of a lent batch is within the limit of frames, for any places of its buffers.
    fn fits_a_frame(&self, descriptor: &BatchDescriptor) -> bool {
        /// Maximum bytes of a place, and of all fields beside the descriptor and the places.
        const PLACE: usize = 5 + 10 + 10;
        const REST: usize = 128;
        let limit = self.config.frame.message as usize;
        // A message that is certainly short is not measured: a node takes at most 22 bytes and its details, an extent
        // 10.
        let places = descriptor.buffers.len().saturating_mul(PLACE + 10);
        let few_details = descriptor.nodes.len().saturating_mul(40);
        let rough = places.saturating_add(few_details).saturating_add(REST);
        if rough.saturating_mul(2) <= limit && descriptor.buffers.len() < 10_000 {
            return true;
        }
        message_len(descriptor).saturating_add(descriptor.buffers.len() * PLACE).saturating_add(REST) <= limit
    }

    fn too_large(&mut self, stream: StreamId, bytes: u64) {
        let limit = self.config.max_loan_bytes;
        let message =
            format!("a batch of {bytes} bytes exceeds the lender's limit of {limit} bytes; use fewer rows per batch");
        self.stop(stream, Failure::new(StreamCode::BatchTooLarge, message));
    }

    fn inline(&mut self, now: Timestamp, stream: StreamId, ipc: Bytes, rows: u64) -> Result<(), ApiMisuse> {
        let (bytes, limit) = (ipc.len() as u64, self.config.max_loan_bytes);
        if let Some(open) = self.pulled(stream)? {
            if bytes > limit {
                self.too_large(stream, bytes);
            } else {
                open.handed_over(Some(Pending::Inline(ipc)), rows, now);
            }
        }
        Ok(())
    }

    /// Sends everything that can be sent. Call it after every command and message, once there is a connection. Streams
    /// take turns, so that no stream starves while another has credit.
    pub fn pump(&mut self, now: Timestamp) {
        if self.stopped || self.streams.is_empty() {
            return;
        }
        self.waiting = self.waiting.filter(|stream| self.streams.contains_key(stream));
        // The stream that waits for room goes first. Otherwise small batches of other streams would take the released
        // room again and again.
        let first = self.waiting;
        if let (None, 1, Some((&only, _))) = (first, self.streams.len(), self.streams.first_key_value()) {
            return self.serve(now, only);
        }
        let after = |id: &StreamId| self.served.is_some_and(|served| *id > served);
        let (later, sooner): (Vec<_>, Vec<_>) = self.streams.keys().copied().partition(after);
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
                let room = self.config.max_loan_bytes.saturating_sub(self.leases.bytes());
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
            self.send_pending(now, stream);
        }
        let room = self.loan_room(stream);
        let within_budget = self.may_prepare(stream);
        let Some(open) = self.streams.get_mut(&stream) else { return };
        if room == LoanRoom::MayFreeUp && open.is_idle() {
            // The borrower may hold back credit of less than a batch's cost until the lender requests it.
            let cost = batch_cost(open.largest);
            self.want_credit(stream, cost);
        } else if open.is_idle() && !within_budget {
            let cost = batch_cost(0).max(open.largest_cost);
            self.want_credit(stream, cost);
        } else if room != LoanRoom::MayFreeUp && open.pull() {
            let lends = matches!(self.path, super::Path::Up(_)) && room == LoanRoom::Available;
            let lend_from = if lends { open.lend_from(self.config.thresholds) } else { None };
            // The size of the first batch is not known before.
            let ahead = open.largest_cost > 0 && open.has_credit_for(2);
            self.out.push_back(LenderOutput::Task(LenderTask::Pull { stream, lend_from, ahead }));
        } else if open.finished && open.pending.is_none() && open.exposing.is_none() {
            let (batches, stats) = (open.seq, open.stats);
            self.streams.remove(&stream);
            self.timers.clear(Timer::Stream(stream));
            self.send(FromLender::End { stream, batches, stats, extensions: Extensions::none() }, Bytes::new());
        }
    }

    /// Requests the credit that the stream waits for, once for each batch.
    fn want_credit(&mut self, stream: StreamId, bytes: u64) {
        let Some(open) = self.streams.get_mut(&stream) else { return };
        if !std::mem::replace(&mut open.credit_request_sent, true) {
            self.send(FromLender::CreditWanted { stream, bytes }, Bytes::new());
        }
    }

    fn send_pending(&mut self, now: Timestamp, stream: StreamId) {
        let Some(open) = self.streams.get_mut(&stream) else { return };
        let Some(pending) = open.pending.take() else { return };
        let spent = open.credit.spend(pending.cost());
        debug_assert!(spent.is_ok(), "credit was checked before");
        let seq = open.sent(&pending, now);
        match pending {
            Pending::Inline(ipc) => self.send_inline(stream, seq, ipc),
            Pending::Lent(loan) => self.open_lease(now, stream, seq, loan),
        }
    }

    fn send_inline(&mut self, stream: StreamId, seq: u64, mut ipc: Bytes) {
        let bytes = ipc.len() as u64;
        loop {
            let piece = ipc.split_to(ipc.len().min(PIECE).min(self.config.frame.payload as usize));
            let more = !ipc.is_empty();
            self.send(FromLender::Inline { stream, seq, bytes, more }, piece);
            if !more {
                return;
            }
        }
    }

    /// Opens the lease of a batch. The batch is sent once its memory is open to the borrower.
    fn open_lease(&mut self, now: Timestamp, stream: StreamId, seq: u64, loan: Loan) {
        let Some(words) = self.path.words().cloned() else { return };
        let Some(open) = self.streams.get_mut(&stream) else { return };
        let (lease, mapped) = (loan.lease, open.is_mapped());
        let by_word = words.fencing == Fencing::LeaseWord;
        let slot = self.leases.open(lease, stream, loan.descriptor.slab_bytes(), by_word, mapped);
        let value = word_value(self.config.word_nonce, lease);
        let word = slot.map(|slot| LeaseWord { at: word_at(&words, slot), value });
        open.exposing = Some(Exposing { loan, seq, word });
        if !mapped {
            self.timers.set(Timer::Lease(lease), now + self.config.lease_timeout);
        }
        let word = slot.map(|slot| (slot, value));
        self.out.push_back(LenderOutput::Task(LenderTask::OpenLease { lease, word }));
    }

    fn announce(&mut self, regions: Vec<Region>) -> Result<(), ApiMisuse> {
        if self.stopped {
            return Ok(());
        }
        for region in regions {
            within("remote key", region.key.len(), MAX_KEY)?;
            if !self.regions.insert(region.id) {
                return Err(ApiMisuse::Region(region.id));
            }
            self.send(FromLender::Region(region), Bytes::new());
        }
        Ok(())
    }

    /// The memory of a lease is open: announces the batch to the borrower.
    fn exposed(&mut self, lease: LeaseId, places: Vec<RemoteRange>, announced: u64) -> Result<(), ApiMisuse> {
        let stream = self.streams.iter().find(|(_, open)| open.is_exposing(lease)).map(|(stream, _)| *stream);
        let Some(stream) = stream else {
            // The stream or the connection ended in the meantime: the lease is never announced to the borrower.
            self.withdraw_unannounced(lease);
            return Ok(());
        };
        let Some(open) = self.streams.get_mut(&stream) else { return Ok(()) };
        open.stats.regions += announced;
        let Some(exposing) = open.exposing.take() else { return Ok(()) };
        if let Err(misuse) = self.check_places(&exposing, &places) {
            self.withdraw_unannounced(lease);
            return Err(misuse);
        }
        let Exposing { loan, seq, word } = exposing;
        self.leases.announce(lease);
        let batch = LentBatch { lease, word, descriptor: loan.descriptor, places };
        self.send(FromLender::Lent { stream, seq, batch }, Bytes::new());
        Ok(())
    }

    /// Ends a lease that was never announced to the borrower. Returns its stream.
    fn withdraw_unannounced(&mut self, lease: LeaseId) -> Option<StreamId> {
        let ended = self.leases.withdraw(lease)?;
        self.timers.clear(Timer::Lease(lease));
        self.end_lease(lease, ended.slot, LeaseEnd::Withdrawn);
        Some(ended.stream)
    }

    /// Checks the places here, so that the driver gets the error. The borrower would end the connection over it.
    fn check_places(&self, exposing: &Exposing, places: &[RemoteRange]) -> Result<(), ApiMisuse> {
        if let Some(place) = places.iter().find(|place| !self.regions.contains(&place.region)) {
            return Err(ApiMisuse::Region(place.region));
        }
        let filled = exposing.loan.descriptor.buffers.iter().copied().filter(|len| *len > 0);
        if filled.eq(places.iter().map(|place| place.len)) {
            Ok(())
        } else {
            Err(ApiMisuse::Encode(format!("the places of {:?} do not match its buffers", exposing.loan.lease)))
        }
    }
}

/// Refuses a field that the peer would refuse.
pub(crate) fn within(what: &'static str, len: usize, limit: usize) -> Result<(), ApiMisuse> {
    if len <= limit { Ok(()) } else { Err(ApiMisuse::Encode(format!("a {what} of {len} bytes, the limit is {limit}"))) }
}

/// The value of a lease's word. It is never zero and differs from lease to lease. Other content of the same memory
/// equals it with a probability of one in 2^64.
fn word_value(nonce: u64, lease: LeaseId) -> u64 {
    SplitMix64::nth(nonce, lease.0).max(1)
}
