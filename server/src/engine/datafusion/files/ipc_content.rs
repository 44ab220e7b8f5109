//! The format of an Arrow file, and its schema, from its first bytes.

use arrow_ipc::MessageHeader;
use arrow_schema::SchemaRef;

use super::error::ReadError;
use super::ipc_footer::Footer;
use super::ipc_limits::IpcLimits;
use super::ipc_schema::schema_of;
use super::ipc_source::{CONTINUATION, HEAD, MAGIC, Source, parse};

/// The format of a file, by its first bytes.
pub(super) enum Content {
    File(Footer),
    Stream {
        schema: SchemaRef,
        /// Where the messages begin.
        messages: u64,
    },
}

impl Source {
    pub(super) fn content(&mut self, limits: &IpcLimits) -> Result<Content, ReadError> {
        let head = self.head()?;
        if head.starts_with(MAGIC) {
            return self.footer(limits).map(Content::File);
        }
        if let Some(reason) = foreign(&head) {
            return Err(ReadError::invalid(reason));
        }
        let has_marker = head.starts_with(&CONTINUATION);
        // Without the marker it may be anything; much of that is not read to find out.
        if !has_marker && head[3] != 0 {
            return Err(not_arrow());
        }
        let framed = self.message(0, self.len)?;
        if framed.metadata.is_empty() && has_marker {
            return Err(ReadError::invalid("the stream ends without a schema"));
        }
        let message = match parse(&framed.metadata) {
            Err(_) if !has_marker => return Err(not_arrow()),
            parsed => parsed?,
        };
        if message.header_type() != MessageHeader::Schema {
            return Err(ReadError::invalid("the stream does not begin with a schema"));
        }
        let schema = schema_of(message.header_as_schema(), limits)?;
        let messages = self.end_of_body(framed.body, message.bodyLength(), self.len)?;
        Ok(Content::Stream { schema, messages })
    }

    fn head(&mut self) -> Result<[u8; HEAD as usize], ReadError> {
        if self.len == 0 {
            return Err(ReadError::invalid("the file is empty"));
        }
        if self.len < HEAD {
            return Err(ReadError::invalid(format!("{} bytes are not an Arrow file", self.len)));
        }
        let mut head = [0; HEAD as usize];
        self.read(0, &mut head)?;
        Ok(head)
    }
}

fn not_arrow() -> ReadError {
    ReadError::invalid("the file is neither in Arrow's file format nor in its stream format")
}

/// Why a file that begins with `head` is not read, if it is of another format.
fn foreign(head: &[u8]) -> Option<String> {
    if head.starts_with(b"FEA1") {
        let advice = "write it again as version 2, with pyarrow.feather.write_feather";
        return Some(format!("the file is in Feather version 1, which is not read; {advice}"));
    }
    let format = match head {
        [b'P', b'A', b'R', b'1', ..] => "a Parquet file",
        [b'P', b'A', b'R', b'E', ..] => "an encrypted Parquet file",
        [b'O', b'R', b'C', ..] => "an ORC file",
        // gzip, Zstandard, bzip2 and xz.
        [0x1f, 0x8b, ..] | [0x28, 0xb5, 0x2f, 0xfd, ..] | [b'B', b'Z', b'h', ..] | [0xfd, b'7', b'z', b'X', ..] => {
            "a compressed file"
        }
        _ => return None,
    };
    Some(format!("the file is not an Arrow file, but {format}"))
}
