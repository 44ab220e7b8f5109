//! A writer of some format, and its failures.

use std::io;

use arrow::array::RecordBatch;
use arrow::datatypes::{DataType, Field};
use arrow::error::ArrowError;
use parquet::errors::ParquetError;
use thiserror::Error;

use super::kind::Format;
use crate::failure::Failure;
use crate::output::Output;

/// Writes batches in some format.
pub trait BatchWriter: Send {
    /// Writes one batch, whole or up to an error.
    ///
    /// # Errors
    /// [`WriteError`]; nothing more may be written after it.
    fn write(&mut self, batch: &RecordBatch) -> Result<(), WriteError>;

    /// Adds rows that were not passed to [`write`](Self::write) to the number of rows that the output reports as left
    /// out.
    fn add_omitted(&mut self, _rows: u64) {}

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
    /// A column has a value that the format cannot hold.
    #[error("column {name:?} ({data_type}): {}", reason(source))]
    Column {
        /// The column.
        name: String,
        /// Its type.
        data_type: DataType,
        /// The reason.
        source: ArrowError,
    },
    /// A format of columns cannot hold rows without columns.
    #[error("{rows} rows have no column")]
    NoColumns {
        /// The number of rows.
        rows: usize,
    },
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

impl WriteError {
    pub(super) fn column(field: &Field, source: ArrowError) -> Self {
        WriteError::Column { name: field.name().clone(), data_type: field.data_type().clone(), source }
    }
}

/// The error without Arrow's name of its kind.
fn reason(error: &ArrowError) -> String {
    match error {
        ArrowError::CastError(reason) if reason == "Format error" => "a value within it has no text".into(),
        ArrowError::CastError(reason)
        | ArrowError::ParseError(reason)
        | ArrowError::CsvError(reason)
        | ArrowError::JsonError(reason)
        | ArrowError::InvalidArgumentError(reason) => reason.clone(),
        other => other.to_string(),
    }
}

/// The failure of a write: the output's own error if it had one, else that the result does not fit. In the latter case
/// text that is still in the output's buffer is not written.
#[must_use]
pub fn failure(format: Format, error: WriteError, output: &Output) -> Failure {
    output.failure().unwrap_or_else(|| {
        output.abandon();
        refusal(format, &error.to_string())
    })
}

/// The failure for a column of a type that the format cannot hold.
pub(super) fn unfit(format: Format, field: &Field) -> Failure {
    let (name, data_type) = (field.name(), field.data_type());
    refusal(format, &format!("column {name:?} is {data_type}, which it cannot hold"))
}

pub(super) fn refusal(format: Format, reason: &str) -> Failure {
    let (name, hint) = match format {
        Format::Table => ("a table", "use --format arrow"),
        Format::Csv => ("CSV", "use --format arrow or json, or cast the column or select its parts in the query"),
        Format::Json => ("JSON", "use --format arrow or parquet, or cast or rename columns in the query"),
        Format::Arrow => ("Arrow IPC", "use --format parquet"),
        Format::Parquet => ("Parquet", "use --format arrow, or cast the column in the query"),
    };
    Failure::Format { message: format!("cannot write the result as {name}: {reason}"), hint: hint.into() }
}
