//! A data file of the database.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::disk::Disk;

/// A data file, which is removed with the last user of it unless a catalog names it.
pub(in super::super) struct StoredFile {
    disk: Arc<Disk>,
    pub(in super::super) name: String,
    pub(in super::super) rows: u64,
    pub(in super::super) bytes: u64,
    /// True while the newest catalog names the file.
    is_named: AtomicBool,
}

impl StoredFile {
    /// A file of a catalog.
    pub(super) fn named(disk: Arc<Disk>, name: String, rows: u64, bytes: u64) -> Self {
        StoredFile { disk, name, rows, bytes, is_named: AtomicBool::new(true) }
    }

    /// A file that no catalog names yet.
    pub(super) fn unnamed(disk: Arc<Disk>, name: String, rows: u64, bytes: u64) -> Self {
        StoredFile { disk, name, rows, bytes, is_named: AtomicBool::new(false) }
    }

    /// The same file, complete.
    pub(super) fn complete(mut self, rows: u64, bytes: u64) -> Self {
        (self.rows, self.bytes) = (rows, bytes);
        self
    }

    pub(super) fn set_named(&self, is_named: bool) {
        self.is_named.store(is_named, Ordering::Release);
    }

    pub(in super::super) fn path(&self) -> PathBuf {
        self.disk.data().join(&self.name)
    }
}

impl fmt::Debug for StoredFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StoredFile").field("name", &self.name).field("rows", &self.rows).finish_non_exhaustive()
    }
}

impl Drop for StoredFile {
    fn drop(&mut self) {
        if !self.is_named.load(Ordering::Acquire) {
            self.disk.remove_data(&self.name);
        }
    }
}
