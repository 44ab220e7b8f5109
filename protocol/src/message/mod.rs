//! Messages on the control connection. `docs/PROTOCOL.md` specifies them field by field.
//!
//! A message is postcard in a frame (see [`crate::codec`]). Bulk bytes (schemas, inline batches) follow the message in
//! the same frame, so that the serializer never copies them. The golden bytes in `tests/golden.rs` pin the format:
//! variants are only ever appended, and fields are added as [`Extensions`].
//!
//! A message belongs to a *role*, not to an end: [`FromLender`] comes from the lender of a stream, [`FromBorrower`]
//! from its borrower, whichever of them is the client. The others are the handshake, the client's requests, the answers
//! to them, and messages about the connection as a whole.

mod borrow;
mod extensions;
mod failure;
mod lend;
mod objects;
mod options;
mod request;
mod statement;
mod stats;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

pub use borrow::FromBorrower;
pub use extensions::{CRITICAL, Extensions, MAX_EXTENSION_BYTES, MAX_EXTENSIONS, UnknownExtension};
pub use failure::Failure;
pub use lend::{Fencing, FromLender, LeaseWord, Lending, LentBatch, MAX_SORT_KEYS, Region, SortKey};
pub use objects::{Depth, MAX_OBJECTS_BYTES, ObjectsRequest};
pub use options::{
    Access, DEFAULT_CATALOG, DEFAULT_SCHEMA, FIRST_BATCHES, INGEST, LARGEST_BATCH, LendFrom, MAX_PARAMETER_BYTES,
    OpenOptions, PARAMETERS, Partition, ProcessId, Thresholds,
};
pub use request::Request;
pub use statement::{Defaults, Ingest, IngestMode, Vendor};
pub use stats::StreamStats;

use crate::codes::CloseCode;
use crate::ids::{FabricKind, StreamId};

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
    /// No. 4: A message from the lender of a stream.
    Lender(FromLender),
    /// No. 5: A message from the borrower of a stream.
    Borrower(FromBorrower),
    /// No. 6: A request for a [`Message::Pong`] with the same number.
    Ping(u64),
    /// No. 7: The answer to the ping with this number.
    Pong(u64),
    /// No. 8: From the client: it is about to close the connection. From the server: it accepts no new streams, and
    /// finishes those that run; or, with an error, the connection ends here.
    Goodbye {
        /// The reason.
        code: CloseCode,
        /// The reason as text.
        message: String,
    },
}

impl Message {
    /// The name of the kind of message, for errors and traces.
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

    /// Whether a payload may follow the message.
    #[must_use]
    pub fn has_payload(&self) -> bool {
        matches!(self, Message::Lender(FromLender::Schema { .. } | FromLender::Inline { .. }))
    }
}

/// One fabric that the client can use, and the client's address there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FabricOffer {
    /// The fabric.
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
    /// Maximum bytes that the client has on loan at once, as the lender of uploads. The server grants no more credit
    /// than this.
    pub max_loan_bytes: u64,
    /// Fields of later versions.
    pub extensions: Extensions,
}

/// The fabric that the server chose.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FabricChoice {
    /// One of the fabrics that the client offered.
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
    /// Maximum number of streams open at once, results and uploads together.
    pub max_streams: u32,
    /// Maximum bytes that the server has on loan at once, over all streams of the connection.
    pub max_loan_bytes: u64,
    /// Longest SQL text in bytes.
    pub max_sql_bytes: u32,
}

/// Key of the extension of Welcome with [`Vendor::name`], in UTF-8.
pub const ENGINE_NAME: u16 = 1;
/// Key of the extension of Welcome with [`Vendor::version`], in UTF-8.
pub const ENGINE_VERSION: u16 = 2;
/// Key of the extension of Welcome with the catalog of [`Vendor::defaults`], in UTF-8.
pub const ENGINE_CATALOG: u16 = 3;
/// Key of the extension of Welcome with the schema of [`Vendor::defaults`], in UTF-8.
pub const ENGINE_SCHEMA: u16 = 4;

/// The server's answer to the hello.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Welcome {
    /// The server's name.
    pub name: String,
    /// The fabric, or the reason why there is none.
    pub fabric: Result<FabricChoice, String>,
    /// Limits that the client must keep.
    pub limits: ServerLimits,
    /// Fields of later versions.
    pub extensions: Extensions,
}

/// Opens a stream.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Open {
    /// The id of the stream. The client chooses it, above all earlier ones, for both directions.
    pub stream: StreamId,
    /// The request.
    pub request: Request,
    /// Options of the request.
    pub options: OpenOptions,
    /// Fields of later versions.
    pub extensions: Extensions,
}

/// Ends an upload. The server sends exactly one for each upload, unless the client has failed the stream before.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answer {
    /// The upload's stream.
    pub stream: StreamId,
    /// Number of rows taken, which is all of them; or the reason why no row was taken.
    pub result: Result<u64, Failure>,
    /// Fields of later versions.
    pub extensions: Extensions,
}
