//! Messages of a lender: the memory that it lends, and the batches of its streams.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::{Extensions, Failure, StreamStats};
use crate::ids::{LeaseId, RegionId, RemoteRange, StreamId};
use crate::layout::BatchDescriptor;

/// Maximum number of [`SortKey`]s of a stream. A result that is sorted by more columns is sent without any sort keys.
pub const MAX_SORT_KEYS: usize = 256;

/// One column by which every partition of a result is sorted. Merging the partitions by the keys restores the result's
/// order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SortKey {
    /// The column's position in the schema, from 0.
    pub column: u32,
    /// Whether the greatest value comes first.
    pub descending: bool,
    /// Whether nulls come first instead of last.
    pub nulls_first: bool,
}

/// A piece of the lender's memory that the borrower may read ranges of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Region {
    /// Its id among the lender's regions on this connection.
    pub id: RegionId,
    /// Address of its first byte in the lender's address space.
    pub base: u64,
    /// Its length in bytes.
    pub len: u64,
    /// The fabric's packed remote key, at most [`crate::codec::MAX_KEY`] bytes.
    #[serde(with = "crate::blob")]
    pub key: Bytes,
}

/// How a lender prevents late reads of lent memory from being used after the lease has ended without a release.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Fencing {
    /// The fabric refuses reads of revoked memory: a read that succeeds has read memory on loan.
    Revocation,
    /// The borrower reads the lease word last, and delivers the batch only if the lease still stood.
    LeaseWord,
}

/// How an end lends: the region of its lease words, and the probe by which the other end proves that it can read them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lending {
    /// How lent memory is fenced.
    pub fencing: Fencing,
    /// The region of the lease words.
    pub words: Region,
    /// The range of the probe, one more word in that region.
    pub probe_at: RemoteRange,
    /// The value that the borrower must read there, little endian.
    pub probe_value: u64,
}

/// Place and value of a lease's word.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeaseWord {
    /// The eight bytes, aligned.
    pub at: RemoteRange,
    /// The value while the lease stands, little endian. Never zero.
    pub value: u64,
}

/// A batch that is lent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LentBatch {
    /// The lease under which it is lent.
    pub lease: LeaseId,
    /// The lease word, if the fabric's fencing is by lease word.
    pub word: Option<LeaseWord>,
    /// Shape of the batch.
    pub descriptor: BatchDescriptor,
    /// Places of the descriptor's buffers: one for each buffer that is not empty, in order.
    pub places: Vec<RemoteRange>,
}

/// From the lender of a stream to its borrower.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum FromLender {
    /// No. 0: A region that later lent batches refer to.
    Region(Region),
    /// No. 1: No later batch is lent from that region.
    RegionGone(RegionId),
    /// No. 2: The stream begins. Payload: the schema message of an Arrow IPC stream.
    Schema {
        /// The stream.
        stream: StreamId,
        /// If the stream is one partition of a sorted result: its sort keys, most significant first.
        order: Vec<SortKey>,
        /// Fields of later versions.
        extensions: Extensions,
    },
    /// No. 3: A batch, or a piece of one, in the payload: Arrow IPC.
    Inline {
        /// The stream.
        stream: StreamId,
        /// Position of the batch in the stream, from 0.
        seq: u64,
        /// Length of the whole batch in bytes.
        bytes: u64,
        /// Whether more pieces of the same batch follow.
        more: bool,
    },
    /// No. 4: A lent batch.
    Lent {
        /// The stream.
        stream: StreamId,
        /// Position of the batch in the stream, from 0.
        seq: u64,
        /// The batch.
        batch: LentBatch,
    },
    /// No. 5: The lender is blocked: the next batch of this stream needs `bytes` of credit. The borrower then grants
    /// all consumed credit at once (it otherwise grants in quarters of its window). It widens its window if one batch
    /// exceeds it, or if both ends would otherwise wait for each other.
    CreditWanted {
        /// The stream.
        stream: StreamId,
        /// Credit that one batch needs, in bytes.
        bytes: u64,
    },
    /// No. 6: The stream is complete.
    End {
        /// The stream.
        stream: StreamId,
        /// Number of batches of the stream.
        batches: u64,
        /// The lender's statistics.
        stats: StreamStats,
        /// Fields of later versions.
        extensions: Extensions,
    },
    /// No. 7: The stream ends in an error. The client may also fail an upload after its end, until the server has
    /// answered it.
    Failed {
        /// The stream.
        stream: StreamId,
        /// The error.
        failure: Failure,
        /// Fields of later versions.
        extensions: Extensions,
    },
}

impl FromLender {
    /// The name of the kind of message.
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
