//! Inline batches: the bytes of a batch in a message of the control connection, as standard Arrow IPC.
//!
//! The format is the stream format of Arrow IPC, cut at the batches. [`InlineEncoder::new`] returns the schema message.
//! Each [`encode`](InlineEncoder::encode) returns the dictionaries that changed and one record batch. Put together in
//! order, they are a stream that any Arrow implementation can read.
//!
//! Arrow's own reader validates values, but panics on many kinds of bad metadata that a hostile peer can send (a buffer
//! beyond the body, a bit width that does not exist, a bitmap that is too short). So this module first verifies all
//! metadata, until none of these cases is left. Compressed bodies and delta dictionaries are refused, because a small
//! message could make a large allocation; the encoder never sends them.
//!
//! Arrow IPC cannot carry a dictionary whose values are themselves dictionary-encoded: its schema has room for one
//! dictionary per field. [`encode_schema`] refuses such a type with [`InlineError::Unsupported`]. The verifier of
//! flatbuffers allows types to be nested about 60 levels deep, a little less than
//! [`MAX_DEPTH`](crate::layout::MAX_DEPTH).

mod decode;
mod encode;
mod error;
mod frame;
mod verify_batch;
mod verify_schema;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use arrow_schema::{Schema, SchemaRef};

pub use decode::InlineDecoder;
pub use encode::InlineEncoder;
pub use error::InlineError;

use crate::layout::Plan;

/// Limits of a decoder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InlineLimits {
    /// Maximum number of fields of a schema, nested ones included.
    pub max_fields: usize,
    /// Maximum number of elements of any one array, rows included: arrays of nulls have elements but no bytes.
    pub max_len: u64,
}

impl Default for InlineLimits {
    /// 100 000 fields, 2^31 - 1 elements.
    fn default() -> Self {
        InlineLimits { max_fields: 100_000, max_len: (1 << 31) - 1 }
    }
}

/// The schema as an Arrow IPC message. It begins a stream of inline batches, and gives a borrower the schema of lent
/// ones.
///
/// # Errors
/// Arrow IPC cannot carry the schema: the first field for which that is so, and why.
pub fn encode_schema(schema: &Schema) -> Result<Vec<u8>, InlineError> {
    InlineEncoder::new(schema).map(|(_, message)| message)
}

/// The schema of a message made by [`encode_schema`] or by any other implementation of Arrow.
///
/// # Errors
/// The bytes are not a schema message, or the schema has types that no array can have, is nested deeper than
/// [`MAX_DEPTH`](crate::layout::MAX_DEPTH) or has more than [`InlineLimits::max_fields`] fields.
pub fn decode_schema(message: &[u8], limits: &InlineLimits) -> Result<SchemaRef, InlineError> {
    decode_plan(message, limits).map(|plan| Arc::clone(plan.schema()))
}

/// As [`decode_schema`], but returns the schema compiled for the batches that follow.
pub(crate) fn decode_plan(message: &[u8], limits: &InlineLimits) -> Result<Plan, InlineError> {
    decode::plan(message, limits)
}

/// Calls a function of arrow-ipc, which reports some invalid input by a panic.
///
/// All input that is known to make it panic is refused before the call. The guard is for unknown cases: a connection
/// must survive those too. A panic leaves no half-changed state in use, because a decoder that has returned an error is
/// not used again.
fn guarded<T>(call: impl FnOnce() -> Result<T, arrow_schema::ArrowError>) -> Result<T, InlineError> {
    match catch_unwind(AssertUnwindSafe(call)) {
        Ok(result) => Ok(result?),
        Err(panic) => {
            let said = panic.downcast_ref::<String>().map(String::as_str).or(panic.downcast_ref::<&str>().copied());
            Err(InlineError::Panicked { said: said.unwrap_or("nothing").to_owned() })
        }
    }
}
