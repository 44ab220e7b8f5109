//! Encapsulated messages: prefix, length, metadata, body (Arrow columnar format, "Encapsulated message format").

use arrow_buffer::Buffer;
use arrow_ipc::{Message, MetadataVersion, root_as_message};

use super::error::InlineError;

/// Maximum alignment of Arrow's native types, in bytes. A body with a smaller alignment is copied once, as a whole.
const BODY_ALIGNMENT: usize = 16;

/// One message, its metadata not yet verified.
pub(super) struct Frame {
    metadata: Buffer,
    rest: Buffer,
}

impl Frame {
    /// Cuts off the prefix and the metadata of the first message.
    pub(super) fn cut(bytes: &Buffer) -> Result<Frame, InlineError> {
        let prefix =
            bytes.get(..8).ok_or(InlineError::CutOff { what: "the prefix", needed: 8, got: bytes.len() as u64 })?;
        if prefix[..4] != [0xff; 4] {
            return Err(InlineError::metadata("no continuation marker (0xffffffff) where a message should begin"));
        }
        let len = u32::from_le_bytes([prefix[4], prefix[5], prefix[6], prefix[7]]) as usize;
        let got = bytes.len() - 8;
        if len > got {
            return Err(InlineError::CutOff { what: "the metadata", needed: len as u64, got: got as u64 });
        }
        Ok(Frame { metadata: bytes.slice_with_length(8, len), rest: bytes.slice(8 + len) })
    }

    /// Verifies the metadata. Returns it, the body, and the bytes after the body.
    pub(super) fn open(&self) -> Result<(Message<'_>, Buffer, Buffer), InlineError> {
        if self.metadata.is_empty() {
            return Err(InlineError::Unexpected { expected: "a message", got: "end of stream".to_owned() });
        }
        let message =
            root_as_message(&self.metadata).map_err(|error| InlineError::Flatbuffer { why: error.to_string() })?;
        if message.version() != MetadataVersion::V5 {
            return Err(InlineError::metadata(format!("version {:?}, not V5", message.version())));
        }
        let needed = u64::try_from(message.bodyLength()).map_err(|_| InlineError::metadata("negative body length"))?;
        let got = self.rest.len();
        match usize::try_from(needed) {
            Ok(len) if len <= got => Ok((message, aligned(self.rest.slice_with_length(0, len)), self.rest.slice(len))),
            _ => Err(InlineError::CutOff { what: "the body", needed, got: got as u64 }),
        }
    }
}

fn aligned(body: Buffer) -> Buffer {
    if body.as_ptr().align_offset(BODY_ALIGNMENT) == 0 { body } else { Buffer::from_slice_ref(body.as_slice()) }
}
