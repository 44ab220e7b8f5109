//! How connections and streams end, as their users see it. What goes on the wire is apart: see [`crate::codes`].

use std::sync::Arc;

use thiserror::Error;

use crate::codec::VersionRange;
use crate::codes::{CloseCode, StreamCode};
use crate::ids::{AskId, LeaseId, ReadId, RegionId, StreamId};
use crate::misbehaviour::PeerMisbehaved;

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
    /// A lazy batch that was not delivered, or has been given up.
    #[error("{stream:?}: batch {seq} is not held lazily")]
    UnknownBatch {
        /// The stream.
        stream: StreamId,
        /// The batch.
        seq: u64,
    },
    /// An ask that is outstanding already.
    #[error("{0:?} is outstanding")]
    AskReused(AskId),
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
            ConnectionError::Misuse(_) => CloseCode::Internal,
        }
    }
}

/// Why a stream ended without its end.
#[derive(Clone, Debug, PartialEq, Error)]
#[non_exhaustive]
pub enum StreamError {
    /// The lender said so.
    #[error("{code}{}", detail(message))]
    Remote {
        /// Which error.
        code: StreamCode,
        /// In the lender's words.
        message: String,
    },
    /// A one-sided read failed.
    #[error("batch {seq}: a one-sided read failed: {reason}")]
    Read {
        /// The batch.
        seq: u64,
        /// The fabric's words.
        reason: String,
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
        /// What is wrong with it.
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
    /// The query is longer than the server, or a message, takes. It was not sent.
    #[error("SQL text of {bytes} bytes exceeds the limit of {limit}")]
    SqlTooLong {
        /// Its length.
        bytes: u64,
        /// The limit.
        limit: u64,
    },
    /// No memory to read it into.
    #[error("batch {seq}: {reason}")]
    OutOfMemory {
        /// The batch.
        seq: u64,
        /// The pool's words.
        reason: String,
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

fn detail(message: &str) -> String {
    if message.is_empty() { String::new() } else { format!(": {message}") }
}
