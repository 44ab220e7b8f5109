//! `thallus query`.

use std::io::{IsTerminal, Read};
use std::path::Path;
use std::time::Duration;

use futures::StreamExt;

use super::args::{AccessArg, QueryArgs, StatsFormat, connect_options};
use super::failure::{Failure, Phase};
use super::format::{self, Format, FormatOptions};
use super::interrupt::Interrupts;
use super::lazy::LazyRows;
use super::output::Output;
pub use super::output::QueryResult;
use super::print::print_message;
use super::progress::Progress;
use super::rows::Rows;
use thallus_client::{Access, Carrier, Client, ConnectOptions, LazyOptions, LendFrom, QueryOptions, TransferReport};
use thallus_fabric::units::grouped;

/// Time allowed for closing the connection.
pub(super) const FAREWELL: Duration = Duration::from_secs(2);

/// How to read the result.
#[derive(Debug)]
enum ReadMode {
    /// Whole, or mapped.
    Whole(QueryOptions),
    /// On demand: these columns, these rows.
    OnDemand(LazyOptions, Vec<String>, Rows),
}

/// The arguments of `thallus query`, checked as far as possible without a server.
#[derive(Debug)]
pub struct Request {
    connect: ConnectOptions,
    sql: String,
    read_mode: ReadMode,
    /// The user wants every batch lent.
    all_lent: bool,
    format: FormatOptions,
    output: Option<std::path::PathBuf>,
    stats: Option<StatsFormat>,
    quiet: bool,
}

impl Request {
    /// Parses the arguments, and reads the query from its file.
    ///
    /// # Errors
    /// [`Failure::Usage`], [`Failure::Client`] for the URL, [`Failure::Local`] for the query's file.
    pub fn new(args: QueryArgs, default_url: Option<String>) -> Result<Self, Failure> {
        let (url, sql) = arguments(&args, default_url)?;
        let connect = connect_options(&url)?;
        let sql = match (&args.file, sql) {
            (Some(file), _) => read_sql(file)?,
            (None, Some(sql)) if sql == "-" => read_sql(Path::new("-"))?,
            (None, Some(sql)) => sql,
            (None, None) => return Err(no_sql()),
        };
        if sql.trim().is_empty() {
            return Err(no_sql());
        }
        let read_mode = read_mode(&args)?;
        let all_lent = args.lend_from().unwrap_or(connect.lend_from) == LendFrom::Bytes(0);
        let output = args.output.filter(|path| path != Path::new("-"));
        let format = match (args.format, &output) {
            (Some(format), _) => format,
            (None, Some(path)) => Format::of_path(path)?,
            (None, None) => Format::Table,
        };
        let stream =
            output.as_ref().and_then(|path| path.extension()).is_some_and(|e| e.eq_ignore_ascii_case("arrows"));
        let null = null_text(format, args.null)?;
        let plain_strings = args.plain_strings;
        if plain_strings && !matches!(format, Format::Arrow | Format::Parquet) {
            let message = "--plain-strings is for Arrow and Parquet".to_owned();
            return Err(Failure::Usage { message, hint: "leave it out: other formats have no views".into() });
        }
        let (compression, max_rows) = (args.compression, args.max_rows);
        let format = FormatOptions { format, compression, max_rows, expanded: false, null, plain_strings, stream };
        Ok(Request { connect, sql, read_mode, all_lent, format, output, stats: args.stats, quiet: args.quiet })
    }

    /// Runs the query and writes its result.
    ///
    /// # Errors
    /// Any [`Failure`].
    pub async fn run(self, mut interrupts: Interrupts) -> Result<(), Failure> {
        // First, so that the server does not work for a file that cannot be written.
        let output = match &self.output {
            Some(path) => Output::file(path)?,
            None => Output::stdout()?,
        };
        self.format.format.check(output.is_terminal(), output.is_regular_file())?;
        let client = interrupts.unless(Client::connect_with(self.connect)).await?;
        let client = client.map_err(|error| Failure::Client { phase: Phase::Connect, error })?;
        warn_of_fallback(&client);
        // A table is written at the end, so a bar can use the same terminal until then.
        let shares_terminal = output.is_terminal() && self.format.format != Format::Table;
        let progress = Progress::new(!self.quiet && std::io::stderr().is_terminal() && !shares_terminal);
        let failed = |error| Failure::Client { phase: Phase::Transfer, error };
        let delivered = match self.read_mode {
            ReadMode::Whole(options) => {
                let answer = interrupts.unless(client.query_with(&self.sql, options)).await;
                match answer.and_then(|answer| answer.map_err(failed)) {
                    Ok(result) => {
                        // The fallback of an additional connection has not been reported yet.
                        if let (None, Some(reason)) =
                            (client.connection().carrier.fallback(), result.report().carrier.fallback())
                        {
                            print_message(format_args!(
                                "warning: a partition is not read one-sidedly: {reason}; it travels inline over TCP"
                            ));
                        }
                        Ok(deliver(result, self.format, output, progress, interrupts).await)
                    }
                    Err(failure) => Err(failure),
                }
            }
            ReadMode::OnDemand(options, columns, rows) => {
                let answer = interrupts.unless(client.query_lazy_with(&self.sql, options)).await;
                // A table counts the rows that it does not show.
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
                let is_due = self.all_lent && !self.quiet && outcome.is_ok();
                if let Some(message) = came_inline(&report).filter(|_| is_due) {
                    print_message(format_args!("{message}"));
                }
                match self.stats {
                    Some(StatsFormat::Text) => print_message(format_args!("{report}")),
                    Some(StatsFormat::Json) => print_message(format_args!("{}", report.to_json())),
                    None => {}
                }
                outcome
            }
            Err(failure) => Err(failure),
        };
        // Closing also sends the cancellation. The timeout covers a server that does not respond.
        let _ = tokio::time::timeout(FAREWELL, client.close()).await;
        outcome
    }
}

/// Says that a connection has no one-sided reads, if they were wanted.
pub(super) fn warn_of_fallback(client: &Client) {
    if let Some(reason) = client.connection().carrier.fallback() {
        print_message(format_args!(
            "warning: one-sided reads are not available: {reason}; results travel inline over TCP"
        ));
        print_message(format_args!(
            "hint: fabric=none in the URL selects inline without a warning; require_fabric=true makes it an error"
        ));
    }
}

/// The message that batches travelled inline although every batch was to be lent.
fn came_inline(report: &TransferReport) -> Option<String> {
    if report.batches_inline == 0 {
        return None;
    }
    // The reason of a fallback has been printed when it happened.
    let (kind, reason) = match &report.carrier {
        Carrier::Inline { fallback: Some(_) } => ("note", "one-sided reads are not available"),
        Carrier::Inline { fallback: None } => ("warning", "the connection has no fabric"),
        Carrier::OneSided { .. } => {
            ("warning", "the bytes on loan were used up, or the server's log has another reason")
        }
    };
    let (inline, all) = (grouped(report.batches_inline), grouped(report.batches()));
    let share =
        if report.batches() == report.batches_inline { format!("all {all}") } else { format!("{inline} of {all}") };
    Some(format!("{kind}: every batch was to be lent, but {share} travelled inline: {reason}"))
}

/// Writes a result to the output. The output file exists only if this succeeds.
///
/// In all cases the result is dropped at the end, and its last report returned.
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
    let mut writer = format::writer(&options, &result.schema(), output)?;
    for note in writer.notes() {
        print_message(format_args!("note: {note}"));
    }
    let failure = |error| format::failure(options.format, error, output);
    while let Some(batch) = interrupts.unless(result.next()).await? {
        let batch = batch.map_err(|error| Failure::Client { phase: Phase::Transfer, error })?;
        // Blocks only this thread, on which no task runs.
        writer.write(&batch).map_err(failure)?;
        progress.update(|| result.report());
    }
    progress.clear();
    writer.add_omitted(result.rows_omitted());
    writer.finish().map_err(failure)
}

/// The text for NULL in CSV.
fn null_text(format: Format, given: Option<String>) -> Result<String, Failure> {
    let wrong = |message: &str, hint: &str| Failure::Usage { message: message.into(), hint: hint.into() };
    match given {
        Some(_) if format != Format::Csv => Err(wrong("--null is for CSV", "leave it out, or add --format csv")),
        Some(text) if text.contains(['"', ',', '\n', '\r']) => {
            Err(wrong("the text for NULL has a quote, comma or line break", "give a text like NULL"))
        }
        given => Ok(given.unwrap_or_default()),
    }
}

/// How to read the result, from the arguments.
fn read_mode(args: &QueryArgs) -> Result<ReadMode, Failure> {
    let on_demand = args.access() == AccessArg::OnDemand;
    let conflict = |message: &str, hint: &str| Failure::Usage { message: message.into(), hint: hint.into() };
    if !on_demand {
        if !args.columns.is_empty() || args.rows.is_some() {
            let message = "--columns and --rows read on demand, but another access is given";
            return Err(conflict(message, "leave --access and --delivery out"));
        }
        let mut options = QueryOptions::new()
            .with_deadline(args.deadline)
            .with_access(if args.access() == AccessArg::Map { Access::Map } else { Access::Read })
            .with_batch_rows(args.batch_rows)
            .with_window(args.window)
            .with_partitions(args.partitions)
            .with_unordered(args.unordered);
        options.lend_from = args.lend_from();
        return Ok(ReadMode::Whole(options));
    }
    if args.partitions.is_some() || args.unordered {
        let message = "a result that is read on demand has no partitions";
        return Err(conflict(message, "leave out --partitions and --unordered, or read whole batches"));
    }
    let mut options =
        LazyOptions::new().with_deadline(args.deadline).with_batch_rows(args.batch_rows).with_window(args.window);
    options.lend_from = args.lend_from();
    Ok(ReadMode::OnDemand(options, args.columns.clone(), args.rows.unwrap_or(Rows::ALL)))
}

/// Assigns the arguments: the URL may come from the environment, the query from a file.
fn arguments(args: &QueryArgs, default_url: Option<String>) -> Result<(String, Option<String>), Failure> {
    let (first, second) = (args.first.clone(), args.second.clone());
    let (url, sql) = match (first, second) {
        (Some(url), Some(sql)) => (Some(url), Some(sql)),
        // A single argument that is certainly not SQL: `://` could be in a string, but not before any space.
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

pub(super) fn looks_like_url(text: &str) -> bool {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_result_that_was_to_be_lent_says_that_it_came_inline() {
        let inline = TransferReport { batches_inline: 1234, ..TransferReport::default() };
        let message = came_inline(&inline).unwrap();
        assert_eq!(
            message,
            "warning: every batch was to be lent, but all 1,234 travelled inline: the connection has no fabric"
        );
        let fallback = Carrier::Inline { fallback: Some("no device".into()) };
        assert!(came_inline(&TransferReport { carrier: fallback, ..inline.clone() }).unwrap().starts_with("note: "));
        let carrier = Carrier::OneSided { fabric: "shm".into(), transport: "memfd".into() };
        let some = came_inline(&TransferReport { batches_lent: 3, carrier, ..inline.clone() }).unwrap();
        assert!(some.contains("but 1,234 of 1,237 travelled inline: the bytes on loan"), "{some}");
        assert_eq!(came_inline(&TransferReport { batches_lent: 1, batches_inline: 0, ..inline }), None);
        assert_eq!(came_inline(&TransferReport::default()), None);
    }
}
