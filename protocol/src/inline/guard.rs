//! A guard against panics of arrow-ipc.

use std::panic::{AssertUnwindSafe, catch_unwind};

use super::error::InlineError;

/// Calls a function of arrow-ipc, which reports some invalid input by a panic.
///
/// All input that is known to make it panic is refused before the call. The guard is for unknown cases: a connection
/// must survive those too. A panic leaves no half-changed state in use, because a decoder that has returned an error is
/// not used again.
pub(super) fn guarded<T>(call: impl FnOnce() -> Result<T, arrow_schema::ArrowError>) -> Result<T, InlineError> {
    match catch_unwind(AssertUnwindSafe(call)) {
        Ok(result) => Ok(result?),
        Err(panic) => {
            let message = panic.downcast_ref::<String>().map(String::as_str).or(panic.downcast_ref::<&str>().copied());
            Err(InlineError::Panicked { message: message.unwrap_or("nothing").to_owned() })
        }
    }
}
