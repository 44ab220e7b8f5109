//! The directory that one engine spills to. DataFusion removes its files when a query ends; after a kill of the process
//! they are left. The next server removes them.

use std::fs::{self, File, TryLockError};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use super::open_error::OpenError;
use crate::config::EngineConfig;

/// Beginning of the directories' names.
const PREFIX: &str = "thallus-spill-";
/// Most names that are tried: those of processes in other namespaces with the same id may exist.
const ATTEMPTS: u32 = 1000;

/// The directory of an engine, removed when dropped.
#[derive(Debug)]
pub(super) struct SpillDirectory {
    path: PathBuf,
    /// Locked for as long as the process runs. Ids of processes would not do: servers in several containers may share
    /// the directory around this one.
    _lock: File,
}

impl SpillDirectory {
    /// Creates the directory that the configuration requires, and removes those of processes that have ended. `None`:
    /// nothing is spilled.
    pub(super) fn open(config: &EngineConfig) -> Result<Option<Self>, OpenError> {
        if config.max_spill_bytes.bytes() == 0 {
            return Ok(None);
        }
        let root = parent(config);
        // A missing directory is not created. Refusing it detects a mistyped one.
        let created = match fs::metadata(&root) {
            Ok(metadata) if !metadata.is_dir() => Err("it is not a directory".to_owned()),
            Ok(_) => create(&root).map_err(|e| e.to_string()),
            Err(e) => Err(e.to_string()),
        };
        let own = created.map_err(|reason| OpenError::SpillDirectory { path: root.clone(), reason })?;
        sweep(&root, &own);
        Ok(Some(own))
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }
}

impl SpillDirectory {
    /// Removes the directory. Queries that still run can no longer spill.
    pub(super) fn remove(&self) {
        // If it fails, the next server tries again.
        _ = fs::remove_dir_all(&self.path);
    }
}

impl Drop for SpillDirectory {
    fn drop(&mut self) {
        self.remove();
    }
}

/// The directory around those of all engines.
pub(super) fn parent(config: &EngineConfig) -> PathBuf {
    config.spill_dir.clone().unwrap_or_else(std::env::temp_dir)
}

fn create(root: &Path) -> io::Result<SpillDirectory> {
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    for _ in 0..ATTEMPTS {
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let path = root.join(format!("{PREFIX}{}-{number}", std::process::id()));
        match fs::DirBuilder::new().mode(0o700).create(&path) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => continue,
            created => created?,
        }
        // Until it is locked, another server may take the directory for one that was left, and remove it.
        let lock = match File::open(&path) {
            Ok(lock) => lock,
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => {
                let _left = fs::remove_dir(&path);
                return Err(error);
            }
        };
        if matches!(lock.try_lock(), Err(TryLockError::WouldBlock)) || !path.is_dir() {
            continue;
        }
        return Ok(SpillDirectory { path, _lock: lock });
    }
    Err(io::Error::new(io::ErrorKind::AlreadyExists, format!("too many directories {PREFIX}* are there")))
}

/// Removes the directories of this user's processes that have ended.
fn sweep(root: &Path, own: &SpillDirectory) {
    let Ok(user) = fs::metadata(&own.path).map(|metadata| metadata.uid()) else { return };
    let mut swept = 0;
    for entry in fs::read_dir(root).into_iter().flatten().flatten() {
        let path = entry.path();
        let is_named = entry.file_name().to_str().is_some_and(|name| name.starts_with(PREFIX));
        // Not by a symbolic link, which another user may have made.
        let is_ours = |metadata: fs::Metadata| metadata.is_dir() && metadata.uid() == user;
        if !is_named || path == own.path || !fs::symlink_metadata(&path).is_ok_and(is_ours) {
            continue;
        }
        let Ok(lock) = File::open(&path) else { continue };
        if lock.try_lock().is_ok() && fs::remove_dir_all(&path).is_ok() {
            swept += 1;
        }
    }
    if swept > 0 {
        tracing::info!(directory = %root.display(), swept, "spilled files of servers that are gone");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::ByteSize;

    #[test]
    fn directories_of_dead_servers_are_swept_and_those_of_others_are_not() {
        let root = tempfile::tempdir().unwrap();
        let config = EngineConfig { spill_dir: Some(root.path().to_owned()), ..EngineConfig::default() };
        let left = root.path().join("thallus-spill-1-0");
        fs::create_dir_all(left.join("datafusion-x")).unwrap();
        fs::write(left.join("datafusion-x/file"), "left by a killed server").unwrap();
        let other = root.path().join("other");
        fs::create_dir(&other).unwrap();
        let elsewhere = root.path().join("thallus-spill-link");
        std::os::unix::fs::symlink(&other, &elsewhere).unwrap();

        let first = SpillDirectory::open(&config).unwrap().unwrap();
        fs::write(first.path().join("file"), "spilled").unwrap();
        let second = SpillDirectory::open(&config).unwrap().unwrap();
        assert!(!left.exists() && other.exists() && elsewhere.exists());
        assert!(first.path() != second.path() && first.path().join("file").exists());
        let path = first.path().to_owned();
        drop(first);
        assert!(!path.exists() && second.path().exists());

        let none = EngineConfig { max_spill_bytes: ByteSize(0), ..config };
        assert!(SpillDirectory::open(&none).unwrap().is_none());
    }
}
