//! Errors of opening the engine.

use std::io;
use std::path::PathBuf;

use thiserror::Error;

use super::database::DatabaseError;
use crate::catalog::CatalogError;

/// The engine could not be opened.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum OpenError {
    /// A table cannot be served.
    #[error(transparent)]
    Catalog(#[from] CatalogError),
    /// The database cannot be opened.
    #[error(transparent)]
    Database(#[from] DatabaseError),
    /// The database and the operator's files are in each other's directory.
    #[error("the database {} and {} overlap; give it a directory of its own", database.display(), path.display())]
    Overlap {
        /// The directory of the database.
        database: PathBuf,
        /// The directory or the file of the tables.
        path: PathBuf,
    },
    /// The directory for spilling is not usable.
    #[error("cannot use {} to spill to: {reason}; see engine.spill_dir", path.display())]
    SpillDirectory {
        /// The directory.
        path: PathBuf,
        /// The reason.
        reason: String,
    },
    /// The operating system provides no more threads.
    #[error("cannot start the engine's threads: {0}")]
    Threads(#[source] io::Error),
    /// Any other error; a bug.
    #[error("cannot open the query engine: {0}")]
    Internal(String),
}
