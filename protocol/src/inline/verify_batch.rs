//! A record batch's metadata, verified against schema and body before arrow-ipc reads it: that panics on a contradiction.
//!
//! The walk is that of arrow-ipc's `RecordBatchDecoder::create_array`. What arrow validates by itself, with an error and
//! not a panic, is left to it.

use arrow_buffer::Buffer;
use arrow_ipc::{FieldNode, RecordBatch};
use arrow_schema::{DataType, Field, UnionMode};

use super::error::InlineError;

/// Verifies the metadata of a batch with these fields.
pub(super) fn verify<'a>(
    batch: RecordBatch<'_>,
    fields: impl IntoIterator<Item = &'a Field>,
    body: &Buffer,
    max_len: u64,
) -> Result<(), InlineError> {
    if batch.compression().is_some() {
        return refuse("compressed bodies are not accepted");
    }
    let (Some(nodes), Some(buffers)) = (batch.nodes(), batch.buffers()) else {
        return refuse("the batch has no list of nodes or buffers");
    };
    count(batch.length(), max_len)?;
    let mut walk = Walk {
        nodes: nodes.iter(),
        buffers: buffers.iter(),
        variadic: batch.variadicBufferCounts().into_iter().flatten(),
        body,
        max_len,
    };
    for field in fields {
        walk.array(field.data_type())?;
    }
    if walk.nodes.next().is_some() || walk.buffers.next().is_some() || walk.variadic.next().is_some() {
        return refuse("the batch has more nodes, buffers or variadic counts than the schema");
    }
    Ok(())
}

fn refuse<T>(why: &str) -> Result<T, InlineError> {
    Err(InlineError::metadata(why))
}

fn count(len: i64, max_len: u64) -> Result<usize, InlineError> {
    match u64::try_from(len) {
        Ok(len) if len <= max_len => {
            usize::try_from(len).map_err(|_| InlineError::metadata("a length that does not fit in memory"))
        }
        _ => Err(InlineError::metadata(format!("a length of {len}, with {max_len} the most that is accepted"))),
    }
}

struct Walk<'a, N, B, V> {
    nodes: N,
    buffers: B,
    variadic: V,
    body: &'a Buffer,
    max_len: u64,
}

impl<'m, 'b, N, B, V> Walk<'b, N, B, V>
where
    N: Iterator<Item = &'m FieldNode>,
    B: Iterator<Item = &'m arrow_ipc::Buffer>,
    V: Iterator<Item = i64>,
{
    fn array(&mut self, data_type: &DataType) -> Result<(), InlineError> {
        use DataType::*;
        let node = self.nodes.next().ok_or_else(|| InlineError::metadata("fewer nodes than the schema needs"))?;
        let len = count(node.length(), self.max_len)?;
        let nulls = count(node.null_count(), node.length().unsigned_abs())?;
        if !matches!(data_type, Null | Union(_, _) | RunEndEncoded(_, _)) {
            let validity = self.buffer()?;
            if nulls > 0 && validity.len() < len.div_ceil(8) {
                return refuse("a validity bitmap that is too short");
            }
        }
        match data_type {
            Null => {}
            Utf8 | Binary => {
                self.elements(4)?;
                self.buffer()?;
            }
            LargeUtf8 | LargeBinary => {
                self.elements(8)?;
                self.buffer()?;
            }
            Utf8View | BinaryView => {
                self.elements(16)?;
                let more =
                    self.variadic.next().ok_or_else(|| InlineError::metadata("fewer variadic counts than views"))?;
                // Each is counted off against the buffers that there are, so that a great number ends soon.
                for _ in 0..count(more, u64::MAX)? {
                    self.buffer()?;
                }
            }
            List(item) | Map(item, _) => {
                self.elements(4)?;
                self.array(item.data_type())?;
            }
            LargeList(item) => {
                self.elements(8)?;
                self.array(item.data_type())?;
            }
            ListView(item) | LargeListView(item) => {
                let width = if matches!(data_type, ListView(_)) { 4 } else { 8 };
                self.elements(width)?;
                self.elements(width)?;
                self.array(item.data_type())?;
            }
            FixedSizeList(item, size) => {
                // Arrow multiplies these, and may widen the bitmap to as many bits.
                let items = i64::try_from(len).ok().and_then(|len| len.checked_mul((*size).into()));
                count(items.unwrap_or(i64::MAX), self.max_len)?;
                self.array(item.data_type())?;
            }
            Struct(fields) => fields.iter().try_for_each(|field| self.array(field.data_type()))?,
            RunEndEncoded(ends, values) => {
                self.array(ends.data_type())?;
                self.array(values.data_type())?;
            }
            Union(fields, mode) => {
                if self.buffer()?.len() < len {
                    return refuse("type ids of a union that are too short");
                }
                if *mode == UnionMode::Dense {
                    let offsets = self.buffer()?;
                    // The length is bounded by that of the type ids, which are bytes of the body.
                    if offsets.len() < len.saturating_mul(4) || offsets.as_ptr().align_offset(align_of::<i32>()) != 0 {
                        return refuse("offsets of a union that are too short or not aligned");
                    }
                }
                fields.iter().try_for_each(|(_, field)| self.array(field.data_type()))?;
            }
            // A dictionary has keys here, and its values in a message of their own.
            Dictionary(key, _) => self.elements(key.primitive_width().unwrap_or(1))?,
            other => self.elements(other.primitive_width().unwrap_or(1))?,
        }
        Ok(())
    }

    /// A buffer of whole elements: arrow panics when it looks at part of one.
    fn elements(&mut self, width: usize) -> Result<(), InlineError> {
        if self.buffer()?.len() % width == 0 {
            return Ok(());
        }
        refuse("a buffer that ends within an element")
    }

    fn buffer(&mut self) -> Result<&'b [u8], InlineError> {
        let buffer = self.buffers.next().ok_or_else(|| InlineError::metadata("fewer buffers than the schema needs"))?;
        let range = usize::try_from(buffer.offset()).ok().zip(usize::try_from(buffer.length()).ok());
        range
            .and_then(|(offset, len)| self.body.as_slice().get(offset..offset.checked_add(len)?))
            .ok_or_else(|| InlineError::metadata("a buffer that lies outside of the body"))
    }
}
