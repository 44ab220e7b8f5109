//! Tables that last: the catalog of a directory that the server may write to.
//!
//! `DIR/catalog.json` names every schema, table, view and data file. `DIR/data/` has the data files, Parquet or Arrow,
//! which never change. `DIR/lock` is locked by the one server that uses the directory. A commit writes a new catalog
//! beside the old one and renames it over that: a kill at any moment leaves the old or the new state. A kill can leave
//! data files that the catalog does not name; the next start removes them.
//!
//! A query has the snapshot of its planning. A data file that no catalog names any more is removed when the last query
//! over it has ended.
//!
//! No library's table format is used (November 2026). `iceberg` 0.10 needs arrow 58 and DataFusion 53, so that both
//! would be built twice. `deltalake-core` 1.1 fits arrow 59 and DataFusion 55, with 127 more crates. But Delta has
//! fewer types than Arrow: unsigned numbers, nanoseconds, durations and dictionaries would come back as other types,
//! or not at all. Delta has a log for each table, and none for schemas and views. The local store below it
//! (`object_store` 0.13) synchronizes no file, so that a commit would not outlive a loss of power. Needed here are
//! one writer and atomic commits on a local file system, which are the rename in `disk`.

mod apply;
mod commit;
mod create;
mod disk;
mod error;
mod faults;
mod fit;
mod format;
mod holds;
mod ingest;
mod name;
mod names;
mod opening;
mod provider;
mod rewrite;
mod rows;
mod snapshot;
mod statements;
mod stored_file;
mod table_file;
#[cfg(test)]
mod tests;
mod views;

use std::fmt;
use std::path::Path;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, OnceLock, PoisonError, RwLock};

use datafusion::execution::session_state::SessionState;

pub(super) use apply::Applied;
pub use error::DatabaseError;
pub(super) use ingest::begin;
pub(super) use name::Name;
pub(super) use provider::Catalogs;
use snapshot::Snapshot;
pub(super) use statements::{Change, Facts, Planning};
pub(super) use stored_file::StoredFile;

use crate::engine::TableInfo;
use disk::Disk;
use snapshot::StoredTable;

/// A database, open for this server alone.
pub(super) struct Database {
    disk: Arc<Disk>,
    snapshot: RwLock<Arc<Snapshot>>,
    /// Held for the time of a commit.
    commits: Mutex<()>,
    /// Whether it is unknown which catalog is durable. Then there are no more commits.
    is_broken: AtomicBool,
    /// The session with which files are opened and views are planned.
    state: OnceLock<SessionState>,
}

impl Database {
    /// Opens a database, and creates it if the directory is empty or new. Removes the data files that it does not name.
    pub(super) fn open(directory: &Path) -> Result<Self, DatabaseError> {
        let disk = Arc::new(Disk::open(directory)?);
        let snapshot = match disk.read_catalog()? {
            Some(text) => format::from_text(&text, &disk)?,
            None => {
                let empty = Snapshot::empty();
                commit::write(&disk, &empty).map_err(|source| DatabaseError::Io {
                    action: "create",
                    path: disk.catalog_path(),
                    source,
                })?;
                empty
            }
        };
        let named: std::collections::HashSet<&str> =
            snapshot.tables().flat_map(|(_, table)| &table.files).map(|file| file.name.as_str()).collect();
        let swept = disk.sweep(|name| named.contains(name))?;
        if swept > 0 {
            tracing::info!(directory = %disk.root().display(), swept, "data files without a table were removed");
        }
        for (name, table) in snapshot.tables() {
            for file in &table.files {
                let path = file.path();
                let length = std::fs::metadata(&path).map(|metadata| metadata.len());
                if !length.as_ref().is_ok_and(|length| *length == file.bytes) {
                    let (path, expected) = (path.display(), file.bytes);
                    tracing::error!(table = %name, %path, expected, ?length, "a data file is missing or damaged");
                }
            }
        }
        Ok(Database {
            disk,
            snapshot: RwLock::new(Arc::new(snapshot)),
            commits: Mutex::new(()),
            is_broken: AtomicBool::new(false),
            state: OnceLock::new(),
        })
    }

    /// Sets the session with which files are opened. Its own catalog is not used. Only the first call has an effect.
    pub(super) fn set_state(&self, state: SessionState) {
        let _first = self.state.set(state);
    }

    /// The newest content.
    pub(super) fn snapshot(&self) -> Arc<Snapshot> {
        Arc::clone(&self.snapshot.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Number of commits so far.
    pub(super) fn commits_so_far(&self) -> u64 {
        self.snapshot().commit
    }

    /// The directory, and that of the data files.
    pub(super) fn directories(&self) -> [&Path; 2] {
        [self.disk.root(), self.disk.data()]
    }

    /// The directory of the data files.
    pub(super) fn data(&self) -> &Path {
        self.disk.data()
    }

    /// Returns whether a table or view of the database hides a table of the operator's files.
    pub(super) fn shadows(&self, table: &str) -> bool {
        self.snapshot().public_names().any(|known| known == table)
    }

    /// The tables, for the log.
    pub(super) fn describe(&self) -> Vec<TableInfo> {
        let source = self.disk.root().display().to_string();
        let describe = |(name, table): (Name, &Arc<StoredTable>)| TableInfo {
            name: name.to_string(),
            source: source.clone(),
            format: table.format.as_str(),
            columns: table.schema.fields().len(),
            files: table.files.len(),
        };
        self.snapshot().tables().map(describe).collect()
    }
}

impl fmt::Debug for Database {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Database").field("directory", &self.disk.root()).finish_non_exhaustive()
    }
}
