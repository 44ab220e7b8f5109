//! Options of a request: how it is run, from which size on its batches are lent, and how the borrower accesses them.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::extensions::{CRITICAL, Extensions, UnknownExtension};
use super::statement::{Defaults, Ingest};
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

/// How a request is run. All options but the deadline, the defaults and the ingestion concern streams that the server
/// lends, and are ignored for an upload.
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
    /// Values of the statement's parameters: an Arrow IPC stream with a schema and one record batch. The statement is
    /// run once for each row. At most [`MAX_PARAMETER_BYTES`]. It travels as the extension [`PARAMETERS`].
    #[serde(skip)]
    pub parameters: Option<Bytes>,
    /// The catalog and the schema of names that have none. They travel as the extensions [`DEFAULT_CATALOG`] and
    /// [`DEFAULT_SCHEMA`].
    #[serde(skip)]
    pub defaults: Defaults,
    /// Of an upload: the treatment of its table. It travels as the extension [`INGEST`].
    #[serde(skip)]
    pub ingest: Ingest,
}

/// Key of the extension of Open with [`OpenOptions::largest_batch`]: a `u64`, little-endian.
pub const LARGEST_BATCH: u16 = 1;
/// Key of the extension of Open with [`OpenOptions::parameters`].
pub const PARAMETERS: u16 = CRITICAL | 2;
/// Key of the extension of Open with the catalog of [`OpenOptions::defaults`], in UTF-8.
pub const DEFAULT_CATALOG: u16 = CRITICAL | 3;
/// Key of the extension of Open with the schema of [`OpenOptions::defaults`], in UTF-8.
pub const DEFAULT_SCHEMA: u16 = CRITICAL | 4;
/// Key of the extension of Open with [`OpenOptions::ingest`]: the number of the mode, and 1 if the table is temporary,
/// else 0.
pub const INGEST: u16 = CRITICAL | 5;

/// Maximum bytes of the parameters of one request.
pub const MAX_PARAMETER_BYTES: usize = 60 << 10;

impl OpenOptions {
    /// The extensions of the Open message with these options.
    pub(crate) fn extensions(&self) -> Extensions {
        let text = |text: &Option<String>| text.as_ref().map(|text| Bytes::from(text.clone()));
        let ingest = (self.ingest != Ingest::default()).then(|| self.ingest.to_bytes().into());
        let fields = [
            (LARGEST_BATCH, self.largest_batch.map(|bytes| bytes.to_le_bytes().to_vec().into())),
            (PARAMETERS, self.parameters.clone()),
            (DEFAULT_CATALOG, text(&self.defaults.catalog)),
            (DEFAULT_SCHEMA, text(&self.defaults.schema)),
            (INGEST, ingest),
        ];
        let present = fields.into_iter().filter_map(|(key, value)| Some((key, value?)));
        present.fold(Extensions::none(), |extensions, (key, value)| extensions.with(key, value))
    }

    /// Takes the options that travel as extensions. A largest batch of another length is not one of ours, and is
    /// ignored.
    ///
    /// # Errors
    /// A critical extension that this version does not know, or whose value it does not.
    pub(crate) fn extend(&mut self, extensions: &Extensions) -> Result<(), UnknownExtension> {
        extensions.unknown_besides(&[PARAMETERS, DEFAULT_CATALOG, DEFAULT_SCHEMA, INGEST])?;
        let bytes = extensions.get(LARGEST_BATCH).and_then(|value| <[u8; 8]>::try_from(&value[..]).ok());
        self.largest_batch = bytes.map(u64::from_le_bytes);
        self.parameters = extensions.get(PARAMETERS).cloned();
        let text = |key| match extensions.get(key).map(|value| std::str::from_utf8(value)) {
            None => Ok(None),
            Some(Ok(text)) => Ok(Some(text.to_owned())),
            Some(Err(_)) => Err(UnknownExtension(key)),
        };
        self.defaults = Defaults { catalog: text(DEFAULT_CATALOG)?, schema: text(DEFAULT_SCHEMA)? };
        let ingest = extensions.get(INGEST).map(|value| Ingest::from_bytes(value).ok_or(UnknownExtension(INGEST)));
        self.ingest = ingest.transpose()?.unwrap_or_default();
        Ok(())
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
