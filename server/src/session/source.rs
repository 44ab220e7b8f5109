//! What an engine gives: rows, or an error that the client is told.

use arrow_schema::SchemaRef;
use thallus_protocol::codes::StreamCode;
use thallus_protocol::message::{Failure, SortKey};

use crate::engine::{BatchStream, EngineError, EngineErrorKind};

/// A result, or one partition of it, as it comes from the engine.
pub(crate) struct Source {
    pub(crate) schema: SchemaRef,
    /// What a partition is sorted by, if the result is.
    pub(crate) order: Vec<SortKey>,
    pub(crate) batches: BatchStream,
}

/// An engine's error, as the client is told.
pub(crate) fn failure(error: EngineError) -> Failure {
    let code = match error.kind() {
        EngineErrorKind::Syntax => StreamCode::Syntax,
        EngineErrorKind::UnknownTable => StreamCode::UnknownTable,
        EngineErrorKind::Column | EngineErrorKind::Plan => StreamCode::Plan,
        EngineErrorKind::TooLarge => StreamCode::SqlTooLong,
        EngineErrorKind::Unsupported => StreamCode::Unsupported,
        EngineErrorKind::ReadOnly => StreamCode::ReadOnly,
        EngineErrorKind::Execution => StreamCode::Execution,
        EngineErrorKind::ResourcesExhausted => StreamCode::ResourcesExhausted,
        EngineErrorKind::Source => StreamCode::Source,
        EngineErrorKind::Internal => StreamCode::Internal,
    };
    // The code has words of its own, which are not repeated.
    let message = match error {
        EngineError::Syntax { message } | EngineError::Execution { message } | EngineError::Unsupported { message } => {
            message
        }
        other => other.to_string(),
    };
    Failure::new(code, message)
}
