//! Errors of tables, at start-up and when a table is first opened.

use std::io;
use std::path::{Path, PathBuf};

use thiserror::Error;

/// Known extensions, for messages.
const KNOWN_EXTENSIONS: &str =
    ".parquet .csv .tsv .json .ndjson .jsonl .arrow .arrows .ipc .feather (text also .gz .bz2 .xz .zst)";

/// A table cannot be served. Every message contains the path, and the table if it is known.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum CatalogError {
    /// The path does not exist.
    #[error("{}{}: no such file or directory", of(table), path.display())]
    NotFound {
        /// The table, unless a whole data directory is missing.
        table: Option<String>,
        /// The path.
        path: PathBuf,
    },
    /// The operating system denies reading, or reading fails.
    #[error("{}{}: cannot be read: {source}", of(table), path.display())]
    Unreadable {
        /// The table, unless it is a whole data directory.
        table: Option<String>,
        /// The file or directory.
        path: PathBuf,
        /// The operating system's error.
        source: io::Error,
    },
    /// A directory without readable files.
    #[error(
        "{}{}: the directory holds no data files (names that begin with `.` or `_` are skipped)",
        of(table), path.display()
    )]
    EmptyDirectory {
        /// The table, unless it is a whole data directory.
        table: Option<String>,
        /// The directory.
        path: PathBuf,
    },
    /// An empty file, in a format that has no empty files.
    #[error("table `{table}`: {}: the file is empty", path.display())]
    EmptyFile {
        /// The table.
        table: String,
        /// The file.
        path: PathBuf,
    },
    /// A directory with files of more than one format.
    #[error(
        "table `{table}`: {}: the directory mixes formats ({}); a table has files of one format",
        path.display(), found.join(", ")
    )]
    MixedFormats {
        /// The table.
        table: String,
        /// The directory.
        path: PathBuf,
        /// The extensions found.
        found: Vec<String>,
    },
    /// A directory within a table's directory that is not a partition such as `year=2024`.
    #[error(
        "table `{table}`: {}: a directory within a table's directory must be a partition such as year=2024, at the \
         same depth and of the same column everywhere; make it a table of its own, or move it away",
        path.display()
    )]
    NestedDirectory {
        /// The table.
        table: String,
        /// The inner directory.
        path: PathBuf,
    },
    /// Directories of one table that name other columns than those of the other files.
    #[error(
        "table `{table}`: {}: its directories do not name the same columns as those of {}",
        path.display(), first.display()
    )]
    PartitionsDiffer {
        /// The table.
        table: String,
        /// The file.
        path: PathBuf,
        /// The first file.
        first: PathBuf,
    },
    /// A directory names a partition column that one above it names already.
    #[error("table `{table}`: {}: the column `{column}` is named twice on this path", path.display())]
    PartitionTwice {
        /// The table.
        table: String,
        /// The inner directory.
        path: PathBuf,
        /// The column.
        column: String,
    },
    /// A file of another format than the table's other files.
    #[error("table `{table}`: {}: not a {format} file like the table's other files", path.display())]
    OtherFormat {
        /// The table.
        table: String,
        /// The file.
        path: PathBuf,
        /// The format of the others.
        format: &'static str,
    },
    /// A file whose format follows neither from its name nor from its content.
    #[error(
        "table `{table}`: {}: unknown format; known extensions: {}; or give the table's `format` in the \
         configuration file",
        path.display(), KNOWN_EXTENSIONS
    )]
    UnknownFormat {
        /// The table.
        table: String,
        /// The file.
        path: PathBuf,
    },
    /// A pipe, socket or device.
    #[error("table `{table}`: {}: is neither a regular file nor a directory", path.display())]
    SpecialFile {
        /// The table.
        table: String,
        /// The path.
        path: PathBuf,
    },
    /// An invalid name for a table.
    #[error("`{table}` (for {}) cannot be a table's name: {reason}", path.display())]
    BadName {
        /// The name.
        table: String,
        /// The path of the table.
        path: PathBuf,
        /// The problem.
        reason: String,
    },
    /// Two tables have the same name.
    #[error("table `{table}` is given twice: {} and {}", first.display(), second.display())]
    Duplicate {
        /// The name.
        table: String,
        /// The path of the first.
        first: PathBuf,
        /// The path of the second.
        second: PathBuf,
    },
    /// A path that is not UTF-8, which neither SQL nor the object store can express.
    #[error("{}: the path is not UTF-8", path.display())]
    NotUtf8 {
        /// The path.
        path: PathBuf,
    },
    /// A file that does not have its declared format.
    #[error("table `{table}`: {}: not a readable {format} file: {reason}", path.display())]
    Corrupt {
        /// The table.
        table: String,
        /// The file.
        path: PathBuf,
        /// The expected format.
        format: &'static str,
        /// The problem.
        reason: String,
    },
    /// Files of one table whose columns are incompatible.
    #[error("table `{table}`: {}: the files' columns do not fit together: {reason}", path.display())]
    SchemaMismatch {
        /// The table.
        table: String,
        /// Its directory.
        path: PathBuf,
        /// The columns and their difference.
        reason: String,
    },
    /// A file changed while a query read it.
    #[error("table `{table}`: {}: the file changed while the query read it; run the query again", path.display())]
    Changed {
        /// The table.
        table: String,
        /// The file.
        path: PathBuf,
    },
    /// Files without columns.
    #[error("table `{table}`: {}: has no columns", path.display())]
    NoColumns {
        /// The table.
        table: String,
        /// File or directory.
        path: PathBuf,
    },
}

impl CatalogError {
    pub(crate) fn of_io(table: Option<&str>, path: &Path, source: io::Error) -> Self {
        let (table, path) = (table.map(str::to_owned), path.to_owned());
        match source.kind() {
            io::ErrorKind::NotFound => CatalogError::NotFound { table, path },
            _ => CatalogError::Unreadable { table, path, source },
        }
    }
}

#[cfg(feature = "datafusion")]
impl CatalogError {
    /// The table and the path, if they are known, and the rest of the message.
    pub(crate) fn parts(&self) -> (Option<&str>, &Path, String) {
        use CatalogError as E;
        let (table, path) = match self {
            E::NotFound { table, path } | E::Unreadable { table, path, .. } | E::EmptyDirectory { table, path } => {
                (table.as_deref(), path)
            }
            E::EmptyFile { table, path }
            | E::MixedFormats { table, path, .. }
            | E::NestedDirectory { table, path }
            | E::PartitionTwice { table, path, .. }
            | E::PartitionsDiffer { table, path, .. }
            | E::OtherFormat { table, path, .. }
            | E::UnknownFormat { table, path }
            | E::SpecialFile { table, path }
            | E::BadName { table, path, .. }
            | E::Corrupt { table, path, .. }
            | E::SchemaMismatch { table, path, .. }
            | E::Changed { table, path }
            | E::NoColumns { table, path } => (Some(table.as_str()), path),
            E::Duplicate { table, first, .. } => (Some(table.as_str()), first),
            E::NotUtf8 { path } => (None, path),
        };
        let message = self.to_string();
        let prefix = format!("{}{}: ", of(&table.map(str::to_owned)), path.display());
        let reason = message.strip_prefix(&prefix).map(str::to_owned);
        (table, path, reason.unwrap_or(message))
    }
}

fn of(table: &Option<String>) -> String {
    table.as_ref().map(|table| format!("table `{table}`: ")).unwrap_or_default()
}
