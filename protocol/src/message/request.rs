//! Requests of a client. The set is open: a server can refuse a request that it does not know with an error of its own.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

const SQL: u16 = 1;
const UPLOAD: u16 = 2;

/// The request that opens a stream. On the wire: a number and the request's own bytes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Raw", into = "Raw")]
#[non_exhaustive]
pub enum Request {
    /// No. 1: The rows of a query. The bytes are its text, in UTF-8. The server lends.
    Sql(String),
    /// No. 2: Rows for a table. The bytes are its name, in UTF-8. The client lends.
    Upload(String),
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

impl From<Request> for Raw {
    fn from(request: Request) -> Self {
        match request {
            Request::Sql(text) => Raw { kind: SQL, body: text.into() },
            Request::Upload(table) => Raw { kind: UPLOAD, body: table.into() },
            Request::Unknown { kind, body } => Raw { kind, body },
        }
    }
}

impl TryFrom<Raw> for Request {
    type Error = std::string::FromUtf8Error;

    fn try_from(Raw { kind, body }: Raw) -> Result<Self, Self::Error> {
        let text = |body: Bytes| String::from_utf8(body.into());
        Ok(match kind {
            SQL => Request::Sql(text(body)?),
            UPLOAD => Request::Upload(text(body)?),
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
}
