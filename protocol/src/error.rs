//! Errors that end connections and streams, as the application sees them. [`crate::codes`] has their form on the wire.

use std::sync::Arc;

use thiserror::Error;

use crate::codec::VersionRange;
use crate::codes::{CloseCode, StreamCode};
use crate::ids::{LeaseId, PartId, ReadId, RegionId, StreamId};
use crate::message::{Failure, UnknownExtension};
use crate::misbehaviour::PeerMisbehaved;

/// An error of a fabric or of a memory pool, kept whole. This crate does not know its type.
#[derive(Clone)]
pub struct Cause(Arc<dyn std::error::Error + Send + Sync>);

impl Cause {
    /// Wraps an error.
    #[must_use]
    pub fn new(error: impl std::error::Error + Send + Sync + 'static) -> Self {
        Cause(Arc::new(error))
    }

    /// The error itself, for downcasts.
    #[must_use]
    pub fn get(&self) -> &(dyn std::error::Error + Send + Sync + 'static) {
        &*self.0
    }
}

impl From<&str> for Cause {
    /// A cause that consists of a text only.
    fn from(words: &str) -> Self {
        words.to_owned().into()
    }
}

impl From<String> for Cause {
    /// A cause that consists of a text only.
    fn from(words: String) -> Self {
        #[derive(Debug, Error)]
        #[error("{0}")]
        struct Words(String);
        Cause::new(Words(words))
    }
}

impl PartialEq for Cause {
    /// Compares the texts.
    fn eq(&self, other: &Cause) -> bool {
        self.to_string() == other.to_string()
    }
}

impl Eq for Cause {}

impl std::fmt::Debug for Cause {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

impl std::fmt::Display for Cause {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        std::fmt::Display::fmt(&*self.0, f)
    }
}

impl std::error::Error for Cause {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.0.source()
    }
}

/// The driver broke the contract. The connection then tears itself down and accepts no more commands.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum ApiMisuse {
    /// The connection's state does not allow the command.
    #[error("command {command} is not allowed while {state}")]
    State {
        /// The command.
        command: &'static str,
        /// The state.
        state: &'static str,
    },
    /// A stream that does not exist.
    #[error("{0:?} does not exist")]
    UnknownStream(StreamId),
    /// A stream id that is not above the last one.
    #[error("{0:?} is not above the last stream id")]
    StreamReused(StreamId),
    /// A lease id that is not above the last one.
    #[error("{0:?} is not above the last lease id")]
    LeaseReused(LeaseId),
    /// The driver handed over a batch without a pull for it.
    #[error("{0:?} has not pulled a batch")]
    NotPulled(StreamId),
    /// A read that is not outstanding.
    #[error("{0:?} is not outstanding")]
    UnknownRead(ReadId),
    /// A batch that was not delivered, or that the application has given up.
    #[error("{stream:?}: batch {seq} is not on loan to the application")]
    UnknownBatch {
        /// The stream.
        stream: StreamId,
        /// The batch.
        seq: u64,
    },
    /// A part id that an outstanding read already uses.
    #[error("{0:?} is outstanding")]
    PartReused(PartId),
    /// A request for bytes that the batch does not have, or for more bytes at once than a batch may have.
    #[error("{stream:?}: the requested bytes are not in batch {seq}, or too many at once")]
    OutsideBatch {
        /// The stream.
        stream: StreamId,
        /// The batch.
        seq: u64,
    },
    /// A region that is already in use, or unknown.
    #[error("{0:?} is already announced, already retired, or unknown")]
    Region(RegionId),
    /// A message that the peer would refuse.
    #[error("message cannot be encoded: {0}")]
    Encode(String),
    /// The application consumed more bytes than were delivered to it.
    #[error("{0:?}: more bytes consumed than delivered")]
    OverConsumed(StreamId),
}

/// Why a connection ended.
#[derive(Clone, Debug, PartialEq, Error)]
#[non_exhaustive]
pub enum ConnectionError {
    /// This end closed the connection without an error.
    #[error("closed")]
    Closed,
    /// The two ends have no protocol version in common.
    #[error("no protocol version in common: this end speaks {ours}, the peer {theirs}; upgrade the older end")]
    Version {
        /// Versions that this end speaks.
        ours: VersionRange,
        /// Versions that the peer speaks.
        theirs: VersionRange,
    },
    /// The peer sent a goodbye.
    #[error("the peer closed the connection: {code}{}", detail(message))]
    Goodbye {
        /// Why.
        code: CloseCode,
        /// The peer's text.
        message: String,
    },
    /// The peer broke the protocol.
    #[error("the peer broke the protocol: {0}")]
    Peer(#[from] PeerMisbehaved),
    /// The control connection broke.
    #[error("the control connection was lost: {0}")]
    ControlLost(String),
    /// The peer, or the link in one direction, was dead for too long.
    #[error("the peer answered no ping for {0:?}; the connection counts as dead")]
    IdleTimeout(std::time::Duration),
    /// The peer's hello did not arrive in time.
    #[error("the handshake was not done within {0:?}")]
    HandshakeTimeout(std::time::Duration),
    /// The peer sent a critical extension that this end does not know.
    #[error("the peer's {message} is not understood: {extension}")]
    Unsupported {
        /// Name of the message.
        message: &'static str,
        /// The extension.
        extension: UnknownExtension,
    },
    /// A lease was not released in time, and this fabric can only revoke all leases of a connection at once.
    #[error("{0:?} was not released in time")]
    LeaseExpired(LeaseId),
    /// The driver broke the contract.
    #[error("bug: {0}")]
    Misuse(#[from] ApiMisuse),
}

impl ConnectionError {
    /// The code that the peer receives.
    #[must_use]
    pub fn close_code(&self) -> CloseCode {
        match self {
            ConnectionError::Closed | ConnectionError::ControlLost(_) | ConnectionError::Goodbye { .. } => {
                CloseCode::Normal
            }
            ConnectionError::Version { .. } | ConnectionError::Peer(_) => CloseCode::ProtocolError,
            ConnectionError::IdleTimeout(_) | ConnectionError::LeaseExpired(_) => CloseCode::IdleTimeout,
            ConnectionError::HandshakeTimeout(_) => CloseCode::HandshakeTimeout,
            ConnectionError::Unsupported { .. } => CloseCode::Unsupported,
            ConnectionError::Misuse(_) => CloseCode::Internal,
        }
    }
}

/// Why a stream, or the request that it belongs to, failed.
#[derive(Clone, Debug, PartialEq, Error)]
#[non_exhaustive]
pub enum StreamError {
    /// The other end reported the failure.
    #[error("{0}")]
    Remote(Failure),
    /// A one-sided read failed.
    #[error("batch {seq}: a one-sided read failed: {cause}")]
    Read {
        /// The batch.
        seq: u64,
        /// The fabric's error.
        #[source]
        cause: Cause,
    },
    /// A one-sided read was not done in time. The data plane was shut down.
    #[error("batch {seq}: its one-sided reads were not done within {after:?}")]
    ReadTimeout {
        /// The batch.
        seq: u64,
        /// The time limit of the reads.
        after: std::time::Duration,
    },
    /// The lease no longer stood after its bytes had been read. The bytes may have changed, and were discarded.
    #[error("batch {seq}: its lease no longer stood after the read; the batch was discarded")]
    LeaseLost {
        /// The batch.
        seq: u64,
    },
    /// The bytes that arrived are not a valid batch.
    #[error("batch {seq} is invalid: {reason}")]
    InvalidBatch {
        /// The batch.
        seq: u64,
        /// The problem.
        reason: String,
    },
    /// One batch is larger than this end accepts.
    #[error(
        "a batch of {bytes} bytes exceeds the limit of {limit} bytes; raise the limit, or use fewer rows per batch"
    )]
    BatchTooLarge {
        /// Bytes that the batch needs.
        bytes: u64,
        /// Bytes that are allowed.
        limit: u64,
    },
    /// The request is longer than the server's limit, or than a message can be. It was not sent.
    #[error("SQL text of {bytes} bytes exceeds the limit of {limit} bytes")]
    SqlTooLong {
        /// Its length in bytes.
        bytes: u64,
        /// The limit.
        limit: u64,
    },
    /// The parameters of a request are too long for its message. It was not sent.
    #[error("{bytes} bytes of parameters exceed the limit of {limit} bytes a request; send fewer rows at a time")]
    ParametersTooLong {
        /// Their bytes, with those of the default catalog and schema.
        bytes: u64,
        /// The limit in bytes.
        limit: u64,
    },
    /// There is no memory to read the batch into.
    #[error("batch {seq}: {cause}")]
    OutOfMemory {
        /// The batch.
        seq: u64,
        /// The pool's error.
        #[source]
        cause: Cause,
    },
    /// The stream has a critical extension that this end does not know.
    #[error("the peer's {message} is not understood: {extension}")]
    Unsupported {
        /// Name of the message.
        message: &'static str,
        /// The extension.
        extension: UnknownExtension,
    },
    /// The deadline passed.
    #[error("deadline exceeded after {0:?}")]
    DeadlineExceeded(std::time::Duration),
    /// The application cancelled the stream.
    #[error("cancelled")]
    Cancelled,
    /// The connection ended first.
    #[error("{0}")]
    Connection(Arc<ConnectionError>),
}

impl StreamError {
    /// The code of this error on the wire.
    #[must_use]
    pub fn code(&self) -> StreamCode {
        match self {
            StreamError::Remote(failure) => failure.code,
            StreamError::Read { .. } | StreamError::ReadTimeout { .. } => StreamCode::ReadFailed,
            StreamError::LeaseLost { .. } => StreamCode::LeaseLost,
            StreamError::InvalidBatch { .. } => StreamCode::InvalidBatch,
            StreamError::BatchTooLarge { .. } => StreamCode::BatchTooLarge,
            StreamError::SqlTooLong { .. } => StreamCode::SqlTooLong,
            StreamError::ParametersTooLong { .. } => StreamCode::Parameters,
            StreamError::OutOfMemory { .. } => StreamCode::OutOfMemory,
            StreamError::Unsupported { .. } => StreamCode::Unsupported,
            StreamError::DeadlineExceeded(_) => StreamCode::DeadlineExceeded,
            StreamError::Cancelled => StreamCode::Cancelled,
            StreamError::Connection(_) => StreamCode::DataPlaneLost,
        }
    }
}

fn detail(message: &str) -> String {
    if message.is_empty() { String::new() } else { format!(": {message}") }
}
