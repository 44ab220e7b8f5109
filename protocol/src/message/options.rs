//! How a request is to be run, and how its batches travel: from which size on they are lent, and how the borrower gets
//! at them.

use serde::{Deserialize, Serialize};

use crate::ids::GroupId;

/// A process of the lender's host, named so that no other process ever has the same name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ProcessId {
    /// Its number, in its namespace of processes.
    pub pid: u32,
    /// When it began, in ticks since the host did: numbers are used again.
    pub started: u64,
}

/// From which size on a batch is lent instead of sent inline.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum LendFrom {
    /// No. 0: Every batch is sent inline.
    Never,
    /// No. 1: From the borrower's measured [`Thresholds`] on, or else the lender's own.
    #[default]
    Auto,
    /// No. 2: From this many live bytes on. 0: every batch is lent.
    Bytes(u64),
}

/// How the borrower gets at a lent batch. Whatever is sent inline has arrived already.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Access {
    /// No. 0: The borrower reads each batch when it is announced, and gives it back.
    #[default]
    Read,
    /// No. 1: The borrower reads the parts that its application asks for, and keeps the batch on loan until that is
    /// done with it. Each batch has its own dictionaries, whatever the one before had.
    OnDemand,
    /// No. 2: The borrower does not read: its application has a pointer to the lender's memory. The batch is on loan
    /// until the borrower gives it back or this process, the borrower's, is gone; the end of the connection does not
    /// end the loan. Each batch has its own dictionaries.
    Map(ProcessId),
}

impl Access {
    /// Whether each batch must be complete by itself, because not all of them are read in full, one after the other.
    #[must_use]
    pub fn needs_complete_batches(self) -> bool {
        self != Access::Read
    }
}

/// The first batches of a stream to which [`Thresholds::first`] applies.
pub const FIRST_BATCHES: u64 = 4;

/// From how many live bytes on a batch is lent, where neither end was told otherwise.
///
/// Two sizes, since two costs are weighed. For a result that may be almost over, latency counts: a lent batch arrives
/// two reads and a wake-up later than an inline one. For a long result, the cost of a batch at both ends counts: inline
/// bytes are written, sent, received and assembled, lent bytes are only read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Thresholds {
    /// For the first [`FIRST_BATCHES`] batches of a stream, in bytes.
    pub first: u64,
    /// For the others, in bytes.
    pub later: u64,
}

impl Thresholds {
    /// The same for all batches.
    #[must_use]
    pub fn same(bytes: u64) -> Self {
        Thresholds { first: bytes, later: bytes }
    }

    /// For the batch of this number.
    #[must_use]
    pub fn of(self, seq: u64) -> u64 {
        if seq < FIRST_BATCHES { self.first } else { self.later }
    }
}

/// How a request is to be run. All but the deadline concern a stream that the server lends, and are ignored for an
/// upload.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct OpenOptions {
    /// From which size on batches are lent.
    pub lend_from: LendFrom,
    /// What the client measured, for [`LendFrom::Auto`]. `None`: the server's thresholds apply.
    pub measured: Option<Thresholds>,
    /// How the client gets at what is lent.
    pub access: Access,
    /// Rows a batch that the engine should aim at. `None`: the server's choice.
    pub batch_rows: Option<u32>,
    /// The stream ends in an error this many milliseconds after its start. `None`: no deadline.
    pub deadline_ms: Option<u64>,
    /// Bytes that the client can take before it grants more.
    pub credit: u64,
    /// Which part of the result this stream is to have. `None`: all of it.
    pub part: Option<Partition>,
}

/// One partition of a result whose others travel on other streams, of this connection or of others to the same server.
///
/// All members of a group ask the same query in the same way, each for an index of its own. The server runs the query
/// once, when all have come, and ends all of them in the same error if one of them does not get to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Partition {
    /// Names the result on this server.
    pub group: GroupId,
    /// Which partition, from 0.
    pub index: u32,
    /// How many there are.
    pub count: u32,
}
