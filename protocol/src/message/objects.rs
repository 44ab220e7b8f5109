//! Requests for the objects of a database: catalogs, schemas, tables and columns.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

/// The deepest kind of object that a request asks for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Depth {
    /// No. 0: Catalogs.
    Catalogs,
    /// No. 1: Catalogs and their schemas.
    Schemas,
    /// No. 2: Catalogs, schemas and their tables.
    Tables,
    /// No. 3: Catalogs, schemas, tables and their columns.
    #[default]
    Columns,
}

/// The objects that a client asks for.
///
/// Names are matched by patterns of SQL's LIKE: `%` stands for any text, `_` for one character, and a backslash before
/// either for the character itself. An absent pattern matches all names.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ObjectsRequest {
    /// The deepest kind of object.
    pub depth: Depth,
    /// Pattern of the catalogs.
    pub catalog: Option<String>,
    /// Pattern of the schemas.
    pub schema: Option<String>,
    /// Pattern of the tables.
    pub table: Option<String>,
    /// The types of tables, each in full, as `table` or `view`. Absent: all types.
    pub kinds: Option<Vec<String>>,
}

/// Maximum bytes of an [`ObjectsRequest`].
pub const MAX_OBJECTS_BYTES: usize = 16 << 10;

impl ObjectsRequest {
    pub(super) fn to_bytes(&self) -> Bytes {
        // Only a serializer that runs out of room fails, and a vector grows.
        postcard::to_stdvec(self).unwrap_or_default().into()
    }

    /// An empty text is one byte here and many in memory, so the length is checked first.
    pub(super) fn from_bytes(bytes: &[u8]) -> Result<Self, postcard::Error> {
        match bytes.len() {
            0..=MAX_OBJECTS_BYTES => postcard::from_bytes(bytes),
            _ => Err(postcard::Error::DeserializeBadEncoding),
        }
    }
}
