//! How connections and streams end, as their users see it. What goes on the wire is apart: see [`crate::codes`].

use std::sync::Arc;

use thiserror::Error;

use crate::codec::VersionRange;
use crate::codes::{CloseCode, StreamCode};
use crate::ids::{LeaseId, PartId, ReadId, RegionId, StreamId};
use crate::message::{Failure, UnknownExtension};
use crate::misbehaviour::PeerMisbehaved;

/// An error of a layer that this crate does not know, kept whole: a fabric's, or a pool's of memory.
#[derive(Clone)]
pub struct Cause(Arc<dyn std::error::Error + Send + Sync>);

impl Cause {
    /// Wraps an error.
    #[must_use]
    pub fn new(error: impl std::error::Error + Send + Sync + 'static) -> Self {
        Cause(Arc::new(error))
    }

    /// The error itself, to be downcast.
    #[must_use]
    pub fn get(&self) -> &(dyn std::error::Error + Send + Sync + 'static) {
        &*self.0
    }
}

impl From<&str> for Cause {
    /// A cause that has no error of its own.
    fn from(words: &str) -> Self {
        words.to_owned().into()
    }
}

impl From<String> for Cause {
    /// A cause that has no error of its own.
    fn from(words: String) -> Self {
        #[derive(Debug, Error)]
        #[error("{0}")]
        struct Words(String);
        Cause::new(Words(words))
    }
}

impl PartialEq for Cause {
    /// Of the same words.
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

/// The driver broke the contract. The connection is poisoned: it tears itself down, and takes no more commands.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum ApiMisuse {
    /// A command that the connection's state does not allow.
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
    /// A batch was handed over that had not been pulled.
    #[error("{0:?} has not asked for a batch")]
    NotPulled(StreamId),
    /// A read that is not outstanding.
    #[error("{0:?} is not outstanding")]
    UnknownRead(ReadId),
    /// A batch that was not delivered, or has been given up.
    #[error("{stream:?}: batch {seq} is not on loan at the application")]
    UnknownBatch {
        /// The stream.
        stream: StreamId,
        /// The batch.
        seq: u64,
    },
    /// A read of a part that is outstanding already.
    #[error("{0:?} is outstanding")]
    PartReused(PartId),
    /// Bytes were asked for that the batch does not have, or more at once than a batch may have.
    #[error("{stream:?}: bytes that batch {seq} does not have")]
    OutsideBatch {
        /// The stream.
        stream: StreamId,
        /// The batch.
        seq: u64,
    },
    /// A region that is in use, or is not known.
    #[error("{0:?}: announced twice, retired twice, or unknown")]
    Region(RegionId),
    /// A message that the peer would refuse.
    #[error("message cannot be encoded: {0}")]
    Encode(String),
    /// More was consumed than was delivered.
    #[error("{0:?}: more bytes consumed than delivered")]
    OverConsumed(StreamId),
}

/// Why a connection ended.
#[derive(Clone, Debug, PartialEq, Error)]
#[non_exhaustive]
pub enum ConnectionError {
    /// This end closed it, and all was well.
    #[error("closed")]
    Closed,
    /// No version in common.
    #[error("no protocol version in common: this end speaks {ours}, the peer {theirs}; upgrade the older end")]
    Version {
        /// What this end speaks.
        ours: VersionRange,
        /// What the peer speaks.
        theirs: VersionRange,
    },
    /// The peer said goodbye.
    #[error("the peer closed the connection: {code}{}", detail(message))]
    Goodbye {
        /// Why.
        code: CloseCode,
        /// In the peer's words.
        message: String,
    },
    /// The peer broke the protocol.
    #[error("the peer broke the protocol: {0}")]
    Peer(#[from] PeerMisbehaved),
    /// The control connection broke.
    #[error("the control connection was lost: {0}")]
    ControlLost(String),
    /// The peer was silent for too long.
    #[error("the peer was silent for {0:?} and is taken for dead")]
    IdleTimeout(std::time::Duration),
    /// The peer's hello did not come.
    #[error("the handshake was not done within {0:?}")]
    HandshakeTimeout(std::time::Duration),
    /// The peer said something that this end may not ignore, and does not know.
    #[error("the peer's {message} is not understood: {extension}")]
    Unsupported {
        /// Which message.
        message: &'static str,
        /// What it has.
        extension: UnknownExtension,
    },
    /// A lease was not given back, and this fabric can only cut off a connection as a whole.
    #[error("{0:?} was not released in time")]
    LeaseExpired(LeaseId),
    /// The driver broke the contract.
    #[error("bug: {0}")]
    Misuse(#[from] ApiMisuse),
}

impl ConnectionError {
    /// What the peer is told.
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

/// Why a stream, or the request that it belongs to, did not come to its good end.
#[derive(Clone, Debug, PartialEq, Error)]
#[non_exhaustive]
pub enum StreamError {
    /// The other end said so.
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
    /// A one-sided read was not done in time; the data plane was shut down.
    #[error("batch {seq}: its one-sided reads were not done within {after:?}")]
    ReadTimeout {
        /// The batch.
        seq: u64,
        /// The time they had.
        after: std::time::Duration,
    },
    /// The lease did not stand any more when its bytes had been read: they may be anything, and were discarded.
    #[error("batch {seq}: its lease no longer stood when it had been read; it was discarded")]
    LeaseLost {
        /// The batch.
        seq: u64,
    },
    /// What arrived is not a valid batch.
    #[error("batch {seq} is invalid: {reason}")]
    InvalidBatch {
        /// The batch.
        seq: u64,
        /// The problem.
        reason: String,
    },
    /// One batch is larger than this end takes.
    #[error("a batch of {bytes} bytes exceeds the limit of {limit}; raise the limit, or ask for fewer rows a batch")]
    BatchTooLarge {
        /// What it needs.
        bytes: u64,
        /// What there is.
        limit: u64,
    },
    /// The request is longer than the server, or a message, takes. It was not sent.
    #[error("SQL text of {bytes} bytes exceeds the limit of {limit}")]
    SqlTooLong {
        /// Its length.
        bytes: u64,
        /// The limit.
        limit: u64,
    },
    /// No memory to read it into.
    #[error("batch {seq}: {cause}")]
    OutOfMemory {
        /// The batch.
        seq: u64,
        /// The pool's error.
        #[source]
        cause: Cause,
    },
    /// The stream has something that this end does not know and may not ignore.
    #[error("the peer's {message} is not understood: {extension}")]
    Unsupported {
        /// Which message.
        message: &'static str,
        /// What it has.
        extension: UnknownExtension,
    },
    /// The deadline passed.
    #[error("deadline exceeded after {0:?}")]
    DeadlineExceeded(std::time::Duration),
    /// The application cancelled it.
    #[error("cancelled")]
    Cancelled,
    /// The connection ended first.
    #[error("{0}")]
    Connection(Arc<ConnectionError>),
}

impl StreamError {
    /// The same as a code, for the other end.
    #[must_use]
    pub fn code(&self) -> StreamCode {
        match self {
            StreamError::Remote(failure) => failure.code,
            StreamError::Read { .. } | StreamError::ReadTimeout { .. } => StreamCode::ReadFailed,
            StreamError::LeaseLost { .. } => StreamCode::LeaseLost,
            StreamError::InvalidBatch { .. } => StreamCode::InvalidBatch,
            StreamError::BatchTooLarge { .. } => StreamCode::BatchTooLarge,
            StreamError::SqlTooLong { .. } => StreamCode::SqlTooLong,
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
