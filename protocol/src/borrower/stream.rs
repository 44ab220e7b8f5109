//! A stream at its borrower: batches that have arrived but are not delivered, and the window.

use std::collections::BTreeMap;

use bytes::{Bytes, BytesMut};

use super::Payload;
use crate::credit::{Credit, batch_cost};
use crate::ids::StreamId;
use crate::layout::Plan;
use crate::message::{Access, StreamStats};
use crate::misbehaviour::PeerMisbehaved;

#[derive(Debug)]
struct Partial {
    bytes: u64,
    have: BytesMut,
}

#[derive(Debug)]
pub(super) struct BorrowedStream {
    id: StreamId,
    /// The schema, compiled, once it has arrived.
    pub(super) plan: Option<Plan>,
    /// How this end accesses lent batches.
    pub(super) access: Access,
    /// The end has been reported to the application. Batches that still arrive are released.
    pub(super) over: bool,
    /// The lender has sent its last message for the stream.
    pub(super) remote_done: bool,
    end: Option<StreamStats>,
    credit: Credit,
    /// Bytes granted and not consumed.
    window: u64,
    /// Maximum size of the window in bytes.
    most: u64,
    /// The lender may send. A stream that is not admitted yet has no window, even if its lender requests credit.
    admitted: bool,
    /// Credit that one batch needs, if the lender requested it before the stream was admitted.
    wanted_before: u64,
    /// The lender waits for credit, according to its last message.
    waits: bool,
    /// The lender waits for more credit than the window leaves while grants are held back: grants are sent at once.
    wanted: bool,
    /// Bytes that the application has consumed and that are not granted again yet.
    to_grant: u64,
    /// Cost of batches that were delivered and not consumed.
    delivered: u64,
    next_arrival: u64,
    next_delivery: u64,
    ready: BTreeMap<u64, (u64, Payload)>,
    partial: Option<Partial>,
}

impl BorrowedStream {
    /// A stream whose window begins as `window` and grows to `most`. Without a `window` the stream is not admitted yet.
    pub(super) fn new(id: StreamId, window: Option<u64>, most: u64, access: Access) -> Self {
        let (admitted, window) = (window.is_some(), window.unwrap_or(0));
        BorrowedStream {
            id,
            plan: None,
            access,
            over: false,
            remote_done: false,
            end: None,
            credit: Credit::new(window),
            window,
            most,
            admitted,
            wanted_before: 0,
            waits: false,
            wanted: false,
            to_grant: 0,
            delivered: 0,
            next_arrival: 0,
            next_delivery: 0,
            ready: BTreeMap::new(),
            partial: None,
        }
    }

    /// A batch, or the first piece of one, arrived.
    pub(super) fn arrive(&mut self, seq: u64, bytes: u64) -> Result<(), PeerMisbehaved> {
        if self.plan.is_none() {
            return Err(PeerMisbehaved::StreamOrder { stream: self.id, what: "a batch before the schema" });
        }
        if self.partial.is_some() {
            return Err(PeerMisbehaved::StreamOrder { stream: self.id, what: "a batch between the pieces of another" });
        }
        if seq != self.next_arrival {
            return Err(PeerMisbehaved::Sequence { stream: self.id, expected: self.next_arrival, got: seq });
        }
        self.credit.spend(batch_cost(bytes))?;
        self.next_arrival += 1;
        self.waits = false;
        self.wanted = false;
        Ok(())
    }

    /// A piece of an inline batch arrived. Returns the batch if the piece was the last.
    pub(super) fn piece(
        &mut self,
        seq: u64,
        bytes: u64,
        more: bool,
        payload: Bytes,
    ) -> Result<Option<Bytes>, PeerMisbehaved> {
        let wrong = |what| PeerMisbehaved::StreamOrder { stream: self.id, what };
        let Some(partial) = &mut self.partial else {
            self.arrive(seq, bytes)?;
            if payload.len() as u64 == bytes && !more {
                return Ok(Some(payload));
            }
            if payload.len() as u64 >= bytes || !more || payload.is_empty() {
                return Err(PeerMisbehaved::StreamOrder {
                    stream: self.id,
                    what: "an inline batch of the wrong length",
                });
            }
            // This is bounded, because it is within the granted credit.
            let mut have = BytesMut::with_capacity(usize::try_from(bytes).unwrap_or(0));
            have.extend_from_slice(&payload);
            self.partial = Some(Partial { bytes, have });
            return Ok(None);
        };
        // A partial batch has arrived, so `next_arrival` is at least 1.
        if seq != self.next_arrival - 1 || bytes != partial.bytes {
            return Err(wrong("a piece of another inline batch"));
        }
        partial.have.extend_from_slice(&payload);
        let have = partial.have.len() as u64;
        if have > bytes || more == (have == bytes) || payload.is_empty() {
            return Err(wrong("an inline batch of the wrong length"));
        }
        if more {
            return Ok(None);
        }
        Ok(self.partial.take().map(|whole| whole.have.freeze()))
    }

    /// The lender has announced the end of the stream.
    pub(super) fn end(&mut self, batches: u64, stats: StreamStats) -> Result<(), PeerMisbehaved> {
        if self.plan.is_none() || self.partial.is_some() {
            return Err(PeerMisbehaved::StreamOrder {
                stream: self.id,
                what: "an end before the schema or within a batch",
            });
        }
        if batches != self.next_arrival {
            return Err(PeerMisbehaved::Sequence { stream: self.id, expected: self.next_arrival, got: batches });
        }
        self.end = Some(stats);
        Ok(())
    }

    /// A batch is complete. It waits for the batches before it.
    pub(super) fn ready(&mut self, seq: u64, bytes: u64, payload: Payload) {
        self.ready.insert(seq, (batch_cost(bytes), payload));
    }

    /// The next batch in order, if it is complete.
    pub(super) fn deliver(&mut self) -> Option<(u64, u64, Payload)> {
        let seq = self.next_delivery;
        let (cost, payload) = self.ready.remove(&seq)?;
        self.next_delivery += 1;
        self.delivered += cost;
        Some((seq, cost, payload))
    }

    /// The lender's statistics, once everything was delivered.
    pub(super) fn ended(&self) -> Option<StreamStats> {
        if self.next_delivery == self.next_arrival { self.end } else { None }
    }

    /// Removes and returns batches that are ready but will not be delivered.
    pub(super) fn abandon(&mut self) -> Vec<(u64, Payload)> {
        self.partial = None;
        std::mem::take(&mut self.ready).into_iter().map(|(seq, (_, payload))| (seq, payload)).collect()
    }

    /// The application consumed batches of this cost. `false` if fewer were delivered.
    pub(super) fn consumed(&mut self, cost: u64) -> bool {
        if cost > self.delivered {
            return false;
        }
        self.delivered -= cost;
        self.to_grant += cost;
        true
    }

    /// Bytes that the lender may still send, or has sent and the application has not consumed.
    pub(super) fn window(&self) -> u64 {
        self.window
    }

    /// The new total to grant, once it is worth a message.
    pub(super) fn grant(&mut self) -> Option<u64> {
        self.grow();
        let worth = if self.wanted { 1 } else { (self.window / 4).max(1) };
        if self.to_grant < worth {
            return None;
        }
        Some(self.credit.extend(std::mem::take(&mut self.to_grant)))
    }

    /// Widens a window that both ends wait for: the lender has reported that it has no credit, and the application has
    /// consumed everything that arrived. If one end is slower than the other, this state does not occur.
    fn grow(&mut self) {
        let out_of_work = self.delivered == 0 && self.next_delivery == self.next_arrival && self.partial.is_none();
        if !out_of_work || !std::mem::take(&mut self.waits) {
            return;
        }
        let more = self.window.min(self.most.saturating_sub(self.window));
        self.window += more;
        self.to_grant += more;
    }

    /// Admits the stream: the lender may send from now on. Returns the total to grant, if there is one.
    pub(super) fn admit(&mut self, window: u64, most: u64) -> Option<u64> {
        if std::mem::replace(&mut self.admitted, true) {
            return None;
        }
        let cost = std::mem::take(&mut self.wanted_before);
        (self.window, self.most) = (window.max(cost).max(1), most);
        self.to_grant += self.window;
        self.grant()
    }

    /// The lender waits for this much credit. Widens the window so that one batch of this cost fits. Returns the new
    /// total, if there is one.
    pub(super) fn wanted(&mut self, cost: u64) -> Option<u64> {
        if !self.admitted {
            self.wanted_before = cost;
            return None;
        }
        let more = cost.saturating_sub(self.window);
        self.window += more;
        self.to_grant += more;
        self.waits = true;
        // Less than a quarter of the window is held back, so that more than three quarters are available.
        self.wanted = cost > self.window - self.window / 4;
        self.grant()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BATCH: u64 = 744;

    fn stream(window: u64, most: u64) -> BorrowedStream {
        let mut stream = BorrowedStream::new(StreamId(1), Some(window), most, Access::Read);
        stream.plan = Some(Plan::new(&std::sync::Arc::new(arrow_schema::Schema::empty())).unwrap());
        stream
    }

    /// Delivers all batches of 1000 bytes of credit that the lender can send. Returns their number.
    fn arrive_all(stream: &mut BorrowedStream) -> u64 {
        let before = stream.next_arrival;
        while stream.credit.available() >= batch_cost(BATCH) {
            let seq = stream.next_arrival;
            stream.arrive(seq, BATCH).unwrap();
            stream.ready(seq, BATCH, Payload::Inline(Bytes::new()));
        }
        stream.next_arrival - before
    }

    /// The application consumes a batch. Returns the new total, if one is granted.
    fn take(stream: &mut BorrowedStream) -> Option<u64> {
        let (_, cost, _) = stream.deliver().unwrap();
        assert!(stream.consumed(cost));
        stream.grant()
    }

    #[test]
    fn a_window_that_both_ends_wait_for_doubles_up_to_its_maximum() {
        // The order in which the two ends detect it does not matter.
        for lender_first in [true, false] {
            let mut stream = stream(2000, 7000);
            let mut windows = Vec::new();
            for _ in 0..4 {
                let arrived = arrive_all(&mut stream);
                if lender_first {
                    stream.wanted(1000);
                }
                for _ in 0..arrived {
                    take(&mut stream);
                }
                if !lender_first {
                    stream.wanted(1000);
                }
                windows.push(stream.window);
            }
            assert_eq!(windows, [4000, 7000, 7000, 7000]);
            assert_eq!(stream.credit.available() + stream.to_grant, 7000);
        }
    }

    #[test]
    fn a_stream_that_is_not_admitted_grants_no_credit() {
        let mut stream = BorrowedStream::new(StreamId(1), None, 0, Access::Read);
        assert_eq!(stream.wanted(5000), None);
        assert_eq!(stream.credit.granted(), 0);
        assert_eq!(stream.admit(2000, 7000), Some(5000), "one batch must fit");
        assert_eq!(stream.admit(2000, 7000), None);
    }

    #[test]
    fn a_window_that_only_one_end_waits_for_stays() {
        // The borrower always has another batch to consume: it is the slower end.
        let mut slow_borrower = stream(4000, 1 << 20);
        arrive_all(&mut slow_borrower);
        for _ in 0..50 {
            slow_borrower.wanted(1000);
            take(&mut slow_borrower);
            assert!(arrive_all(&mut slow_borrower) <= 1);
        }
        assert_eq!(slow_borrower.window, 4000);
        // The lender always has credit for another batch: it is the slower end.
        let mut slow_lender = stream(4000, 1 << 20);
        for seq in 0..50 {
            slow_lender.arrive(seq, BATCH).unwrap();
            slow_lender.ready(seq, BATCH, Payload::Inline(Bytes::new()));
            take(&mut slow_lender);
        }
        assert_eq!(slow_lender.window, 4000);
    }
}
