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
mod guard;
mod limits;
mod parameters;
mod verify_batch;
mod verify_schema;

pub(crate) use decode::decode_plan;
pub use decode::{InlineDecoder, decode_schema};
pub use encode::{InlineEncoder, encode_schema};
pub use error::InlineError;
pub use limits::InlineLimits;
pub use parameters::{decode_parameters, encode_parameters};
