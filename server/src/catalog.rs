//! The tables of the server: from the configured names to the files with the rows.
//!
//! Names and formats are resolved here, once, at start-up, without a query engine. Every mistake that can be detected
//! without reading a whole file is reported here, as an error with table and path.

mod compression;
mod error;
mod files;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

pub use crate::config::Format;
use crate::config::{ServerConfig, TableConfig};
pub use compression::Compression;
pub use error::CatalogError;
use files::FileKind;
pub use files::{DataFile, Policy, Stamp};

/// Longest name of a table, in bytes.
const MAX_NAME_BYTES: usize = 128;

/// A table whose files were found.
#[derive(Clone, Debug)]
pub struct TableSpec {
    /// Name of the table, with the capitals of its file or key.
    pub name: String,
    /// Absolute path of the file or directory.
    pub path: PathBuf,
    /// Whether `path` is a directory.
    pub is_directory: bool,
    /// Format of the files.
    pub format: Format,
    /// The files, sorted by path.
    pub files: Vec<DataFile>,
    /// Columns from the names of directories, as in `year=2024/month=01` (Hive's layout), outermost first.
    pub partition_columns: Vec<String>,
    /// The configuration of the table.
    pub config: TableConfig,
    /// The treatment of a file that cannot be served.
    pub policy: Policy,
}

/// The tables of a configuration, and what could not be served.
#[derive(Debug, Default)]
pub struct Resolved {
    /// The tables, sorted by name.
    pub tables: Vec<TableSpec>,
    /// Files and tables of the data directories that are not served, with the reasons.
    pub skipped: Vec<CatalogError>,
}

/// Finds every table of the configuration.
///
/// # Errors
/// The first [`CatalogError`] of a table of the configuration; with `strict`, also of one of the data directories.
pub fn resolve(config: &ServerConfig) -> Result<Resolved, CatalogError> {
    let mut tables: BTreeMap<String, TableSpec> = BTreeMap::new();
    let mut skipped = Vec::new();
    let duplicate = |first: &TableSpec, second: &TableSpec| CatalogError::Duplicate {
        table: first.name.clone(),
        first: first.path.clone(),
        second: second.path.clone(),
    };
    let policy = if config.strict { Policy::Strict } else { Policy::Table };
    for (name, table) in &config.tables {
        let (spec, odd) = resolve_table(name, table, policy)?;
        skipped.extend(odd);
        if let Some(first) = tables.get(&spec.name) {
            return Err(duplicate(first, &spec));
        }
        tables.insert(spec.name.clone(), spec);
    }
    let policy = if config.strict { Policy::Strict } else { Policy::Data };
    for directory in &config.data {
        let mut found = 0;
        for entry in tables_of(directory, policy, &mut skipped)? {
            let added = resolve_table(&entry.0, &TableConfig::at(entry.1), policy).and_then(|(spec, odd)| {
                skipped.extend(odd);
                match tables.get(&spec.name) {
                    Some(first) => Err(duplicate(first, &spec)),
                    None => Ok(spec),
                }
            });
            match added {
                Ok(spec) => {
                    found += 1;
                    tables.insert(spec.name.clone(), spec);
                }
                // Of two files of one name none can be chosen.
                Err(error) if config.strict || matches!(error, CatalogError::Duplicate { .. }) => return Err(error),
                Err(error) => skipped.push(error),
            }
        }
        if found == 0 {
            return Err(match skipped.pop() {
                Some(reason) if skipped.is_empty() => reason,
                _ => CatalogError::EmptyDirectory { table: None, path: directory.to_owned() },
            });
        }
    }
    Ok(Resolved { tables: tables.into_values().collect(), skipped })
}

/// Finds the files of one table. Also returns what is skipped in its directory.
///
/// # Errors
/// [`CatalogError`].
pub fn resolve_table(
    name: &str,
    config: &TableConfig,
    policy: Policy,
) -> Result<(TableSpec, Vec<CatalogError>), CatalogError> {
    let name = checked_name(name, &config.path)?;
    let found = files::find(&name, config, policy)?;
    let spec = TableSpec {
        name,
        path: found.path,
        is_directory: found.is_directory,
        format: found.format,
        files: found.files,
        partition_columns: found.partition_columns,
        config: config.clone(),
        policy,
    };
    Ok((spec, found.skipped))
}

/// Names and paths of the tables in a `--data` directory, sorted.
pub(crate) fn tables_of(
    directory: &Path,
    policy: Policy,
    skipped: &mut Vec<CatalogError>,
) -> Result<Vec<(String, PathBuf)>, CatalogError> {
    let unreadable = |source| CatalogError::of_io(None, directory, source);
    let mut tables = Vec::new();
    let mut odd = |error: CatalogError| match policy {
        Policy::Strict => Err(error),
        _ => {
            skipped.push(error);
            Ok(())
        }
    };
    for entry in fs::read_dir(directory).map_err(unreadable)? {
        let entry = entry.map_err(unreadable)?;
        let path = entry.path();
        let Some(file_name) = entry.file_name().to_str().map(str::to_owned) else {
            odd(CatalogError::NotUtf8 { path })?;
            continue;
        };
        if files::is_hidden(&file_name) {
            if file_name.starts_with('_') {
                tracing::info!(path = %path.display(), "skipped: its name begins with `_`");
            }
            continue;
        }
        // Follows symbolic links, unlike `DirEntry::metadata`.
        match fs::metadata(&path) {
            Ok(metadata) if metadata.is_dir() => tables.push((file_name, path)),
            Ok(_) => match FileKind::of_name(&file_name) {
                Some((stem, _)) => tables.push((stem.to_owned(), path)),
                None => tracing::warn!(path = %path.display(), "skipped: its extension is not that of a data format"),
            },
            Err(source) => odd(CatalogError::of_io(Some(&file_name), &path, source))?,
        }
    }
    // The order of a directory is arbitrary. Sorting makes it deterministic which of several errors is reported.
    tables.sort();
    Ok(tables)
}

/// Names and paths of those tables of a `--data` directory whose names differ from this one in case at most, sorted.
/// Files that are skipped are not reported again.
#[cfg(feature = "datafusion")]
pub(crate) fn fitting_tables_of(directory: &Path, name: &str) -> Vec<(String, PathBuf)> {
    let fitting = |entry: fs::DirEntry| {
        let (path, file_name) = (entry.path(), entry.file_name().into_string().ok()?);
        let stem = FileKind::of_name(&file_name).map(|(stem, _)| stem.to_owned());
        let fits = |table: &String| table.eq_ignore_ascii_case(name);
        if files::is_hidden(&file_name) || !(fits(&file_name) || stem.as_ref().is_some_and(fits)) {
            return None;
        }
        let table = if fs::metadata(&path).ok()?.is_dir() { file_name } else { stem? };
        fits(&table).then_some((table, path))
    };
    let mut tables: Vec<_> = fs::read_dir(directory).into_iter().flatten().flatten().filter_map(fitting).collect();
    tables.sort();
    tables
}

fn checked_name(name: &str, path: &Path) -> Result<String, CatalogError> {
    match name_flaw(name) {
        None => Ok(name.to_owned()),
        Some(reason) => Err(CatalogError::BadName { table: name.to_owned(), path: path.to_owned(), reason }),
    }
}

/// Why this cannot be the name of a table. `None`: it can.
pub(crate) fn name_flaw(name: &str) -> Option<String> {
    if name.is_empty() {
        Some("it is empty".to_owned())
    } else if name.len() > MAX_NAME_BYTES {
        Some(format!("it is longer than {MAX_NAME_BYTES} bytes"))
    } else if let Some(c) = name.chars().find(|c| c.is_control() || *c == '"') {
        Some(format!("it contains {c:?}"))
    } else if name.trim() != name {
        Some("it begins or ends with a blank".to_owned())
    } else {
        None
    }
}
