//! Requests of a client. The set is open: a server can refuse a request that it does not know with an error of its own.

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::objects::ObjectsRequest;

const SQL: u16 = 1;
const UPLOAD: u16 = 2;
const DESCRIBE: u16 = 3;
const OBJECTS: u16 = 4;

/// The request that opens a stream. On the wire: a number and the request's own bytes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Raw", into = "Raw")]
#[non_exhaustive]
pub enum Request {
    /// No. 1: The rows of a query. The bytes are its text, in UTF-8. The server lends.
    Sql(String),
    /// No. 2: Rows for a table. The bytes are its name, in UTF-8. The client lends.
    Upload(String),
    /// No. 3: The schemas of a statement's result and of its parameters, without running it. The bytes are its text, in
    /// UTF-8. The server lends one row.
    Describe(String),
    /// No. 4: Catalogs, schemas, tables and columns. The bytes are an [`ObjectsRequest`]. The server lends.
    Objects(ObjectsRequest),
    /// A request that this build does not know. It is refused, and the connection continues.
    Unknown {
        /// Its number.
        kind: u16,
        /// Its bytes.
        body: Bytes,
    },
}

/// A request on the wire.
#[derive(Clone, Serialize, Deserialize)]
struct Raw {
    kind: u16,
    #[serde(with = "crate::blob")]
    body: Bytes,
}

/// The bytes of a known request are not what its kind says.
#[derive(Debug, Error)]
enum BadRequest {
    #[error("the text of a request is not UTF-8: {0}")]
    NotUtf8(#[from] std::string::FromUtf8Error),
    #[error("a request for objects does not decode: {0}")]
    Objects(#[from] postcard::Error),
}

impl From<Request> for Raw {
    fn from(request: Request) -> Self {
        match request {
            Request::Sql(text) => Raw { kind: SQL, body: text.into() },
            Request::Upload(table) => Raw { kind: UPLOAD, body: table.into() },
            Request::Describe(text) => Raw { kind: DESCRIBE, body: text.into() },
            Request::Objects(request) => Raw { kind: OBJECTS, body: request.to_bytes() },
            Request::Unknown { kind, body } => Raw { kind, body },
        }
    }
}

impl TryFrom<Raw> for Request {
    type Error = BadRequest;

    fn try_from(Raw { kind, body }: Raw) -> Result<Self, Self::Error> {
        let text = |body: Bytes| String::from_utf8(body.into());
        Ok(match kind {
            SQL => Request::Sql(text(body)?),
            UPLOAD => Request::Upload(text(body)?),
            DESCRIBE => Request::Describe(text(body)?),
            OBJECTS => Request::Objects(ObjectsRequest::from_bytes(&body)?),
            _ => Request::Unknown { kind, body },
        })
    }
}

impl Request {
    /// Whether the client is the lender of the stream.
    #[must_use]
    pub fn is_lent_by_client(&self) -> bool {
        matches!(self, Request::Upload(_))
    }

    /// The bytes of the request's own text, which the server limits.
    #[must_use]
    pub fn text_bytes(&self) -> usize {
        match self {
            Request::Sql(text) | Request::Upload(text) | Request::Describe(text) => text.len(),
            Request::Objects(request) => request.to_bytes().len(),
            Request::Unknown { body, .. } => body.len(),
        }
    }
}
