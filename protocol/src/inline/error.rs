//! Errors of inline batches and their schemas.

use arrow_schema::{ArrowError, DataType};

use crate::layout::LayoutError;

/// An error in encoding or decoding a batch or a schema as Arrow IPC.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum InlineError {
    /// Arrow IPC cannot represent this type.
    #[error("field {field:?}: Arrow IPC cannot carry the type {data_type}; cast it in the query")]
    Unsupported {
        /// The column's name.
        field: String,
        /// The type of the column, or a type within it.
        data_type: DataType,
    },
    /// The schema of the batch is not that of the stream.
    #[error("the batch does not have the stream's schema: {what}")]
    Schema {
        /// The difference.
        what: String,
    },
    /// A type that arrays cannot have, too deep a nesting, too many fields; or a slice that cannot be cut out.
    #[error(transparent)]
    Layout(#[from] LayoutError),
    /// The bytes end within a message.
    #[error("the message is cut off: {what} needs {needed} bytes, {got} are there")]
    CutOff {
        /// The part that is incomplete.
        what: &'static str,
        /// Its length in bytes.
        needed: u64,
        /// Number of bytes that are there.
        got: u64,
    },
    /// The metadata is not a flatbuffer of Arrow's `Message`.
    #[error("the metadata is not an Arrow IPC message: {why}")]
    Flatbuffer {
        /// The error of the flatbuffer's verifier.
        why: String,
    },
    /// Bytes follow the batch or the schema.
    #[error("{extra} bytes follow the message")]
    Trailing {
        /// Number of bytes.
        extra: usize,
    },
    /// A message of an unexpected kind.
    #[error("expected {expected}, got an Arrow IPC message of type {got}")]
    Unexpected {
        /// The expected kind of message.
        expected: &'static str,
        /// The kind of message that arrived.
        got: String,
    },
    /// The metadata contradicts itself, the schema or the body, or uses a feature that is not accepted.
    #[error("the metadata is not acceptable: {why}")]
    Metadata {
        /// The contradiction, or the feature.
        why: String,
    },
    /// Arrow's own validation refused the bytes.
    #[error("not a valid batch: {0}")]
    Invalid(#[from] ArrowError),
    /// arrow-ipc panicked. This is a defect of arrow-ipc, or of the verification before it: please report it.
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
