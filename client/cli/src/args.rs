//! The command line, as clap parses it.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};

use super::failure::{Failure, Phase};
use super::format::{Compression, Format};
use super::rows::Rows;
use thallus_client::{ConnectOptions, LendFrom, MAX_PARTITIONS, parse_lend_from};
use thallus_fabric::units::{parse_duration, parse_size};

/// Exit codes in ascending order; `failure` defines them.
const EXIT_CODES: &str = "\
Exit codes:
  0    done
  2    usage: an argument or URL is wrong, the result does not fit the format, or files differ in their columns
  3    no connection: unreachable, refused, no common version or fabric
  4    the server refused the query or upload, or it failed there
  5    the transfer failed before its end
  6    a local file or pipe could not be read or written
  130  interrupted (Ctrl-C); 143 when terminated
  141  the reader of the output closed it

Environment:
  THALLUS_URL  server to use where no URL is given
  THALLUS_LOG  what to log on stderr, as in thallus=debug";

const URL_HELP: &str = "\
Server: thallus://host[:7807][?option=value&...], by default $THALLUS_URL. Options: fabric=auto|shm|ucx|verbs|none, \
require_fabric, window, lend_from=never|auto|SIZE, partitions, max_batch, pool, connect_timeout, read_timeout, \
idle_timeout, keepalive, max_upload_loans, upload_lease, busy_poll, copy_threads, ucx_tls, ucx_net_devices, device, \
port, gid";

/// SQL to a Thallus server, results as Apache Arrow read one-sidedly from its memory.
#[derive(Debug, Parser)]
#[command(
    name = "thallus",
    version,
    after_help = EXIT_CODES,
    args_conflicts_with_subcommands = true,
    arg_required_else_help = true,
    override_usage = "thallus <COMMAND>\n       thallus URL"
)]
pub struct Cli {
    /// The command.
    #[command(subcommand)]
    pub command: Option<Command>,
    /// Short for thallus shell URL
    #[arg(value_name = "URL")]
    pub(super) url: Option<String>,
}

/// The commands of `thallus`.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run a query, and print its result or write it to a file
    #[command(after_help = EXIT_CODES)]
    Query(Box<QueryArgs>),
    /// Upload files to a table: Parquet, CSV with a header, JSON lines, Arrow
    #[command(after_help = EXIT_CODES)]
    Put(PutArgs),
    /// Run statements that are typed in, or read from standard input: each ends with ;
    #[command(after_help = EXIT_CODES)]
    Shell(ShellArgs),
    /// Connect, and show the server, the fabric that carries results, and the duration of a round trip
    #[command(after_help = EXIT_CODES)]
    Ping(PingArgs),
    /// List the tables of a server, and the files that it skips, with the reasons
    #[command(after_help = EXIT_CODES)]
    Tables(TablesArgs),
    /// Show which fabrics work on this host, and for each that does not, why and what to do. Exits with 0 if any works,
    /// else 3
    #[command(after_help = EXIT_CODES)]
    Doctor(DoctorArgs),
    /// Show versions and fabrics of this build
    Version,
}

/// Arguments of `thallus doctor`.
#[derive(Debug, Args)]
pub struct DoctorArgs {
    /// A URL whose options choose devices and transports; no connection is made
    #[arg(value_name = "URL", env = "THALLUS_URL")]
    pub(super) url: Option<String>,
    /// Registered memory that is needed, to compare with the limits of this host. By default the URL's pool; for a
    /// server its bytes on loan
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    pub(super) memory: Option<u64>,
    /// As JSON
    #[arg(long)]
    pub(super) json: bool,
}

/// Arguments of `thallus query`.
#[derive(Debug, Args)]
pub struct QueryArgs {
    #[arg(value_name = "URL", help = URL_HELP)]
    pub(super) first: Option<String>,
    /// The query; - reads it from standard input
    // A query may begin with a comment, which looks like a flag.
    #[arg(value_name = "SQL", allow_hyphen_values = true)]
    pub(super) second: Option<String>,
    /// Read the query from a file; - reads standard input
    #[arg(short = 'f', long = "file", value_name = "FILE")]
    pub(super) file: Option<PathBuf>,
    /// Format of the result. By default the one of the output's extension, or else a table
    #[arg(long, value_enum)]
    pub(super) format: Option<Format>,
    /// Write to a file, which appears only when it is complete; - is standard output
    #[arg(short, long, value_name = "FILE")]
    pub(super) output: Option<PathBuf>,
    /// Compression within Parquet
    #[arg(long, value_enum, default_value_t)]
    pub(super) compression: Compression,
    /// Write strings and bytes as plain columns, not as views, to Arrow and Parquet: for readers that know no views
    #[arg(long)]
    pub(super) plain_strings: bool,
    /// Text for NULL in CSV, as in NULL; a string of the same text is quoted. By default an empty field
    #[arg(long, value_name = "TEXT")]
    pub(super) null: Option<String>,
    /// Most rows that a table shows
    #[arg(long, value_name = "N", default_value_t = DEFAULT_ROWS)]
    pub(super) max_rows: usize,
    /// How batches travel: short for the usual values of --lend-from and --access
    #[arg(long, value_enum, conflicts_with_all = ["lend_from", "access", "lazy"])]
    pub(super) delivery: Option<DeliveryArg>,
    /// Size from which a batch is read one-sidedly from the server's memory; a smaller one travels inline, over TCP.
    /// never, auto, or a size as in 64KiB; 0 for all. By default the URL's
    #[arg(long, value_name = "SIZE", value_parser = parse_lend_from)]
    pub(super) lend_from: Option<LendFrom>,
    /// How to access lent batches
    #[arg(long, value_enum)]
    pub(super) access: Option<AccessArg>,
    /// Short for --access on-demand
    #[arg(long, conflicts_with = "access")]
    pub(super) lazy: bool,
    /// Columns to read and write, in this order, as in a,b: on demand, so that no other column is read. For queries
    /// whose columns cannot be chosen, as SHOW or a view
    #[arg(long, value_name = "NAMES")]
    pub(super) columns: Vec<String>,
    /// Rows to read and write: 100 for the first hundred, 100..200, 100.., ..200, counted from 0. On demand; stops the
    /// query after the last
    #[arg(long, value_name = "RANGE")]
    pub(super) rows: Option<Rows>,
    /// Give up after this time, as in 10s or 2min
    #[arg(long, value_name = "TIME", value_parser = parse_duration)]
    pub(super) deadline: Option<Duration>,
    /// Target number of rows in a batch
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub(super) batch_rows: Option<u32>,
    /// Most bytes of the result in flight, as in 16MiB
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    pub(super) window: Option<u64>,
    /// Number of streams for the result, each over its own connection, to use several cores. By default the URL's
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=i64::from(MAX_PARTITIONS)))]
    pub(super) partitions: Option<u32>,
    /// Write rows of partitions as they arrive, even if the query has an ORDER BY
    #[arg(long)]
    pub(super) unordered: bool,
    /// Report the transfer on stderr, in lines or as one JSON object
    #[arg(
        long,
        value_enum,
        value_name = "FORMAT",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "text"
    )]
    pub(super) stats: Option<StatsFormat>,
    /// No progress bar, and no warning that the result travelled inline
    #[arg(short, long)]
    pub(super) quiet: bool,
}

/// Arguments of `thallus put`.
#[derive(Debug, Args)]
#[command(override_usage = "thallus put [OPTIONS] [URL] TABLE FILE...")]
pub struct PutArgs {
    #[arg(value_name = "URL", help = URL_HELP)]
    pub(super) first: Option<String>,
    /// The table
    #[arg(value_name = "TABLE")]
    pub(super) second: Option<String>,
    /// The files, which have the same columns. All rows of all files are stored, or none
    #[arg(value_name = "FILE")]
    pub(super) files: Vec<PathBuf>,
    /// Treatment of the table
    #[arg(long, value_enum, default_value_t)]
    pub(super) mode: PutMode,
    /// Format of the files. By default the one of each file's extension
    #[arg(long, value_enum)]
    pub(super) format: Option<InputFormat>,
    /// Schema of the table. By default the server's
    #[arg(long, value_name = "NAME")]
    pub(super) schema: Option<String>,
    /// Text that is NULL in CSV, quoted or not. By default an empty field, which is a string with another text
    #[arg(long, value_name = "TEXT")]
    pub(super) null: Option<String>,
    /// Character between the fields of CSV
    #[arg(long, value_name = "CHAR", default_value_t = ',')]
    pub(super) delimiter: char,
    /// How batches travel: short for the usual values of --lend-from
    #[arg(long, value_enum, conflicts_with = "lend_from")]
    pub(super) delivery: Option<PutDelivery>,
    /// Size from which the server reads a batch one-sidedly from this process's memory; a smaller one travels inline,
    /// over TCP. never, auto, or a size as in 64KiB; 0 for all. By default the URL's
    #[arg(long, value_name = "SIZE", value_parser = parse_lend_from)]
    pub(super) lend_from: Option<LendFrom>,
    /// Give up after this time, as in 10s or 2min
    #[arg(long, value_name = "TIME", value_parser = parse_duration)]
    pub(super) deadline: Option<Duration>,
    /// Number of rows in a batch, except of Arrow files, which have their own
    #[arg(long, value_name = "N", default_value_t = 8192, value_parser = clap::value_parser!(u32).range(1..))]
    pub(super) batch_rows: u32,
    /// No progress bar, no summary, and no warning that batches travelled inline
    #[arg(short, long)]
    pub(super) quiet: bool,
}

/// `--mode`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum PutMode {
    /// Add the rows to the table, which is created if it does not exist
    #[default]
    CreateAppend,
    /// Add the rows to the table, which must exist
    Append,
    /// Create the table, which must not exist
    Create,
    /// Create the table, in place of one that exists
    Replace,
}

/// `--format` of `thallus put`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum InputFormat {
    /// With a header
    Csv,
    /// One JSON object per line and row
    Json,
    /// Arrow IPC, a file or a stream
    Arrow,
    /// Parquet
    Parquet,
}

/// `--delivery` of `thallus put`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum PutDelivery {
    /// The defaults
    Auto,
    /// Over TCP: --lend-from never
    Inline,
    /// Every batch read one-sidedly: --lend-from 0
    Lent,
}

/// Arguments of `thallus shell`.
#[derive(Debug, Args)]
pub struct ShellArgs {
    #[arg(value_name = "URL", env = "THALLUS_URL", help = URL_HELP)]
    pub(super) url: String,
    /// Most rows that a table shows
    #[arg(long, value_name = "N", default_value_t = DEFAULT_ROWS)]
    pub(super) max_rows: usize,
}

/// Rows that a table shows by default.
pub(super) const DEFAULT_ROWS: usize = 1000;

/// Arguments of `thallus ping`.
#[derive(Debug, Args)]
pub struct PingArgs {
    #[arg(value_name = "URL", env = "THALLUS_URL", help = URL_HELP)]
    pub(super) url: String,
    /// Round trips to time
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub(super) count: u32,
}

/// Arguments of `thallus tables`.
#[derive(Debug, Args)]
pub struct TablesArgs {
    #[arg(value_name = "URL", env = "THALLUS_URL", help = URL_HELP)]
    pub(super) url: String,
}

/// `--access`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum AccessArg {
    /// Read each batch as it arrives
    #[default]
    Read,
    /// Leave batches in the server's memory, and read only the columns and rows that are written: those of --columns
    /// and --rows, or of a table the rows that it shows. --stats shows the savings
    OnDemand,
    /// Use batches in place in the server's memory: on one host, if the server allows it
    Map,
}

/// `--delivery`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum DeliveryArg {
    /// The defaults
    Auto,
    /// Over TCP: --lend-from never
    Inline,
    /// Every batch read one-sidedly: --lend-from 0 --access read
    Lent,
    /// Only what is written is read: --access on-demand
    Lazy,
    /// In place in the server's memory: --access map
    Mapped,
}

impl PutArgs {
    /// Size from which batches are lent. `None`: the URL's.
    pub(super) fn lend_from(&self) -> Option<LendFrom> {
        match self.delivery {
            Some(PutDelivery::Inline) => Some(LendFrom::Never),
            Some(PutDelivery::Lent) => Some(LendFrom::Bytes(0)),
            Some(PutDelivery::Auto) | None => self.lend_from,
        }
    }
}

impl QueryArgs {
    /// Size from which batches are lent. `None`: the URL's.
    pub(super) fn lend_from(&self) -> Option<LendFrom> {
        match self.delivery {
            Some(DeliveryArg::Inline) => Some(LendFrom::Never),
            Some(DeliveryArg::Lent) => Some(LendFrom::Bytes(0)),
            _ => self.lend_from,
        }
    }

    /// How to access lent batches: as set, or as implied by the rows and columns to read.
    pub(super) fn access(&self) -> AccessArg {
        let reads_part = self.lazy || !self.columns.is_empty() || self.rows.is_some();
        let access = match self.delivery {
            Some(DeliveryArg::Lent) => Some(AccessArg::Read),
            Some(DeliveryArg::Lazy) => Some(AccessArg::OnDemand),
            Some(DeliveryArg::Mapped) => Some(AccessArg::Map),
            Some(DeliveryArg::Auto | DeliveryArg::Inline) | None => self.access,
        };
        match access {
            Some(access) => access,
            None if reads_part => AccessArg::OnDemand,
            None => AccessArg::Read,
        }
    }
}

/// `--stats`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum StatsFormat {
    /// Lines for people
    Text,
    /// One JSON object on one line
    Json,
}

/// Options of a connection, from a URL.
pub(super) fn connect_options(url: &str) -> Result<ConnectOptions, Failure> {
    url.parse()
        .map_err(|error: thallus_client::UrlError| Failure::Client { phase: Phase::Connect, error: error.into() })
}
