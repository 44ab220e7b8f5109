//! Why a client could not do what it was asked.

use std::time::Duration;

use thiserror::Error;

use crate::options::UrlError;

/// Placeholder of this branch for the protocol's reasons.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum StreamCode {
    Syntax,
    UnknownTable,
    Plan,
    DeadlineExceeded,
    TooManyStreams,
    BatchTooLarge,
    Execution,
}

/// Why a client could not do what it was asked.
#[derive(Debug, Error)]
#[allow(missing_docs)]
pub enum ClientError {
    #[error(transparent)]
    Url(#[from] UrlError),
    #[error("cannot connect to {address}: {source}")]
    Connect { address: String, source: std::io::Error },
    #[error("{what} took longer than {after:?}")]
    Timeout { what: String, after: Duration },
    #[error("the server refused the connection: {message}")]
    Refused { message: String },
    #[error("no common version: ours {ours}, theirs {theirs}")]
    Version { ours: String, theirs: String },
    #[error("no fabric: {message}")]
    Fabric { message: String },
    #[error("{kind:?}: {message}")]
    Query { kind: StreamCode, message: String },
    #[error("transfer failed: {message}")]
    Transfer { message: String },
    #[error("the server is gone: {message}")]
    ServerGone { message: String },
    #[error("protocol error: {message}")]
    Protocol { message: String },
    #[error("cancelled")]
    Cancelled,
}
