//! Verifies a record batch's metadata against schema and body before arrow-ipc reads it, because arrow-ipc panics on a
//! contradiction.
//!
//! The order is that of arrow-ipc's `RecordBatchDecoder::create_array`, over the table of types that lent batches use
//! too. Properties that arrow validates itself, with an error and not a panic, are left to arrow.

use arrow_buffer::Buffer;
use arrow_ipc::{FieldNode, RecordBatch};

use super::error::InlineError;
use crate::layout::{BufferLen, Kind, Node};

/// Verifies the metadata of a batch with these columns.
pub(super) fn verify(batch: RecordBatch<'_>, columns: &[Node], body: &Buffer, max_len: u64) -> Result<(), InlineError> {
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
    for column in columns {
        walk.array(column)?;
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
        _ => Err(InlineError::metadata(format!("a length of {len}, the limit is {max_len}"))),
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
    fn array(&mut self, column: &Node) -> Result<(), InlineError> {
        let node = self.nodes.next().ok_or_else(|| InlineError::metadata("fewer nodes than the schema needs"))?;
        let len = count(node.length(), self.max_len)?;
        let nulls = count(node.null_count(), node.length().unsigned_abs())?;
        if column.has_validity {
            let validity = self.buffer()?;
            if nulls > 0 && validity.len() < len.div_ceil(8) {
                return refuse("a validity bitmap that is too short");
            }
        }
        match column.kind {
            Kind::SparseUnion => self.type_ids(len)?,
            Kind::DenseUnion(_) => {
                self.type_ids(len)?;
                let offsets = self.buffer()?;
                // `len` is bounded: the type ids, one byte each, are within the body.
                if offsets.len() < len.saturating_mul(4) || offsets.as_ptr().align_offset(align_of::<i32>()) != 0 {
                    return refuse("offsets of a union that are too short or not aligned");
                }
            }
            // Arrow treats fixed size binary as bytes, and accepts any length of the buffer.
            Kind::Fixed { align: 1, .. } => drop(self.buffer()?),
            _ => column.buffers().iter().try_for_each(|rule| self.own_buffer(rule.len))?,
        }
        match column.kind {
            // The values are in a message of their own.
            Kind::Dictionary { .. } => return Ok(()),
            Kind::FixedList { size } => {
                // Arrow computes this product, and may widen the bitmap to this number of bits.
                let items = i64::try_from(size).ok().and_then(|size| node.length().checked_mul(size));
                count(items.unwrap_or(i64::MAX), self.max_len)?;
            }
            _ => {}
        }
        column.children.iter().try_for_each(|child| self.array(child))
    }

    fn own_buffer(&mut self, len: BufferLen) -> Result<(), InlineError> {
        match len {
            BufferLen::Elements(width) | BufferLen::Offsets(width) => self.elements(width),
            BufferLen::Bits | BufferLen::Referenced => self.buffer().map(drop),
            BufferLen::Extents => {
                let count_of = self.variadic.next();
                let more = count_of.ok_or_else(|| InlineError::metadata("fewer variadic counts than views"))?;
                // Each takes one of the remaining buffers, so that a large number ends the loop early with an error.
                (0..count(more, u64::MAX)?).try_for_each(|_| self.buffer().map(drop))
            }
        }
    }

    fn type_ids(&mut self, len: usize) -> Result<(), InlineError> {
        if self.buffer()?.len() < len {
            return refuse("type ids of a union that are too short");
        }
        Ok(())
    }

    /// Takes a buffer that must contain whole elements: arrow panics on a partial one.
    fn elements(&mut self, width: u64) -> Result<(), InlineError> {
        if (self.buffer()?.len() as u64).is_multiple_of(width) {
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
