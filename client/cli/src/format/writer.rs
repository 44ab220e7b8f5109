//! A writer of some format, and its failures.

use std::io;

use arrow::array::RecordBatch;
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

/// The failure of a write: the output's own error if it had one, else that the result does not fit.
#[must_use]
pub fn failure(format: Format, error: WriteError, output: &Output) -> Failure {
    output.failure().unwrap_or_else(|| refusal(format, &error.to_string()))
}

pub(super) fn refusal(format: Format, reason: &str) -> Failure {
    let (name, hint) = match format {
        Format::Table => ("a table", "use --format arrow"),
        Format::Csv => ("CSV", "use --format arrow or json, or select the parts as columns of their own"),
        Format::Json => ("JSON", "use --format arrow or parquet, or cast or rename columns in the query"),
        Format::Arrow => ("Arrow IPC", "use --format parquet"),
        Format::Parquet => ("Parquet", "use --format arrow, or cast the column in the query"),
    };
    Failure::Format { message: format!("cannot write the result as {name}: {reason}"), hint: hint.into() }
}
