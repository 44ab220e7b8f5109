//! Partial reads of batches on demand, for which applications wait.

use std::collections::BTreeMap;

use arrow::buffer::Buffer;
use thallus_driver::{ReadSlab, into_buffer};
use thallus_protocol::layout::SlabLayout;
use thallus_protocol::{PartId, StreamError};
use tokio::sync::oneshot;

/// The bytes of a part, and the position of each piece in them.
pub(crate) type Part = Result<(Buffer, SlabLayout), StreamError>;

/// The bytes read for a part of batch `seq`.
pub(super) fn part(seq: u64, read: Option<ReadSlab>) -> Part {
    let invalid = |reason| StreamError::InvalidBatch { seq, reason };
    let read = read.ok_or_else(|| invalid("bug: a part came that had not been read".into()))?;
    let buffer = read.slab.map_or_else(|| Ok(Buffer::default()), into_buffer).map_err(invalid)?;
    Ok((buffer, read.layout))
}

/// The channels to the applications that wait for parts.
#[derive(Debug, Default)]
pub(super) struct PartialReads {
    waiting: BTreeMap<PartId, oneshot::Sender<Part>>,
    last: u64,
}

impl PartialReads {
    pub(super) fn enter(&mut self, answer: oneshot::Sender<Part>) -> PartId {
        self.last += 1;
        let part = PartId(self.last);
        self.waiting.insert(part, answer);
        part
    }

    pub(super) fn answer(&mut self, part: PartId, found: Part) {
        if let Some(answer) = self.waiting.remove(&part) {
            // The application may have dropped its request.
            let _gone = answer.send(found);
        }
    }
}
