//! The bytes of an Arrow file, and its messages. Every length is checked against the real file.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::Path;

use arrow_buffer::{Buffer, MutableBuffer};
use arrow_ipc::{Message, MetadataVersion};

use super::error::ReadError;
use super::ipc_limits::IpcLimits;

pub(super) const MAGIC: &[u8] = b"ARROW1";
/// The magic and its padding, in front of the first message.
pub(super) const HEAD: u64 = 8;
/// The marker in front of a message.
pub(super) const CONTINUATION: [u8; 4] = [0xff; 4];
/// Most bytes of a footer or of a message's metadata: a footer of 11 million batches.
const MAX_METADATA: u64 = 256 << 20;
/// Most zeros that may follow the end of a stream.
const MAX_PADDING: u64 = 64;

/// A message without its body.
pub(super) struct Framed {
    /// Empty at the end of a stream.
    pub(super) metadata: Vec<u8>,
    /// Where the metadata ends, and the body begins.
    pub(super) body: u64,
}

pub(super) struct Source {
    file: File,
    pub(super) len: u64,
}

impl Source {
    pub(super) fn open(path: &Path) -> Result<Self, ReadError> {
        let file = File::open(path)?;
        let len = file.metadata()?.len();
        Ok(Source { file, len })
    }

    /// Fills `bytes`, which lie in the file as it was when it was opened.
    pub(super) fn read(&mut self, at: u64, bytes: &mut [u8]) -> Result<(), ReadError> {
        self.file.seek(SeekFrom::Start(at))?;
        self.file.read_exact(bytes).map_err(|error| match error.kind() {
            io::ErrorKind::UnexpectedEof => ReadError::invalid("the file became shorter while it was read"),
            _ => error.into(),
        })
    }

    pub(super) fn metadata(&mut self, at: u64, length: u64) -> Result<Vec<u8>, ReadError> {
        if length > MAX_METADATA {
            return Err(ReadError::invalid(format!("metadata of {length} bytes are beyond {MAX_METADATA} bytes")));
        }
        let mut bytes = vec![0; usize::try_from(length).unwrap_or_default()];
        self.read(at, &mut bytes)?;
        Ok(bytes)
    }

    /// The message at `at`, whose metadata ends before `end`. At the end of a stream it is empty.
    pub(super) fn message(&mut self, at: u64, end: u64) -> Result<Framed, ReadError> {
        if at == end {
            return Ok(Framed { metadata: Vec::new(), body: at });
        }
        let mut word = [0; 4];
        // Until version 0.15 messages had no marker.
        let mut prefix = 0;
        while prefix == 0 || (prefix == 4 && word == CONTINUATION) {
            if end.saturating_sub(at) < prefix + 4 {
                return Err(truncated(at));
            }
            self.read(at + prefix, &mut word)?;
            prefix += 4;
        }
        let length = i32::from_le_bytes(word);
        let length = u64::try_from(length)
            .map_err(|_| ReadError::invalid(format!("the message at byte {at} has a length of {length} bytes")))?;
        let start = at + prefix;
        if length > end - start {
            return Err(truncated(at));
        }
        Ok(Framed { metadata: self.metadata(start, length)?, body: start + length })
    }

    pub(super) fn end_of_body(&self, at: u64, length: i64, end: u64) -> Result<u64, ReadError> {
        let length = u64::try_from(length)
            .map_err(|_| ReadError::invalid(format!("the body at byte {at} has a length of {length} bytes")))?;
        at.checked_add(length).filter(|body_end| *body_end <= end.min(self.len)).ok_or_else(|| truncated(at))
    }

    /// The body of a message, which ends before `end`; and where it ends.
    pub(super) fn body(
        &mut self,
        at: u64,
        length: i64,
        end: u64,
        limits: &IpcLimits,
    ) -> Result<(Buffer, u64), ReadError> {
        let body_end = self.end_of_body(at, length, end)?;
        let length = body_end - at;
        if length > limits.max_batch_bytes {
            let max = limits.max_batch_bytes;
            return Err(ReadError::invalid(format!("a batch of {length} bytes is beyond the limit of {max} bytes")));
        }
        let length =
            usize::try_from(length).map_err(|_| ReadError::invalid("a batch is too large for this machine"))?;
        // Aligned as arrays have to be, so that they need not be copied.
        let mut body = MutableBuffer::from_len_zeroed(length);
        self.read(at, body.as_slice_mut())?;
        Ok((body.into(), body_end))
    }

    /// Checks that nothing but padding follows the end of a stream: rows of a second stream would be lost.
    pub(super) fn check_end(&mut self, at: u64) -> Result<(), ReadError> {
        let rest = self.len.saturating_sub(at);
        let padding = if rest <= MAX_PADDING { self.metadata(at, rest)? } else { vec![1] };
        if padding.iter().all(|byte| *byte == 0) {
            return Ok(());
        }
        Err(ReadError::invalid(format!("{rest} bytes follow the end of the stream, at byte {at}")))
    }
}

/// Verifies a message. The verifier bounds depth (64), tables (a million) and size (2 GiB) of the metadata.
pub(super) fn parse(metadata: &[u8]) -> Result<Message<'_>, ReadError> {
    let message = arrow_ipc::root_as_message(metadata)
        .map_err(|error| ReadError::invalid(format!("a message is not valid: {}", first_line(&error))))?;
    match message.version() {
        MetadataVersion::V4 | MetadataVersion::V5 => Ok(message),
        MetadataVersion(version) => Err(ReadError::invalid(format!(
            "a message has version {} of the format; versions 4 and 5 are read",
            i32::from(version) + 1
        ))),
    }
}

fn truncated(at: u64) -> ReadError {
    ReadError::invalid(format!("the file is truncated in the middle of a message, at byte {at}"))
}

/// The verifier's errors have a trace of lines.
pub(super) fn first_line(error: &dyn std::fmt::Display) -> String {
    error.to_string().lines().next().unwrap_or_default().trim_end_matches('.').to_owned()
}
