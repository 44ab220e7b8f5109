//! The errors of a client.

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

/// An error of a client.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ClientError {
    /// The URL does not name a server or has invalid options.
    #[error(transparent)]
    Url(#[from] UrlError),
    /// No server listens on the address, or the name or the host is unknown.
    #[error("cannot connect to {address}: {source}")]
    Connect {
        /// `host:port`.
        address: String,
        /// The operating system's error.
        source: std::io::Error,
    },
    /// An operation exceeded its time limit.
    #[error("{what} took longer than {after:?}")]
    Timeout {
        /// The operation.
        what: String,
        /// The time limit.
        after: Duration,
    },
    /// The server does not accept this connection: it is full, or shutting down.
    #[error("the server refused the connection: {message}")]
    Refused {
        /// The server's reason.
        message: String,
    },
    /// The two ends have no protocol version in common.
    #[error("this client speaks protocol {ours}, the server {theirs}")]
    Version {
        /// Versions that this client supports.
        ours: VersionRange,
        /// Versions that the server supports.
        theirs: VersionRange,
    },
    /// One-sided reads are required and not available.
    #[error("one-sided reads are not available: {message}")]
    Fabric {
        /// The reason.
        message: String,
    },
    /// A mapped result was requested, and the result cannot be mapped.
    #[error("results cannot be mapped: {message}")]
    Mapping {
        /// The reason, and what to do.
        message: String,
    },
    /// The server refused this request, or failed while it ran.
    #[error("{kind}{}", detail(message))]
    Query {
        /// The kind of error; [`StreamCode::sqlstate`] is its SQLSTATE.
        kind: StreamCode,
        /// The server's message.
        message: String,
    },
    /// A one-sided read of a batch failed. [`ClientError::fabric_error`] and [`ClientError::read_failure`] return the
    /// cause.
    #[error("batch {batch}: a one-sided read failed: {source}")]
    Read {
        /// The batch, from 0.
        batch: u64,
        /// The fabric's error.
        source: Cause,
    },
    /// The one-sided reads of a batch exceeded their time limit; the data plane was shut down.
    #[error("batch {batch}: its one-sided reads were not done within {after:?}")]
    ReadTimeout {
        /// The batch, from 0.
        batch: u64,
        /// The time limit.
        after: Duration,
    },
    /// The server revoked a lease before the batch was read or released.
    #[error("a loan has expired: {message}")]
    LeaseExpired {
        /// The lease, and the symptom.
        message: String,
    },
    /// A batch is larger than this client accepts, or than the server lends.
    #[error("a batch is too large: {message}")]
    BatchTooLarge {
        /// The size of the batch, and the limit.
        message: String,
    },
    /// The received data is not a valid batch. No part of it was delivered.
    #[error("batch {batch} is invalid: {reason}")]
    InvalidBatch {
        /// The batch, from 0.
        batch: u64,
        /// The problem.
        reason: String,
    },
    /// No memory is available to read a batch into. Of a batch on demand a smaller part may still be read.
    #[error("batch {batch}: out of memory: {source}")]
    OutOfMemory {
        /// The batch, from 0.
        batch: u64,
        /// The pool's error.
        source: Cause,
    },
    /// The text of a request is longer than the server accepts. It was not sent.
    #[error("SQL text of {bytes} bytes exceeds the limit of {limit}")]
    SqlTooLong {
        /// Length of the text, in bytes.
        bytes: u64,
        /// The limit, in bytes.
        limit: u64,
    },
    /// The parameters of a statement cannot be sent. They were not.
    #[error("the parameters cannot be sent: {message}")]
    Parameters {
        /// The reason.
        message: String,
    },
    /// The server reported the result as complete, but rows are missing.
    #[error("received {got} of {sent} rows")]
    Incomplete {
        /// Rows that were received.
        got: u64,
        /// Rows that were sent, as reported by the server.
        sent: u64,
    },
    /// The partitions of a result cannot be merged to its order.
    #[error("the partitions cannot be merged: {source}; request the result unordered")]
    Merge {
        /// The reason.
        source: arrow::error::ArrowError,
    },
    /// A query requested more partitions than a client supports.
    #[error("{got} partitions: 1 to {limit} can be requested")]
    TooManyPartitions {
        /// Number of requested partitions.
        got: u32,
        /// The limit.
        limit: u32,
    },
    /// The source of an upload yielded an error instead of a batch. The server has accepted none of its rows.
    #[error("the source of the upload failed: {source}")]
    Source {
        /// The source's error.
        source: arrow::error::ArrowError,
    },
    /// The operating system provides no random numbers.
    #[error("the system gives no random numbers: {source}")]
    Random {
        /// The reason.
        source: Cause,
    },
    /// A lazy batch does not have the requested column or row.
    #[error("there is no {what} {got}: the batch has {count}, counted from 0")]
    OutOfRange {
        /// `column` or `row`.
        what: &'static str,
        /// The requested column; of a range of rows, its end.
        got: usize,
        /// Number of columns or rows in the batch.
        count: usize,
    },
    /// The connection broke.
    #[error("the server is gone: {message}")]
    ConnectionLost {
        /// The symptom.
        message: String,
    },
    /// One of the two ends has a bug, or the other end is no Thallus server.
    #[error("protocol error: {message}")]
    Protocol {
        /// The violation.
        message: String,
    },
    /// The result was cancelled by this client.
    #[error("cancelled")]
    Cancelled,
}

impl ClientError {
    /// The connection's task has ended, so its reason is not available.
    pub(crate) fn gone() -> Self {
        ClientError::ConnectionLost { message: "the connection has ended".into() }
    }

    /// The fabric's own error, if a fabric is the cause.
    #[must_use]
    pub fn fabric_error(&self) -> Option<&FabricError> {
        self.cause()?.get().downcast_ref()
    }

    /// The failure of a posted read, if that is the cause.
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

    /// The code of an error that the server reported for a request.
    #[must_use]
    pub fn code(&self) -> Option<StreamCode> {
        match self {
            ClientError::Query { kind, .. } => Some(*kind),
            _ => None,
        }
    }

    /// Whether the same request may succeed if repeated, on a new connection if this one is closed. An upload whose
    /// connection was lost may have been accepted.
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
            | ClientError::ConnectionLost { .. } => true,
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
            ClientError::Read { .. } | ClientError::ReadTimeout { .. } | ClientError::ConnectionLost { .. } => "08006",
            ClientError::LeaseExpired { .. } => StreamCode::LeaseExpired.sqlstate(),
            ClientError::BatchTooLarge { .. } | ClientError::SqlTooLong { .. } => "54000",
            ClientError::InvalidBatch { .. } | ClientError::Incomplete { .. } => StreamCode::InvalidBatch.sqlstate(),
            ClientError::OutOfMemory { .. } => StreamCode::OutOfMemory.sqlstate(),
            ClientError::Parameters { .. } => StreamCode::Parameters.sqlstate(),
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
            _ => ClientError::ConnectionLost { message },
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
            StreamError::ParametersTooLong { .. } => ClientError::Parameters { message: words },
            StreamError::OutOfMemory { seq, cause } => ClientError::OutOfMemory { batch: seq, source: cause },
            // Variants that a later version may add.
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
