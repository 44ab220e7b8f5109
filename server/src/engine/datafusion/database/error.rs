//! Errors of opening a database, and the words of refused changes.

use std::error::Error;
use std::io;
use std::path::PathBuf;

use thiserror::Error;

use super::name::Name;
use crate::engine::EngineError;

/// A database cannot be opened. No file was removed.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum DatabaseError {
    /// Another server has the directory open.
    #[error(
        "the database {} is in use by another server{}; stop it, or use another directory",
        path.display(), process.as_ref().map(|process| format!(" (process {process})")).unwrap_or_default()
    )]
    Locked {
        /// The directory.
        path: PathBuf,
        /// The id of the other process, if it is known.
        process: Option<String>,
    },
    /// The directory has files, and none of them is the catalog of a database.
    #[error(
        "{} is not a database: it has no catalog.json, but it has `{found}`; use an empty or a new directory",
        path.display()
    )]
    Foreign {
        /// The directory.
        path: PathBuf,
        /// One of its files.
        found: String,
    },
    /// The catalog was written by a later version of the server.
    #[error(
        "{}: the format of this catalog is {found}, and this server reads format {known}; use a later version",
        path.display()
    )]
    Version {
        /// The file.
        path: PathBuf,
        /// Its format.
        found: u32,
        /// The format of this server.
        known: u32,
    },
    /// The catalog is damaged.
    #[error(
        "{}: the catalog of the database is damaged: {reason}; no file was removed; restore catalog.json from a backup",
        path.display()
    )]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// The damage.
        reason: String,
    },
    /// The operating system refuses.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// The action that failed.
        action: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// The operating system's error.
        source: io::Error,
    },
}

/// A file of the database cannot be written.
pub(super) fn of_write(table: &str, error: &(dyn Error + 'static)) -> EngineError {
    let mut cause = Some(error);
    let mut reason = error.to_string();
    while let Some(error) = cause {
        if let Some(io) = error.downcast_ref::<io::Error>() {
            reason = io.to_string();
        }
        cause = error.source();
    }
    EngineError::Execution { message: format!("cannot store rows of table '{table}': {reason}; nothing was written") }
}

pub(super) fn unsupported(message: impl Into<String>) -> EngineError {
    EngineError::Unsupported { message: message.into() }
}

pub(super) fn invalid(message: impl Into<String>) -> EngineError {
    EngineError::Plan { message: message.into() }
}

/// Something of the database has this name already.
pub(super) fn already_exists(what: &str, name: &str) -> EngineError {
    EngineError::AlreadyExists { what: format!("{what} '{name}'") }
}

/// A table of the files of the operator would be changed.
pub(super) fn of_operator(table: &str) -> EngineError {
    unsupported(format!(
        "table '{table}' is made of the operator's files (--data, --table), which this server never changes"
    ))
}

/// A view would be changed as if it were a table.
pub(super) fn is_view(name: &Name) -> EngineError {
    unsupported(format!("'{name}' is a view; it has no rows of its own (DROP VIEW, CREATE OR REPLACE VIEW)"))
}

/// The table was changed in the middle of an upload, so that its rows do not fit any more.
pub(super) fn changed_meanwhile(name: &Name) -> EngineError {
    let message = format!("table '{name}' was dropped or replaced meanwhile; nothing was written; try again");
    EngineError::Execution { message }
}
