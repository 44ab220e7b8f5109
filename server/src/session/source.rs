//! The output of an engine: rows, or an error for the client.

use arrow_schema::SchemaRef;
use thallus_protocol::codes::StreamCode;
use thallus_protocol::message::{Failure, SortKey};

use crate::engine::{BatchStream, EngineError, EngineErrorKind};

/// A result, or one partition of it, from the engine.
pub(crate) struct Source {
    pub(crate) schema: SchemaRef,
    /// The order of a partition, if the result is sorted.
    pub(crate) order: Vec<SortKey>,
    pub(crate) batches: BatchStream,
}

/// Translates an engine's error for the client.
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
        EngineErrorKind::AlreadyExists => StreamCode::AlreadyExists,
        EngineErrorKind::Parameters => StreamCode::Parameters,
        EngineErrorKind::Constraint => StreamCode::Constraint,
    };
    // The code has its own text, which is not repeated.
    let message = match error {
        EngineError::Syntax { message } | EngineError::Execution { message } | EngineError::Unsupported { message } => {
            message
        }
        other => other.to_string(),
    };
    Failure::new(code, message)
}
