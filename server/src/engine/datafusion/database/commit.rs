//! Commits: from one snapshot to the next.

use std::collections::HashMap;
use std::io;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};

use super::disk::{CommitError, Disk};
use super::name::Name;
use super::snapshot::{Object, Snapshot, StoredTable};
use super::stored_file::StoredFile;
use super::{Database, format};
use crate::engine::EngineError;

/// The next snapshot, while it is made.
pub(super) struct Draft {
    next: Snapshot,
    is_changed: bool,
}

impl Draft {
    /// The content as changed so far.
    pub(super) fn now(&self) -> &Snapshot {
        &self.next
    }

    /// Adds a table or a view, or puts it in the place of the one of this name. The schema exists.
    pub(super) fn put(&mut self, name: &Name, object: Object) {
        self.is_changed = true;
        // With the spelling that the schema and the object have already.
        let known = self.next.find(name).map(|(known, _)| known);
        let schema = self.next.schema(&name.schema).map_or(&*name.schema, |(schema, _)| schema).to_owned();
        let name = known.map_or_else(|| name.object.clone(), |known| known.object);
        self.next.schemas.entry(schema).or_default().insert(name, object);
    }

    pub(super) fn put_table(&mut self, name: &Name, table: StoredTable) {
        self.put(name, Object::Table(Arc::new(table)));
    }

    pub(super) fn remove(&mut self, name: &Name) {
        let objects = self.next.schemas.get_mut(&name.schema);
        self.is_changed |= objects.is_some_and(|objects| objects.remove(&name.object).is_some());
    }

    pub(super) fn add_schema(&mut self, name: &str) {
        self.is_changed = true;
        self.next.schemas.entry(name.to_owned()).or_default();
    }

    pub(super) fn remove_schema(&mut self, name: &str) {
        self.is_changed |= self.next.schemas.remove(name).is_some();
    }
}

impl Database {
    /// Changes the database: all of the change, or none of it. Blocks.
    ///
    /// An error of `change` leaves the database as it is.
    pub(super) fn commit<T>(
        &self,
        change: impl FnOnce(&mut Draft) -> Result<T, EngineError>,
    ) -> Result<T, EngineError> {
        let _commits = self.commits.lock().unwrap_or_else(PoisonError::into_inner);
        if self.is_broken.load(Ordering::Acquire) {
            return Err(broken("an earlier commit"));
        }
        let old = self.snapshot();
        let mut draft = Draft { next: Snapshot::clone(&old), is_changed: false };
        let done = change(&mut draft)?;
        if !draft.is_changed {
            return Ok(done);
        }
        draft.next.commit += 1;
        let text = format::to_text(&draft.next).map_err(|message| EngineError::Internal { message })?;
        let result = match self.disk.write_catalog(&text) {
            Ok(()) => Ok(done),
            Err(CommitError::Old(error)) => {
                let message = format!("cannot write the catalog of the database: {error}; nothing was changed");
                return Err(EngineError::Execution { message });
            }
            Err(CommitError::Unknown(error)) => {
                tracing::error!(%error, "the directory of the database cannot be synchronized; no more commits");
                self.is_broken.store(true, Ordering::Release);
                Err(broken(&format!("this commit ({error})")))
            }
        };
        let (removed, added) = differences(&old, &draft.next);
        added.iter().for_each(|file| file.set_named(true));
        // It is unknown which catalog a crash would leave: both keep their files.
        if result.is_ok() {
            removed.iter().for_each(|file| file.set_named(false));
        }
        *self.snapshot.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(draft.next);
        result
    }
}

fn broken(what: &str) -> EngineError {
    let message = format!("it is unknown whether {what} is durable; no more changes until the server was restarted");
    EngineError::Execution { message }
}

/// Writes the catalog of a new database.
pub(super) fn write(disk: &Disk, snapshot: &Snapshot) -> io::Result<()> {
    let text = format::to_text(snapshot).map_err(io::Error::other)?;
    disk.write_catalog(&text).map_err(|error| match error {
        CommitError::Old(error) | CommitError::Unknown(error) => error,
    })
}

/// The files that only the old snapshot has, and those that only the new one has.
fn differences(old: &Snapshot, new: &Snapshot) -> (Vec<Arc<StoredFile>>, Vec<Arc<StoredFile>>) {
    let files = |snapshot: &Snapshot| -> HashMap<*const StoredFile, Arc<StoredFile>> {
        let files = snapshot.tables().flat_map(|(_, table)| table.files.clone());
        files.map(|file| (Arc::as_ptr(&file), file)).collect()
    };
    let (mut before, mut after) = (files(old), files(new));
    before.retain(|file, _| after.remove(file).is_none());
    (before.into_values().collect(), after.into_values().collect())
}
