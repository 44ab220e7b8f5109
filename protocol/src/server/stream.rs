//! A stream at the lender: what the engine has handed over and the borrower has not been sent.

use std::time::Duration;

use bytes::Bytes;

use crate::credit::{Credit, batch_cost};
use crate::message::{Delivery, ExecuteOptions, StreamStats};
use crate::server::Loan;
use crate::time::Timestamp;

/// A batch that waits for credit.
#[derive(Debug)]
pub(crate) enum Pending {
    Lent(Loan),
    Inline(Bytes),
}

impl Pending {
    /// Bytes that it takes up at the borrower.
    pub(crate) fn bytes(&self) -> u64 {
        match self {
            Pending::Lent(loan) => loan.descriptor.slab_bytes(),
            Pending::Inline(ipc) => ipc.len() as u64,
        }
    }

    pub(crate) fn cost(&self) -> u64 {
        batch_cost(self.bytes())
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// The engine plans.
    Planning,
    /// A batch has been asked for.
    Pulled,
    /// A batch waits for credit, or was just sent.
    Idle,
}

#[derive(Debug)]
pub(crate) struct OutgoingStream {
    pub(crate) options: ExecuteOptions,
    pub(crate) credit: Credit,
    pub(crate) pending: Option<Pending>,
    pub(crate) seq: u64,
    pub(crate) stats: StreamStats,
    /// Whether the borrower was told how much the pending batch needs, or the next one if none is pending.
    pub(crate) wanted_said: bool,
    pub(crate) finished: bool,
    /// Bytes of the largest batch that was lent.
    pub(crate) largest: u64,
    phase: Phase,
    started: Timestamp,
    blocked_since: Option<Timestamp>,
}

impl OutgoingStream {
    pub(crate) fn new(options: ExecuteOptions, now: Timestamp) -> Self {
        OutgoingStream {
            credit: Credit::new(options.credit),
            options,
            pending: None,
            seq: 0,
            stats: StreamStats::default(),
            wanted_said: false,
            finished: false,
            largest: 0,
            phase: Phase::Planning,
            started: now,
            blocked_since: None,
        }
    }

    pub(crate) fn deadline(&self) -> Option<Duration> {
        self.options.deadline_ms.map(Duration::from_millis)
    }

    /// A bug on purpose.
    #[cfg(feature = "planted-bugs")]
    pub(crate) fn without_deadline_if(mut self, planted: bool) -> Self {
        self.options.deadline_ms = self.options.deadline_ms.filter(|_| !planted);
        self
    }

    /// Whether the schema is out.
    pub(crate) fn is_running(&self) -> bool {
        self.phase != Phase::Planning
    }

    pub(crate) fn is_pulled(&self) -> bool {
        self.phase == Phase::Pulled
    }

    pub(crate) fn running(&mut self) {
        self.phase = Phase::Idle;
    }

    /// Whether the next batch should be asked for.
    pub(crate) fn is_idle(&self) -> bool {
        self.phase == Phase::Idle && self.pending.is_none() && !self.finished
    }

    /// Whether the next batch should be asked for; then it counts as asked for.
    pub(crate) fn pull(&mut self) -> bool {
        let due = self.is_idle();
        if due {
            self.phase = Phase::Pulled;
        }
        due
    }

    /// The engine's answer to a pull.
    pub(crate) fn handed_over(&mut self, pending: Option<Pending>, rows: u64, now: Timestamp) {
        self.phase = Phase::Idle;
        match pending {
            Some(batch) => {
                if self.stats.first_batch_nanos == 0 {
                    self.stats.first_batch_nanos = nanos(now.since(self.started));
                }
                self.stats.rows += rows;
                self.wanted_said = false;
                self.pending = Some(batch);
            }
            None => self.finished = true,
        }
    }

    /// From which size on the next batch is lent, given that there is a data plane.
    pub(crate) fn lend_from(&self, default: u64) -> Option<u64> {
        match self.options.delivery {
            Delivery::Inline => None,
            Delivery::Lent => Some(0),
            Delivery::Auto | Delivery::Mapped(_) => {
                Some(self.options.inline_threshold.map_or(default, |from| from.of(self.seq)))
            }
        }
    }

    /// Whether what is lent stays on loan for as long as the borrower likes.
    pub(crate) fn is_mapped(&self) -> bool {
        matches!(self.options.delivery, Delivery::Mapped(_))
    }

    /// A batch is ready and credit is not.
    pub(crate) fn blocked(&mut self, now: Timestamp) {
        self.blocked_since.get_or_insert(now);
    }

    /// Accounts for the pending batch's going out.
    pub(crate) fn sent(&mut self, batch: &Pending, now: Timestamp) -> u64 {
        // What the next one needs has not been said.
        self.wanted_said = false;
        if let Some(since) = self.blocked_since.take() {
            self.stats.credit_wait_nanos += nanos(now.since(since));
        }
        match batch {
            Pending::Lent(loan) => {
                self.stats.batches_lent += 1;
                self.largest = self.largest.max(loan.descriptor.slab_bytes());
                self.stats.bytes_lent += loan.descriptor.live_bytes();
                self.stats.bytes_staged += loan.staged;
                self.stats.registrations += loan.effort.registrations;
                self.stats.regions += loan.effort.regions;
                self.stats.page_faults += loan.effort.page_faults;
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
