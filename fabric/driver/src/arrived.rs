//! Batches of one stream that have arrived, and their conversion to arrays.

use std::sync::Arc;

use arrow_array::RecordBatch;
use arrow_buffer::Buffer;
use bytes::Bytes;
use thallus_fabric::memory::{Slab, UncheckedAssembler};
use thallus_protocol::inline::{InlineDecoder, InlineLimits};
use thallus_protocol::layout::{self, CheckedDescriptor, KeptDictionaries, Plan, Range};

use crate::reads::{ReadSlab, into_buffer};

/// A batch that has arrived and has not been converted to arrays.
#[derive(Debug)]
pub enum Arrived {
    /// Read from the lender's memory.
    Read {
        /// The bytes of the batch.
        read: ReadSlab,
        /// The shape of the batch.
        descriptor: Arc<CheckedDescriptor>,
    },
    /// Sent inline, as Arrow IPC.
    Inline(Bytes),
}

/// Converts the batches of one stream to arrays, in order. Every value that the arrays rely on is validated.
#[derive(Debug)]
pub struct Rebuilder {
    inline: InlineDecoder,
    /// Dictionaries of the last lent batch.
    dictionaries: KeptDictionaries,
}

impl Rebuilder {
    /// A rebuilder for a stream with this schema. It keeps dictionaries of at most `max_batch` bytes.
    #[must_use]
    pub fn new(plan: Plan, max_batch: u64) -> Self {
        let inline = InlineDecoder::of(plan, InlineLimits::default());
        Rebuilder { inline, dictionaries: KeptDictionaries::new(max_batch) }
    }

    /// Converts the next batch.
    ///
    /// # Errors
    /// The reason why the batch is not valid.
    pub fn rebuild(&mut self, arrived: Arrived) -> Result<RecordBatch, String> {
        match arrived {
            Arrived::Inline(ipc) => self.inline.decode(ipc).map_err(|error| error.to_string()),
            Arrived::Read { read: ReadSlab { slab, .. }, descriptor } => {
                let mut descriptor = Arc::unwrap_or_clone(descriptor);
                let buffers = match slab {
                    Some(slab) => read_buffers(slab, &mut descriptor)?,
                    None => vec![Buffer::default(); descriptor.layout().ranges.len()],
                };
                let kept = &mut self.dictionaries;
                layout::rebuild_after(&descriptor, &buffers, kept, &UncheckedAssembler).map_err(|e| e.to_string())
            }
        }
    }

    /// Drops the dictionaries. They may be slices of a whole batch's memory.
    pub fn forget_dictionaries(&mut self) {
        self.dictionaries = KeptDictionaries::default();
    }
}

/// The buffers of a batch that has been read. Its views are rebased in the slab.
fn read_buffers(mut slab: Slab, descriptor: &mut CheckedDescriptor) -> Result<Vec<Buffer>, String> {
    // The slab was allocated with the length of this layout, which fits in a usize.
    for rebase in descriptor.rebases() {
        let (offset, len) = (rebase.range.offset as usize, rebase.range.len as usize);
        slab.edit(offset, len, |views| rebase.apply(views)).map_err(|e| e.to_string())?;
    }
    let whole = into_buffer(slab)?;
    let cut = |range: &Range| whole.slice_with_length(range.offset as usize, range.len as usize);
    Ok(descriptor.layout().ranges.iter().map(cut).collect())
}
