//! `thallus query`.

use std::io::{IsTerminal, Read};
use std::path::Path;
use std::time::Duration;

use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use futures::{Stream, StreamExt};

use super::args::{AccessArg, QueryArgs, StatsFormat};
use super::failure::{Failure, Phase};
use super::format::{self, Format, FormatOptions};
use super::interrupt::Interrupts;
use super::lazy::{LazyRows, Rows};
use super::output::Output;
use super::progress::Progress;
use super::say;
use thallus_client::{
    Access, Client, ClientError, ConnectOptions, LazyOptions, QueryOptions, ResultStream, TransferReport,
};

/// How long the server is given to hear that the client leaves.
pub(super) const FAREWELL: Duration = Duration::from_secs(2);

/// A result on its way, as the command line needs it. Dropping it cancels the query.
pub trait QueryResult: Stream<Item = Result<RecordBatch, ClientError>> + Unpin {
    /// The schema of all its batches.
    fn schema(&self) -> SchemaRef;
    /// What has been transferred so far.
    fn report(&self) -> TransferReport;
    /// Rows that were only counted, because the output does not show them.
    fn rows_left_out(&self) -> u64 {
        0
    }
}

impl QueryResult for ResultStream {
    fn schema(&self) -> SchemaRef {
        ResultStream::schema(self)
    }

    fn report(&self) -> TransferReport {
        ResultStream::report(self)
    }
}

/// How the result is read.
#[derive(Debug)]
enum Way {
    /// Whole, or mapped.
    Whole(QueryOptions),
    /// On demand: these columns, these rows.
    OnDemand(LazyOptions, Vec<String>, Rows),
}

/// What `thallus query` was asked for, checked as far as it can be without a server.
#[derive(Debug)]
pub struct Request {
    connect: ConnectOptions,
    sql: String,
    way: Way,
    format: FormatOptions,
    output: Option<std::path::PathBuf>,
    stats: Option<StatsFormat>,
    quiet: bool,
}

impl Request {
    /// Makes sense of the arguments; reads the query from where it is.
    ///
    /// # Errors
    /// [`Failure::Usage`], [`Failure::Client`] for the URL, [`Failure::Local`] for the query's file.
    pub fn new(args: QueryArgs, default_url: Option<String>) -> Result<Self, Failure> {
        let (url, sql) = arguments(&args, default_url)?;
        let connect = super::options(&url)?;
        let sql = match (&args.file, sql) {
            (Some(file), _) => read_sql(file)?,
            (None, Some(sql)) if sql == "-" => read_sql(Path::new("-"))?,
            (None, Some(sql)) => sql,
            (None, None) => return Err(no_sql()),
        };
        if sql.trim().is_empty() {
            return Err(no_sql());
        }
        let way = way(&args)?;
        let output = args.output.filter(|path| path != Path::new("-"));
        let format = match (args.format, &output) {
            (Some(format), _) => format,
            (None, Some(path)) => Format::of_path(path)?,
            (None, None) => Format::Table,
        };
        let stream =
            output.as_ref().and_then(|path| path.extension()).is_some_and(|e| e.eq_ignore_ascii_case("arrows"));
        let format = FormatOptions { format, compression: args.compression, max_rows: args.max_rows, stream };
        Ok(Request { connect, sql, way, format, output, stats: args.stats, quiet: args.quiet })
    }

    /// Runs it.
    ///
    /// # Errors
    /// Whatever there is.
    pub async fn run(self, mut interrupts: Interrupts) -> Result<(), Failure> {
        // First of all, so that the server does not work for a file that cannot be written.
        let output = match &self.output {
            Some(path) => Output::file(path)?,
            None => Output::stdout()?,
        };
        self.format.format.check(output.is_terminal(), output.is_regular_file())?;
        let client = interrupts.unless(Client::connect_with(self.connect)).await?;
        let client = client.map_err(|error| Failure::Client { phase: Phase::Connect, error })?;
        if let Some(reason) = client.connection().carrier.fallback() {
            say(format_args!("warning: no one-sided reads: {reason}; results come inline over TCP"));
            say(format_args!(
                "hint: with fabric=none in the URL this is as asked for; with require_fabric=true it fails"
            ));
        }
        // A table is written when all is over, so that a bar can stand on the same terminal until then.
        let shares_terminal = output.is_terminal() && self.format.format != Format::Table;
        let progress = Progress::new(!self.quiet && std::io::stderr().is_terminal() && !shares_terminal);
        let failed = |error| Failure::Client { phase: Phase::Transfer, error };
        let delivered = match self.way {
            Way::Whole(options) => {
                let answer = interrupts.unless(client.query_with(&self.sql, options)).await;
                match answer.and_then(|answer| answer.map_err(failed)) {
                    Ok(result) => {
                        // What more connections fell back to has not been said yet.
                        if let (None, Some(reason)) =
                            (client.connection().carrier.fallback(), result.report().carrier.fallback())
                        {
                            say(format_args!(
                                "warning: no one-sided reads for a partition: {reason}; it comes inline over TCP"
                            ));
                        }
                        Ok(deliver(result, self.format, output, progress, interrupts).await)
                    }
                    Err(failure) => Err(failure),
                }
            }
            Way::OnDemand(options, columns, rows) => {
                let answer = interrupts.unless(client.query_lazy_with(&self.sql, options)).await;
                // A table counts what it does not show.
                let show = (self.format.format == Format::Table).then_some(self.format.max_rows);
                let result = answer.and_then(|answer| answer.map_err(failed));
                match result.and_then(|result| LazyRows::new(result, &columns, rows, show)) {
                    Ok(result) => Ok(deliver(result, self.format, output, progress, interrupts).await),
                    Err(failure) => Err(failure),
                }
            }
        };
        let outcome = match delivered {
            Ok((outcome, report)) => {
                match self.stats {
                    Some(StatsFormat::Text) => say(format_args!("{report}")),
                    Some(StatsFormat::Json) => say(format_args!("{}", report.to_json())),
                    None => {}
                }
                outcome
            }
            Err(failure) => Err(failure),
        };
        // Also what carries the cancellation; a server that does not listen is not waited for.
        let _ = tokio::time::timeout(FAREWELL, client.close()).await;
        outcome
    }
}

/// Moves a result to the output, which is complete and in its place if this succeeds, and otherwise is not there.
///
/// Whatever happens, the result is dropped at the end, and its last report returned.
pub async fn deliver<R: QueryResult>(
    mut result: R,
    options: FormatOptions,
    output: Output,
    mut progress: Progress,
    mut interrupts: Interrupts,
) -> (Result<(), Failure>, TransferReport) {
    let outcome = transfer(&mut result, options, &output, &mut progress, &mut interrupts).await;
    progress.clear();
    let outcome = outcome.and_then(|()| output.commit());
    (outcome, result.report())
}

async fn transfer<R: QueryResult>(
    result: &mut R,
    options: FormatOptions,
    output: &Output,
    progress: &mut Progress,
    interrupts: &mut Interrupts,
) -> Result<(), Failure> {
    let mut writer = format::writer(options, &result.schema(), output)?;
    for note in writer.notes() {
        say(format_args!("note: {note}"));
    }
    let failure = |error| format::failure(options.format, error, output);
    while let Some(batch) = interrupts.unless(result.next()).await? {
        let batch = batch.map_err(|error| Failure::Client { phase: Phase::Transfer, error })?;
        // Blocks this thread, which no task runs on, and nothing else.
        writer.write(&batch).map_err(failure)?;
        progress.update(|| result.report());
    }
    progress.clear();
    writer.left_out(result.rows_left_out());
    writer.finish().map_err(failure)
}

/// How the result is read, from the arguments.
fn way(args: &QueryArgs) -> Result<Way, Failure> {
    let on_demand = args.access() == AccessArg::OnDemand;
    let conflict = |message: &str, hint: &str| Failure::Usage { message: message.into(), hint: hint.into() };
    if !on_demand {
        if !args.columns.is_empty() || args.rows.is_some() {
            let message = "--columns and --rows read on demand, and another --access is given";
            return Err(conflict(message, "leave --access out"));
        }
        let mut options = QueryOptions::new()
            .with_deadline(args.deadline)
            .with_access(if args.access() == AccessArg::Map { Access::Map } else { Access::Read })
            .with_batch_rows(args.batch_rows)
            .with_window(args.window)
            .with_partitions(args.partitions)
            .with_unordered(args.unordered);
        options.lend_from = args.lend_from;
        return Ok(Way::Whole(options));
    }
    if args.partitions.is_some() || args.unordered {
        let message = "a result that is read on demand has no partitions";
        return Err(conflict(message, "leave out --partitions and --unordered, or read whole batches"));
    }
    let mut options =
        LazyOptions::new().with_deadline(args.deadline).with_batch_rows(args.batch_rows).with_window(args.window);
    options.lend_from = args.lend_from;
    Ok(Way::OnDemand(options, args.columns.clone(), args.rows.unwrap_or(Rows::ALL)))
}

/// Which argument is what: the URL may come from the environment, the query from a file.
fn arguments(args: &QueryArgs, default_url: Option<String>) -> Result<(String, Option<String>), Failure> {
    let (first, second) = (args.first.clone(), args.second.clone());
    let (url, sql) = match (first, second) {
        (Some(url), Some(sql)) => (Some(url), Some(sql)),
        // Alone, and not SQL for sure: `://` could stand in a string, but not before any space.
        (Some(only), None) if args.file.is_some() || looks_like_url(&only) => (Some(only), None),
        (Some(only), None) => (None, Some(only)),
        (None, _) => (None, None),
    };
    if sql.is_some() && args.file.is_some() {
        return Err(Failure::Usage {
            message: "the query is given twice: as an argument and by --file".into(),
            hint: "leave one out".into(),
        });
    }
    let url = url.or(default_url).ok_or_else(|| Failure::Usage {
        message: "no server is given".into(),
        hint: "write thallus query thallus://localhost:7807 \"SELECT 1\", or set THALLUS_URL".into(),
    })?;
    Ok((url, sql))
}

fn looks_like_url(text: &str) -> bool {
    text.split_once("://").is_some_and(|(scheme, _)| scheme.chars().all(|c| c.is_ascii_alphanumeric()))
}

fn no_sql() -> Failure {
    Failure::Usage {
        message: "no query is given".into(),
        hint: "write it after the URL, in a file for --file, or pipe it to --file -".into(),
    }
}

fn read_sql(path: &Path) -> Result<String, Failure> {
    let (name, read) = if path == Path::new("-") {
        let mut bytes = Vec::new();
        ("standard input".to_owned(), std::io::stdin().read_to_end(&mut bytes).map(|_| bytes))
    } else {
        (path.display().to_string(), std::fs::read(path))
    };
    let bytes = read.map_err(|source| Failure::Local { what: format!("cannot read the query from {name}"), source })?;
    String::from_utf8(bytes).map_err(|error| Failure::Usage {
        message: format!("the query in {name} is not UTF-8: {error}"),
        hint: "save it as UTF-8".into(),
    })
}
