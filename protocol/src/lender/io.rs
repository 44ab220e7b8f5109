//! Inputs and outputs of a lender's half of a connection.

use std::time::Duration;

use bytes::Bytes;

use super::LeaseEnd;
use crate::codes::CancelReason;
use crate::ids::{LeaseId, RegionId, RemoteRange, StreamId};
use crate::layout::BatchDescriptor;
use crate::message::{Access, Failure, FromLender, LendFrom, Region, SortKey, Thresholds};

/// Options of a stream that is lent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LendOptions {
    /// Initial credit in bytes.
    pub credit: u64,
    /// The size from which on batches are lent.
    pub lend_from: LendFrom,
    /// Measured thresholds for [`LendFrom::Auto`]. `None`: [`super::LenderConfig::thresholds`].
    pub measured: Option<Thresholds>,
    /// How the borrower accesses lent batches.
    pub access: Access,
    /// The stream ends in an error after this time.
    pub deadline: Option<Duration>,
}

/// A batch of column buffers to be lent. Its memory is not open to the borrower yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Loan {
    /// The id of the lease. The driver chooses it, above all earlier ones.
    pub lease: LeaseId,
    /// Shape of the batch.
    pub descriptor: BatchDescriptor,
    /// Bytes that were copied so that the batch can be lent.
    pub staged: u64,
    /// Other work that was needed to make the batch readable.
    pub cost: LoanCost,
}

/// Work that was needed to make a batch readable, besides copies. All 0 in steady state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LoanCost {
    /// Number of registrations of memory.
    pub registrations: u64,
    /// Number of page faults.
    pub page_faults: u64,
}

/// Commands and reports of the driver to a lender.
#[derive(Debug)]
pub enum LenderCommand {
    /// The stream's schema, as the schema message of an Arrow IPC stream.
    Schema {
        /// The stream.
        stream: StreamId,
        /// IPC bytes.
        schema: Bytes,
        /// The keys that a partition is sorted by, at most [`crate::message::MAX_SORT_KEYS`] of them.
        order: Vec<SortKey>,
    },
    /// Answers [`LenderTask::Pull`] with a batch to be lent.
    Lend {
        /// The stream.
        stream: StreamId,
        /// The batch.
        loan: Loan,
        /// Number of rows.
        rows: u64,
    },
    /// Answers [`LenderTask::Pull`] with a batch to be sent inline.
    Inline {
        /// The stream.
        stream: StreamId,
        /// IPC bytes.
        ipc: Bytes,
        /// Number of rows.
        rows: u64,
    },
    /// Answers [`LenderTask::Pull`]: there are no more batches.
    Finish {
        /// The stream.
        stream: StreamId,
        /// Execution time of the engine, in nanoseconds.
        execute_nanos: u64,
    },
    /// The source of the batches failed.
    Fail {
        /// The stream.
        stream: StreamId,
        /// The error.
        failure: Failure,
    },
    /// Answers [`LenderTask::OpenLease`]: the word is set and the memory is open to the borrower.
    Exposed {
        /// The lease.
        lease: LeaseId,
        /// Regions that were not announced to the borrower yet.
        announce: Vec<Region>,
        /// Places of the batch's buffers: one for each buffer that is not empty.
        places: Vec<RemoteRange>,
    },
    /// Answers [`LenderTask::OpenLease`]: the memory cannot be opened. Nothing is lent from now on, as after
    /// [`super::Lender::path_down`].
    NotExposed {
        /// The lease.
        lease: LeaseId,
        /// Regions that were opened before the failure, and were not announced to the borrower yet.
        announce: Vec<Region>,
        /// The reason.
        reason: String,
    },
    /// No lease uses this region any more.
    Retire(RegionId),
}

/// Tasks of a lender for its driver.
#[derive(Debug)]
pub enum LenderTask {
    /// Hand over the next batch of a stream, or its end.
    ///
    /// A driver whose queue to the socket is long delays its answer. Credit bounds only the bytes in flight to a
    /// borrower that reads. A borrower that grants credit but does not read the connection is bounded by this delay
    /// alone.
    Pull {
        /// The stream.
        stream: StreamId,
        /// Live bytes from which on the batch is to be lent. `None`: inline, whatever its size.
        lend_from: Option<u64>,
        /// True if the credit suffices for one more batch after this one, if it is no larger than the largest before.
        /// Otherwise the source should not prepare one: the borrower may never grant credit for it.
        ahead: bool,
    },
    /// Stop the source of a stream's batches. Later commands for the stream are ignored, and its loans withdrawn.
    Stop {
        /// The stream.
        stream: StreamId,
        /// The reason, if the borrower cancelled the stream.
        reason: Option<CancelReason>,
        /// The failure that is sent to the borrower, if the stream failed at this end.
        failure: Option<Failure>,
    },
    /// A lease begins: set its word, open its memory to the borrower, then answer with [`LenderCommand::Exposed`] or
    /// [`LenderCommand::NotExposed`], before any other work for this connection.
    OpenLease {
        /// The lease.
        lease: LeaseId,
        /// The slot and the value of the word, if the fencing is by lease word.
        word: Option<(u32, u64)>,
    },
    /// A lease has ended: clear its word first; after that its memory may be reused.
    EndLease {
        /// The lease.
        lease: LeaseId,
        /// The slot of its word.
        slot: Option<u32>,
        /// How the lease ended.
        end: LeaseEnd,
    },
}

/// Outputs of a lender's half.
#[derive(Debug)]
pub enum LenderOutput {
    /// Send a message with this payload to the borrower.
    Send(FromLender, Bytes),
    /// A task for the driver.
    Task(LenderTask),
}
