//! Options of a request: how it is run, from which size on its batches are lent, and how the borrower accesses them.

use serde::{Deserialize, Serialize};

use super::Extensions;
use crate::ids::GroupId;

/// A process of the lender's host. No two processes of the host ever have an equal id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ProcessId {
    /// The process number, in the lender's PID namespace.
    pub pid: u32,
    /// Start time of the process, in ticks since the host's boot, because process numbers are reused.
    pub started: u64,
}

/// The size from which on a batch is lent instead of sent inline.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum LendFrom {
    /// No. 0: Every batch is sent inline.
    Never,
    /// No. 1: From the borrower's measured [`Thresholds`] on, if there are any; otherwise from the lender's own.
    #[default]
    Auto,
    /// No. 2: From this number of live bytes on. 0: every batch is lent.
    Bytes(u64),
}

/// How the borrower accesses a lent batch. Inline batches arrive complete in any case.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Access {
    /// No. 0: The borrower reads each batch when it is announced, and then releases it.
    #[default]
    Read,
    /// No. 1: The borrower reads the parts that its application requests, and keeps the batch on loan until the
    /// application is done with it. Each batch contains all its dictionaries, even those that the previous batch had
    /// too.
    OnDemand,
    /// No. 2: The borrower does not read: its application has a pointer to the lender's memory. The batch is on loan
    /// until the borrower releases it or this process, the borrower's, has ended; the end of the connection does not
    /// end the loan. Each batch contains all its dictionaries.
    Map(ProcessId),
}

impl Access {
    /// Whether each batch must be complete by itself, because the borrower does not read all batches in full and in
    /// order.
    #[must_use]
    pub fn needs_complete_batches(self) -> bool {
        self != Access::Read
    }
}

/// Number of batches at the start of a stream to which [`Thresholds::first`] applies.
pub const FIRST_BATCHES: u64 = 4;

/// Number of live bytes from which on a batch is lent, if neither end is configured otherwise.
///
/// There are two sizes because there are two costs. At the start of a result, which may be short, latency counts: a
/// lent batch arrives two reads and a wake-up later than an inline one. In a long result, the cost of a batch at both
/// ends counts: inline bytes are written, sent, received and assembled, lent bytes are only read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Thresholds {
    /// For the first [`FIRST_BATCHES`] batches of a stream, in bytes.
    pub first: u64,
    /// For the others, in bytes.
    pub later: u64,
}

impl Thresholds {
    /// The same size for all batches.
    #[must_use]
    pub fn uniform(bytes: u64) -> Self {
        Thresholds { first: bytes, later: bytes }
    }

    /// The size for the batch with this position.
    #[must_use]
    pub fn for_batch(self, seq: u64) -> u64 {
        if seq < FIRST_BATCHES { self.first } else { self.later }
    }
}

/// How a request is run. All options but the deadline concern streams that the server lends, and are ignored for an
/// upload.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct OpenOptions {
    /// The size from which on batches are lent.
    pub lend_from: LendFrom,
    /// Thresholds that the client measured, for [`LendFrom::Auto`]. `None`: the server's thresholds apply.
    pub measured: Option<Thresholds>,
    /// How the client accesses lent batches.
    pub access: Access,
    /// Target number of rows of a batch. `None`: the server chooses.
    pub batch_rows: Option<u32>,
    /// The stream ends in an error this many milliseconds after its start. `None`: no deadline.
    pub deadline_ms: Option<u64>,
    /// Initial credit in bytes.
    pub credit: u64,
    /// The partition of the result that this stream has. `None`: the whole result.
    pub partition: Option<Partition>,
    /// Bytes of the largest batch that the client accepts; the server cuts larger ones. `None`: unknown. It travels as
    /// the extension [`LARGEST_BATCH`].
    #[serde(skip)]
    pub largest_batch: Option<u64>,
}

/// Key of the extension of Open with [`OpenOptions::largest_batch`]: a `u64`, little-endian.
pub const LARGEST_BATCH: u16 = 1;

impl OpenOptions {
    /// The extensions of the Open message with these options.
    pub(crate) fn extensions(&self) -> Extensions {
        match self.largest_batch {
            Some(bytes) => Extensions::none().with(LARGEST_BATCH, bytes.to_le_bytes().to_vec()),
            None => Extensions::none(),
        }
    }

    /// Takes the options that travel as extensions. A value of another length is not one of ours, and is ignored.
    pub(crate) fn extend(&mut self, extensions: &Extensions) {
        let bytes = extensions.get(LARGEST_BATCH).and_then(|value| <[u8; 8]>::try_from(&value[..]).ok());
        self.largest_batch = bytes.map(u64::from_le_bytes);
    }
}

/// One partition of a result whose other partitions travel on other streams, of this connection or of others to the
/// same server.
///
/// All members of a group send the same query with the same options, each with its own index. The server runs the query
/// once all members have arrived. If one partition fails before its end, the server ends all of them in the same error.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Partition {
    /// Identifies the result on this server.
    pub group: GroupId,
    /// Index of the partition, from 0.
    pub index: u32,
    /// Number of partitions.
    pub count: u32,
}
