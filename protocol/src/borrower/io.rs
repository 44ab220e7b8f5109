//! Inputs and outputs of a borrower's half of a connection.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use crate::error::{Cause, StreamError};
use crate::ids::{PartId, ReadId, RegionId, RemoteRange, StreamId};
use crate::layout::{CheckedDescriptor, Piece, Plan, SlabLayout};
use crate::message::{Access, FromBorrower, Region, SortKey, StreamStats};

/// Options of a stream that is borrowed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BorrowOptions {
    /// Initial credit in bytes. `None`: the lender may not send before [`super::Borrower::admit`].
    pub window: Option<u64>,
    /// Maximum size of the window in bytes.
    pub max_window: u64,
    /// How this end accesses lent batches.
    pub access: Access,
    /// The stream ends in an error after this time.
    pub deadline: Option<Duration>,
}

/// Commands and reports of the driver to a borrower.
#[derive(Debug)]
pub enum BorrowerCommand {
    /// The application took batches that cost this much credit. Not for batches on demand, see
    /// [`BorrowerCommand::ReleaseBatch`].
    Consumed {
        /// The stream.
        stream: StreamId,
        /// The sum of the costs in [`BorrowerEvent::Batch`].
        cost: u64,
    },
    /// The application requests a part of a batch that is on loan on demand. Either [`BorrowerEvent::PartRead`] or
    /// [`BorrowerEvent::PartFailed`] always follows. The number of requests is not limited, and a request may come
    /// before earlier parts have arrived.
    ReadPart {
        /// The batch's stream, which may have ended successfully in the meantime.
        stream: StreamId,
        /// The batch's position in the stream.
        seq: u64,
        /// Identifies the answer. No request of this batch with the same id may be unanswered.
        part: PartId,
        /// Ranges of the descriptor's buffers.
        pieces: Vec<Piece>,
    },
    /// The application is done with a batch on demand: its lease is released and its credit is granted again. Send this
    /// once for each such batch, also for those that were lost. Parts that are due are answered as cancelled.
    ///
    /// Or the application has unmapped a mapped batch: its lease is released. Its credit was granted again by
    /// [`BorrowerCommand::Consumed`].
    ReleaseBatch {
        /// The batch's stream.
        stream: StreamId,
        /// The batch's position in the stream.
        seq: u64,
    },
    /// All reads of [`BorrowerTask::Read`] have completed, or [`BorrowerTask::Map`] was attempted; and the lease word,
    /// if there is one to read, was read after that.
    ReadDone {
        /// The id of the read.
        read: ReadId,
        /// The lease word, or the first error.
        result: Result<Option<u64>, ReadError>,
    },
    /// A delivered batch is invalid: arrays cannot be built from it.
    ///
    /// The stream's successful end may have been announced together with its last batch, and is not withdrawn. A driver
    /// that rejects a batch must report the error to the application, and nothing that follows for that stream.
    Rejected {
        /// The stream.
        stream: StreamId,
        /// The batch's position in the stream.
        seq: u64,
        /// The problem.
        reason: String,
    },
    /// The application cancels the stream.
    Cancel {
        /// The stream.
        stream: StreamId,
    },
}

/// Reason why a batch's bytes could not be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ReadError {
    /// There is no memory to read into. No read was posted.
    NoMemory(Cause),
    /// A read failed.
    Failed(Cause),
}

impl ReadError {
    /// A failure that consists of a text only.
    #[must_use]
    pub fn failed(words: &str) -> Self {
        ReadError::Failed(words.into())
    }

    /// The error.
    #[must_use]
    pub fn cause(&self) -> &Cause {
        match self {
            ReadError::NoMemory(cause) | ReadError::Failed(cause) => cause,
        }
    }
}

/// A batch, or a part of one, to be read. Take a slab of `layout.len` bytes and post a read of each place into its
/// range. When all have completed successfully, read `lease_word`.
#[derive(Clone, Debug)]
pub struct ReadBatch {
    /// Identifies the read until the batch is delivered or discarded.
    pub read: ReadId,
    /// The stream.
    pub stream: StreamId,
    /// Positions of the buffers in the slab: one range for each of the descriptor's buffers, or for each of the
    /// requested pieces.
    pub layout: SlabLayout,
    /// For each buffer or piece that is not empty: its index, and the place to read it from.
    pub places: Vec<(usize, RemoteRange)>,
    /// The eight bytes of the lease word, if the fabric's fencing is by lease word.
    pub lease_word: Option<RemoteRange>,
}

/// The bytes of a delivered batch.
#[derive(Clone, Debug)]
pub enum Payload {
    /// Read into the slab of this read, laid out as [`ReadBatch::layout`] specifies.
    Lent {
        /// The read.
        read: ReadId,
        /// Shape of the batch.
        descriptor: Arc<CheckedDescriptor>,
    },
    /// In the lender's memory, on loan until [`BorrowerCommand::ReleaseBatch`]. That command also returns its cost;
    /// [`BorrowerCommand::Consumed`] does not.
    OnDemand {
        /// Shape of the batch.
        descriptor: Arc<CheckedDescriptor>,
    },
    /// Mapped by this read, and on loan until [`BorrowerCommand::ReleaseBatch`], even if its stream ends or fails.
    Mapped {
        /// The read.
        read: ReadId,
        /// Shape of the batch.
        descriptor: Arc<CheckedDescriptor>,
    },
    /// Arrow IPC.
    Inline(Bytes),
}

/// Events for the application of a stream.
#[derive(Clone, Debug)]
pub enum BorrowerEvent {
    /// The stream begins.
    Schema {
        /// The stream.
        stream: StreamId,
        /// The schema, decoded and compiled.
        plan: Plan,
        /// The keys that the stream is sorted by, if it is a partition of a sorted result. Each names a column of the
        /// schema.
        order: Vec<SortKey>,
    },
    /// The next batch of a stream. Either it is complete and its lease is proven, or it is on demand.
    Batch {
        /// The stream.
        stream: StreamId,
        /// The batch's position in the stream, from 0.
        seq: u64,
        /// The credit that [`BorrowerCommand::Consumed`] returns.
        cost: u64,
        /// The batch's bytes.
        payload: Payload,
    },
    /// A part of a batch has been read, and its lease has been proven after that.
    PartRead {
        /// The batch's stream.
        stream: StreamId,
        /// The batch's position in the stream.
        seq: u64,
        /// The part.
        part: PartId,
        /// The read in whose slab the part is: one range for each piece.
        read: ReadId,
    },
    /// A part of a batch could not be read.
    PartFailed {
        /// The batch's stream.
        stream: StreamId,
        /// The batch's position in the stream.
        seq: u64,
        /// The part.
        part: PartId,
        /// The error. Another attempt can succeed only after [`StreamError::OutOfMemory`].
        error: StreamError,
    },
    /// A stream is complete. Parts of its batches on demand can still be read.
    End {
        /// The stream.
        stream: StreamId,
        /// The lender's statistics.
        stats: StreamStats,
    },
    /// A stream ended in an error. No event follows for it, and its batches on demand are lost.
    Failed {
        /// The stream.
        stream: StreamId,
        /// The error.
        error: StreamError,
    },
}

/// Tasks of a borrower for its driver.
#[derive(Debug)]
pub enum BorrowerTask {
    /// Import a region. A failure is not reported here: later reads of the region fail.
    Import(Region),
    /// Drop an imported region.
    UnimportRegion(RegionId),
    /// Read a batch.
    Read(ReadBatch),
    /// Map a batch's places. No slab is needed, and only the lease word is read. [`BorrowerCommand::ReadDone`] answers,
    /// as for reads.
    Map(ReadBatch),
    /// Drop the slab or the mapping of this read at once.
    Discard {
        /// The read.
        read: ReadId,
    },
}

/// Outputs of a borrower's half.
#[derive(Debug)]
pub enum BorrowerOutput {
    /// Send a message to the lender.
    Send(FromBorrower),
    /// A task for the driver.
    Task(BorrowerTask),
    /// An event for the application.
    Event(BorrowerEvent),
}
