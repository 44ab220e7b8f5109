//! A stream at its lender: batches that its source has handed over and that are not sent yet.

use std::time::Duration;

use bytes::Bytes;

use super::{LendOptions, Loan};
use crate::credit::{BATCH_OVERHEAD, Credit, batch_cost};
use crate::ids::LeaseId;
use crate::message::{Access, LeaseWord, LendFrom, StreamStats, Thresholds};
use crate::time::Timestamp;

/// A batch that waits for credit.
#[derive(Debug)]
pub(super) enum Pending {
    Lent(Loan),
    Inline(Bytes),
}

impl Pending {
    /// Bytes that the batch takes up at the borrower.
    pub(super) fn bytes(&self) -> u64 {
        match self {
            Pending::Lent(loan) => loan.descriptor.slab_bytes(),
            Pending::Inline(ipc) => ipc.len() as u64,
        }
    }

    pub(super) fn cost(&self) -> u64 {
        batch_cost(self.bytes())
    }
}

/// A batch whose lease stands, and whose memory the driver is opening.
#[derive(Debug)]
pub(super) struct Exposing {
    pub(super) loan: Loan,
    pub(super) seq: u64,
    pub(super) word: Option<LeaseWord>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// There is no schema yet.
    Planning,
    /// A batch has been pulled.
    Pulled,
    /// A batch waits for credit, or was just sent.
    Idle,
}

#[derive(Debug)]
pub(super) struct LentStream {
    options: LendOptions,
    pub(super) credit: Credit,
    pub(super) pending: Option<Pending>,
    pub(super) exposing: Option<Exposing>,
    pub(super) seq: u64,
    pub(super) stats: StreamStats,
    /// Whether the credit needed by the pending batch, or by the next one if none is pending, has been requested.
    pub(super) credit_request_sent: bool,
    pub(super) finished: bool,
    /// Bytes of the largest batch that was lent.
    pub(super) largest: u64,
    /// Cost of the largest batch so far, lent or inline.
    pub(super) largest_cost: u64,
    phase: Phase,
    started: Timestamp,
    blocked_since: Option<Timestamp>,
}

impl LentStream {
    pub(super) fn new(options: LendOptions, now: Timestamp) -> Self {
        LentStream {
            credit: Credit::new(options.credit),
            options,
            pending: None,
            exposing: None,
            seq: 0,
            stats: StreamStats::default(),
            credit_request_sent: false,
            finished: false,
            largest: 0,
            largest_cost: 0,
            phase: Phase::Planning,
            started: now,
            blocked_since: None,
        }
    }

    /// Returns whether the credit suffices for this number of batches, each as large as the largest so far.
    pub(super) fn has_credit_for(&self, batches: u64) -> bool {
        let needed = self.largest_cost.max(BATCH_OVERHEAD).saturating_mul(batches);
        self.credit.available() >= needed
    }

    /// The cost of the pending batch, if it waits for credit.
    pub(super) fn waiting_cost(&self) -> u64 {
        let cost = self.pending.as_ref().map_or(0, Pending::cost);
        if cost > self.credit.available() { cost } else { 0 }
    }

    /// The cost of the batch that waits for credit, or will probably wait once the source has made it.
    pub(super) fn expected_waiting_cost(&self) -> u64 {
        if self.is_pulled() && !self.has_credit_for(1) { self.largest_cost } else { self.waiting_cost() }
    }

    /// Whether the schema has been sent.
    pub(super) fn is_running(&self) -> bool {
        self.phase != Phase::Planning
    }

    pub(super) fn is_pulled(&self) -> bool {
        self.phase == Phase::Pulled
    }

    pub(super) fn running(&mut self) {
        self.phase = Phase::Idle;
    }

    /// Whether the memory of this lease is being opened.
    pub(super) fn is_exposing(&self, lease: LeaseId) -> bool {
        self.exposing.as_ref().is_some_and(|exposing| exposing.loan.lease == lease)
    }

    /// Whether a batch of the stream is about to be lent.
    pub(super) fn is_lending(&self) -> bool {
        matches!(self.pending, Some(Pending::Lent(_)))
            || self.exposing.is_some()
            || self.is_pulled() && self.options.lend_from != LendFrom::Never
    }

    /// Whether the next batch should be pulled.
    pub(super) fn is_idle(&self) -> bool {
        self.phase == Phase::Idle && self.pending.is_none() && self.exposing.is_none() && !self.finished
    }

    /// Whether the next batch should be pulled. If so, it counts as pulled.
    pub(super) fn pull(&mut self) -> bool {
        let due = self.is_idle();
        if due {
            self.phase = Phase::Pulled;
        }
        due
    }

    /// Processes the source's answer to a pull.
    pub(super) fn handed_over(&mut self, pending: Option<Pending>, rows: u64, now: Timestamp) {
        self.phase = Phase::Idle;
        match pending {
            Some(batch) => {
                if self.stats.first_batch_nanos == 0 {
                    self.stats.first_batch_nanos = nanos(now.since(self.started));
                }
                self.stats.rows += rows;
                self.credit_request_sent = false;
                self.largest_cost = self.largest_cost.max(batch.cost());
                self.pending = Some(batch);
            }
            None => self.finished = true,
        }
    }

    /// The size from which on the next batch is lent, if there is a data plane.
    pub(super) fn lend_from(&self, default: Thresholds) -> Option<u64> {
        match self.options.lend_from {
            LendFrom::Never => None,
            LendFrom::Bytes(bytes) => Some(bytes),
            LendFrom::Auto => Some(self.options.measured.unwrap_or(default).for_batch(self.seq)),
        }
    }

    /// Whether lent batches stay on loan without a time limit.
    pub(super) fn is_mapped(&self) -> bool {
        matches!(self.options.access, Access::Map(_))
    }

    /// Records that a batch is ready but credit is missing.
    pub(super) fn blocked(&mut self, now: Timestamp) {
        self.blocked_since.get_or_insert(now);
    }

    /// Accounts for the pending batch as sent. Returns its position.
    pub(super) fn sent(&mut self, batch: &Pending, now: Timestamp) -> u64 {
        // The credit for the next batch has not been requested.
        self.credit_request_sent = false;
        if let Some(since) = self.blocked_since.take() {
            self.stats.credit_wait_nanos += nanos(now.since(since));
        }
        match batch {
            Pending::Lent(loan) => {
                self.stats.batches_lent += 1;
                self.largest = self.largest.max(loan.descriptor.slab_bytes());
                self.stats.bytes_lent += loan.descriptor.live_bytes();
                self.stats.bytes_staged += loan.staged;
                self.stats.registrations += loan.cost.registrations;
                self.stats.page_faults += loan.cost.page_faults;
            }
            Pending::Inline(ipc) => {
                self.stats.batches_inline += 1;
                self.stats.bytes_inline += ipc.len() as u64;
            }
        }
        let seq = self.seq;
        self.seq += 1;
        seq
    }
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}
