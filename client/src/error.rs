//! Why a client could not do what it was asked.

use std::time::Duration;

use thallus_fabric::{FabricError, ReadFailure};
pub use thallus_protocol::Cause;
use thallus_protocol::codec::VersionRange;
pub use thallus_protocol::codes::StreamCode;
use thallus_protocol::codes::{CancelReason, CloseCode};
use thallus_protocol::message::Failure;
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
    /// A result was to be mapped, and cannot be.
    #[error("results cannot be mapped: {message}")]
    Mapping {
        /// Why, and what to do.
        message: String,
    },
    /// The server does not run this request, or not to its end.
    #[error("{kind}{}", detail(message))]
    Query {
        /// Which kind of error; [`StreamCode::sqlstate`] is its SQLSTATE.
        kind: StreamCode,
        /// In the server's words.
        message: String,
    },
    /// A one-sided read of a batch failed. [`ClientError::fabric_error`] and [`ClientError::read_failure`] say how.
    #[error("batch {batch}: a one-sided read failed: {source}")]
    Read {
        /// The batch, from 0.
        batch: u64,
        /// The fabric's error.
        source: Cause,
    },
    /// The one-sided reads of a batch were not done in time; the data plane was shut down.
    #[error("batch {batch}: its one-sided reads were not done within {after:?}")]
    ReadTimeout {
        /// The batch, from 0.
        batch: u64,
        /// The time that they had.
        after: Duration,
    },
    /// The server took a loan back before it was read, or given back.
    #[error("a loan has expired: {message}")]
    LeaseExpired {
        /// Which, and how it shows.
        message: String,
    },
    /// One batch is larger than this client takes, or the server lends.
    #[error("a batch is too large: {message}")]
    BatchTooLarge {
        /// How large it is, and the limit.
        message: String,
    },
    /// What arrived is not a valid batch. Nothing of it was delivered.
    #[error("batch {batch} is invalid: {reason}")]
    InvalidBatch {
        /// The batch, from 0.
        batch: u64,
        /// The problem.
        reason: String,
    },
    /// There is no memory to read a batch into. Of a batch on demand a smaller part may still be read.
    #[error("batch {batch}: out of memory: {source}")]
    OutOfMemory {
        /// The batch, from 0.
        batch: u64,
        /// The pool's error.
        source: Cause,
    },
    /// The text of a request is longer than the server takes. It was not sent.
    #[error("SQL text of {bytes} bytes exceeds the limit of {limit}")]
    SqlTooLong {
        /// Its length.
        bytes: u64,
        /// The limit.
        limit: u64,
    },
    /// The server said that a result is whole, and it is not.
    #[error("{got} rows arrived of {sent} that were sent")]
    Incomplete {
        /// Rows that arrived.
        got: u64,
        /// Rows that the server says it sent.
        sent: u64,
    },
    /// The partitions of a result cannot be merged to its order.
    #[error("the partitions cannot be merged: {source}; ask for the result unordered")]
    Merge {
        /// Why.
        source: arrow::error::ArrowError,
    },
    /// More partitions were asked for than a client may have.
    #[error("{got} partitions: from 1 to {limit} can be asked for")]
    TooManyPartitions {
        /// How many.
        got: u32,
        /// The limit.
        limit: u32,
    },
    /// The source of an upload gave an error instead of a batch. The server has taken none of its rows.
    #[error("the source of the upload failed: {source}")]
    Source {
        /// The source's error.
        source: arrow::error::ArrowError,
    },
    /// The system gives no random numbers.
    #[error("the system gives no random numbers: {source}")]
    Random {
        /// Why.
        source: Cause,
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
    /// The connection's task has ended, and with it the reason.
    pub(crate) fn gone() -> Self {
        ClientError::ServerGone { message: "the connection has ended".into() }
    }

    /// The fabric's own error, where one is the cause.
    #[must_use]
    pub fn fabric_error(&self) -> Option<&FabricError> {
        self.cause()?.get().downcast_ref()
    }

    /// How a posted read failed, where that is the cause.
    #[must_use]
    pub fn read_failure(&self) -> Option<&ReadFailure> {
        self.cause()?.get().downcast_ref()
    }

    fn cause(&self) -> Option<&Cause> {
        match self {
            ClientError::Read { source, .. } | ClientError::OutOfMemory { source, .. } => Some(source),
            _ => None,
        }
    }

    /// The same request may succeed if it is made again, over a new connection if this one is gone. An upload
    /// whose connection was lost may have been taken.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        match self {
            ClientError::Query { kind, .. } => kind.is_retryable(),
            ClientError::Connect { .. }
            | ClientError::Timeout { .. }
            | ClientError::Refused { .. }
            | ClientError::Read { .. }
            | ClientError::ReadTimeout { .. }
            | ClientError::LeaseExpired { .. }
            | ClientError::OutOfMemory { .. }
            | ClientError::ServerGone { .. } => true,
            _ => false,
        }
    }

    /// The SQLSTATE of the error (ISO/IEC 9075), for drivers of other interfaces.
    #[must_use]
    pub fn sqlstate(&self) -> &'static str {
        match self {
            ClientError::Query { kind, .. } => kind.sqlstate(),
            ClientError::Connect { .. } | ClientError::Refused { .. } => "08001",
            ClientError::Timeout { .. } => StreamCode::DeadlineExceeded.sqlstate(),
            ClientError::Version { .. } | ClientError::Protocol { .. } => "08P01",
            ClientError::Read { .. } | ClientError::ReadTimeout { .. } | ClientError::ServerGone { .. } => "08006",
            ClientError::LeaseExpired { .. } => StreamCode::LeaseExpired.sqlstate(),
            ClientError::BatchTooLarge { .. } | ClientError::SqlTooLong { .. } => "54000",
            ClientError::InvalidBatch { .. } | ClientError::Incomplete { .. } => StreamCode::InvalidBatch.sqlstate(),
            ClientError::OutOfMemory { .. } => StreamCode::OutOfMemory.sqlstate(),
            ClientError::Fabric { .. } | ClientError::Mapping { .. } => "0A000",
            ClientError::Cancelled => StreamCode::Cancelled.sqlstate(),
            ClientError::Url(_) | ClientError::TooManyPartitions { .. } | ClientError::OutOfRange { .. } => "22023",
            ClientError::Merge { .. } | ClientError::Source { .. } | ClientError::Random { .. } => "HY000",
        }
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
        let words = error.to_string();
        match error {
            StreamError::Remote(failure) => ClientError::from(failure),
            StreamError::DeadlineExceeded(after) => ClientError::Timeout { what: "the request".into(), after },
            StreamError::Cancelled => ClientError::Cancelled,
            StreamError::Connection(error) => ClientError::from(&*error),
            StreamError::Read { seq, cause } => ClientError::Read { batch: seq, source: cause },
            StreamError::ReadTimeout { seq, after } => ClientError::ReadTimeout { batch: seq, after },
            StreamError::LeaseLost { .. } => ClientError::LeaseExpired { message: words },
            StreamError::InvalidBatch { seq, reason } => ClientError::InvalidBatch { batch: seq, reason },
            StreamError::BatchTooLarge { .. } => ClientError::BatchTooLarge { message: words },
            StreamError::SqlTooLong { bytes, limit } => ClientError::SqlTooLong { bytes, limit },
            StreamError::OutOfMemory { seq, cause } => ClientError::OutOfMemory { batch: seq, source: cause },
            // What else a later version may add.
            _ => ClientError::Protocol { message: words },
        }
    }
}

impl From<Failure> for ClientError {
    fn from(failure: Failure) -> Self {
        let Failure { code, cancel, message } = failure;
        match (code, cancel) {
            (StreamCode::Cancelled, Some(CancelReason::Dropped)) => ClientError::Cancelled,
            (StreamCode::LeaseExpired, _) => ClientError::LeaseExpired { message },
            (StreamCode::BatchTooLarge, _) => ClientError::BatchTooLarge { message },
            (code, Some(reason)) if message.is_empty() => {
                ClientError::Query { kind: code, message: reason.to_string() }
            }
            (code, _) => ClientError::Query { kind: code, message },
        }
    }
}

fn detail(message: &str) -> String {
    if message.is_empty() { String::new() } else { format!(": {message}") }
}
