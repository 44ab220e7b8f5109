//! Encodes inline batches.

use std::fmt;

use arrow_array::RecordBatch;
use arrow_ipc::MetadataVersion;
use arrow_ipc::writer::{IpcWriteOptions, StreamWriter};
use arrow_schema::{DataType, Schema};

use super::decode::decode_schema;
use super::error::InlineError;
use super::guard::guarded;
use super::limits::InlineLimits;
use crate::layout::{
    Assemble, Described, Kind, LayoutLimits, Node, Plan, ValidatingAssembler, check, describe_compact, rebuild_with,
};

/// Alignment of bodies and of the buffers in them, in bytes from the start of the message.
const ALIGNMENT: usize = 64;

/// The schema as an Arrow IPC message. It begins a stream of inline batches, and gives a borrower the schema of lent
/// ones.
///
/// # Errors
/// Arrow IPC cannot carry the schema: the first field for which that is so, and why.
pub fn encode_schema(schema: &Schema) -> Result<Vec<u8>, InlineError> {
    InlineEncoder::new(schema).map(|(_, message)| message)
}

/// Encodes the batches of one stream as messages, which must be decoded in the same order.
pub struct InlineEncoder {
    plan: Plan,
    writer: StreamWriter<Vec<u8>>,
    /// Whether the schema has types whose slices arrow-ipc would send with the whole of their source arrays.
    cut_first: bool,
    /// Makes the arrays that are cut.
    assemble: &'static dyn Assemble,
}

impl fmt::Debug for InlineEncoder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("InlineEncoder").field("schema", self.plan.schema()).finish_non_exhaustive()
    }
}

impl InlineEncoder {
    /// An encoder for batches of this schema, and the schema message at the start of the stream.
    ///
    /// # Errors
    /// Arrow IPC cannot carry the schema: the first field for which that is so, and why.
    pub fn new(schema: &Schema) -> Result<(Self, Vec<u8>), InlineError> {
        let plan = Plan::new(&schema.clone().into())?;
        for column in plan.columns() {
            if let Some(found) = column.find(&is_dictionary_of_dictionaries) {
                let (field, data_type) = (column.field.name().clone(), found.field.data_type().clone());
                return Err(InlineError::Unsupported { field, data_type });
            }
        }
        let options = IpcWriteOptions::try_new(ALIGNMENT, false, MetadataVersion::V5)?;
        let mut writer = guarded(|| StreamWriter::try_new_with_options(Vec::new(), schema, options))?;
        let message = std::mem::take(writer.get_mut());
        // The borrower must decode the same schema. A stream with another schema would be worse than no stream. Types
        // without parameters in other fields are known to come back, and decoding takes as long as all else.
        if plan.columns().iter().all(|column| is_plain(column.field.data_type())) {
            return Ok((InlineEncoder { plan, writer, cut_first: false, assemble: &ValidatingAssembler }, message));
        }
        let limits = InlineLimits { max_fields: usize::MAX, ..InlineLimits::default() };
        let seen = decode_schema(&message, &limits)?;
        if let Some((field, _)) = schema.fields().iter().zip(seen.fields()).find(|(field, seen)| field != seen) {
            return Err(InlineError::Unsupported { field: field.name().clone(), data_type: field.data_type().clone() });
        }
        let cut_first = plan.columns().iter().any(|column| column.find(&slices_are_sent_whole).is_some());
        Ok((InlineEncoder { plan, writer, cut_first, assemble: &ValidatingAssembler }, message))
    }

    /// The stream's schema, compiled. It also describes batches of the same stream that are lent.
    #[must_use]
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// The same encoder with another way to make the arrays that it sends instead of slices.
    #[must_use]
    pub fn with_assemble(self, assemble: &'static dyn Assemble) -> Self {
        InlineEncoder { assemble, ..self }
    }

    /// The bytes of one message: the dictionaries that are new or have changed since the last batch, and the batch.
    ///
    /// # Errors
    /// The batch has columns of other types than the stream's schema, or its arrays are not valid. In the latter case
    /// the encoder cannot be used any more: it may treat dictionaries as sent that were not sent.
    pub fn encode(&mut self, batch: &RecordBatch) -> Result<Vec<u8>, InlineError> {
        self.same_types(batch)?;
        let cut = if self.cut_first { Some(self.cut(batch)?) } else { None };
        let writer = &mut self.writer;
        let written = guarded(|| writer.write(cut.as_ref().unwrap_or(batch)));
        let message = std::mem::take(writer.get_mut());
        written.map(|()| message)
    }

    /// The same batch with its live range only. The values are validated, which costs little compared with sending the
    /// buffers that a slice of views was cut from.
    fn cut(&self, batch: &RecordBatch) -> Result<RecordBatch, InlineError> {
        let Described { descriptor, buffers, .. } = describe_compact(&self.plan, batch)?;
        let descriptor = check(&self.plan, descriptor, &LayoutLimits::NONE)?;
        Ok(rebuild_with(&descriptor, &buffers, self.assemble)?)
    }

    fn same_types(&self, batch: &RecordBatch) -> Result<(), InlineError> {
        let (own, other) = (self.plan.schema().fields(), batch.schema_ref().fields());
        if own.len() != other.len() {
            return Err(InlineError::Schema { what: format!("{} columns, not {}", other.len(), own.len()) });
        }
        match own.iter().zip(batch.columns()).find(|(own, column)| own.data_type() != column.data_type()) {
            None => Ok(()),
            Some((own, column)) => {
                let what = format!("column {:?} is {}, not {}", own.name(), column.data_type(), own.data_type());
                Err(InlineError::Schema { what })
            }
        }
    }
}

/// Types without fields of their own, and without slices that are sent whole.
fn is_plain(data_type: &DataType) -> bool {
    use DataType::*;
    let is_narrow_decimal = matches!(data_type, Decimal32(..) | Decimal64(..));
    (data_type.is_primitive() && !is_narrow_decimal)
        || matches!(data_type, Boolean | Utf8 | LargeUtf8 | Binary | LargeBinary)
}

fn is_dictionary_of_dictionaries(node: &Node) -> bool {
    let is_dictionary = |node: &Node| matches!(node.kind, Kind::Dictionary { .. });
    is_dictionary(node) && node.children.iter().any(is_dictionary)
}

fn slices_are_sent_whole(node: &Node) -> bool {
    use Kind::*;
    matches!(node.kind, Views { .. } | ListView { .. } | SparseUnion | DenseUnion(_) | Runs { .. })
}
