//! What goes into a lender's half of a connection, and what comes out.

use std::time::Duration;

use bytes::Bytes;

use super::LeaseEnd;
use crate::codes::CancelReason;
use crate::ids::{LeaseId, RegionId, RemoteRange, StreamId};
use crate::layout::BatchDescriptor;
use crate::message::{Access, Failure, FromLender, LendFrom, Region, SortKey, Thresholds};

/// How a stream is to be lent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LendOptions {
    /// Bytes that the borrower takes before it grants more.
    pub credit: u64,
    /// From which size on batches are lent.
    pub lend_from: LendFrom,
    /// For [`LendFrom::Auto`]. `None`: [`super::LenderConfig::thresholds`].
    pub measured: Option<Thresholds>,
    /// How the borrower gets at what is lent.
    pub access: Access,
    /// The stream ends in an error after this time.
    pub deadline: Option<Duration>,
}

/// A batch of column buffers to be lent. Its memory is not open to the borrower yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Loan {
    /// Chosen by the driver, above all before.
    pub lease: LeaseId,
    /// Shape of the batch.
    pub descriptor: BatchDescriptor,
    /// Bytes that had to be copied for the batch to be lent.
    pub staged: u64,
    /// Other work that it took to make the batch readable.
    pub effort: LoanEffort,
}

/// Work that it took to make a batch readable, besides copies: none, in steady state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LoanEffort {
    /// Registrations of memory.
    pub registrations: u64,
    /// Page faults.
    pub page_faults: u64,
}

/// What the driver reports or asks.
#[derive(Debug)]
pub enum LenderCommand {
    /// The stream's schema, as an Arrow IPC stream begins.
    Schema {
        /// Of this stream.
        stream: StreamId,
        /// IPC bytes.
        schema: Bytes,
        /// The keys that a partition is sorted by; at most [`crate::message::MAX_SORT_KEYS`].
        order: Vec<SortKey>,
    },
    /// Answers [`LenderTask::Pull`] with a batch to be lent.
    Lend {
        /// Of this stream.
        stream: StreamId,
        /// The batch.
        loan: Loan,
        /// Rows in it.
        rows: u64,
    },
    /// Answers [`LenderTask::Pull`] with a batch to be sent inline.
    Inline {
        /// Of this stream.
        stream: StreamId,
        /// IPC bytes.
        ipc: Bytes,
        /// Rows in it.
        rows: u64,
    },
    /// Answers [`LenderTask::Pull`]: there are no more batches.
    Finish {
        /// This stream.
        stream: StreamId,
        /// Nanoseconds that the engine took.
        execute_nanos: u64,
    },
    /// The source of the batches failed.
    Fail {
        /// This stream.
        stream: StreamId,
        /// Which error.
        failure: Failure,
    },
    /// Answers [`LenderTask::OpenLease`]: the word is set and the memory open to the borrower.
    Exposed {
        /// Which lease.
        lease: LeaseId,
        /// Regions that the borrower does not have yet.
        announce: Vec<Region>,
        /// Where the batch's buffers are: one for each that is not empty.
        places: Vec<RemoteRange>,
    },
    /// Answers [`LenderTask::OpenLease`]: the memory cannot be opened.
    NotExposed {
        /// Which lease.
        lease: LeaseId,
        /// Regions that were opened before that showed, and that the borrower does not have yet.
        announce: Vec<Region>,
        /// Why.
        reason: String,
    },
    /// No lease uses that region any more.
    Retire(RegionId),
}

/// What a lender wants its driver to do.
#[derive(Debug)]
pub enum LenderTask {
    /// Hand over the next batch of a stream, or its end.
    ///
    /// A driver with much left to write waits with its answer: credit bounds what a borrower that reads has in flight,
    /// and only this bounds what is queued for one that grants and does not read.
    Pull {
        /// This stream.
        stream: StreamId,
        /// Live bytes from which on the batch is to be lent; `None`: inline, whatever its size.
        lend_from: Option<u64>,
    },
    /// Stop the source of a stream's batches. Commands that still come for it are ignored, and loans withdrawn.
    Stop {
        /// This stream.
        stream: StreamId,
        /// Why, if the borrower gave it up.
        reason: Option<CancelReason>,
        /// The failure that the borrower is told, if it failed here.
        failure: Option<Failure>,
    },
    /// A lease begins: set its word, open its memory to the borrower, then answer with [`LenderCommand::Exposed`] or
    /// [`LenderCommand::NotExposed`], before anything else is done for this connection.
    OpenLease {
        /// Which.
        lease: LeaseId,
        /// The word's slot and value, where leases are fenced by words.
        word: Option<(u32, u64)>,
    },
    /// A lease ended: clear its word first, then its memory may be reused.
    EndLease {
        /// Which.
        lease: LeaseId,
        /// Its word's slot.
        slot: Option<u32>,
        /// How it ended.
        end: LeaseEnd,
    },
}

/// What comes out of a lender's half.
#[derive(Debug)]
pub enum LenderOutput {
    /// Tell the borrower, with this payload.
    Say(FromLender, Bytes),
    /// For the driver.
    Do(LenderTask),
}
