//! The command line of `thallus-server`. A flag takes precedence over the same key of the configuration file.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::str::FromStr;

use clap::Parser;
use thallus_server::config::{ByteSize, Span, TableConfig};

use crate::choices::{ExposureArg, FabricArg, MemoryPoolArg};
use crate::config::{Config, ConfigError, ListenAddress, LogFormat};

/// Serves tables to Thallus clients: SQL in, Apache Arrow out, moved by one-sided reads.
#[derive(Clone, Debug, Default, Parser)]
#[command(name = "thallus-server", version, max_term_width = 120)]
pub struct Args {
    /// Configuration file (TOML). Relative paths in it are relative to its own directory.
    #[arg(long, value_name = "FILE", env = "THALLUS_CONFIG")]
    pub config: Option<PathBuf>,

    /// Print the effective configuration as TOML, and stop.
    #[arg(long)]
    pub print_config: bool,

    /// Address to listen on [default: 127.0.0.1:7807].
    #[arg(long, value_name = "HOST:PORT")]
    pub listen: Option<ListenAddress>,

    /// A table and its file or directory. May be repeated.
    #[arg(long = "table", value_name = "NAME=PATH")]
    pub tables: Vec<TableArg>,

    /// A directory of which every file and sub-directory becomes a table, named by its stem. May be repeated.
    #[arg(long = "data", value_name = "DIR")]
    pub data: Vec<PathBuf>,

    /// Refuse to start if a file in these directories cannot be served [default: skip it, with a warning].
    #[arg(long)]
    pub strict: bool,

    /// A directory for tables that clients create and change. It is created if it does not exist [default: none, the
    /// server only reads].
    #[arg(long, value_name = "DIR")]
    pub database: Option<PathBuf>,

    #[cfg(feature = "adbc")]
    #[command(flatten)]
    #[expect(missing_docs, reason = "a comment here would become the program's help")]
    pub adbc: crate::adbc::AdbcArgs,

    /// Fabric for the data plane [default: auto].
    #[arg(long, value_enum)]
    pub fabric: Option<FabricArg>,

    /// Limit for the server's heap in memory registered with the fabric, so that results are lent without a copy
    /// [default: half of this machine's; 0: none].
    #[arg(long, value_name = "SIZE")]
    pub registered_heap: Option<ByteSize>,

    /// Let clients on this host map results instead of reading them. Only for clients that are trusted with this
    /// server's memory.
    #[arg(long)]
    pub allow_mapped: bool,

    /// Path of UCX's libucp.so.0 to load [default: $THALLUS_UCX_LIBRARY, or the system's].
    #[arg(long, value_name = "FILE")]
    pub ucx_library: Option<PathBuf>,

    /// Directory for sockets of shared memory, by which clients in containers reach the server. They must see it under
    /// the same path [default: none].
    #[arg(long, value_name = "DIR")]
    pub shm_directory: Option<PathBuf>,

    /// Let clients of every user on this host read the server's whole registered heap. Otherwise results for other
    /// users are copied once.
    #[arg(long)]
    pub shm_share_heap: bool,

    /// Transports that UCX may use, as in UCX_TLS [default: UCX's own choice].
    #[arg(long, value_name = "NAMES", value_delimiter = ',')]
    pub ucx_transports: Option<Vec<String>>,

    /// Network devices that UCX may use, as in UCX_NET_DEVICES [default: all].
    #[arg(long, value_name = "NAMES", value_delimiter = ',')]
    pub ucx_net_devices: Option<Vec<String>>,

    /// Poll UCX without sleeping: lower latency, one core busy.
    #[arg(long)]
    pub ucx_busy_poll: bool,

    /// RDMA device for verbs, such as mlx5_0 [default: the first with an active port].
    #[arg(long, value_name = "NAME")]
    pub verbs_device: Option<String>,

    /// Port of that device [default: the first active port].
    #[arg(long, value_name = "NUMBER", value_parser = clap::value_parser!(u8).range(1..))]
    pub verbs_port: Option<u8>,

    /// Index into the port's table of GIDs [default: RoCE v2 with an IPv4 address, if there is one].
    #[arg(long, value_name = "INDEX")]
    pub verbs_gid: Option<u8>,

    /// How verbs open lent memory to a client [default: auto].
    #[arg(long, value_enum)]
    pub verbs_exposure: Option<ExposureArg>,

    /// Poll verbs without sleeping: lower latency, one core busy.
    #[arg(long)]
    pub verbs_busy_poll: bool,

    /// Most connections at a time [default: 256].
    #[arg(long, value_name = "COUNT")]
    pub max_connections: Option<usize>,

    /// Most bytes on loan to all clients together, of which each may have a quarter [default: 1GiB].
    #[arg(long, value_name = "SIZE")]
    pub max_bytes_on_loan: Option<ByteSize>,

    /// Batches smaller than this travel inside the control message, unless a client requests otherwise [default:
    /// 96KiB].
    #[arg(long, value_name = "SIZE")]
    pub inline_threshold: Option<ByteSize>,

    /// Time to wait for running queries at shutdown [default: 30s].
    #[arg(long, value_name = "DURATION")]
    pub drain_timeout: Option<Span>,

    /// Memory that queries may hold for sorting, grouping and joining [default: half of this machine's].
    #[arg(long, value_name = "SIZE")]
    pub memory_limit: Option<ByteSize>,

    /// Distribution of that memory among queries [default: fair].
    #[arg(long, value_enum)]
    pub memory_pool: Option<MemoryPoolArg>,

    /// Target number of rows in a batch [default: 65536].
    #[arg(long, value_name = "ROWS")]
    pub batch_rows: Option<usize>,

    /// Parallel partitions of a query [default: the number of cores].
    #[arg(long, value_name = "COUNT")]
    pub partitions: Option<usize>,

    /// Directory for spilled data [default: the system's directory for temporary files].
    #[arg(long, value_name = "DIR")]
    pub spill_dir: Option<PathBuf>,

    /// Filter for the log: a level (error, warn, info, debug, trace) or directives such as `info,thallus_server=debug`
    /// [default: info].
    #[arg(long, value_name = "FILTER", env = "THALLUS_LOG")]
    pub log: Option<String>,

    /// Form of a log line [default: full].
    #[arg(long, value_enum)]
    pub log_format: Option<LogFormat>,
}

/// `NAME=PATH` of a `--table` flag.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TableArg {
    /// The table's name.
    pub name: String,
    /// The table's file or directory.
    pub path: PathBuf,
}

impl FromStr for TableArg {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once('=') {
            Some((name, path)) if !name.is_empty() && !path.is_empty() => {
                Ok(TableArg { name: name.to_owned(), path: PathBuf::from(path) })
            }
            _ => Err("expected NAME=PATH, such as orders=/data/orders.parquet".to_owned()),
        }
    }
}

impl Args {
    /// The effective configuration: defaults, then the file, then the flags; validated.
    ///
    /// # Errors
    /// [`ConfigError`], with the file, key or flag at fault.
    pub fn into_config(self) -> Result<Config, ConfigError> {
        let mut config = match &self.config {
            Some(file) => Config::from_file(file)?,
            None => Config::default(),
        };
        self.apply(&mut config)?;
        config.validate()?;
        Ok(config)
    }

    fn apply(self, config: &mut Config) -> Result<(), ConfigError> {
        let mut flagged = BTreeMap::new();
        for TableArg { name, path } in self.tables {
            if let Some(first) = flagged.insert(name.clone(), path.clone()) {
                return Err(ConfigError::DuplicateTable { name, first, second: path });
            }
            config.tables.insert(name, TableConfig::at(path));
        }
        if !self.data.is_empty() {
            config.data = self.data;
        }
        config.strict |= self.strict;
        set(&mut config.database, self.database.map(Some));
        set(&mut config.listen, self.listen);
        set(&mut config.fabric.kind, self.fabric.map(Into::into));
        set(&mut config.fabric.registered_heap, self.registered_heap.map(Some));
        config.fabric.allow_mapped |= self.allow_mapped;
        set(&mut config.fabric.ucx.library, self.ucx_library.map(Some));
        set(&mut config.fabric.shm.directory, self.shm_directory.map(Some));
        config.fabric.shm.share_heap |= self.shm_share_heap;
        set(&mut config.fabric.ucx.transports, self.ucx_transports);
        set(&mut config.fabric.ucx.net_devices, self.ucx_net_devices);
        config.fabric.ucx.busy_poll |= self.ucx_busy_poll;
        let verbs = &mut config.fabric.verbs;
        set(&mut verbs.device, self.verbs_device.map(Some));
        set(&mut verbs.port, self.verbs_port.map(Some));
        set(&mut verbs.gid, self.verbs_gid.map(Some));
        set(&mut verbs.exposure, self.verbs_exposure.map(Into::into));
        verbs.busy_poll |= self.verbs_busy_poll;
        set(&mut config.limits.max_connections, self.max_connections);
        if let Some(total) = self.max_bytes_on_loan {
            config.limits.max_bytes_on_loan_total = total;
            // As by default, a client may have a quarter: one that keeps mapped results needs it.
            let each = &mut config.limits.max_bytes_on_loan_per_connection;
            *each = (*each).min(total).max(ByteSize(total.bytes() / 4));
        }
        set(&mut config.limits.inline_threshold_bytes, self.inline_threshold);
        set(&mut config.timeouts.drain, self.drain_timeout);
        set(&mut config.engine.memory_limit, self.memory_limit.map(Some));
        set(&mut config.engine.memory_pool, self.memory_pool.map(Into::into));
        set(&mut config.engine.batch_rows, self.batch_rows);
        set(&mut config.engine.partitions, self.partitions.map(Some));
        set(&mut config.engine.spill_dir, self.spill_dir.map(Some));
        #[cfg(feature = "adbc")]
        self.adbc.apply(&mut config.adbc)?;
        set(&mut config.log.filter, self.log);
        set(&mut config.log.format, self.log_format);
        Ok(())
    }
}

fn set<T>(key: &mut T, flag: Option<T>) {
    if let Some(value) = flag {
        *key = value;
    }
}
