//! Formats of a result. Each streams batch by batch, and refuses unsupported columns before it writes anything.

mod arrow;
mod parquet;
mod plain;
mod table;
mod text;

use std::io;
use std::path::Path;

use ::arrow::array::RecordBatch;
use ::arrow::datatypes::SchemaRef;
use ::arrow::error::ArrowError;
use ::parquet::errors::ParquetError;
use clap::ValueEnum;
use thiserror::Error;

use super::failure::Failure;
use super::output::Output;

/// `--format`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// For people: at most --max-rows rows, nulls as NULL
    Table,
    /// With a header; nulls are empty
    Csv,
    /// One JSON object per line and row; NaN and infinities are null
    Json,
    /// Arrow IPC: a file with --output, else a stream
    Arrow,
    /// Only with --output
    Parquet,
}

/// `--compression`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Compression {
    /// Small
    #[default]
    Zstd,
    /// Fast
    Snappy,
    /// Uncompressed
    None,
}

/// File extensions, and their formats.
const EXTENSIONS: [(&str, Format); 10] = [
    ("txt", Format::Table),
    ("csv", Format::Csv),
    ("json", Format::Json),
    ("jsonl", Format::Json),
    ("ndjson", Format::Json),
    ("arrow", Format::Arrow),
    ("arrows", Format::Arrow),
    ("feather", Format::Arrow),
    ("ipc", Format::Arrow),
    ("parquet", Format::Parquet),
];

impl Format {
    /// The format of a file's extension.
    ///
    /// # Errors
    /// [`Failure::Usage`] with the known extensions.
    pub fn of_path(path: &Path) -> Result<Format, Failure> {
        let extension = path.extension().map(|e| e.to_string_lossy().to_ascii_lowercase()).unwrap_or_default();
        let found = EXTENSIONS.iter().find(|(known, _)| *known == extension);
        found.map(|(_, format)| *format).ok_or_else(|| Failure::Usage {
            message: format!("cannot determine the format of {}: unknown extension {extension:?}", path.display()),
            hint: format!("give --format, or one of the extensions {}", EXTENSIONS.map(|(known, _)| known).join(", ")),
        })
    }

    /// Checks that the format suits the output, before there is a result.
    ///
    /// # Errors
    /// [`Failure::Usage`]: binary data on a terminal, Parquet other than to a file.
    pub fn check(self, terminal: bool, regular_file: bool) -> Result<(), Failure> {
        let hint = || "write it to a file with --output".to_owned();
        match self {
            Format::Parquet if !regular_file => {
                Err(Failure::Usage { message: "Parquet can only be written to a file".into(), hint: hint() })
            }
            Format::Arrow if terminal => {
                Err(Failure::Usage { message: "will not write binary data to a terminal".into(), hint: hint() })
            }
            _ => Ok(()),
        }
    }
}

/// The options of a format.
#[derive(Clone, Copy, Debug)]
pub struct FormatOptions {
    /// The format.
    pub format: Format,
    /// For Parquet.
    pub compression: Compression,
    /// For tables.
    pub max_rows: usize,
    /// For Arrow: whether the file's extension selects the stream format.
    pub stream: bool,
}

/// Writes batches in some format.
pub trait BatchWriter: Send {
    /// Writes one batch, whole or up to an error.
    ///
    /// # Errors
    /// [`WriteError`]; nothing more may be written after it.
    fn write(&mut self, batch: &RecordBatch) -> Result<(), WriteError>;

    /// Adds rows that were not passed to [`write`](Self::write) to the number of rows that the output reports as left
    /// out.
    fn left_out(&mut self, _rows: u64) {}

    /// Writes the end of the format, and flushes.
    ///
    /// # Errors
    /// [`WriteError`].
    fn finish(self: Box<Self>) -> Result<(), WriteError>;

    /// Notes for the user about changes to the written result.
    fn notes(&self) -> Vec<String> {
        Vec::new()
    }
}

/// A batch cannot be written.
#[derive(Debug, Error)]
pub enum WriteError {
    /// Arrow's writers refuse it.
    #[error(transparent)]
    Arrow(#[from] ArrowError),
    /// The Parquet writer refuses it.
    #[error(transparent)]
    Parquet(#[from] ParquetError),
    /// The output cannot be written.
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// A writer for results of this schema.
///
/// # Errors
/// [`Failure::Format`] if the format cannot hold such results. Nothing has been written in this case.
pub fn writer(options: FormatOptions, schema: &SchemaRef, output: &Output) -> Result<Box<dyn BatchWriter>, Failure> {
    let to = output.writer()?;
    match options.format {
        Format::Table => Ok(Box::new(table::Table::new(schema, to, options.max_rows, output.is_terminal()))),
        Format::Csv => text::csv(schema, to, output),
        Format::Json => text::json(schema, to),
        Format::Arrow if output.is_regular_file() && !options.stream => arrow::file(schema, to, output),
        Format::Arrow => arrow::stream(schema, to, output),
        Format::Parquet => parquet::writer(schema, to, options.compression, output),
    }
}

/// The failure of a write: the output's own error if it had one, else that the result does not fit.
#[must_use]
pub fn failure(format: Format, error: WriteError, output: &Output) -> Failure {
    output.failure().unwrap_or_else(|| refusal(format, &error.to_string()))
}

fn refusal(format: Format, reason: &str) -> Failure {
    let (name, hint) = match format {
        Format::Table => ("a table", "use --format arrow"),
        Format::Csv => ("CSV", "use --format arrow or json, or select the parts as columns of their own"),
        Format::Json => ("JSON", "use --format arrow or parquet, or cast or rename columns in the query"),
        Format::Arrow => ("Arrow IPC", "use --format parquet"),
        Format::Parquet => ("Parquet", "use --format arrow, or cast the column in the query"),
    };
    Failure::Format { message: format!("cannot write the result as {name}: {reason}"), hint: hint.into() }
}
