//! `thallus put`: uploads files to a table.

mod error;
mod input;
mod reader;
mod schema;

use std::io::IsTerminal;
use std::time::{Duration, Instant};

use arrow::datatypes::SchemaRef;
use arrow::error::ArrowError;
use futures::TryStreamExt;
use regex::Regex;
use thallus_client::{
    Client, ClientError, ConnectOptions, Defaults, Depth, IngestMode, LendFrom, ObjectsRequest, TransferReport,
    UploadOptions, UploadReport,
};
use thallus_fabric::units::{grouped, human_duration};

use self::input::{Input, ReadOptions};
use self::schema::Columns;
use super::args::{PutArgs, PutMode, connect_options};
use super::failure::{Failure, Phase};
use super::interrupt::Interrupts;
use super::names::pattern;
use super::print::print_message;
use super::progress::Progress;
use super::query::{FAREWELL, looks_like_url, warn_of_fallback};
pub use error::InputError;

/// The arguments of `thallus put`, checked as far as possible without a server.
#[derive(Debug)]
pub(super) struct Request {
    connect: ConnectOptions,
    table: String,
    inputs: Vec<Input>,
    read: ReadOptions,
    upload: UploadOptions,
    /// The user wants every batch lent.
    all_lent: bool,
    quiet: bool,
}

impl Request {
    /// # Errors
    /// [`Failure::Usage`], [`Failure::Client`] for the URL, [`Failure::Input`] for a file that cannot be opened.
    pub(super) fn new(args: PutArgs, default_url: Option<String>) -> Result<Self, Failure> {
        let read = ReadOptions {
            batch_rows: usize::try_from(args.batch_rows).unwrap_or(usize::MAX),
            delimiter: delimiter(args.delimiter)?,
            null: args.null.as_deref().map(null_pattern).transpose()?,
        };
        let lend_from = args.lend_from();
        let mut upload = UploadOptions::new().with_deadline(args.deadline).with_mode(match args.mode {
            PutMode::CreateAppend => IngestMode::CreateAppend,
            PutMode::Append => IngestMode::Append,
            PutMode::Create => IngestMode::Create,
            PutMode::Replace => IngestMode::Replace,
        });
        upload = upload.with_defaults(Defaults { schema: args.schema, ..Defaults::default() });
        upload.lend_from = lend_from;
        let (url, table, files) = arguments(args.first, args.second, args.files, default_url)?;
        let connect = connect_options(&url)?;
        let all_lent = lend_from.unwrap_or(connect.lend_from) == LendFrom::Bytes(0);
        let inputs = files.into_iter().map(|path| Input::new(path, args.format)).collect::<Result<_, _>>()?;
        Ok(Request { connect, table, inputs, read, upload, all_lent, quiet: args.quiet })
    }

    /// Uploads the files. Returns the summary.
    ///
    /// # Errors
    /// Any [`Failure`]; nothing is stored then.
    pub(super) async fn run(self, mut interrupts: Interrupts) -> Result<String, Failure> {
        let started = Instant::now();
        let (inputs, read) = (self.inputs.clone(), self.read.clone());
        let inspected = tokio::task::spawn_blocking(move || inspect(&inputs, &read));
        let columns = match interrupts.unless(inspected).await? {
            Ok(columns) => columns.map_err(Failure::Input)?,
            Err(source) => return Err(Failure::Local { what: "cannot read the files".into(), source: source.into() }),
        };
        let schema = schema::unified(&columns).map_err(Failure::Input)?;
        let client = interrupts.unless(Client::connect_with(self.connect.clone())).await?;
        let client = client.map_err(|error| Failure::Client { phase: Phase::Connect, error })?;
        warn_of_fallback(&client);
        let outcome = match interrupts.unless(self.upload(&client, columns, schema)).await {
            Ok(outcome) => outcome,
            Err(failure) => Err(failure),
        };
        // Closing also sends the withdrawal. The timeout covers a server that does not respond.
        let _ = tokio::time::timeout(FAREWELL, client.close()).await;
        let report = outcome?;
        if self.quiet {
            return Ok(String::new());
        }
        if self.all_lent && report.batches_inline > 0 {
            let (inline, all) = (report.batches_inline, report.batches_inline + report.batches_lent);
            print_message(format_args!(
                "warning: every batch was to be lent, but {} of {} travelled inline",
                grouped(inline),
                grouped(all)
            ));
        }
        Ok(summary(&self.table, self.inputs.len(), &report, started.elapsed()))
    }

    async fn upload(&self, client: &Client, columns: Vec<Columns>, schema: SchemaRef) -> Result<UploadReport, Failure> {
        let schema = self.with_types_of_the_table(client, &columns, schema).await;
        let files = self.inputs.iter().cloned().zip(columns).collect();
        let batches = reader::read(files, schema.clone(), self.read.clone())
            .map_err(|source| Failure::Local { what: "cannot start a thread".into(), source })?;
        let mut progress = Progress::new(!self.quiet && std::io::stderr().is_terminal());
        let (started, mut rows, mut bytes) = (Instant::now(), 0, 0);
        let batches = batches.map_err(|error| ArrowError::ExternalError(Box::new(error))).inspect_ok(|batch| {
            rows += batch.num_rows() as u64;
            bytes += batch.get_array_memory_size() as u64;
            progress.update(|| TransferReport {
                rows,
                bytes_inline: bytes,
                total: started.elapsed(),
                ..TransferReport::default()
            });
        });
        let uploaded = client.upload_with(&self.table, schema, batches, self.upload.clone()).await;
        progress.clear();
        uploaded.map_err(failure)
    }

    /// The columns with the types of the table, if it exists and the files are texts: a column of digits in a file may
    /// be one of strings.
    async fn with_types_of_the_table(&self, client: &Client, columns: &[Columns], schema: SchemaRef) -> SchemaRef {
        let adds = matches!(self.upload.mode, IngestMode::Append | IngestMode::CreateAppend);
        if !adds || !columns.iter().all(|file| file.inferred) {
            return schema;
        }
        let request = ObjectsRequest {
            depth: Depth::Columns,
            schema: self.upload.defaults.schema.as_deref().map(pattern),
            table: Some(pattern(&self.table)),
            ..ObjectsRequest::default()
        };
        // A server that lists no objects checks the types itself; a lost connection is found by the upload.
        let objects = client.objects(&request).await.unwrap_or_default();
        let tables: Vec<_> = objects.into_iter().filter_map(|object| object.table).collect();
        match tables.as_slice() {
            [table] if table.name == self.table => {
                table.columns.as_ref().map_or(schema.clone(), |known| schema::typed_as(&schema, known))
            }
            _ => schema,
        }
    }
}

/// The columns of each file.
fn inspect(inputs: &[Input], options: &ReadOptions) -> Result<Vec<Columns>, InputError> {
    inputs.iter().map(|input| reader::guarded(input, || input.columns(options))).collect()
}

/// The failure of an upload: that of its source, or the client's.
fn failure(error: ClientError) -> Failure {
    match error {
        ClientError::Source { source: ArrowError::ExternalError(source) } => match source.downcast::<InputError>() {
            Ok(input) => Failure::Input(*input),
            Err(source) => {
                let error = ClientError::Source { source: ArrowError::ExternalError(source) };
                Failure::Client { phase: Phase::Transfer, error }
            }
        },
        error => Failure::Client { phase: Phase::Transfer, error },
    }
}

fn summary(table: &str, files: usize, report: &UploadReport, elapsed: Duration) -> String {
    let count = |count: u64, what: &str| format!("{} {what}{}", grouped(count), if count == 1 { "" } else { "s" });
    let (rows, files) = (count(report.rows, "row"), count(files as u64, "file"));
    let (lent, inline) = (grouped(report.batches_lent), grouped(report.batches_inline));
    let elapsed = human_duration(elapsed);
    format!("{rows} of {files} to {table}: {lent} batches lent, {inline} inline, in {elapsed}\n")
}

fn usage(message: &str, hint: &str) -> Failure {
    Failure::Usage { message: message.into(), hint: hint.into() }
}

fn delimiter(given: char) -> Result<u8, Failure> {
    match u8::try_from(given) {
        Ok(byte) if byte.is_ascii() && !matches!(byte, b'"' | b'\r' | b'\n') => Ok(byte),
        _ => Err(usage("the delimiter is no ASCII character, a quote or a line break", "give one like ; or |")),
    }
}

fn null_pattern(text: &str) -> Result<Regex, Failure> {
    let pattern = format!("^{}$", regex::escape(text));
    Regex::new(&pattern).map_err(|error| usage(&format!("the text for NULL is too long: {error}"), "give a short one"))
}

/// Assigns the arguments: the URL may come from the environment.
fn arguments(
    first: Option<String>,
    second: Option<String>,
    mut files: Vec<std::path::PathBuf>,
    default_url: Option<String>,
) -> Result<(String, String, Vec<std::path::PathBuf>), Failure> {
    let example = "write thallus put thallus://localhost:7807 TABLE FILE..., or set THALLUS_URL";
    let (url, table) = match (first, second) {
        (Some(url), table) if looks_like_url(&url) => (Some(url), table),
        (table, file) => {
            files.splice(0..0, file.map(Into::into));
            (default_url, table)
        }
    };
    let url = url.ok_or_else(|| usage("no server is given", example))?;
    let table = table.filter(|table| !table.is_empty()).ok_or_else(|| usage("no table is given", example))?;
    if files.is_empty() {
        return Err(usage("no file is given", example));
    }
    Ok((url, table, files))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::PathBuf;

    #[test]
    fn the_url_may_be_left_out() {
        let some = |text: &str| Some(text.to_owned());
        let paths = |names: &[&str]| names.iter().map(PathBuf::from).collect::<Vec<_>>();
        let given = arguments(some("thallus://h"), some("t"), paths(&["a", "b"]), some("thallus://other")).unwrap();
        assert_eq!(given, ("thallus://h".to_owned(), "t".to_owned(), paths(&["a", "b"])));
        let from_environment = arguments(some("t"), some("a"), paths(&["b"]), some("thallus://h")).unwrap();
        assert_eq!(from_environment, given);
        for (first, second, url, message) in [
            (None, None, None, "no server"),
            (some("t"), some("a"), None, "no server"),
            (some("thallus://h"), None, None, "no table"),
            (some("thallus://h"), some("t"), None, "no file"),
            (some("t"), None, some("thallus://h"), "no file"),
        ] {
            let failure = arguments(first, second, Vec::new(), url).unwrap_err();
            assert!(failure.to_string().starts_with(message), "{failure}");
        }
    }

    #[test]
    fn the_text_for_null_matches_itself() {
        assert!(null_pattern("N/A.").unwrap().is_match("N/A."));
        assert!(!null_pattern("N/A.").unwrap().is_match("N/A.."));
    }

    #[test]
    fn the_summary_counts() {
        let mut report = UploadReport::default();
        (report.rows, report.batches_lent, report.batches_inline) = (1234, 1000, 1);
        assert_eq!(
            summary("t", 1, &report, Duration::from_millis(1500)),
            "1,234 rows of 1 file to t: 1,000 batches lent, 1 inline, in 1.500 s\n"
        );
    }
}
