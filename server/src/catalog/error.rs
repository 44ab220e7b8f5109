//! What can be wrong with a table, before and when it is first opened.

use std::io;
use std::path::{Path, PathBuf};

use thiserror::Error;

/// A table cannot be served. Every message names the table, if there is one yet, and the path.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum CatalogError {
    /// There is nothing at the path.
    #[error("{}{}: no such file or directory", of(table), path.display())]
    NotFound {
        /// The table, unless it is a whole data directory that is missing.
        table: Option<String>,
        /// Where it should be.
        path: PathBuf,
    },
    /// The system refuses to let this process read it, or fails to.
    #[error("{}{}: cannot be read: {source}", of(table), path.display())]
    Unreadable {
        /// The table, unless it is a whole data directory.
        table: Option<String>,
        /// The file or directory.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A directory without a file that could be read.
    #[error("{}{}: the directory holds no data files (names that begin with `.` or `_` are skipped)", of(table), path.display())]
    EmptyDirectory {
        /// The table, unless it is a whole data directory.
        table: Option<String>,
        /// The directory.
        path: PathBuf,
    },
    /// A file without any bytes, in a format that has no such files.
    #[error("table `{table}`: {}: the file is empty", path.display())]
    EmptyFile {
        /// The table.
        table: String,
        /// The file.
        path: PathBuf,
    },
    /// A directory with files of more than one format.
    #[error(
        "table `{table}`: {}: the directory mixes formats ({}); a table has files of one format and extension",
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
        "table `{table}`: {}: a directory within a table's directory must be a partition such as year=2024, at the same \
         depth and of the same column everywhere; make it a table of its own, or move it away",
        path.display()
    )]
    NestedDirectory {
        /// The table.
        table: String,
        /// The inner directory.
        path: PathBuf,
    },
    /// A file of which neither name nor content tells the format.
    #[error(
        "table `{table}`: {}: unknown format; known extensions: {}; or give the table's `format` in the configuration file",
        path.display(), super::files::KNOWN_EXTENSIONS
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
    /// A name that no table may have.
    #[error("`{table}` (for {}) cannot be a table's name: {reason}", path.display())]
    BadName {
        /// The name.
        table: String,
        /// Where it came from.
        path: PathBuf,
        /// The problem.
        reason: String,
    },
    /// One name for two tables; names differ in more than case.
    #[error("table `{table}` is given twice: {} and {}", first.display(), second.display())]
    Duplicate {
        /// The name.
        table: String,
        /// Where the first comes from.
        first: PathBuf,
        /// Where the second comes from.
        second: PathBuf,
    },
    /// A path that is not UTF-8, which neither SQL nor the object store can name.
    #[error("{}: the path is not UTF-8", path.display())]
    NotUtf8 {
        /// The path.
        path: PathBuf,
    },
    /// A file that is not what its format says.
    #[error("table `{table}`: {}: not a readable {format} file: {reason}", path.display())]
    Corrupt {
        /// The table.
        table: String,
        /// The file.
        path: PathBuf,
        /// The format it should have.
        format: &'static str,
        /// The problem.
        reason: String,
    },
    /// Files of one table whose columns do not fit together.
    #[error("table `{table}`: {}: the files' columns do not fit together: {reason}", path.display())]
    SchemaMismatch {
        /// The table.
        table: String,
        /// Its directory.
        path: PathBuf,
        /// Which columns, and how they differ.
        reason: String,
    },
    /// Files from which no column can be told.
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

fn of(table: &Option<String>) -> String {
    table.as_ref().map(|table| format!("table `{table}`: ")).unwrap_or_default()
}
