//! The formats of files.

use serde::{Deserialize, Serialize};

/// Format of a table's files.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// Apache Parquet.
    Parquet,
    /// Comma- or otherwise separated values.
    Csv,
    /// One JSON object a line.
    Json,
    /// Apache Arrow IPC, file or stream format, distinguished by their first bytes.
    Arrow,
}

impl Format {
    /// The name of the format in configuration and messages.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Format::Parquet => "parquet",
            Format::Csv => "csv",
            Format::Json => "json",
            Format::Arrow => "arrow",
        }
    }
}
