//! Decodes inline batches.

use std::collections::HashMap;
use std::sync::Arc;

use arrow_array::{ArrayRef, RecordBatch};
use arrow_buffer::Buffer;
use arrow_ipc::convert::fb_to_schema;
use arrow_ipc::reader::{RecordBatchDecoder, read_dictionary};
use arrow_ipc::{DictionaryBatch, MessageHeader, MetadataVersion};
use arrow_schema::{DataType, Field, SchemaRef};
use bytes::Bytes;

use super::error::InlineError;
use super::frame::Frame;
use super::guard::guarded;
use super::limits::InlineLimits;
use super::{verify_batch, verify_schema};
use crate::layout::{Node, Plan};

/// The schema of a message made by [`encode_schema`](super::encode_schema) or by any other implementation of Arrow.
///
/// # Errors
/// The bytes are not a schema message, or the schema has types that no array can have, is nested deeper than
/// [`MAX_DEPTH`](crate::layout::MAX_DEPTH) or has more than [`InlineLimits::max_fields`] fields.
pub fn decode_schema(message: &[u8], limits: &InlineLimits) -> Result<SchemaRef, InlineError> {
    decode_plan(message, limits).map(|plan| Arc::clone(plan.schema()))
}

/// Decodes the batches of one stream, in the order in which they were encoded.
///
/// After an error the decoder cannot be used: dictionaries may be missing.
#[derive(Debug)]
pub struct InlineDecoder {
    plan: Plan,
    limits: InlineLimits,
    /// Dictionaries by their id in the schema. Arrow only looks them up, and never iterates over them in the map's
    /// order.
    dictionaries: HashMap<i64, ArrayRef>,
}

impl InlineDecoder {
    /// A decoder for the stream that begins with this schema message.
    ///
    /// # Errors
    /// As [`decode_schema`].
    pub fn new(schema: &[u8], limits: InlineLimits) -> Result<Self, InlineError> {
        Ok(InlineDecoder::of(decode_plan(schema, &limits)?, limits))
    }

    /// A decoder for a stream whose schema message has been decoded to this plan.
    #[must_use]
    pub fn of(plan: Plan, limits: InlineLimits) -> Self {
        InlineDecoder { plan, limits, dictionaries: HashMap::new() }
    }

    /// The stream's schema.
    #[must_use]
    pub fn schema(&self) -> &SchemaRef {
        self.plan.schema()
    }

    /// The batch in the bytes of one [`encode`](super::InlineEncoder::encode), validated.
    ///
    /// Its arrays share the memory of `message` if this memory begins at a multiple of 16. Otherwise the body is copied
    /// once.
    ///
    /// # Errors
    /// The bytes are not exactly dictionaries of the schema and one batch of the schema, all valid.
    pub fn decode(&mut self, message: Bytes) -> Result<RecordBatch, InlineError> {
        let mut bytes = Buffer::from(message);
        loop {
            let frame = Frame::cut(&bytes)?;
            let (message, body, rest) = frame.open()?;
            match message.header_type() {
                MessageHeader::DictionaryBatch => {
                    let batch = message.header_as_dictionary_batch().ok_or_else(no_header)?;
                    self.dictionary(batch, &body)?;
                    bytes = rest;
                }
                MessageHeader::RecordBatch => {
                    let batch = message.header_as_record_batch().ok_or_else(no_header)?;
                    if !rest.is_empty() {
                        return Err(InlineError::Trailing { extra: rest.len() });
                    }
                    verify_batch::verify(batch, self.plan.columns(), &body, self.limits.max_len)?;
                    let (schema, dictionaries) = (self.plan.schema().clone(), &self.dictionaries);
                    return guarded(|| {
                        RecordBatchDecoder::try_new(&body, batch, schema, dictionaries, &MetadataVersion::V5)?
                            .read_record_batch()
                    });
                }
                other => return Err(unexpected("a dictionary or a record batch", other)),
            }
        }
    }

    fn dictionary(&mut self, batch: DictionaryBatch<'_>, body: &Buffer) -> Result<(), InlineError> {
        if batch.isDelta() {
            return Err(InlineError::metadata("delta dictionaries are not accepted"));
        }
        let values = batch.data().ok_or_else(no_header)?;
        // The dictionary ids of fields are deprecated, but arrow-ipc's own reader finds dictionaries by them.
        #[allow(deprecated)]
        let field = self.plan.schema().fields_with_dict_id(batch.id()).first().copied().cloned();
        let Some(DataType::Dictionary(_, value_type)) = field.as_ref().map(Field::data_type) else {
            return Err(InlineError::metadata(format!("no field has the dictionary {}", batch.id())));
        };
        let column = Node::single(Field::new("", value_type.as_ref().clone(), true))?;
        verify_batch::verify(values, &[column], body, self.limits.max_len)?;
        guarded(|| read_dictionary(body, batch, self.plan.schema(), &mut self.dictionaries, &MetadataVersion::V5))
    }
}

fn no_header() -> InlineError {
    InlineError::metadata("the message has no header")
}

fn unexpected(expected: &'static str, got: MessageHeader) -> InlineError {
    InlineError::Unexpected { expected, got: format!("{got:?}") }
}

/// As [`decode_schema`], but returns the schema compiled for the batches that follow.
pub(crate) fn decode_plan(message: &[u8], limits: &InlineLimits) -> Result<Plan, InlineError> {
    let frame = Frame::cut(&Buffer::from_slice_ref(message))?;
    let (message, body, rest) = frame.open()?;
    let extra = body.len() + rest.len();
    if extra > 0 {
        return Err(InlineError::Trailing { extra });
    }
    let schema = message.header_as_schema().ok_or_else(|| unexpected("a schema", message.header_type()))?;
    verify_schema::verify(schema, limits.max_fields)?;
    let schema = guarded(|| Ok(fb_to_schema(schema)))?;
    // A flatbuffer can describe an impossible type: a width may be negative, a map may have three columns. The plan
    // refuses such types.
    Ok(Plan::new(&Arc::new(schema))?)
}
