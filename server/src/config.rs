//! What a server with tables can be told: limits, times, fabrics, tables, query engine.
//!
//! Everything has a default. The types are serde's, with a text form for sizes and durations, so that a program can
//! have them in its configuration file; a key that does not exist is an error that names it. The program
//! `thallus-server` reads them from TOML and flags; `thallus-server.example.toml` beside it lists every key with its
//! default and its meaning.

mod units;

use std::collections::BTreeMap;
use std::fmt;
use std::num::NonZeroUsize;
use std::path::PathBuf;

use serde::{Deserialize, Deserializer, Serialize, de};
use thallus_fabric::memory::HostMemory;
use thiserror::Error;

pub use units::{ByteSize, Span};

use crate::catalog::Format;

/// The configuration of a server and its tables.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ServerConfig {
    /// Directories of which every file and sub-directory becomes a table, named by its stem.
    pub data: Vec<PathBuf>,
    /// Tables by name, besides those of `data`.
    pub tables: BTreeMap<String, TableConfig>,
    /// What one peer, and all together, may take.
    pub limits: Limits,
    /// How long to wait for what.
    pub timeouts: Timeouts,
    /// What carries the data plane.
    pub fabric: FabricConfig,
    /// The query engine.
    pub engine: EngineConfig,
}

/// One table. In TOML either just its path, or a table of these keys.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct TableConfig {
    /// File or directory.
    pub path: PathBuf,
    /// Format of its files; told from their names (or, without extension, from their first bytes) if not given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub format: Option<Format>,
    /// Whether the first line of a CSV file names its columns.
    pub header: bool,
    /// What separates the fields of a CSV file, one ASCII character; a comma (in .tsv files a tab) if not given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub delimiter: Option<char>,
    /// Whether quoted fields of a CSV file may contain ends of lines. If not, one large file is read in parallel.
    pub quoted_newlines: bool,
}

impl TableConfig {
    /// The table at `path`, all else by default.
    #[must_use]
    pub fn at(path: impl Into<PathBuf>) -> Self {
        TableConfig { path: path.into(), format: None, header: true, delimiter: None, quoted_newlines: true }
    }
}

impl<'de> Deserialize<'de> for TableConfig {
    // By hand, because an untagged enum would not name an unknown key.
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Keys {
            path: PathBuf,
            format: Option<Format>,
            header: Option<bool>,
            delimiter: Option<char>,
            quoted_newlines: Option<bool>,
        }

        struct Visitor;
        impl<'de> de::Visitor<'de> for Visitor {
            type Value = TableConfig;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a path, or a table with the key `path`")
            }

            fn visit_str<E: de::Error>(self, path: &str) -> Result<TableConfig, E> {
                Ok(TableConfig::at(path))
            }

            fn visit_map<A: de::MapAccess<'de>>(self, map: A) -> Result<TableConfig, A::Error> {
                let keys = Keys::deserialize(de::value::MapAccessDeserializer::new(map))?;
                Ok(TableConfig {
                    path: keys.path,
                    format: keys.format,
                    header: keys.header.unwrap_or(true),
                    delimiter: keys.delimiter,
                    quoted_newlines: keys.quoted_newlines.unwrap_or(true),
                })
            }
        }
        deserializer.deserialize_any(Visitor)
    }
}

/// What one peer, and all together, may take. Beyond a limit a peer gets a typed error.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Limits {
    /// Connections served at once.
    pub max_connections: usize,
    /// Queries open at once on one connection.
    pub max_streams_per_connection: usize,
    /// Queries that run in partitions at once.
    pub max_partitioned_queries: usize,
    /// Partitions that one query may be asked in.
    pub max_partitions: u32,
    /// Bytes lent to one client and not yet released.
    pub max_bytes_on_loan_per_connection: ByteSize,
    /// Bytes lent to all clients and not yet released.
    pub max_bytes_on_loan_total: ByteSize,
    /// Longest control message, either way, inline batches included.
    pub max_message_bytes: ByteSize,
    /// Batches of fewer bytes travel inside the control message, unless a client asks otherwise; zero lends every
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

/// How long to wait for what.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Timeouts {
    /// From accepting a connection to the end of its handshake.
    pub handshake: Span,
    /// Without a sign of life from a client, its connection is closed.
    pub idle: Span,
    /// From lending a batch to its release; then the loan is ended, and its stream with it. Clients that read lazily
    /// keep batches for as long as their applications look at them.
    pub lease: Span,
    /// From the first partition of a query to the last being asked for.
    pub rendezvous: Span,
    /// For the one-sided reads of one batch of an upload.
    pub upload_read: Span,
    /// At shutdown, for running queries to end by themselves.
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

/// What carries the data plane.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct FabricConfig {
    /// Which fabric.
    pub kind: FabricChoice,
    /// How far the server's heap may grow in memory that the fabric has registered, so that results are lent from where
    /// the engine made them; half of this machine's (or of its container's) memory if not given. Zero: every result is
    /// copied before it is lent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub registered_heap: Option<ByteSize>,
    /// Whether clients on this host may have a pointer to what they are lent instead of reading it: nothing can take
    /// that back, and it opens all registered memory to them.
    pub allow_mapped: bool,
    /// Settings of UCX.
    pub ucx: UcxConfig,
    /// Settings of verbs.
    pub verbs: VerbsConfig,
}

impl FabricConfig {
    /// The limit of the registered heap in bytes, as configured or as this host has memory.
    #[must_use]
    pub fn effective_registered_heap(&self) -> ByteSize {
        self.registered_heap.unwrap_or_else(|| ByteSize(memory_of_host().unwrap_or(0) / 2))
    }
}

/// Which fabric carries the data plane.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FabricChoice {
    /// The best that works here; inline, with a warning, if none does.
    #[default]
    Auto,
    /// UCX, or fail to start.
    Ucx,
    /// InfiniBand verbs, or fail to start.
    Verbs,
    /// None: all results travel inline over the control connection.
    None,
}

/// Settings of UCX; what is empty is left to UCX.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct UcxConfig {
    /// The file of `libucp` to be loaded. Absent: the one that the environment's `THALLUS_UCX_LIBRARY` names, or the
    /// one that the dynamic linker finds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub library: Option<PathBuf>,
    /// Transports that may be used, as in `UCX_TLS`.
    pub transports: Vec<String>,
    /// Network devices that may be used, as in `UCX_NET_DEVICES`.
    pub net_devices: Vec<String>,
    /// Poll without sleeping: lower latency, one core busy.
    pub busy_poll: bool,
}

/// Settings of InfiniBand verbs.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct VerbsConfig {
    /// The device, such as `mlx5_0`; the first with an active port if not given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub device: Option<String>,
    /// Its port, counted from 1; the first that is active if not given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub port: Option<u8>,
    /// Index into the port's table of GIDs; RoCE v2 with an IPv4 address, if there is one, if not given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gid: Option<u8>,
    /// How lent memory is opened to a client.
    pub exposure: ExposureChoice,
    /// Poll without sleeping: lower latency, one core busy.
    pub busy_poll: bool,
}

/// How lent memory is opened to a client over verbs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ExposureChoice {
    /// Windows on a device that has and enforces them, else registrations.
    #[default]
    Auto,
    /// A memory window over exactly what is lent, for as long as it is: microseconds per loan.
    Windows,
    /// A registration of exactly what is lent, for as long as it is: pins every page of every loan.
    Registrations,
    /// One key for all memory: costs nothing, and every client can read every other's results.
    Whole,
}

/// The query engine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct EngineConfig {
    /// Memory that all queries together may hold for sorting, grouping and joining; half of this machine's (or of its
    /// container's) memory if not given. Batches on their way to a client are not counted here but as bytes on loan.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory_limit: Option<ByteSize>,
    /// How queries share that memory.
    pub memory_pool: MemoryPoolKind,
    /// Target number of rows in a batch; a query may ask for another.
    pub batch_rows: usize,
    /// Parallel partitions of a query; the number of cores if not given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub partitions: Option<usize>,
    /// Directory for what does not fit in memory; the system's directory for temporary files if not given.
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
    /// Parallel partitions of a query, as configured or as this host has cores.
    #[must_use]
    pub fn effective_partitions(&self) -> usize {
        self.partitions.unwrap_or_else(|| std::thread::available_parallelism().map_or(4, NonZeroUsize::get))
    }

    /// The memory limit in bytes, as configured or as this host has memory.
    #[must_use]
    pub fn effective_memory_limit(&self) -> ByteSize {
        /// Where nothing says how much memory there is.
        const UNKNOWN_HOST: ByteSize = ByteSize::gib(1);
        self.memory_limit.unwrap_or_else(|| memory_of_host().map_or(UNKNOWN_HOST, |bytes| ByteSize(bytes / 2)))
    }
}

/// Memory of this host, or the least limit of the control groups that confine this process.
fn memory_of_host() -> Option<u64> {
    HostMemory::now().map(|memory| memory.limit)
}

/// How queries share the engine's memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum MemoryPoolKind {
    /// Every operator that can spill gets an equal share: one query cannot starve the others, and spills earlier.
    #[default]
    Fair,
    /// First come, first served: a query alone gets everything.
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
    /// What it must be.
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
            // No wait is without an end: a day is longer than anybody waits.
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
            if let Some(delimiter) = table.delimiter.filter(|c| !c.is_ascii() || matches!(c, '"' | '\r' | '\n' | '\0'))
            {
                return Err(InvalidValue {
                    key: "tables.*.delimiter",
                    value: format!("{delimiter:?}"),
                    reason: "must be one ASCII character, not a quote or an end of line".to_owned(),
                });
            }
        }
        Ok(())
    }
}

/// Most rows that a batch may be configured, or asked, to have.
pub const MAX_BATCH_ROWS: usize = 1 << 24;

fn within<T: PartialOrd + fmt::Display>(key: &'static str, value: T, min: T, max: T) -> Result<(), InvalidValue> {
    if value >= min && value <= max {
        return Ok(());
    }
    Err(InvalidValue { key, value: value.to_string(), reason: format!("must be from {min} to {max}") })
}
