//! What the two ends say to each other on the control plane.
//!
//! A message is postcard in a frame (see [`crate::codec`]); bulk bytes (schemas, inline batches) ride behind the message
//! in the same frame, so that they are never copied through the serializer. The golden bytes in `tests/golden.rs` pin the
//! format: variants and fields are only ever appended, and only behind a negotiated feature or version.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::codes::{CancelReason, CloseCode, StreamCode};
use crate::ids::{FabricKind, GroupId, LeaseId, RegionId, RemoteRange, StreamId};
use crate::layout::BatchDescriptor;

/// How a lender fences lent memory; see `architecture`, "Fencing".
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Fencing {
    /// The fabric refuses reads once the lender revoked them: a read that succeeded is a read of memory on loan.
    Revocation,
    /// The borrower reads the lease word last, and delivers only if the lease still stood.
    LeaseWord,
}

/// One fabric that the client can use, and how to reach it there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FabricOffer {
    /// Which fabric.
    pub kind: FabricKind,
    /// The client endpoint's address blob, at most [`crate::codec::MAX_ADDRESS`] bytes.
    #[serde(with = "crate::blob")]
    pub address: Bytes,
}

/// The client's first message.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClientHello {
    /// What the client calls itself, for the server's log.
    pub name: String,
    /// Fabrics in the client's order of preference. Empty: inline only.
    pub fabrics: Vec<FabricOffer>,
}

/// The fabric that the server chose.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FabricChoice {
    /// One of those offered.
    pub kind: FabricKind,
    /// The server endpoint's address blob.
    #[serde(with = "crate::blob")]
    pub address: Bytes,
    /// How the server fences what it lends.
    pub fencing: Fencing,
    /// The region of the lease words.
    pub words: Region,
    /// One more word in it, which the client reads to prove the path before any query depends on it.
    pub probe_at: RemoteRange,
    /// What the client must find there, little endian.
    pub probe_value: u64,
}

/// Limits that a server sets for a connection.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServerLimits {
    /// Streams open at once.
    pub max_streams: u32,
    /// Bytes on loan at once, over all streams of the connection.
    pub max_loan_bytes: u64,
    /// Longest SQL text in bytes.
    pub max_sql_bytes: u32,
}

/// The server's answer to the hello.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServerHello {
    /// What the server calls itself.
    pub name: String,
    /// The fabric, or why there is none.
    pub fabric: Result<FabricChoice, String>,
    /// What the server allows.
    pub limits: ServerLimits,
}

/// A process of the server's host, by what nobody else ever has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ProcessId {
    /// Its number, in the namespace that it is in.
    pub pid: u32,
    /// When it began, in ticks since the host did: numbers are used again.
    pub started: u64,
}

/// How the client wants a result's batches to travel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Delivery {
    /// Lent from the threshold up, inline below.
    #[default]
    Auto,
    /// All inline: the pure-RPC baseline.
    Inline,
    /// All lent, however small.
    Lent,
    /// As [`Delivery::Auto`], but what is lent is not read: the client has a pointer to it. It is on loan until the client gives it
    /// back or this process, the client's, is gone; the connection's end does not end it.
    Mapped(ProcessId),
}

/// From how many live bytes on a batch is lent rather than inline.
///
/// Two sizes, since two things are weighed. Of a result that may be as good as over, it is how soon it is there, and a lent batch
/// is there two reads and a wake-up later than an inline one. Of a result that goes on and on, it is what a batch costs both ends,
/// and bytes inline are written, sent, received and put together, where lent ones are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct InlineThreshold {
    /// For the first [`FIRST_BATCHES`] batches of a result.
    pub first: u64,
    /// For the others.
    pub later: u64,
}

/// To so many batches of a result [`InlineThreshold::first`] applies.
pub const FIRST_BATCHES: u64 = 4;

impl InlineThreshold {
    /// The same for all batches.
    #[must_use]
    pub fn same(bytes: u64) -> Self {
        InlineThreshold { first: bytes, later: bytes }
    }

    /// For the batch of this number.
    #[must_use]
    pub fn of(self, seq: u64) -> u64 {
        if seq < FIRST_BATCHES { self.first } else { self.later }
    }
}

/// How a query is to be run.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExecuteOptions {
    /// How batches travel.
    pub delivery: Delivery,
    /// Rows a batch that the engine should aim at. `None`: the server's choice.
    pub batch_rows: Option<u32>,
    /// The stream ends in an error this many milliseconds after its start. `None`: no deadline.
    pub deadline_ms: Option<u64>,
    /// From which size on batches are lent rather than inline. `None`: the server's choice.
    pub inline_threshold: Option<InlineThreshold>,
    /// Bytes that the client can take before it grants more.
    pub credit: u64,
    /// Which part of the result this stream is to have. `None`: all of it.
    pub part: Option<Partition>,
    /// What is lent is read only as far as the client's application asks, and is on loan until that is done with it. So each batch has
    /// to be complete: it has its dictionaries, whatever the one before had.
    pub lazy: bool,
}

/// One partition of a result whose others travel on other streams, of this connection or of others to the same server.
///
/// All members of a group ask the same query in the same way, each for an index of its own. The server runs the query once,
/// when all have come, and ends all of them in the same error if one of them does not get to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Partition {
    /// Names the result on this server.
    pub group: GroupId,
    /// Which partition, from 0.
    pub index: u32,
    /// How many there are.
    pub count: u32,
}

/// Most [`SortKey`]s of a result. One that is sorted by more comes as if it were not.
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
    /// Its name on this connection.
    pub id: RegionId,
    /// Address of its first byte in the lender's address space.
    pub base: u64,
    /// Its length in bytes.
    pub len: u64,
    /// The fabric's packed remote key, at most [`crate::codec::MAX_KEY`] bytes.
    #[serde(with = "crate::blob")]
    pub key: Bytes,
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

/// What a stream was, said at its good end.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StreamStats {
    /// Rows sent.
    pub rows: u64,
    /// Batches sent as leases.
    pub batches_lent: u64,
    /// Batches sent inline.
    pub batches_inline: u64,
    /// Live bytes lent.
    pub bytes_lent: u64,
    /// Bytes of inline batches.
    pub bytes_inline: u64,
    /// Bytes that the server had to copy to registered memory before they could be lent.
    pub bytes_staged: u64,
    /// Registrations of memory that the server had to make for what it lent. 0 in steady state.
    pub registrations: u64,
    /// Regions that the server had to announce for what it lent: keys that the client had to take in. 0 in steady state.
    pub regions: u64,
    /// Page faults that the server took while it made batches ready to be lent. 0 in steady state.
    pub page_faults: u64,
    /// Nanoseconds from the query's arrival to the first batch out of the engine.
    pub first_batch_nanos: u64,
    /// Nanoseconds that the engine took in all, time waiting for credit left out.
    pub execute_nanos: u64,
    /// Nanoseconds in which a batch was ready and credit was not.
    pub credit_wait_nanos: u64,
}

/// From the client, the borrower of query results.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ToServer {
    /// First of all.
    Hello(ClientHello),
    /// The data plane works: the probe's word was read.
    FabricUp {
        /// What carries it, for the server's log.
        transport: String,
    },
    /// There is no data plane (any more). The server lends nothing from now on.
    FabricDown {
        /// Why.
        reason: String,
    },
    /// Run a query.
    Execute {
        /// Names the result from now on.
        stream: StreamId,
        /// The query.
        sql: String,
        /// How.
        options: ExecuteOptions,
    },
    /// More bytes may be sent. Cumulative, so that it only ever grows.
    Credit {
        /// On this stream.
        stream: StreamId,
        /// Bytes granted since the stream began.
        total: u64,
    },
    /// These leases' bytes have been read, or will not be.
    Release {
        /// Each exactly once.
        leases: Vec<LeaseId>,
    },
    /// Stop a query; what is on loan is still released one by one.
    Cancel {
        /// This stream.
        stream: StreamId,
        /// Why.
        reason: CancelReason,
    },
    /// Are you there?
    Ping(u64),
    /// I am.
    Pong(u64),
    /// The client is about to close the connection.
    Goodbye {
        /// Why.
        code: CloseCode,
        /// In words.
        message: String,
    },
}

/// From the server, the lender of query results.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ToClient {
    /// Answers the hello.
    Welcome(ServerHello),
    /// A region that lent batches will refer to.
    Region(Region),
    /// That region is not lent from any more.
    RegionGone(RegionId),
    /// The query runs. Payload: the schema, as an Arrow IPC stream begins.
    Schema {
        /// Of this stream.
        stream: StreamId,
        /// Where the stream is one partition of a sorted result: what it is sorted by, most significant first.
        order: Vec<SortKey>,
    },
    /// A batch, or a piece of one, in the payload: Arrow IPC.
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
    /// A batch on loan.
    Lent {
        /// Of this stream.
        stream: StreamId,
        /// Position of the batch in the stream, from 0.
        seq: u64,
        /// The rest.
        batch: LentBatch,
    },
    /// The next batch needs more credit than there is. The borrower, which grants in quarters of its window, grants what was taken
    /// at once if that might keep a batch of this size waiting for ever; it widens a window that is too small for one, or that
    /// has both ends wait.
    CreditWanted {
        /// Of this stream.
        stream: StreamId,
        /// Credit that one batch needs.
        bytes: u64,
    },
    /// The stream is whole.
    End {
        /// This stream.
        stream: StreamId,
        /// Batches that it had.
        batches: u64,
        /// What it took.
        stats: StreamStats,
    },
    /// The stream ends in an error.
    Failed {
        /// This stream.
        stream: StreamId,
        /// Which.
        code: StreamCode,
        /// In words.
        message: String,
    },
    /// Are you there?
    Ping(u64),
    /// I am.
    Pong(u64),
    /// No new streams are taken; what runs is finished. Or, with an error, the connection ends here.
    Goodbye {
        /// Why.
        code: CloseCode,
        /// In words.
        message: String,
    },
}
