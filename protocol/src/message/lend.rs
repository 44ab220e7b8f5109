//! What a lender says: the memory that it lends from, and the batches of its streams.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::{Extensions, Failure, Fencing, StreamStats};
use crate::ids::{LeaseId, RegionId, RemoteRange, StreamId};
use crate::layout::BatchDescriptor;

/// Most [`SortKey`]s of a stream. A result that is sorted by more comes without any.
pub const MAX_SORT_KEYS: usize = 256;

/// One column by which every partition of a result is sorted, so that merging them by it restores the result's order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SortKey {
    /// Its position in the schema, from 0.
    pub column: u32,
    /// Greatest first.
    pub descending: bool,
    /// Nulls before everything else, or after.
    pub nulls_first: bool,
}

/// A piece of the lender's memory that the borrower may read ranges of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Region {
    /// Its name among the lender's regions on this connection.
    pub id: RegionId,
    /// Address of its first byte in the lender's address space.
    pub base: u64,
    /// Its length in bytes.
    pub len: u64,
    /// The fabric's packed remote key, at most [`crate::codec::MAX_KEY`] bytes.
    #[serde(with = "crate::blob")]
    pub key: Bytes,
}

/// How an end lends: what its lease words are in, and how the other end proves that it can read them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lending {
    /// How lent memory is fenced.
    pub fencing: Fencing,
    /// The region of the lease words.
    pub words: Region,
    /// One more word in it.
    pub probe_at: RemoteRange,
    /// What the borrower must find there, little endian.
    pub probe_value: u64,
}

/// Where a lease's word is, and what stands in it as long as the lease does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeaseWord {
    /// The eight bytes, aligned.
    pub at: RemoteRange,
    /// Their value, little endian, while the lease stands. Never zero.
    pub value: u64,
}

/// A batch that is lent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LentBatch {
    /// The lease under which it is lent.
    pub lease: LeaseId,
    /// The lease word, if the fabric is fenced by it.
    pub word: Option<LeaseWord>,
    /// Shape of the batch.
    pub descriptor: BatchDescriptor,
    /// Where the descriptor's buffers are: one for each that is not empty, in order.
    pub places: Vec<RemoteRange>,
}

/// From the lender of a stream to its borrower.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum FromLender {
    /// No. 0: A region that lent batches will refer to.
    Region(Region),
    /// No. 1: Nothing is lent from that region any more.
    RegionGone(RegionId),
    /// No. 2: The stream begins. Payload: the schema, as an Arrow IPC stream begins.
    Schema {
        /// Of this stream.
        stream: StreamId,
        /// Where the stream is one partition of a sorted result: its keys, most significant first.
        order: Vec<SortKey>,
        /// Later additions.
        extensions: Extensions,
    },
    /// No. 3: A batch, or a piece of one, in the payload: Arrow IPC.
    Inline {
        /// Of this stream.
        stream: StreamId,
        /// Position of the batch in the stream, from 0.
        seq: u64,
        /// Bytes of the whole batch.
        bytes: u64,
        /// Whether more pieces of the same batch follow.
        more: bool,
    },
    /// No. 4: A batch on loan.
    Lent {
        /// Of this stream.
        stream: StreamId,
        /// Position of the batch in the stream, from 0.
        seq: u64,
        /// The rest.
        batch: LentBatch,
    },
    /// No. 5: The lender is blocked: the next batch of this stream needs this much credit. The borrower then grants all
    /// consumed credit at once (it otherwise grants in quarters of its window), and widens its window if one batch
    /// exceeds it or if both ends would otherwise wait for each other.
    CreditWanted {
        /// Of this stream.
        stream: StreamId,
        /// Credit that one batch needs.
        bytes: u64,
    },
    /// No. 6: The stream is whole.
    End {
        /// This stream.
        stream: StreamId,
        /// Number of its batches.
        batches: u64,
        /// The lender's figures.
        stats: StreamStats,
        /// Later additions.
        extensions: Extensions,
    },
    /// No. 7: The stream ends in an error. An upload may also be failed after its end, until it is answered.
    Failed {
        /// This stream.
        stream: StreamId,
        /// Which error.
        failure: Failure,
        /// Later additions.
        extensions: Extensions,
    },
}

impl FromLender {
    /// The name of its kind.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            FromLender::Region(_) => "region",
            FromLender::RegionGone(_) => "region-gone",
            FromLender::Schema { .. } => "schema",
            FromLender::Inline { .. } => "inline",
            FromLender::Lent { .. } => "lent",
            FromLender::CreditWanted { .. } => "credit-wanted",
            FromLender::End { .. } => "end",
            FromLender::Failed { .. } => "failed",
        }
    }
}
