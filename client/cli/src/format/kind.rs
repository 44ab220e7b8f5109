//! The formats, and how they are chosen.

use std::path::Path;

use clap::ValueEnum;

use crate::failure::Failure;

/// `--format`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// For people: at most --max-rows rows, nulls as NULL
    Table,
    /// With a header; NULL is an empty field, and an empty string is ""
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
