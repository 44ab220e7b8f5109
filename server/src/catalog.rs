//! The tables of the server: from the configured names to the files with the rows.
//!
//! Names and formats are resolved here, once, at start-up, without a query engine. Every mistake that can be detected
//! without reading a whole file is reported here, as an error with table and path.

mod error;
mod files;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

pub use crate::config::Format;
use crate::config::{ServerConfig, TableConfig};
pub use error::CatalogError;
use files::FileKind;
#[cfg(feature = "datafusion")]
pub(crate) use files::is_hidden;

/// Longest name of a table, in bytes.
const MAX_NAME_BYTES: usize = 128;

/// Compression of a whole text file. Not the internal compression of Parquet and Arrow.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Compression {
    /// None.
    #[default]
    None,
    /// `.gz`
    Gzip,
    /// `.bz2`
    Bzip2,
    /// `.xz`
    Xz,
    /// `.zst`
    Zstd,
}

/// A table whose files were found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TableSpec {
    /// Name of the table, in lower case, as unquoted SQL identifiers are.
    pub name: String,
    /// Absolute path of the file or directory.
    pub path: PathBuf,
    /// Whether `path` is a directory.
    pub is_directory: bool,
    /// Format of the files.
    pub format: Format,
    /// Compression of the files.
    pub compression: Compression,
    /// Suffix of the files' names; in a directory only files with this suffix belong to the table. Empty if they have
    /// no extension.
    pub suffix: String,
    /// The files at start-up, sorted by path. Files that are added to a directory later are read too.
    pub files: Vec<PathBuf>,
    /// Columns from the names of directories, as in `year=2024/month=01` (Hive's layout), outermost first.
    pub partition_columns: Vec<String>,
    /// Whether a CSV file's first line names its columns.
    pub header: bool,
    /// Separator of the fields of a CSV file.
    pub delimiter: u8,
    /// Whether quoted fields of a CSV file may contain line breaks.
    pub quoted_newlines: bool,
}

/// Finds every table of the configuration, sorted by name.
///
/// # Errors
/// The first [`CatalogError`].
pub fn resolve(config: &ServerConfig) -> Result<Vec<TableSpec>, CatalogError> {
    let mut tables: BTreeMap<String, TableSpec> = BTreeMap::new();
    let mut add = |table: TableSpec| match tables.get(&table.name) {
        Some(first) => Err(CatalogError::Duplicate {
            table: table.name.clone(),
            first: first.path.clone(),
            second: table.path.clone(),
        }),
        None => {
            tables.insert(table.name.clone(), table);
            Ok(())
        }
    };
    for (name, table) in &config.tables {
        add(resolve_table(name, table)?)?;
    }
    for directory in &config.data {
        for (name, path) in tables_of(directory)? {
            add(resolve_table(&name, &TableConfig::at(path))?)?;
        }
    }
    Ok(tables.into_values().collect())
}

/// Finds the files of one table.
///
/// # Errors
/// [`CatalogError`].
pub fn resolve_table(name: &str, config: &TableConfig) -> Result<TableSpec, CatalogError> {
    let name = checked_name(name, &config.path)?;
    let found = files::find(&name, config)?;
    let delimiter = match config.delimiter {
        // The validated configuration contains only ASCII here.
        Some(delimiter) => u8::try_from(delimiter).unwrap_or(b','),
        None => found.kind.delimiter,
    };
    Ok(TableSpec {
        name,
        path: found.path,
        is_directory: found.is_directory,
        format: found.kind.format,
        compression: found.kind.compression,
        suffix: found.suffix,
        files: found.files,
        partition_columns: found.partition_columns,
        header: config.header,
        delimiter,
        quoted_newlines: config.quoted_newlines,
    })
}

/// Names and paths of the tables in a `--data` directory.
fn tables_of(directory: &Path) -> Result<Vec<(String, PathBuf)>, CatalogError> {
    let unreadable = |source| CatalogError::of_io(None, directory, source);
    let mut tables = Vec::new();
    for entry in fs::read_dir(directory).map_err(unreadable)? {
        let entry = entry.map_err(unreadable)?;
        let path = entry.path();
        let Some(file_name) = entry.file_name().to_str().map(str::to_owned) else {
            return Err(CatalogError::NotUtf8 { path });
        };
        if files::is_hidden(&file_name) {
            continue;
        }
        // Follows symbolic links, unlike `DirEntry::metadata`.
        let metadata = fs::metadata(&path).map_err(|source| CatalogError::of_io(Some(&file_name), &path, source))?;
        if metadata.is_dir() {
            tables.push((file_name, path));
        } else if let Some((stem, _)) = FileKind::of_name(&file_name) {
            tables.push((stem.to_owned(), path));
        } else {
            tracing::warn!(path = %path.display(), "skipped: its extension is not that of a known data format");
        }
    }
    if tables.is_empty() {
        return Err(CatalogError::EmptyDirectory { table: None, path: directory.to_owned() });
    }
    // The order of a directory is arbitrary. Sorting makes it deterministic which of several errors is reported.
    tables.sort();
    Ok(tables)
}

fn checked_name(name: &str, path: &Path) -> Result<String, CatalogError> {
    let reason = if name.is_empty() {
        "it is empty".to_owned()
    } else if name.len() > MAX_NAME_BYTES {
        format!("it is longer than {MAX_NAME_BYTES} bytes")
    } else if let Some(c) = name.chars().find(|c| c.is_control() || *c == '"') {
        format!("it contains {c:?}")
    } else if name.trim() != name {
        "it begins or ends with a blank".to_owned()
    } else {
        return Ok(name.to_lowercase());
    };
    Err(CatalogError::BadName { table: name.to_owned(), path: path.to_owned(), reason })
}
