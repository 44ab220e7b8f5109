//! Arrow IPC: files and streams, which their first bytes tell apart.
//!
//! Nothing in a file is believed before it is checked: `ipc_source` and `ipc_footer` check lengths against the file,
//! `ipc_schema` the types, `ipc_check` what the metadata say of a batch. The rest, values that contradict each other,
//! `arrow_ipc` finds when it decodes; some of it by a panic, which is caught.

use std::any::Any;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::vec::IntoIter;

use arrow_array::RecordBatch;
use arrow_buffer::Buffer;
use arrow_ipc::reader::RecordBatchDecoder;
use arrow_ipc::{Message, MessageHeader};
use arrow_schema::{Fields, SchemaRef};

use super::error::{Batches, ReadError};
use super::ipc_check;
use super::ipc_content::Content;
use super::ipc_dictionaries::{Dictionaries, check_size, inconsistent, memory};
use super::ipc_footer::Place;
use super::ipc_limits::IpcLimits;
use super::ipc_source::{Source, parse};

#[derive(Debug)]
pub(super) struct IpcFile {
    pub(super) schema: SchemaRef,
    /// Record batches; None for the stream format, whose end is only found by reading.
    pub(super) batches: Option<usize>,
}

/// Schema and number of batches of a file. Batches are not read.
pub(super) fn inspect(path: &Path, limits: &IpcLimits) -> Result<IpcFile, ReadError> {
    guarded("the schema", || {
        Ok(match Source::open(path)?.content(limits)? {
            Content::File(footer) => IpcFile { schema: footer.schema, batches: Some(footer.batches.len()) },
            Content::Stream { schema, .. } => IpcFile { schema, batches: None },
        })
    })
}

/// Batches of a file whose schema is known to be `schema`: all, or a range of those in a file that is not a stream.
/// They have the columns of `projection`, in its order.
pub(super) fn read(
    path: &Path,
    schema: &SchemaRef,
    projection: Option<&[usize]>,
    batches: Option<Range<usize>>,
    limits: &IpcLimits,
) -> Result<Batches, ReadError> {
    let reader = guarded("the schema", || Reader::open(path, schema, projection, batches, limits))?;
    Ok(Box::new(reader))
}

struct Reader {
    source: Source,
    /// The file's, with the ids of dictionaries. They may be lost in the schema that the caller knows.
    schema: SchemaRef,
    projection: Option<Vec<usize>>,
    dictionaries: Dictionaries,
    limits: IpcLimits,
    rest: Rest,
    is_done: bool,
}

/// Messages that are not read yet.
enum Rest {
    File(IntoIter<Place>),
    Stream { at: u64 },
}

/// A message whose body is not read yet.
struct Next {
    metadata: Vec<u8>,
    body: u64,
    /// The body ends here or before.
    end: u64,
    /// The kind that it has to be of, if that is known.
    kind: Option<MessageHeader>,
}

impl Reader {
    fn open(
        path: &Path,
        expected: &SchemaRef,
        projection: Option<&[usize]>,
        batches: Option<Range<usize>>,
        limits: &IpcLimits,
    ) -> Result<Self, ReadError> {
        let mut source = Source::open(path)?;
        let (schema, rest, is_file) = match source.content(limits)? {
            Content::File(footer) => {
                let chosen = match batches {
                    Some(range) => footer.batches.get(range).ok_or_else(|| changed("fewer batches"))?,
                    None => footer.batches.as_slice(),
                };
                // Without batches the dictionaries are not needed either.
                let needed = if chosen.is_empty() { Vec::new() } else { footer.dictionaries };
                let places: Vec<Place> = needed.into_iter().chain(chosen.iter().copied()).collect();
                (footer.schema, Rest::File(places.into_iter()), true)
            }
            Content::Stream { .. } if batches.is_some() => return Err(changed("the stream format")),
            Content::Stream { schema, messages } => (schema, Rest::Stream { at: messages }, false),
        };
        if schema != *expected {
            return Err(changed("another schema"));
        }
        let fields = projected(schema.fields(), projection)?;
        Ok(Reader {
            source,
            dictionaries: Dictionaries::new(schema.fields(), &fields, is_file)?,
            projection: projection.map(<[usize]>::to_vec),
            schema,
            limits: *limits,
            rest,
            is_done: false,
        })
    }

    fn step(&mut self) -> Result<Option<RecordBatch>, ReadError> {
        while let Some(next) = self.next_message()? {
            let message = parse(&next.metadata)?;
            let kind = message.header_type();
            if next.kind.is_some_and(|expected| expected != kind) {
                return Err(ReadError::invalid(format!("the footer names a {kind:?} as something else")));
            }
            let (body, end) = self.source.body(next.body, message.bodyLength(), next.end, &self.limits)?;
            if let Rest::Stream { at } = &mut self.rest {
                *at = end;
            }
            match kind {
                MessageHeader::DictionaryBatch => self.dictionary(message, &body)?,
                MessageHeader::RecordBatch => return self.batch(message, &body).map(Some),
                MessageHeader::Schema => return Err(ReadError::invalid("a second schema follows: two streams in one")),
                other => return Err(ReadError::invalid(format!("a message of kind {other:?} is not read"))),
            }
        }
        Ok(None)
    }

    fn next_message(&mut self) -> Result<Option<Next>, ReadError> {
        match &mut self.rest {
            Rest::File(places) => {
                let Some(place) = places.next() else { return Ok(None) };
                let framed = self.source.message(place.at, place.body)?;
                if framed.metadata.is_empty() {
                    return Err(ReadError::invalid(format!("the batch at byte {} is empty", place.at)));
                }
                let Place { kind, body, end, .. } = place;
                Ok(Some(Next { metadata: framed.metadata, body, end, kind: Some(kind) }))
            }
            Rest::Stream { at } => {
                let framed = self.source.message(*at, self.source.len)?;
                if framed.metadata.is_empty() {
                    self.source.check_end(framed.body)?;
                    return Ok(None);
                }
                Ok(Some(Next { metadata: framed.metadata, body: framed.body, end: self.source.len, kind: None }))
            }
        }
    }

    fn batch(&self, message: Message<'_>, body: &Buffer) -> Result<RecordBatch, ReadError> {
        let version = message.version();
        let batch = message.header_as_record_batch().ok_or_else(|| ReadError::invalid("a message has no batch"))?;
        ipc_check::batch(batch, version, self.schema.fields(), body, &self.limits)?;
        let dictionaries = self.dictionaries.values();
        let batch = RecordBatchDecoder::try_new(body, batch, self.schema.clone(), dictionaries, &version)
            .and_then(|decoder| decoder.with_projection(self.projection.as_deref()).read_record_batch())
            .map_err(inconsistent)?;
        if batch.num_rows() > self.limits.max_rows {
            return Err(ReadError::invalid(format!("a batch has {} rows", batch.num_rows())));
        }
        check_size(memory(batch.columns()), &self.limits)?;
        Ok(batch)
    }

    fn dictionary(&mut self, message: Message<'_>, body: &Buffer) -> Result<(), ReadError> {
        let batch = message.header_as_dictionary_batch();
        let batch = batch.ok_or_else(|| ReadError::invalid("a message has no dictionary"))?;
        let data = batch.data().ok_or_else(|| ReadError::invalid("a dictionary has no values"))?;
        let field = self.dictionaries.field(batch.id())?;
        ipc_check::batch(data, message.version(), &Fields::from(vec![field]), body, &self.limits)?;
        self.dictionaries.add(batch, message.version(), body, &self.schema, &self.limits)
    }
}

impl Iterator for Reader {
    type Item = Result<RecordBatch, ReadError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.is_done {
            return None;
        }
        let batch = guarded("the batch", || self.step()).transpose();
        self.is_done = !matches!(batch, Some(Ok(_)));
        batch
    }
}

/// The columns of the projection, which it may name more than once.
fn projected(fields: &Fields, projection: Option<&[usize]>) -> Result<Fields, ReadError> {
    let Some(projection) = projection else { return Ok(fields.clone()) };
    let field = |index: &usize| fields.get(*index).cloned().ok_or_else(|| changed(&format!("no column {index}")));
    projection.iter().map(field).collect()
}

fn changed(how: &str) -> ReadError {
    ReadError::invalid(format!("the file changed since it was looked at: it has {how} now"))
}

/// Turns a panic of `arrow_ipc` into an error: it asserts what a file should be like, and files may be otherwise.
fn guarded<T>(what: &str, action: impl FnOnce() -> Result<T, ReadError>) -> Result<T, ReadError> {
    catch_unwind(AssertUnwindSafe(action))
        .unwrap_or_else(|panic| Err(ReadError::invalid(format!("{what} is not consistent: {}", reason_of(&*panic)))))
}

/// The message of a panic, if it is about the data rather than about the code.
fn reason_of(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str).or_else(|| panic.downcast_ref::<&str>().copied());
    let line = text.and_then(|text| text.lines().next()).unwrap_or_default().to_owned();
    let is_of_code = ["`", "panic", "bug", "assert", "internal", "unreachable"].iter().any(|word| line.contains(word));
    if line.is_empty() || is_of_code { "its parts contradict each other".to_owned() } else { line }
}

#[cfg(test)]
#[path = "ipc_tests.rs"]
mod tests;
