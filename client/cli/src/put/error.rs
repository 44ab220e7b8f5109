//! The reasons why a file cannot be uploaded.

use std::io;

use arrow::datatypes::DataType;
use arrow::error::ArrowError;
use parquet::errors::ParquetError;
use thiserror::Error;

/// A file cannot be uploaded.
#[derive(Debug, Error)]
pub enum InputError {
    /// The operating system does not let it be read.
    #[error("cannot read {file}: {source}")]
    Io {
        /// The file.
        file: String,
        /// The operating system's error.
        source: io::Error,
    },
    /// It is a pipe, a device or a directory.
    #[error("cannot upload {file}: it is no regular file, and it would be read twice")]
    NotAFile {
        /// The file.
        file: String,
    },
    /// It is not a valid CSV, JSON or Arrow file.
    #[error("cannot read {file} as {format}: {}", reason(source))]
    Arrow {
        /// The file.
        file: String,
        /// The format.
        format: &'static str,
        /// The reader's error.
        source: ArrowError,
    },
    /// It is not a valid Parquet file.
    #[error("cannot read {file} as Parquet: {}", parquet_reason(source))]
    Parquet {
        /// The file.
        file: String,
        /// The reader's error.
        source: ParquetError,
    },
    /// A library failed on it.
    #[error("cannot read {file}: its reader failed: {message}")]
    Broken {
        /// The file.
        file: String,
        /// The message of the panic.
        message: String,
    },
    /// Two of its columns have one name.
    #[error("{file} has several columns {column:?}")]
    Twice {
        /// The file.
        file: String,
        /// The name.
        column: String,
    },
    /// It lacks a column of another file.
    #[error("{file} has no column {column:?}, but {other} has")]
    Missing {
        /// The file without the column.
        file: String,
        /// The column.
        column: String,
        /// The file with the column.
        other: String,
    },
    /// A column has another type than in another file.
    #[error("column {column:?} is {found} in {file}, but {expected} in {other}")]
    Types {
        /// The column.
        column: String,
        /// A file.
        file: String,
        /// The column's type in it.
        found: DataType,
        /// Another file.
        other: String,
        /// The column's type in that one.
        expected: DataType,
    },
}

impl InputError {
    pub(super) fn arrow(file: &str, format: &'static str) -> impl Fn(ArrowError) -> Self + use<> {
        let file = file.to_owned();
        move |source| InputError::Arrow { file: file.clone(), format, source }
    }

    pub(super) fn parquet(file: &str, source: ParquetError) -> Self {
        InputError::Parquet { file: file.to_owned(), source }
    }

    /// Returns whether the columns of a file do not fit.
    pub(crate) fn is_of_columns(&self) -> bool {
        matches!(self, InputError::Twice { .. } | InputError::Missing { .. } | InputError::Types { .. })
    }

    /// The remedy for the user.
    pub(crate) fn hint(&self) -> Option<String> {
        let hint = match self {
            InputError::NotAFile { .. } => "write it to a file first",
            InputError::Arrow { .. } | InputError::Parquet { .. } | InputError::Broken { .. } => {
                "nothing was written to the table; --format names the format of files with another extension"
            }
            InputError::Twice { .. } => "rename one of them",
            InputError::Missing { .. } => "files of one upload have the same columns; upload others separately",
            InputError::Types { .. } => {
                "create the table first, with the type that fits both: CSV and JSON then take its types"
            }
            InputError::Io { .. } => return None,
        };
        Some(hint.to_owned())
    }
}

/// The error without Arrow's name of its kind.
fn reason(error: &ArrowError) -> String {
    match error {
        ArrowError::ParseError(reason)
        | ArrowError::CsvError(reason)
        | ArrowError::JsonError(reason)
        | ArrowError::IpcError(reason)
        | ArrowError::InvalidArgumentError(reason)
        | ArrowError::SchemaError(reason) => reason.clone(),
        other => other.to_string(),
    }
}

/// The error without Parquet's name of its kind.
fn parquet_reason(error: &ParquetError) -> String {
    match error {
        ParquetError::General(reason) | ParquetError::EOF(reason) | ParquetError::NYI(reason) => reason.clone(),
        other => other.to_string(),
    }
}
