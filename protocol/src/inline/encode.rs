//! The sending end.

use std::fmt;

use arrow_array::RecordBatch;
use arrow_ipc::MetadataVersion;
use arrow_ipc::writer::{IpcWriteOptions, StreamWriter};
use arrow_schema::{DataType, Field, Schema, SchemaRef};

use super::error::InlineError;
use super::{InlineLimits, decode_schema, guarded};
use crate::layout::{Assemble, Checked, Described, check_type, describe_compact, rebuild_with};

/// Bodies and the buffers in them begin at multiples of this many bytes from the message's start.
const ALIGNMENT: usize = 64;

/// Puts the batches of one stream into messages, which are to be decoded in the same order.
pub struct InlineEncoder {
    schema: SchemaRef,
    writer: StreamWriter<Vec<u8>>,
    /// Whether the schema has types whose slices arrow-ipc would send with all that they were cut from.
    cut_first: bool,
    /// What makes the arrays that are cut.
    assemble: &'static dyn Assemble,
}

impl fmt::Debug for InlineEncoder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("InlineEncoder").field("schema", &self.schema).finish_non_exhaustive()
    }
}

impl InlineEncoder {
    /// An encoder for batches of this schema, and the schema message that the stream begins with.
    ///
    /// # Errors
    /// Arrow IPC cannot carry the schema: the first field for which that is so, and why.
    pub fn new(schema: &Schema) -> Result<(Self, Vec<u8>), InlineError> {
        let mut budget = usize::MAX;
        for field in schema.fields() {
            check_type(field.data_type(), 0, &mut budget)?;
            if let Some(data_type) = find(field.data_type(), &is_dictionary_of_dictionaries) {
                return Err(InlineError::Unsupported { field: field.name().clone(), data_type: data_type.clone() });
            }
        }
        let options = IpcWriteOptions::try_new(ALIGNMENT, false, MetadataVersion::V5)?;
        let mut writer = guarded(|| StreamWriter::try_new_with_options(Vec::new(), schema, options))?;
        let message = std::mem::take(writer.get_mut());
        // What the borrower will see must be what is meant: better no stream than one with another schema.
        let limits = InlineLimits { max_fields: usize::MAX, ..InlineLimits::default() };
        let seen = decode_schema(&message, &limits)?;
        if let Some((field, _)) = schema.fields().iter().zip(seen.fields()).find(|(field, seen)| field != seen) {
            return Err(InlineError::Unsupported { field: field.name().clone(), data_type: field.data_type().clone() });
        }
        let cut_first = schema.fields().iter().any(|field| find(field.data_type(), &slices_are_sent_whole).is_some());
        Ok((InlineEncoder { schema: schema.clone().into(), writer, cut_first, assemble: &Checked }, message))
    }

    /// The same encoder, with other means to make the arrays that it sends instead of slices.
    #[must_use]
    pub fn with_assemble(self, assemble: &'static dyn Assemble) -> Self {
        InlineEncoder { assemble, ..self }
    }

    /// The bytes of one message: the dictionaries that are new or have changed since the last batch, and the batch.
    ///
    /// # Errors
    /// The batch has columns of other types than the stream's schema, or its arrays are not valid. In the latter case the
    /// encoder is of no use any more: it may take dictionaries for sent that were not.
    pub fn encode(&mut self, batch: &RecordBatch) -> Result<Vec<u8>, InlineError> {
        self.same_types(batch)?;
        let cut = if self.cut_first { Some(cut(batch, self.assemble)?) } else { None };
        let writer = &mut self.writer;
        let written = guarded(|| writer.write(cut.as_ref().unwrap_or(batch)));
        let message = std::mem::take(writer.get_mut());
        written.map(|()| message)
    }

    fn same_types(&self, batch: &RecordBatch) -> Result<(), InlineError> {
        let (own, other) = (self.schema.fields(), batch.schema_ref().fields());
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

/// The same batch, over no more than its live range. Costs a validation of the values, which is little against sending
/// the buffers that a slice of views was cut from.
fn cut(batch: &RecordBatch, assemble: &dyn Assemble) -> Result<RecordBatch, InlineError> {
    let Described { descriptor, buffers, .. } = describe_compact(batch)?;
    Ok(rebuild_with(batch.schema_ref(), &descriptor, &buffers, assemble)?)
}

fn is_dictionary_of_dictionaries(data_type: &DataType) -> bool {
    matches!(data_type, DataType::Dictionary(_, values) if matches!(**values, DataType::Dictionary(_, _)))
}

fn slices_are_sent_whole(data_type: &DataType) -> bool {
    use DataType::*;
    matches!(data_type, Utf8View | BinaryView | ListView(_) | LargeListView(_) | Union(_, _) | RunEndEncoded(_, _))
}

/// The first type, this one or one within it, for which something is true.
fn find<'a>(data_type: &'a DataType, is: &dyn Fn(&DataType) -> bool) -> Option<&'a DataType> {
    use DataType::*;
    if is(data_type) {
        return Some(data_type);
    }
    let field = |field: &'a Field| find(field.data_type(), is);
    match data_type {
        List(item) | LargeList(item) | ListView(item) | LargeListView(item) | FixedSizeList(item, _) | Map(item, _) => {
            field(item)
        }
        Struct(fields) => fields.iter().find_map(|f| field(f)),
        Union(fields, _) => fields.iter().find_map(|(_, f)| field(f)),
        RunEndEncoded(ends, values) => field(ends).or_else(|| field(values)),
        Dictionary(_, values) => find(values, is),
        _ => None,
    }
}
