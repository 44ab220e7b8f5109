//! The error in which a stream, or a request, ends.

use serde::{Deserialize, Serialize};

use crate::codes::{CancelReason, StreamCode};

/// Why a stream, or a request, ended in an error.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// The kind of error.
    pub code: StreamCode,
    /// If the borrower cancelled the stream: the reason.
    pub cancel: Option<CancelReason>,
    /// The error as text. May be empty.
    pub message: String,
}

impl Failure {
    /// A failure of this kind, with this text.
    #[must_use]
    pub fn new(code: StreamCode, message: impl Into<String>) -> Self {
        Failure { code, cancel: None, message: message.into() }
    }

    /// The failure of a stream that its borrower cancelled.
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
