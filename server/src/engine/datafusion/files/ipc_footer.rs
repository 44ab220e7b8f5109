//! The footer of Arrow's file format, which says where the batches lie.

use arrow_ipc::{Block, MessageHeader};
use arrow_schema::SchemaRef;

use super::error::ReadError;
use super::ipc_limits::IpcLimits;
use super::ipc_schema::schema_of;
use super::ipc_source::{HEAD, MAGIC, Source, first_line};

/// The footer's length and the magic, behind the footer.
const TAIL: u64 = 10;

pub(super) struct Footer {
    pub(super) schema: SchemaRef,
    pub(super) dictionaries: Vec<Place>,
    pub(super) batches: Vec<Place>,
}

/// Where a message of the file format lies.
#[derive(Clone, Copy)]
pub(super) struct Place {
    pub(super) kind: MessageHeader,
    pub(super) at: u64,
    /// Where its metadata ends, and its body begins.
    pub(super) body: u64,
    pub(super) end: u64,
}

impl Source {
    pub(super) fn footer(&mut self, limits: &IpcLimits) -> Result<Footer, ReadError> {
        let unfinished = || ReadError::invalid("the file has no footer: it was not finished, or it is truncated");
        let tail_at = self.len.checked_sub(TAIL).filter(|at| *at >= HEAD).ok_or_else(unfinished)?;
        let mut tail = [0; TAIL as usize];
        self.read(tail_at, &mut tail)?;
        let (length, magic) = tail.split_first_chunk::<4>().ok_or_else(unfinished)?;
        if magic != MAGIC {
            return Err(unfinished());
        }
        let length = i32::from_le_bytes(*length);
        let footer_at = u64::try_from(length).ok().and_then(|length| tail_at.checked_sub(length));
        let footer_at = footer_at.filter(|at| *at >= HEAD).ok_or_else(|| {
            ReadError::invalid(format!("the footer's length is {length} bytes, the file's {} bytes", self.len))
        })?;
        let bytes = self.metadata(footer_at, tail_at - footer_at)?;
        let footer = arrow_ipc::root_as_footer(&bytes)
            .map_err(|error| ReadError::invalid(format!("the footer is not valid: {}", first_line(&error))))?;
        let schema = schema_of(footer.schema(), limits)?;
        let batches = footer.recordBatches().ok_or_else(|| ReadError::invalid("the footer names no record batches"))?;
        let dictionaries = footer.dictionaries().into_iter().flatten();
        let footer = Footer {
            schema,
            dictionaries: places_of(dictionaries, MessageHeader::DictionaryBatch, footer_at)?,
            batches: places_of(batches.iter(), MessageHeader::RecordBatch, footer_at)?,
        };
        self.check_places(&footer, footer_at)?;
        Ok(footer)
    }

    /// Checks that the places do not overlap, and that no batch lies between them: rows would come twice or be lost.
    fn check_places(&mut self, footer: &Footer, footer_at: u64) -> Result<(), ReadError> {
        let mut places: Vec<&Place> = footer.dictionaries.iter().chain(&footer.batches).collect();
        places.sort_unstable_by_key(|place| place.at);
        let mut end = HEAD;
        for place in places {
            if place.at < end {
                return Err(ReadError::invalid(format!("two batches overlap at byte {}", place.at)));
            }
            self.check_gap(end, place.at)?;
            end = place.end;
        }
        self.check_gap(end, footer_at)
    }

    /// A gap may contain the schema, the marker of the end, and padding.
    fn check_gap(&mut self, mut at: u64, end: u64) -> Result<(), ReadError> {
        while end.saturating_sub(at) >= HEAD {
            let framed = match self.message(at, end) {
                Ok(framed) => framed,
                Err(ReadError::Invalid { .. }) => return Ok(()),
                Err(error) => return Err(error),
            };
            let Ok(message) = arrow_ipc::root_as_message(&framed.metadata) else { return Ok(()) };
            match message.header_type() {
                MessageHeader::RecordBatch | MessageHeader::DictionaryBatch => {
                    return Err(ReadError::invalid(format!("the footer does not name the batch at byte {at}")));
                }
                MessageHeader::Schema => at = self.end_of_body(framed.body, message.bodyLength(), end)?,
                _ => return Ok(()),
            }
        }
        Ok(())
    }
}

fn places_of<'a>(
    blocks: impl Iterator<Item = &'a Block>,
    kind: MessageHeader,
    footer_at: u64,
) -> Result<Vec<Place>, ReadError> {
    blocks.map(|block| place_of(block, kind, footer_at)).collect()
}

fn place_of(block: &Block, kind: MessageHeader, footer_at: u64) -> Result<Place, ReadError> {
    let place = || {
        let at = u64::try_from(block.offset()).ok().filter(|at| *at >= HEAD)?;
        let body = at.checked_add(u64::try_from(block.metaDataLength()).ok()?)?;
        let end = body.checked_add(u64::try_from(block.bodyLength()).ok()?)?;
        (end <= footer_at).then_some(Place { kind, at, body, end })
    };
    place().ok_or_else(|| {
        ReadError::invalid(format!(
            "a batch at byte {}, of {} and {} bytes, lies outside of the file, which has {footer_at} bytes of batches",
            block.offset(),
            block.metaDataLength(),
            block.bodyLength()
        ))
    })
}
