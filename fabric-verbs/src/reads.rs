//! Reads of one endpoint: those that wait to be posted, and those that the device has.

use std::collections::VecDeque;

use ibverbs_sys as sys;
use sys::ibv_wc_status as wc;
use thallus_fabric::memory::LocalRange;
use thallus_fabric::{Completion, ReadFailure, ReadToken};

use crate::queue::QueuePair;
use crate::status::read_failure;

/// In a chain of reads, every so many ask for a completion, as does the last. The device completes reads of a queue
/// pair in order, so that one success stands for all before it.
const SIGNAL_EVERY: usize = 8;

/// A read, and where it lands: kept until its completion is handed over, whatever became of whoever asked.
#[derive(Debug)]
pub(crate) struct Read {
    pub(crate) token: ReadToken,
    pub(crate) into: LocalRange,
    pub(crate) local_key: u32,
    pub(crate) remote_address: u64,
    pub(crate) remote_key: u32,
}

/// The table of reads under way. It owns their memory.
#[derive(Debug, Default)]
pub(crate) struct Reads {
    /// Asked for since the last poll, which posts them as one chain: one doorbell, few completions.
    queued: VecDeque<Read>,
    /// In the order in which the device has them.
    posted: VecDeque<Read>,
    /// Number of the first in `posted`, as its work request's id.
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

    /// Posts what waits. On an error some of it may be posted, and nothing of it is sure to complete before the queue
    /// pair is drained.
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
        // SAFETY: a chain with one place each, both of which outlive the call. The places are ranges of registered
        // memory, nobody else's while the table has them; it lets go of them after their completion, or after the queue
        // pair was destroyed.
        unsafe { pair.post(start) }
    }

    /// The device completed the read with this number, and with it all before.
    pub(crate) fn completed(&mut self, number: u64, error: Option<(wc::Type, u32)>, done: &mut Vec<Completion>) {
        let Some(before) = number.checked_sub(self.first).filter(|&before| before < self.posted.len() as u64) else {
            return;
        };
        for _ in 0..before {
            self.end_first(Ok(()), done);
        }
        self.end_first(error.map_or(Ok(()), |(status, vendor)| Err(read_failure(status, vendor))), done);
    }

    /// The device has none of them any more: those that were not completed never will be.
    pub(crate) fn flush(&mut self, done: &mut Vec<Completion>) {
        while !self.posted.is_empty() {
            self.end_first(Err(ReadFailure::Flushed), done);
        }
        self.flush_queued(done);
    }

    /// Those that the device never had.
    pub(crate) fn flush_queued(&mut self, done: &mut Vec<Completion>) {
        let flushed = |read: Read| Completion { token: read.token, result: Err(ReadFailure::Flushed) };
        // After those that were asked for earlier: nothing depends on the order.
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
