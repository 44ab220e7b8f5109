//! What can be wrong with an inline batch or its schema.

use arrow_schema::{ArrowError, DataType};

use crate::layout::LayoutError;

/// Why a batch or a schema could not be put into Arrow IPC, or taken out of it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum InlineError {
    /// Arrow IPC has no form for this type.
    #[error("field {field:?}: Arrow IPC cannot carry the type {data_type}; cast it in the query")]
    Unsupported {
        /// The column's name.
        field: String,
        /// The type, that of the column or one within it.
        data_type: DataType,
    },
    /// The batch is of another schema than the stream.
    #[error("the batch does not have the stream's schema: {what}")]
    Schema {
        /// What differs.
        what: String,
    },
    /// A type that arrays cannot have, too deep a nesting, too many fields; or a slice that could not be cut out.
    #[error(transparent)]
    Layout(#[from] LayoutError),
    /// The bytes end within a message.
    #[error("the message is cut off: {needed} bytes needed for {what}, {got} there")]
    CutOff {
        /// The part that is not all there.
        what: &'static str,
        /// Its length in bytes.
        needed: u64,
        /// How many there are.
        got: u64,
    },
    /// The metadata is not a flatbuffer of Arrow's `Message`.
    #[error("the metadata is not an Arrow IPC message: {why}")]
    Flatbuffer {
        /// What the flatbuffer's verifier found.
        why: String,
    },
    /// There is more after the batch or the schema.
    #[error("{extra} bytes follow the message")]
    Trailing {
        /// How many bytes.
        extra: usize,
    },
    /// A message of another kind than is expected here.
    #[error("expected {expected}, got an Arrow IPC message of type {got}")]
    Unexpected {
        /// What has to come here.
        expected: &'static str,
        /// What came.
        got: String,
    },
    /// The metadata contradicts itself, the schema or the body, or asks for what is not accepted.
    #[error("the metadata is not acceptable: {why}")]
    Metadata {
        /// What is wrong.
        why: String,
    },
    /// Arrow's own validation refused the bytes.
    #[error("not a valid batch: {0}")]
    Invalid(#[from] ArrowError),
    /// arrow-ipc panicked. A defect, of it or of the verification before it: please report it.
    #[error("arrow-ipc panicked: {said}")]
    Panicked {
        /// The panic's message.
        said: String,
    },
}

impl InlineError {
    pub(super) fn metadata(why: impl Into<String>) -> Self {
        InlineError::Metadata { why: why.into() }
    }
}
