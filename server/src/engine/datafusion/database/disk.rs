//! The directory of a database. Only this module changes it.
//!
//! The order of the steps makes a commit durable and atomic: a data file is synchronized, then its directory, and only
//! then the catalog that names it. The catalog is written beside the old one and renamed over it.

use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, Write};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::UNIX_EPOCH;

use super::error::DatabaseError;
use super::faults::Faults;

const CATALOG: &str = "catalog.json";
const DRAFT: &str = "catalog.json.tmp";
const DATA: &str = "data";
const LOCK: &str = "lock";
/// Bytes in the name of a data file: the time of its creation, so that tables are read in the order of their changes,
/// and random ones.
const NAME_BYTES: usize = 16;

/// The directory, locked for as long as this value lives.
#[derive(Debug)]
pub(in super::super) struct Disk {
    root: PathBuf,
    data: PathBuf,
    pub(super) faults: Faults,
    _lock: File,
}

impl Disk {
    /// Opens a directory, and creates it if it does not exist. Refuses one with other files.
    pub(super) fn open(root: &Path) -> Result<Self, DatabaseError> {
        let failed = |action, path: &Path| {
            let path = path.to_owned();
            move |source| DatabaseError::Io { action, path, source }
        };
        let root = std::path::absolute(root).map_err(failed("find", root))?;
        match DirBuilder::new().mode(0o700).create(&root) {
            Ok(()) => root.parent().map_or(Ok(()), sync_directory).map_err(failed("synchronize", &root))?,
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(source) => return Err(DatabaseError::Io { action: "create the database", path: root, source }),
        }
        // A path with `..` or with links names no file of a store.
        let root = root.canonicalize().map_err(failed("find", &root))?;
        check_is_own(&root)?;
        let lock = lock(&root)?;
        let data = root.join(DATA);
        match DirBuilder::new().mode(0o700).create(&data) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                return Err(DatabaseError::Io { action: "create", path: data, source: error });
            }
            _ => sync_directory(&root).map_err(failed("synchronize", &root))?,
        }
        Ok(Disk { root, data, faults: Faults::default(), _lock: lock })
    }

    /// The directory of the data files.
    pub(in super::super) fn data(&self) -> &Path {
        &self.data
    }

    pub(super) fn root(&self) -> &Path {
        &self.root
    }

    pub(super) fn catalog_path(&self) -> PathBuf {
        self.root.join(CATALOG)
    }

    /// The text of the catalog; `None` if there is none yet.
    pub(super) fn read_catalog(&self) -> Result<Option<Vec<u8>>, DatabaseError> {
        let path = self.catalog_path();
        match fs::read(&path) {
            Ok(text) => Ok(Some(text)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(DatabaseError::Io { action: "read", path, source }),
        }
    }

    /// Replaces the catalog.
    pub(super) fn write_catalog(&self, text: &[u8]) -> Result<(), CommitError> {
        let draft = self.root.join(DRAFT);
        let written = (|| {
            self.faults.step("create catalog.json.tmp")?;
            let mut file = File::create(&draft)?;
            let (first, second) = text.split_at(text.len() / 2);
            file.write_all(first)?;
            self.faults.step("write catalog.json.tmp")?;
            file.write_all(second)?;
            self.faults.step("sync catalog.json.tmp")?;
            file.sync_all()?;
            self.faults.step("rename catalog.json.tmp")
        })();
        written.map_err(CommitError::Old)?;
        // A file system over a network may report an error although its server has renamed the file.
        fs::rename(&draft, self.catalog_path()).map_err(|error| match draft.try_exists() {
            Ok(true) => CommitError::Old(error),
            _ => CommitError::Unknown(error),
        })?;
        let synced = self.faults.step("sync the directory").and_then(|()| sync_directory(&self.root));
        synced.map_err(CommitError::Unknown)
    }

    /// Creates a data file of a new name.
    pub(super) fn create_data(self: &Arc<Self>, extension: &str) -> io::Result<(String, DataSink)> {
        let mut random = [0; NAME_BYTES / 2];
        getrandom::fill(&mut random).map_err(|e| io::Error::other(e.to_string()))?;
        let time = UNIX_EPOCH.elapsed().map_or(0, |time| u64::try_from(time.as_nanos()).unwrap_or(u64::MAX));
        let name = format!("{time:016x}{:016x}.{extension}", u64::from_be_bytes(random));
        self.faults.step("create a data file")?;
        let file = OpenOptions::new().write(true).create_new(true).open(self.data.join(&name))?;
        Ok((name, DataSink { file, disk: Arc::clone(self) }))
    }

    /// Makes the names of new data files durable.
    pub(super) fn sync_data(&self) -> io::Result<()> {
        self.faults.step("sync data/")?;
        sync_directory(&self.data)
    }

    /// Removes a data file that no catalog names any more. If this fails, the next start tries again.
    pub(super) fn remove_data(&self, name: &str) {
        let path = self.data.join(name);
        if let Err(error) = self.faults.step("remove a data file").and_then(|()| fs::remove_file(&path)) {
            tracing::warn!(path = %path.display(), %error, "a file of the database was not removed");
        }
    }

    /// Removes the data files that the catalog does not name, which a kill has left. Returns their number.
    pub(super) fn sweep(&self, is_named: impl Fn(&str) -> bool) -> Result<usize, DatabaseError> {
        let unreadable = |source| DatabaseError::Io { action: "read", path: self.data.clone(), source };
        let mut swept = 0;
        for entry in fs::read_dir(&self.data).map_err(unreadable)? {
            let name = entry.map_err(unreadable)?.file_name();
            let name = name.to_string_lossy();
            if !is_data_name(&name) {
                let path = self.data.join(&*name);
                tracing::warn!(path = %path.display(), "not a file of this server; it was left in place");
            } else if !is_named(&name) {
                self.remove_data(&name);
                swept += 1;
            }
        }
        Ok(swept)
    }
}

/// A commit failed.
#[derive(Debug)]
pub(super) enum CommitError {
    /// The old catalog is in place.
    Old(io::Error),
    /// The new catalog is in place, but a crash of the machine may bring the old one back.
    Unknown(io::Error),
}

/// A data file that is being written.
#[derive(Debug)]
pub(super) struct DataSink {
    file: File,
    disk: Arc<Disk>,
}

impl DataSink {
    /// Makes the content durable. Returns the length of the file.
    pub(super) fn sync(&self) -> io::Result<u64> {
        self.disk.faults.step("sync a data file")?;
        self.file.sync_all()?;
        Ok(self.file.metadata()?.len())
    }
}

impl Write for DataSink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.disk.faults.write(bytes.len())?;
        self.file.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

/// Returns whether this can be the name of a data file: of this directory, and made by this server.
pub(super) fn is_data_name(name: &str) -> bool {
    let Some((stem, extension)) = name.split_once('.') else { return false };
    let is_hex = |c: u8| c.is_ascii_digit() || (b'a'..=b'f').contains(&c);
    stem.len() == 2 * NAME_BYTES && stem.bytes().all(is_hex) && matches!(extension, "parquet" | "arrow")
}

/// Refuses a directory with files that no server made.
fn check_is_own(root: &Path) -> Result<(), DatabaseError> {
    let unreadable = |source| DatabaseError::Io { action: "read", path: root.to_owned(), source };
    if root.join(CATALOG).exists() {
        return Ok(());
    }
    for entry in fs::read_dir(root).map_err(unreadable)? {
        let name = entry.map_err(unreadable)?.file_name();
        let name = name.to_string_lossy().into_owned();
        // A server that was killed at its first start leaves these, with an empty directory for data.
        let is_own = matches!(name.as_str(), LOCK | DRAFT)
            || (name == DATA && fs::read_dir(root.join(DATA)).is_ok_and(|mut files| files.next().is_none()));
        if !is_own {
            return Err(DatabaseError::Foreign { path: root.to_owned(), found: name });
        }
    }
    Ok(())
}

/// Locks the directory. The lock ends with this process, however it ends.
fn lock(root: &Path) -> Result<File, DatabaseError> {
    let path = root.join(LOCK);
    let failed = |source| DatabaseError::Io { action: "lock", path: path.clone(), source };
    let mut file = OpenOptions::new().create(true).truncate(false).write(true).open(&path).map_err(failed)?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            let process = fs::read_to_string(&path).ok().map(|text| text.trim().to_owned());
            let process = process.filter(|text| !text.is_empty() && text.bytes().all(|c| c.is_ascii_digit()));
            return Err(DatabaseError::Locked { path: root.to_owned(), process });
        }
        Err(TryLockError::Error(source)) => return Err(failed(source)),
    }
    // For the message to another server. The lock itself does not depend on it.
    let noted = file.set_len(0).and_then(|()| writeln!(file, "{}", std::process::id()));
    noted.map_err(failed)?;
    Ok(file)
}

fn sync_directory(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}
