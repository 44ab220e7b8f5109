//! Batches of one stream that have arrived, as arrays.

use std::sync::Arc;

use arrow_array::RecordBatch;
use arrow_buffer::Buffer;
use arrow_schema::SchemaRef;
use bytes::Bytes;
use thallus_fabric::memory::{Slab, Trusting};
use thallus_protocol::inline::{InlineDecoder, InlineError, InlineLimits};
use thallus_protocol::layout::{self, BatchDescriptor, KeptDictionaries, Range, SlabLayout};

use crate::reads::{ReadSlab, into_buffer};

/// A batch that has arrived, and is not an array yet.
#[derive(Debug)]
pub enum Arrived {
    /// Read from the lender's memory.
    Read {
        /// Its bytes.
        read: ReadSlab,
        /// Its shape.
        descriptor: Arc<BatchDescriptor>,
    },
    /// Sent inline, as Arrow IPC.
    Inline(Bytes),
}

/// Makes arrays of the batches of one stream, in their order. Every value that arrays rely on is validated.
#[derive(Debug)]
pub struct Rebuilder {
    schema: SchemaRef,
    inline: InlineDecoder,
    /// Of the last batch that was lent.
    dictionaries: KeptDictionaries,
}

impl Rebuilder {
    /// For a stream that began with this schema, as it came and decoded; keeps dictionaries of `max_batch` bytes at
    /// most.
    ///
    /// # Errors
    /// The message is not the schema.
    pub fn new(schema: SchemaRef, ipc: &Bytes, max_batch: u64) -> Result<Self, InlineError> {
        let inline = InlineDecoder::new(ipc, InlineLimits::default())?;
        Ok(Rebuilder { schema, inline, dictionaries: KeptDictionaries::new(max_batch) })
    }

    /// The next batch.
    ///
    /// # Errors
    /// Why it is not a valid batch.
    pub fn rebuild(&mut self, arrived: Arrived) -> Result<RecordBatch, String> {
        match arrived {
            Arrived::Inline(ipc) => self.inline.decode(ipc).map_err(|error| error.to_string()),
            Arrived::Read { read: ReadSlab { slab, layout, .. }, descriptor } => {
                let mut descriptor = Arc::unwrap_or_clone(descriptor);
                let buffers = match slab {
                    Some(slab) => read_buffers(slab, &layout, &mut descriptor)?,
                    None => vec![Buffer::default(); layout.ranges.len()],
                };
                let kept = &mut self.dictionaries;
                layout::rebuild_after(&self.schema, &descriptor, &buffers, kept, &Trusting).map_err(|e| e.to_string())
            }
        }
    }

    /// Drops the dictionaries: they may be slices of a whole batch's memory.
    pub fn forget_dictionaries(&mut self) {
        self.dictionaries = KeptDictionaries::default();
    }
}

/// The buffers of a batch that has been read, its views rebased in the slab.
fn read_buffers(mut slab: Slab, layout: &SlabLayout, descriptor: &mut BatchDescriptor) -> Result<Vec<Buffer>, String> {
    // The slab was taken with this layout's length, which is a usize.
    for rebase in layout.rebases(descriptor) {
        let (offset, len) = (rebase.range.offset as usize, rebase.range.len as usize);
        slab.edit(offset, len, |views| rebase.apply(views)).map_err(|e| e.to_string())?;
    }
    let whole = into_buffer(slab)?;
    let cut = |range: &Range| whole.slice_with_length(range.offset as usize, range.len as usize);
    Ok(layout.ranges.iter().map(cut).collect())
}
