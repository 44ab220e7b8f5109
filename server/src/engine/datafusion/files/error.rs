//! The error of a file's content.

use std::io;

use thiserror::Error;

/// A file cannot be read. The caller adds table and path.
#[derive(Debug, Error)]
pub(super) enum ReadError {
    /// The operating system's error.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// The content is not of the format, or a value not of the column's type.
    #[error("{}{reason}", at(.line))]
    Invalid {
        /// The line of a text file, from 1.
        line: Option<u64>,
        /// The problem.
        reason: String,
    },
}

impl ReadError {
    pub(super) fn invalid(reason: impl Into<String>) -> Self {
        ReadError::Invalid { line: None, reason: reason.into() }
    }

    pub(super) fn at_line(line: u64, reason: impl Into<String>) -> Self {
        ReadError::Invalid { line: Some(line), reason: reason.into() }
    }
}

fn at(line: &Option<u64>) -> String {
    line.map(|line| format!("line {line}: ")).unwrap_or_default()
}

/// The record batches of one file, in its order. Nothing follows an error.
pub(super) type Batches = Box<dyn Iterator<Item = Result<arrow_array::RecordBatch, ReadError>> + Send>;
