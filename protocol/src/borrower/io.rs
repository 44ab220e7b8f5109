//! What goes into a borrower's half of a connection, and what comes out.

use std::sync::Arc;
use std::time::Duration;

use arrow_schema::SchemaRef;
use bytes::Bytes;

use crate::error::{Cause, StreamError};
use crate::ids::{PartId, ReadId, RegionId, RemoteRange, StreamId};
use crate::layout::{CheckedDescriptor, Piece, SlabLayout};
use crate::message::{Access, FromBorrower, Region, SortKey, StreamStats};

/// How a stream is to be borrowed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BorrowOptions {
    /// Bytes granted at first. `None`: the lender may not send before [`super::Borrower::admit`].
    pub window: Option<u64>,
    /// Bytes that the window may grow to.
    pub most: u64,
    /// How this end gets at what is lent.
    pub access: Access,
    /// The stream ends in an error after this time.
    pub deadline: Option<Duration>,
}

/// What the driver reports or asks.
#[derive(Debug)]
pub enum BorrowerCommand {
    /// The application took batches that cost so much credit. Not for batches on demand, see
    /// [`BorrowerCommand::GiveUp`].
    Consumed {
        /// This stream.
        stream: StreamId,
        /// [`BorrowerEvent::Batch`]'s cost.
        cost: u64,
    },
    /// The application asks for a part of a batch that is on loan on demand: [`BorrowerEvent::PartRead`] or
    /// [`BorrowerEvent::PartFailed`] answers, whatever happens. It may ask as often as it likes, also before earlier
    /// parts have come.
    ReadPart {
        /// The batch's stream, which may have ended well since.
        stream: StreamId,
        /// The batch's position in it.
        seq: u64,
        /// Names the answer; no answer of this name may be due for this batch.
        part: PartId,
        /// Ranges of the descriptor's buffers.
        pieces: Vec<Piece>,
    },
    /// The application is done with a batch on demand: its lease and its credit are given back. To be said once for
    /// each, also for those that were lost; parts that are due are answered as cancelled. Or it is done with a mapped
    /// batch, of which nothing is mapped any more: its lease is given back; its credit was by
    /// [`BorrowerCommand::Consumed`].
    GiveUp {
        /// The batch's stream.
        stream: StreamId,
        /// The batch's position in it.
        seq: u64,
    },
    /// All reads of [`BorrowerTask::Read`] have completed, or [`BorrowerTask::Map`] has been tried, and the lease word
    /// has been read after that if one was to be.
    ReadDone {
        /// Which.
        read: ReadId,
        /// The lease word; or the first error.
        result: Result<Option<u64>, ReadProblem>,
    },
    /// A delivered batch is invalid: arrays cannot be built from it.
    ///
    /// The stream's good end may have been said along with its last batch, and is not taken back: whoever rejects a
    /// batch tells the application so, and nothing that follows for that stream.
    Rejected {
        /// This stream.
        stream: StreamId,
        /// Which batch.
        seq: u64,
        /// The problem.
        reason: String,
    },
    /// The application does not want the stream any more.
    Cancel {
        /// This stream.
        stream: StreamId,
    },
}

/// Why a batch's bytes are not there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ReadProblem {
    /// There is no memory to read into; nothing was posted.
    NoMemory(Cause),
    /// A read failed.
    Failed(Cause),
}

impl ReadProblem {
    /// A failure without an error of its own.
    #[must_use]
    pub fn failed(words: &str) -> Self {
        ReadProblem::Failed(words.into())
    }

    /// The error.
    #[must_use]
    pub fn cause(&self) -> &Cause {
        match self {
            ReadProblem::NoMemory(cause) | ReadProblem::Failed(cause) => cause,
        }
    }
}

/// A batch, or a part of one, to be read: take a slab of `layout.len` bytes, post a read for each place into its range;
/// when all have completed well, read `then_word`.
#[derive(Clone, Debug)]
pub struct ReadBatch {
    /// Names it until it is delivered or discarded.
    pub read: ReadId,
    /// For its stream.
    pub stream: StreamId,
    /// Where the buffers go in the slab: one range for each of the descriptor's buffers, or of the pieces that were
    /// asked for.
    pub layout: SlabLayout,
    /// Which buffer or piece comes from where; empty buffers have no place.
    pub places: Vec<(usize, RemoteRange)>,
    /// The eight bytes of the lease word, where the lease is proven by it.
    pub then_word: Option<RemoteRange>,
}

/// The bytes of a delivered batch.
#[derive(Clone, Debug)]
pub enum Payload {
    /// In the slab of this read, laid out as [`ReadBatch::layout`] said.
    Lent {
        /// Which read.
        read: ReadId,
        /// Shape of the batch.
        descriptor: Arc<CheckedDescriptor>,
    },
    /// In the lender's memory, and on loan until [`BorrowerCommand::GiveUp`]. Its cost is given back with that, and not
    /// by [`BorrowerCommand::Consumed`].
    OnDemand {
        /// Shape of the batch.
        descriptor: Arc<CheckedDescriptor>,
    },
    /// Mapped, by this read, and on loan until [`BorrowerCommand::GiveUp`], whatever becomes of its stream.
    Mapped {
        /// Which read.
        read: ReadId,
        /// Shape of the batch.
        descriptor: Arc<CheckedDescriptor>,
    },
    /// Arrow IPC.
    Inline(Bytes),
}

/// What the application of a stream is told.
#[derive(Clone, Debug)]
pub enum BorrowerEvent {
    /// The stream begins.
    Schema {
        /// Of this stream.
        stream: StreamId,
        /// Decoded.
        schema: SchemaRef,
        /// As it came, for the inline decoder.
        ipc: Bytes,
        /// The keys that the stream is sorted by, if it is a partition of a sorted result. Every column is one of the
        /// schema's.
        order: Vec<SortKey>,
    },
    /// The next batch of a stream, all of it there, its lease proven; or on demand.
    Batch {
        /// Of this stream.
        stream: StreamId,
        /// Its position, from 0.
        seq: u64,
        /// The credit that [`BorrowerCommand::Consumed`] gives back.
        cost: u64,
        /// Its bytes.
        payload: Payload,
    },
    /// A part of a batch has been read, and its lease was proven since.
    PartRead {
        /// The batch's stream.
        stream: StreamId,
        /// The batch.
        seq: u64,
        /// Which part.
        part: PartId,
        /// In this read's slab: one range for each piece.
        read: ReadId,
    },
    /// A part of a batch does not come.
    PartFailed {
        /// The batch's stream.
        stream: StreamId,
        /// The batch.
        seq: u64,
        /// Which part.
        part: PartId,
        /// Why. Only after [`StreamError::OutOfMemory`] is it of use to ask again.
        error: StreamError,
    },
    /// A stream is whole. Parts of its batches on demand can still be read.
    End {
        /// This stream.
        stream: StreamId,
        /// The lender's figures.
        stats: StreamStats,
    },
    /// A stream ended in an error. Nothing more comes for it, and its batches on demand are lost.
    Failed {
        /// This stream.
        stream: StreamId,
        /// Which.
        error: StreamError,
    },
}

/// What a borrower wants its driver to do.
#[derive(Debug)]
pub enum BorrowerTask {
    /// Take in a region. If it cannot be, reads of it fail, and that is how it is reported.
    Import(Region),
    /// Drop a region.
    Forget(RegionId),
    /// Read a batch.
    Read(ReadBatch),
    /// Map a batch's places: no slab, and nothing is read but the lease word. Answered by [`BorrowerCommand::ReadDone`]
    /// as reads are.
    Map(ReadBatch),
    /// The slab of this read is not wanted any more, or what it mapped: to be dropped at once.
    Discard {
        /// Which.
        read: ReadId,
    },
}

/// What comes out of a borrower's half.
#[derive(Debug)]
pub enum BorrowerOutput {
    /// Tell the lender.
    Say(FromBorrower),
    /// For the driver.
    Do(BorrowerTask),
    /// For the application.
    Event(BorrowerEvent),
}
