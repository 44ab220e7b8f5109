//! The configuration of a server with tables: limits, times, fabrics, tables, query engine.
//!
//! Every value has a default. The types implement serde's traits, with a text form for sizes and durations, for use in
//! a program's configuration file. An unknown key is an error that contains its name. The program `thallus-server`
//! reads them from TOML and flags; `thallus-server.example.toml` beside it lists every key with its default and its
//! meaning.

mod column_type;
mod format;
mod table;
mod units;

use std::collections::BTreeMap;
use std::fmt;
use std::num::NonZeroUsize;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use thallus_fabric::memory::HostMemory;
use thiserror::Error;

pub use column_type::ColumnType;
pub use format::Format;
pub use table::TableConfig;
pub use units::{ByteSize, Span};

/// The configuration of a server and its tables.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ServerConfig {
    /// Directories of which every file and sub-directory becomes a table, named by its stem.
    pub data: Vec<PathBuf>,
    /// Whether a file in these directories that cannot be served is an error, instead of a warning.
    pub strict: bool,
    /// Tables by name, besides those of `data`.
    pub tables: BTreeMap<String, TableConfig>,
    /// Directory of the database: tables that clients create and change. Without it the server only reads.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub database: Option<PathBuf>,
    /// Limits of one peer, and of all together.
    pub limits: Limits,
    /// Timeouts.
    pub timeouts: Timeouts,
    /// The fabric of the data plane.
    pub fabric: FabricConfig,
    /// The query engine.
    pub engine: EngineConfig,
}

/// Limits of one peer, and of all together. A peer that exceeds a limit receives a typed error.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Limits {
    /// Most connections at a time that have sent their hello. As many more, and at least 64, may be without one; the
    /// oldest of these makes room for a new one.
    pub max_connections: usize,
    /// Most open queries at a time on one connection.
    pub max_streams_per_connection: usize,
    /// Most queries in partitions at a time. One whose partitions are not all requested makes room for another one.
    pub max_partitioned_queries: usize,
    /// Most partitions of one query.
    pub max_partitions: u32,
    /// Most bytes on loan to one client. Batches that wait for credit of one client have the same limit, separately.
    pub max_bytes_on_loan_per_connection: ByteSize,
    /// Most bytes on loan to all clients.
    pub max_bytes_on_loan_total: ByteSize,
    /// Longest control message in either direction, including inline batches.
    pub max_message_bytes: ByteSize,
    /// Batches of fewer bytes travel inside the control message, unless a client requests otherwise. Zero lends every
    /// batch.
    pub inline_threshold_bytes: ByteSize,
    /// Bytes of one upload that may be on loan to the server, or on the way, at once.
    pub upload_window_bytes: ByteSize,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            max_connections: 256,
            max_streams_per_connection: 64,
            max_partitioned_queries: 64,
            max_partitions: 64,
            max_bytes_on_loan_per_connection: ByteSize::mib(256),
            max_bytes_on_loan_total: ByteSize::gib(1),
            max_message_bytes: ByteSize::mib(16),
            inline_threshold_bytes: ByteSize::kib(96),
            upload_window_bytes: ByteSize::mib(64),
        }
    }
}

/// Timeouts of the server.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Timeouts {
    /// Limit for the handshake of a connection.
    pub handshake: Span,
    /// A connection is closed if its client has answered no ping for this long, and the connection has carried no other
    /// sign of life.
    pub idle: Span,
    /// Limit from lending a batch to its release. Then the lease is revoked, and its stream ends. Clients that read
    /// lazily keep batches for as long as their applications use them.
    pub lease: Span,
    /// Limit from the request for the first partition of a query to the request for the last.
    pub rendezvous: Span,
    /// Limit for the one-sided reads of one batch of an upload.
    pub upload_read: Span,
    /// At shutdown, time for running queries to end by themselves.
    pub drain: Span,
}

impl Default for Timeouts {
    fn default() -> Self {
        Timeouts {
            handshake: Span::secs(10),
            idle: Span::secs(300),
            lease: Span::secs(60),
            rendezvous: Span::secs(10),
            upload_read: Span::secs(30),
            drain: Span::secs(30),
        }
    }
}

/// The fabric of the data plane.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct FabricConfig {
    /// The choice of fabric.
    pub kind: FabricChoice,
    /// Limit for the server's heap in memory that the fabric has registered, so that results are lent in place, where
    /// the engine made them; by default half of this machine's (or of its container's) memory. Zero: every result is
    /// copied before it is lent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub registered_heap: Option<ByteSize>,
    /// Whether clients on this host may map lent batches instead of reading them. The server cannot revoke a mapped
    /// loan, and the mapping opens all registered memory to the client.
    pub allow_mapped: bool,
    /// Settings of shared memory.
    pub shm: ShmConfig,
    /// Settings of UCX.
    pub ucx: UcxConfig,
    /// Settings of verbs.
    pub verbs: VerbsConfig,
}

impl FabricConfig {
    /// The limit of the registered heap in bytes, as configured or derived from this host's memory.
    #[must_use]
    pub fn effective_registered_heap(&self) -> ByteSize {
        self.registered_heap.unwrap_or_else(|| ByteSize(memory_of_host().unwrap_or(0) / 2))
    }
}

/// The choice of fabric for the data plane.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FabricChoice {
    /// The best fabric that works on this host; inline, with a warning, if none does.
    #[default]
    Auto,
    /// Shared memory, for clients of this host only. The server does not start without it.
    Shm,
    /// UCX. The server does not start without it.
    Ucx,
    /// InfiniBand verbs. The server does not start without them.
    Verbs,
    /// None: all results travel inline over the control connection.
    None,
}

/// Settings of shared memory.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ShmConfig {
    /// A directory for sockets, by which clients in another network namespace, such as containers, reach the server.
    /// They must see it under the same path.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub directory: Option<PathBuf>,
    /// Whether clients of every user may read the server's whole registered heap. Otherwise only clients of the
    /// server's user may; results for other users are copied once, to memory of that user.
    pub share_heap: bool,
}

/// Settings of UCX. UCX chooses where they are empty.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct UcxConfig {
    /// Path of the `libucp` to load. Absent: the path in the environment variable `THALLUS_UCX_LIBRARY`, or the library
    /// that the dynamic linker finds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub library: Option<PathBuf>,
    /// Transports that UCX may use, as in `UCX_TLS`.
    pub transports: Vec<String>,
    /// Network devices that UCX may use, as in `UCX_NET_DEVICES`.
    pub net_devices: Vec<String>,
    /// Polls without sleeping: lower latency, one core busy.
    pub busy_poll: bool,
}

/// Settings of InfiniBand verbs.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct VerbsConfig {
    /// The device, such as `mlx5_0`; by default the first with an active port.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub device: Option<String>,
    /// The port of the device, counted from 1; by default the first active port.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub port: Option<u8>,
    /// Index into the port's table of GIDs; by default RoCE v2 with an IPv4 address, if there is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gid: Option<u8>,
    /// How lent memory is opened to a client.
    pub exposure: ExposureChoice,
    /// Polls without sleeping: lower latency, one core busy.
    pub busy_poll: bool,
}

/// How lent memory is opened to a client over verbs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ExposureChoice {
    /// Windows on a device that has and enforces them, else registrations.
    #[default]
    Auto,
    /// A memory window over exactly the lent bytes, for the duration of the loan. Costs microseconds per loan.
    Windows,
    /// A registration of exactly the lent bytes, for the duration of the loan. Pins every page of every loan.
    Registrations,
    /// One key for all memory. Costs nothing, but every client can read the results of every other client.
    Whole,
}

/// The query engine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct EngineConfig {
    /// Memory that all queries together may hold for sorting, grouping and joining; by default half of this machine's
    /// (or of its container's) memory. Batches in transit to a client count as bytes on loan instead.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory_limit: Option<ByteSize>,
    /// Distribution of that memory among queries.
    pub memory_pool: MemoryPoolKind,
    /// Target number of rows in a batch; a query may request another.
    pub batch_rows: usize,
    /// Parallel partitions of a query; by default the number of cores.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub partitions: Option<usize>,
    /// Directory for spilled data; by default the system's directory for temporary files.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub spill_dir: Option<PathBuf>,
    /// Bytes that all queries together may write there; zero forbids spilling.
    pub max_spill_bytes: ByteSize,
    /// Longest SQL text.
    pub max_sql_bytes: ByteSize,
}

impl Default for EngineConfig {
    fn default() -> Self {
        EngineConfig {
            memory_limit: None,
            memory_pool: MemoryPoolKind::Fair,
            batch_rows: 65_536,
            partitions: None,
            spill_dir: None,
            max_spill_bytes: ByteSize::gib(64),
            max_sql_bytes: ByteSize::mib(1),
        }
    }
}

impl EngineConfig {
    /// Parallel partitions of a query, as configured or derived from this host's cores.
    #[must_use]
    pub fn effective_partitions(&self) -> usize {
        self.partitions.unwrap_or_else(|| std::thread::available_parallelism().map_or(4, NonZeroUsize::get))
    }

    /// The memory limit in bytes, as configured or derived from this host's memory.
    #[must_use]
    pub fn effective_memory_limit(&self) -> ByteSize {
        /// Limit if the size of the host's memory is unknown.
        const UNKNOWN_HOST: ByteSize = ByteSize::gib(1);
        self.memory_limit.unwrap_or_else(|| memory_of_host().map_or(UNKNOWN_HOST, |bytes| ByteSize(bytes / 2)))
    }
}

/// Memory of this host, or the smallest limit of the control groups of this process.
fn memory_of_host() -> Option<u64> {
    HostMemory::now().map(|memory| memory.limit)
}

/// Distribution of the engine's memory among queries.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum MemoryPoolKind {
    /// Every operator that can spill gets an equal share: one query cannot starve the others, but spills earlier.
    #[default]
    Fair,
    /// First come, first served: a single query gets everything.
    Greedy,
}

/// A value of the configuration is out of its range.
#[derive(Debug, Error)]
#[error("configuration: {key} = {value}: {reason}")]
pub struct InvalidValue {
    /// The key, with its section.
    pub key: &'static str,
    /// The value.
    pub value: String,
    /// The allowed range.
    pub reason: String,
}

impl ServerConfig {
    /// Checks every range, and that limits fit together.
    ///
    /// # Errors
    /// [`InvalidValue`], for the first that does not hold.
    pub fn validate(&self) -> Result<(), InvalidValue> {
        let Limits { inline_threshold_bytes, max_message_bytes, .. } = self.limits;
        within("limits.max_connections", self.limits.max_connections, 1, 1_000_000)?;
        within("limits.max_streams_per_connection", self.limits.max_streams_per_connection, 1, 65_536)?;
        within("limits.max_partitioned_queries", self.limits.max_partitioned_queries, 1, 65_536)?;
        within("limits.max_partitions", self.limits.max_partitions, 1, 4096)?;
        within("limits.max_message_bytes", max_message_bytes, ByteSize::kib(64), ByteSize::gib(1))?;
        within("limits.inline_threshold_bytes", inline_threshold_bytes, ByteSize(0), max_message_bytes)?;
        let total = self.limits.max_bytes_on_loan_total;
        within("limits.max_bytes_on_loan_total", total, ByteSize::mib(1), ByteSize(u64::MAX))?;
        let upload_window = self.limits.upload_window_bytes;
        within("limits.upload_window_bytes", upload_window, ByteSize::mib(1), ByteSize(u64::MAX))?;
        let each = self.limits.max_bytes_on_loan_per_connection;
        within("limits.max_bytes_on_loan_per_connection", each, ByteSize::mib(1), total)?;
        for (key, span) in [
            ("timeouts.handshake", self.timeouts.handshake),
            ("timeouts.idle", self.timeouts.idle),
            ("timeouts.lease", self.timeouts.lease),
            ("timeouts.rendezvous", self.timeouts.rendezvous),
            ("timeouts.upload_read", self.timeouts.upload_read),
            ("timeouts.drain", self.timeouts.drain),
        ] {
            // Every wait has a limit, of at most one day.
            within(key, span, Span(std::time::Duration::from_millis(1)), Span::secs(86_400))?;
        }
        let engine = &self.engine;
        if let Some(limit) = engine.memory_limit {
            within("engine.memory_limit", limit, ByteSize::mib(16), ByteSize(u64::MAX))?;
        }
        if let Some(limit) = self.fabric.registered_heap.filter(|limit| *limit != ByteSize(0)) {
            within("fabric.registered_heap", limit, ByteSize::mib(64), ByteSize(u64::MAX))?;
        }
        within("engine.batch_rows", engine.batch_rows, 1, MAX_BATCH_ROWS)?;
        within("engine.partitions", engine.effective_partitions(), 1, 4096)?;
        within("engine.max_sql_bytes", engine.max_sql_bytes, ByteSize(1), max_message_bytes)?;
        for table in self.tables.values() {
            for (key, character) in table.characters() {
                let wrong =
                    |c: &char| !c.is_ascii() || matches!(c, '\r' | '\n' | '\0') || (*c == '"' && key != "quote");
                if let Some(character) = character.filter(wrong) {
                    return Err(InvalidValue {
                        key: "tables.*",
                        value: format!("{key} = {character:?}"),
                        reason:
                            "must be one ASCII character, not an end of line, and the quotation mark only of `quote`"
                                .to_owned(),
                    });
                }
            }
            within("tables.*.sample_rows", table.sample_rows, 1, usize::MAX)?;
        }
        Ok(())
    }
}

/// Most rows of a batch that a configuration or a query may set.
pub const MAX_BATCH_ROWS: usize = 1 << 24;

fn within<T: PartialOrd + fmt::Display>(key: &'static str, value: T, min: T, max: T) -> Result<(), InvalidValue> {
    if value >= min && value <= max {
        return Ok(());
    }
    Err(InvalidValue { key, value: value.to_string(), reason: format!("must be from {min} to {max}") })
}
