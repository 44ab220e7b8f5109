//! Outstanding reads and their completion: a batch delivered, a part answered, or a lease lost.

use super::batches::{Read, Wanted};
use super::{Borrower, BorrowerEvent, BorrowerTask, Payload, ReadError};
use crate::codes::CancelReason;
use crate::error::{ApiMisuse, Cause, StreamError};
use crate::ids::{ReadId, StreamId};
use crate::timers::Timer;

impl Borrower {
    pub(super) fn next_read(&mut self) -> ReadId {
        self.last_read += 1;
        ReadId(self.last_read)
    }

    pub(super) fn read_done(&mut self, read: ReadId, result: Result<Option<u64>, ReadError>) -> Result<(), ApiMisuse> {
        let Some(pending) = self.reads.get(&read) else { return Err(ApiMisuse::UnknownRead(read)) };
        let (stream, seq, wanted) = (pending.stream, pending.seq, self.is_wanted(pending));
        let due = pending.word.map(|word| word.value);
        match result {
            Ok(_) if !wanted => drop(self.forget_read(read, true)),
            Ok(found) if found == due => self.arrived(read),
            Ok(_) => {
                self.forget_read(read, true);
                self.lose((stream, seq), StreamError::LeaseLost { seq }, CancelReason::LeaseLost);
            }
            Err(ReadError::NoMemory(cause)) => {
                let error = StreamError::OutOfMemory { seq, cause };
                match self.forget_read(read, true).map(|read| read.wanted) {
                    // The batch is still on loan: a smaller part of it may fit.
                    Some(Wanted::Part(part)) => {
                        if self.answer((stream, seq), part) {
                            self.event(BorrowerEvent::PartFailed { stream, seq, part, error });
                        }
                    }
                    _ => self.fail(stream, error, CancelReason::OutOfMemory),
                }
            }
            Err(ReadError::Failed(cause)) => self.lost(read, cause),
        }
        Ok(())
    }

    fn is_wanted(&self, read: &Read) -> bool {
        match read.wanted {
            Wanted::Batch(_) | Wanted::Mapping(_) => self.streams.get(&read.stream).is_some_and(|open| !open.ended),
            Wanted::Part(part) => self.is_wanted_part((read.stream, read.seq), part),
        }
    }

    /// All bytes have been read and the lease stood. Releases the lease and delivers the batch in its turn; or answers
    /// the request for a part.
    fn arrived(&mut self, read: ReadId) {
        let Some(Read { stream, seq, lease, wanted, .. }) = self.forget_read(read, false) else { return };
        let descriptor = match wanted {
            Wanted::Batch(descriptor) => descriptor,
            Wanted::Mapping(descriptor) => return self.mapped(read, (stream, seq), lease, descriptor),
            Wanted::Part(part) if self.answer((stream, seq), part) => {
                return self.event(BorrowerEvent::PartRead { stream, seq, part, read });
            }
            Wanted::Part(_) => return self.task(BorrowerTask::Discard { read }),
        };
        match self.streams.get_mut(&stream).filter(|open| !open.ended) {
            Some(open) => {
                let bytes = descriptor.slab_bytes();
                open.ready(seq, bytes, Payload::Lent { read, descriptor });
                self.deliver(stream);
            }
            None => self.task(BorrowerTask::Discard { read }),
        }
    }

    /// A read failed.
    pub(super) fn lost(&mut self, read: ReadId, cause: Cause) {
        let wanted = self.reads.get(&read).is_some_and(|read| self.is_wanted(read));
        if let Some(Read { stream, seq, .. }) = self.forget_read(read, true)
            && wanted
        {
            self.lose((stream, seq), StreamError::Read { seq, cause }, CancelReason::ReadFailed);
        }
    }

    fn forget_read(&mut self, read: ReadId, discard: bool) -> Option<Read> {
        let ended = self.reads.remove(&read)?;
        self.timers.clear(Timer::Read(read));
        if discard {
            self.task(BorrowerTask::Discard { read });
        }
        if let Wanted::Part(_) = ended.wanted {
            self.read_completed((ended.stream, ended.seq));
            return Some(ended);
        }
        if matches!(ended.wanted, Wanted::Mapping(_)) && !discard {
            return Some(ended);
        }
        self.loans.release(ended.lease);
        Some(ended)
    }

    /// Delivers the batches that are next in order, and the stream's end after the last.
    pub(super) fn deliver(&mut self, stream: StreamId) {
        let Some(open) = self.streams.get_mut(&stream) else { return };
        while let Some((seq, cost, payload)) = open.deliver() {
            self.out.push_back(super::BorrowerOutput::Event(BorrowerEvent::Batch { stream, seq, cost, payload }));
        }
        if let Some(stats) = open.ended() {
            self.streams.remove(&stream);
            // The deadline also applies to batches that are held.
            if !self.holds_any(stream) {
                self.clear_deadline(stream);
            }
            self.event(BorrowerEvent::End { stream, stats });
        }
    }
}
