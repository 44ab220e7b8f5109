//! What the two ends say to each other on the control plane. `docs/PROTOCOL.md` specifies it field by field.
//!
//! A message is postcard in a frame (see [`crate::codec`]); bulk bytes (schemas, inline batches) ride behind the
//! message in the same frame, so that they are never copied through the serializer. The golden bytes in
//! `tests/golden.rs` pin the format: variants are only ever appended, and fields are added as [`Extensions`].
//!
//! A message belongs to a *role*, not to an end: [`FromLender`] comes from whichever end lends a stream's batches,
//! [`FromBorrower`] from the end that borrows them. The rest is the handshake, requests (the client's) and their
//! answers, and what either end says of the connection.

mod borrow;
mod extensions;
mod lend;
mod options;
mod request;
mod stats;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

pub use borrow::FromBorrower;
pub use extensions::{CRITICAL, Extensions, MAX_EXTENSION_BYTES, MAX_EXTENSIONS, UnknownExtension};
pub use lend::{FromLender, LeaseWord, Lending, LentBatch, MAX_SORT_KEYS, Region, SortKey};
pub use options::{Access, FIRST_BATCHES, LendFrom, OpenOptions, Partition, ProcessId, Thresholds};
pub use request::Request;
pub use stats::StreamStats;

use crate::codes::{CancelReason, CloseCode, StreamCode};
use crate::ids::{FabricKind, StreamId};

/// How a lender fences lent memory once a lease has ended without a release.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Fencing {
    /// The fabric refuses reads that the lender has revoked: a read that succeeded is a read of memory on loan.
    Revocation,
    /// The borrower reads the lease word last, and delivers only if the lease still stood.
    LeaseWord,
}

/// One message, of either end. The first byte on the wire is the number of the variant.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Message {
    /// No. 0: The client's first message.
    Hello(Hello),
    /// No. 1: The server's answer to the hello.
    Welcome(Welcome),
    /// No. 2: The client opens a stream by a request.
    Open(Open),
    /// No. 3: The server answers a request whose stream the client lends: an upload.
    Answer(Answer),
    /// No. 4: What the lender of a stream says.
    Lender(FromLender),
    /// No. 5: What the borrower of a stream says.
    Borrower(FromBorrower),
    /// No. 6: A question for a sign of life, with a number for the answer.
    Ping(u64),
    /// No. 7: The answer to the ping of this number.
    Pong(u64),
    /// No. 8: From the client: it is about to close the connection. From the server: it takes no new streams, and
    /// finishes what runs; or, with an error, the connection ends here.
    Goodbye {
        /// Why.
        code: CloseCode,
        /// In words.
        message: String,
    },
}

impl Message {
    /// The name of its kind, for errors and traces.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Message::Hello(_) => "hello",
            Message::Welcome(_) => "welcome",
            Message::Open(_) => "open",
            Message::Answer(_) => "answer",
            Message::Lender(message) => message.name(),
            Message::Borrower(message) => message.name(),
            Message::Ping(_) => "ping",
            Message::Pong(_) => "pong",
            Message::Goodbye { .. } => "goodbye",
        }
    }

    /// Whether a payload may follow it.
    #[must_use]
    pub fn has_payload(&self) -> bool {
        matches!(self, Message::Lender(FromLender::Schema { .. } | FromLender::Inline { .. }))
    }
}

/// One fabric that the client can use, and how to reach it there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FabricOffer {
    /// Which fabric.
    pub kind: FabricKind,
    /// The client endpoint's address blob, at most [`crate::codec::MAX_ADDRESS`] bytes.
    #[serde(with = "crate::blob")]
    pub address: Bytes,
}

/// The client's first message.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// The client's name, for the server's log.
    pub name: String,
    /// Fabrics in the client's order of preference. Empty: inline only.
    pub fabrics: Vec<FabricOffer>,
    /// Bytes that the client has on loan at once, at most, as the lender of uploads. The server grants no more.
    pub max_loan_bytes: u64,
    /// Later additions.
    pub extensions: Extensions,
}

/// The fabric that the server chose.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FabricChoice {
    /// One of those offered.
    pub kind: FabricKind,
    /// The server endpoint's address blob.
    #[serde(with = "crate::blob")]
    pub address: Bytes,
    /// How the server lends. The client reads the probe to prove the path before any request depends on it.
    pub lending: Lending,
}

/// Limits that a server sets for a connection.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServerLimits {
    /// Streams open at once, results and uploads together.
    pub max_streams: u32,
    /// Bytes that the server has on loan at once, at most, over all streams of the connection.
    pub max_loan_bytes: u64,
    /// Longest SQL text in bytes.
    pub max_sql_bytes: u32,
}

/// The server's answer to the hello.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Welcome {
    /// The server's name.
    pub name: String,
    /// The fabric, or why there is none.
    pub fabric: Result<FabricChoice, String>,
    /// What the server allows.
    pub limits: ServerLimits,
    /// Later additions.
    pub extensions: Extensions,
}

/// Opens a stream.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Open {
    /// Names the stream from now on. Chosen by the client, above all before, whichever way the batches go.
    pub stream: StreamId,
    /// What is wanted.
    pub request: Request,
    /// How.
    pub options: OpenOptions,
    /// Later additions.
    pub extensions: Extensions,
}

/// Ends an upload at the server: exactly one for each, unless the client has failed the stream before.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answer {
    /// The upload's stream.
    pub stream: StreamId,
    /// Rows taken, all of them and for good; or why none were.
    pub result: Result<u64, Failure>,
    /// Later additions.
    pub extensions: Extensions,
}

/// Why a stream, or a request, ended in an error.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// Which kind of error.
    pub code: StreamCode,
    /// Where the borrower had given the stream up: why.
    pub cancel: Option<CancelReason>,
    /// In words. May be empty.
    pub message: String,
}

impl Failure {
    /// A failure of this kind, in these words.
    #[must_use]
    pub fn new(code: StreamCode, message: impl Into<String>) -> Self {
        Failure { code, cancel: None, message: message.into() }
    }

    /// The end of a stream that its borrower gave up.
    #[must_use]
    pub fn cancelled(reason: CancelReason) -> Self {
        Failure { code: StreamCode::Cancelled, cancel: Some(reason), message: String::new() }
    }
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.code)?;
        if let Some(reason) = self.cancel {
            write!(f, " ({reason})")?;
        }
        if self.message.is_empty() { Ok(()) } else { write!(f, ": {}", self.message) }
    }
}
