//! Reads of one endpoint: queued reads, and reads that were posted to the device.

use std::collections::VecDeque;

use ibverbs_sys as sys;
use sys::ibv_wc_status as wc;
use thallus_fabric::memory::LocalRange;
use thallus_fabric::{Completion, ReadFailure, ReadToken};

use crate::queue::QueuePair;
use crate::status::read_failure;

/// Interval of signalled reads in a chain; the last read is signalled too. The device completes reads of a queue pair
/// in order, so that one success also stands for all reads before it.
const SIGNAL_EVERY: usize = 8;

/// A read, and its target. Kept until its completion is reported, even if the task that posted the read has ended.
#[derive(Debug)]
pub(crate) struct Read {
    pub(crate) token: ReadToken,
    pub(crate) into: LocalRange,
    pub(crate) local_key: u32,
    pub(crate) remote_address: u64,
    pub(crate) remote_key: u32,
}

/// The table of outstanding reads. It owns their memory.
#[derive(Debug, Default)]
pub(crate) struct Reads {
    /// Reads since the last poll. The next poll posts them as one chain, with one doorbell and few completions.
    queued: VecDeque<Read>,
    /// In the order of their posting.
    posted: VecDeque<Read>,
    /// Number of the first in `posted`. The number is the id of the work request.
    first: u64,
}

impl Reads {
    pub(crate) fn len(&self) -> usize {
        self.queued.len() + self.posted.len()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub(crate) fn contains(&self, token: ReadToken) -> bool {
        self.queued.iter().chain(&self.posted).any(|read| read.token == token)
    }

    pub(crate) fn queue(&mut self, read: Read) {
        self.queued.push_back(read);
    }

    /// Posts the queued reads. After an error some of them may be posted, and none of them is certain to complete
    /// before the queue pair is drained.
    pub(crate) fn post(&mut self, pair: &QueuePair) -> Result<(), String> {
        if self.queued.is_empty() {
            return Ok(());
        }
        let count = self.queued.len();
        let mut places: Vec<sys::ibv_sge> = self
            .queued
            .iter()
            .map(|read| sys::ibv_sge {
                addr: read.into.start().as_ptr() as u64,
                // `max_read` is far below 4 GiB.
                length: u32::try_from(read.into.len()).unwrap_or(u32::MAX),
                lkey: read.local_key,
            })
            .collect();
        let next = self.first + self.posted.len() as u64;
        let mut requests: Vec<sys::ibv_send_wr> = self
            .queued
            .iter()
            .zip(&mut places)
            .enumerate()
            .map(|(at, (read, place))| {
                let signalled = (at + 1) % SIGNAL_EVERY == 0 || at + 1 == count;
                let mut request = sys::ibv_send_wr {
                    wr_id: next + at as u64,
                    sg_list: place,
                    num_sge: 1,
                    opcode: sys::ibv_wr_opcode::IBV_WR_RDMA_READ,
                    send_flags: if signalled { sys::ibv_send_flags::IBV_SEND_SIGNALED.0 } else { 0 },
                    ..Default::default()
                };
                request.wr.rdma.remote_addr = read.remote_address;
                request.wr.rdma.rkey = read.remote_key;
                request
            })
            .collect();
        let start = requests.as_mut_ptr();
        for at in 1..count {
            // SAFETY: `at - 1` and `at` are within the vector, which does not move any more.
            unsafe { (*start.add(at - 1)).next = start.add(at) };
        }
        self.posted.append(&mut self.queued);
        // SAFETY: a chain with one scatter entry per request, both of which outlive the call. The entries are ranges of
        // registered memory, which no other code accesses while the table has them; the table drops them after their
        // completion, or after the queue pair was destroyed.
        unsafe { pair.post(start) }
    }

    /// The device completed the read with this number, and so all reads before it.
    pub(crate) fn completed(&mut self, number: u64, error: Option<(wc::Type, u32)>, done: &mut Vec<Completion>) {
        let Some(before) = number.checked_sub(self.first).filter(|&before| before < self.posted.len() as u64) else {
            return;
        };
        for _ in 0..before {
            self.end_first(Ok(()), done);
        }
        self.end_first(error.map_or(Ok(()), |(status, vendor)| Err(read_failure(status, vendor))), done);
    }

    /// Flushes all reads. The device has none of them any more: those without a completion will never have one.
    pub(crate) fn flush(&mut self, done: &mut Vec<Completion>) {
        while !self.posted.is_empty() {
            self.end_first(Err(ReadFailure::Flushed), done);
        }
        self.flush_queued(done);
    }

    /// Flushes the reads that were never posted.
    pub(crate) fn flush_queued(&mut self, done: &mut Vec<Completion>) {
        let flushed = |read: Read| Completion { token: read.token, result: Err(ReadFailure::Flushed) };
        // Behind reads that were posted earlier. Nothing depends on the order.
        done.extend(self.queued.drain(..).map(flushed));
    }

    fn end_first(&mut self, result: Result<(), ReadFailure>, done: &mut Vec<Completion>) {
        if let Some(Read { token, into, .. }) = self.posted.pop_front() {
            drop(into);
            self.first += 1;
            done.push(Completion { token, result });
        }
    }
}
