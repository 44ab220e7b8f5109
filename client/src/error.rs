//! Why a client could not do what it was asked.

use std::time::Duration;

use thallus_protocol::codec::VersionRange;
pub use thallus_protocol::codes::StreamCode;
use thallus_protocol::codes::{CancelReason, CloseCode};
use thallus_protocol::{ConnectionError, StreamError};
use thiserror::Error;

use crate::options::UrlError;

/// Why a client could not do what it was asked.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ClientError {
    /// The URL does not say where and how to connect.
    #[error(transparent)]
    Url(#[from] UrlError),
    /// Nobody listens there, or the name or the host is not known.
    #[error("cannot connect to {address}: {source}")]
    Connect {
        /// `host:port`.
        address: String,
        /// The operating system's words.
        source: std::io::Error,
    },
    /// Something did not happen in time.
    #[error("{what} took longer than {after:?}")]
    Timeout {
        /// What.
        what: String,
        /// The time that it had.
        after: Duration,
    },
    /// The server does not take this connection: it is full, or shutting down.
    #[error("the server refused the connection: {message}")]
    Refused {
        /// In the server's words.
        message: String,
    },
    /// No protocol version in common.
    #[error("this client speaks protocol {ours}, the server {theirs}")]
    Version {
        /// What this client speaks.
        ours: VersionRange,
        /// What the server speaks.
        theirs: VersionRange,
    },
    /// One-sided reads were required and are not to be had.
    #[error("no one-sided reads: {message}")]
    Fabric {
        /// Why.
        message: String,
    },
    /// Mapped delivery was asked for, and cannot be had.
    #[error("results cannot be mapped: {message}")]
    Mapping {
        /// Why, and what to do.
        message: String,
    },
    /// The server does not run this query, or not to its end.
    #[error("{kind}: {message}")]
    Query {
        /// Which kind of error.
        kind: StreamCode,
        /// In the server's words.
        message: String,
    },
    /// A batch did not arrive as it should have.
    #[error("transfer failed: {message}")]
    Transfer {
        /// What went wrong with which batch.
        message: String,
    },
    /// A lazy batch does not have what was asked for.
    #[error("there is no {what} {got}: the batch has {count}, counted from 0")]
    OutOfRange {
        /// `column` or `row`.
        what: &'static str,
        /// What was asked for; of rows the end.
        got: usize,
        /// How many there are.
        count: usize,
    },
    /// The connection broke.
    #[error("the server is gone: {message}")]
    ServerGone {
        /// How it shows.
        message: String,
    },
    /// One of the two ends has a bug, or the other end is no Thallus server.
    #[error("protocol error: {message}")]
    Protocol {
        /// What is wrong.
        message: String,
    },
    /// The result was cancelled by this client.
    #[error("cancelled")]
    Cancelled,
}

impl ClientError {
    /// The connection's task has ended, and with it whoever knew why.
    pub(crate) fn gone() -> Self {
        ClientError::ServerGone { message: "the connection has ended".into() }
    }
}

impl From<&ConnectionError> for ClientError {
    fn from(error: &ConnectionError) -> Self {
        let message = error.to_string();
        match error {
            ConnectionError::Closed => ClientError::Cancelled,
            ConnectionError::Version { ours, theirs } => ClientError::Version { ours: *ours, theirs: *theirs },
            ConnectionError::Goodbye { code: CloseCode::TooManyConnections, message } => {
                ClientError::Refused { message: message.clone() }
            }
            ConnectionError::Goodbye { code: CloseCode::ShuttingDown, .. } => ClientError::Refused { message },
            ConnectionError::Goodbye { code: CloseCode::ProtocolError, .. }
            | ConnectionError::Peer(_)
            | ConnectionError::Misuse(_) => ClientError::Protocol { message },
            ConnectionError::HandshakeTimeout(after) => {
                ClientError::Timeout { what: "the server's answer to the hello".into(), after: *after }
            }
            _ => ClientError::ServerGone { message },
        }
    }
}

impl From<StreamError> for ClientError {
    fn from(error: StreamError) -> Self {
        match error {
            StreamError::Remote { code: StreamCode::Cancelled, message }
                if message == CancelReason::Dropped.to_string() =>
            {
                ClientError::Cancelled
            }
            StreamError::Remote { code, message } => ClientError::Query { kind: code, message },
            StreamError::DeadlineExceeded(after) => ClientError::Timeout { what: "the query".into(), after },
            StreamError::Cancelled => ClientError::Cancelled,
            StreamError::Connection(error) => ClientError::from(&*error),
            other => ClientError::Transfer { message: other.to_string() },
        }
    }
}
