//! JSON lines: one object for each row.

use std::collections::HashSet;
use std::io::Write;
use std::sync::{Arc, Mutex, PoisonError};

use arrow::array::{Array, ArrayRef, AsArray, RecordBatch, new_empty_array};
use arrow::datatypes::{DataType, FieldRef, Fields, SchemaRef};
use arrow::error::ArrowError;
use arrow::json::writer::{EncoderOptions, NullableEncoder, make_encoder};
use arrow::json::{Encoder, EncoderFactory};
use arrow::util::display::ArrayFormatter;

use super::kind::Format;
use super::retype::{Retyped, has, values};
use super::value::texts;
use super::writer::{BatchWriter, WriteError, failure, refusal, unfit};
use crate::failure::Failure;
use crate::output::{Output, OutputWriter};

/// Text is written in pieces of this size, and a piece only if all its values are right.
const PIECE: usize = 64 << 20;

struct Json {
    to: OutputWriter,
    retyped: Retyped,
    columns: Vec<Column>,
}

/// How the values of a column are written.
struct Column {
    /// The name, as a string of JSON, and a colon.
    key: String,
    options: EncoderOptions,
    failed: Failed,
    has_maps: bool,
}

/// The first error of an encoder, which cannot return one.
type Failed = Arc<Mutex<Option<ArrowError>>>;

/// A writer of JSON, one object per line. Nulls are written, so that every line has every column.
pub(super) fn writer(schema: &SchemaRef, to: OutputWriter, output: &Output) -> Result<Box<dyn BatchWriter>, Failure> {
    // arrow-json writes null values of dictionaries as 0, and panics at those of the null type (59.3).
    let retyped = Retyped::new(schema, values).map_err(|error| failure(Format::Json, error, output))?;
    if let Some(name) = twice(retyped.schema().fields()) {
        return Err(refusal(Format::Json, &format!("two columns are called {name:?}; rename one with AS")));
    }
    let mut columns = Vec::new();
    for field in retyped.schema().fields() {
        check(field)?;
        let failed = Failed::default();
        let options = EncoderOptions::default().with_explicit_nulls(true);
        let options = options.with_encoder_factory(Arc::new(Exact { failed: Arc::clone(&failed) }));
        make_encoder(field, &new_empty_array(field.data_type()), &options)
            .map_err(|error| failure(Format::Json, WriteError::column(field, error), output))?;
        let key = format!("{}:", serde_json::Value::from(field.name().as_str()));
        columns.push(Column { key, options, failed, has_maps: has(field.data_type(), is_map) });
    }
    Ok(Box::new(Json { to, retyped, columns }))
}

impl BatchWriter for Json {
    fn write(&mut self, batch: &RecordBatch) -> Result<(), WriteError> {
        let batch = self.retyped.apply(batch)?;
        let schema = batch.schema();
        let mut encoders = Vec::with_capacity(self.columns.len());
        for ((field, array), column) in schema.fields().iter().zip(batch.columns()).zip(&self.columns) {
            let failed = |error| WriteError::column(field, error);
            if column.has_maps {
                keys_are_unique(array).map_err(failed)?;
            }
            encoders.push((column.key.as_bytes(), make_encoder(field, array, &column.options).map_err(failed)?));
        }
        let mut text = Vec::new();
        for row in 0..batch.num_rows() {
            text.push(b'{');
            for (i, (key, encoder)) in encoders.iter_mut().enumerate() {
                if i > 0 {
                    text.push(b',');
                }
                text.extend_from_slice(key);
                if encoder.is_null(row) { text.extend_from_slice(b"null") } else { encoder.encode(row, &mut text) }
            }
            text.extend_from_slice(b"}\n");
            if text.len() >= PIECE {
                put(&mut self.to, &text, &self.columns, schema.fields())?;
                text.clear();
            }
        }
        put(&mut self.to, &text, &self.columns, schema.fields())
    }

    fn finish(mut self: Box<Self>) -> Result<(), WriteError> {
        Ok(self.to.flush()?)
    }
}

fn put(to: &mut OutputWriter, text: &[u8], columns: &[Column], fields: &Fields) -> Result<(), WriteError> {
    for (column, field) in columns.iter().zip(fields) {
        if let Some(error) = column.failed.lock().unwrap_or_else(PoisonError::into_inner).take() {
            return Err(WriteError::column(field, error));
        }
    }
    Ok(to.write_all(text)?)
}

/// Refuses columns that arrow-json would refuse in other words, or whose values a reader could not tell apart.
fn check(field: &FieldRef) -> Result<(), Failure> {
    let refused = |reason: String| Err(refusal(Format::Json, &format!("column {:?} {reason}", field.name())));
    let data_type = field.data_type();
    if has(data_type, |t| matches!(t, DataType::Union(..))) {
        return Err(unfit(Format::Json, field));
    }
    if has(data_type, |t| map_key(t).is_some_and(|key| !is_string(key))) {
        return refused(format!("is {data_type}, and keys of a map are not strings"));
    }
    match twice_within(data_type) {
        Some(name) => refused(format!("is {data_type}, in which two fields are called {name:?}")),
        None => Ok(()),
    }
}

fn is_map(data_type: &DataType) -> bool {
    matches!(data_type, DataType::Map(..))
}

fn map_key(data_type: &DataType) -> Option<&DataType> {
    match data_type {
        DataType::Map(entries, _) => match entries.data_type() {
            DataType::Struct(fields) => fields.first().map(|key| key.data_type()),
            _ => None,
        },
        _ => None,
    }
}

fn is_string(data_type: &DataType) -> bool {
    matches!(data_type, DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View)
}

/// A name that two fields have: most readers of JSON keep one of the values, and drop the other silently.
fn twice(fields: &Fields) -> Option<&str> {
    let mut seen = HashSet::new();
    fields.iter().map(|field| field.name().as_str()).find(|name| !seen.insert(*name))
}

fn twice_within(data_type: &DataType) -> Option<&str> {
    use DataType::{FixedSizeList, LargeList, LargeListView, List, ListView, Map, Struct};
    match data_type {
        // The entries of a map are a struct that is not written as one.
        Map(entries, _) => match entries.data_type() {
            Struct(fields) => fields.iter().find_map(|field| twice_within(field.data_type())),
            _ => None,
        },
        Struct(fields) => twice(fields).or_else(|| fields.iter().find_map(|field| twice_within(field.data_type()))),
        List(item) | LargeList(item) | ListView(item) | LargeListView(item) | FixedSizeList(item, _) => {
            twice_within(item.data_type())
        }
        _ => None,
    }
}

/// Checks the keys of each map in an array without dictionaries and runs.
fn keys_are_unique(array: &ArrayRef) -> Result<(), ArrowError> {
    match array.data_type() {
        DataType::Map(..) => {
            let map = array.as_map();
            let keys = texts(map.keys(), "")?;
            let mut seen = HashSet::new();
            for row in (0..map.len()).filter(|row| !map.is_null(*row)) {
                seen.clear();
                let [from, to] = [row, row + 1].map(|i| map.value_offsets()[i] as usize);
                for entry in from..to {
                    let key = keys.value(entry).try_to_string()?;
                    if let Some(key) = seen.replace(key) {
                        return Err(ArrowError::JsonError(format!("a map has the key {key:?} twice")));
                    }
                }
            }
            keys_are_unique(map.values())
        }
        DataType::Struct(_) => array.as_struct().columns().iter().try_for_each(keys_are_unique),
        DataType::List(_) => keys_are_unique(array.as_list::<i32>().values()),
        DataType::LargeList(_) => keys_are_unique(array.as_list::<i64>().values()),
        DataType::ListView(_) => keys_are_unique(array.as_list_view::<i32>().values()),
        DataType::LargeListView(_) => keys_are_unique(array.as_list_view::<i64>().values()),
        DataType::FixedSizeList(..) => keys_are_unique(array.as_fixed_size_list().values()),
        _ => Ok(()),
    }
}

/// Encoders that never write an error's text in the place of a value, as those of arrow-json do (59.3).
#[derive(Debug)]
struct Exact {
    failed: Failed,
}

impl EncoderFactory for Exact {
    fn make_default_encoder<'a>(
        &self,
        _field: &'a FieldRef,
        array: &'a dyn Array,
        _options: &'a EncoderOptions,
    ) -> Result<Option<NullableEncoder<'a>>, ArrowError> {
        let quote = match array.data_type() {
            data_type if data_type.is_decimal() => "",
            data_type if data_type.is_temporal() => "\"",
            _ => return Ok(None),
        };
        let text = Text { texts: texts(array, "")?, quote, text: String::new(), failed: Arc::clone(&self.failed) };
        Ok(Some(NullableEncoder::new(Box::new(text), array.nulls().cloned())))
    }
}

/// Texts without characters that JSON escapes.
struct Text<'a> {
    texts: ArrayFormatter<'a>,
    quote: &'static str,
    text: String,
    failed: Failed,
}

impl Encoder for Text<'_> {
    fn encode(&mut self, row: usize, to: &mut Vec<u8>) {
        self.text.clear();
        self.text.push_str(self.quote);
        if let Err(error) = self.texts.value(row).write(&mut self.text) {
            self.failed.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
        }
        self.text.push_str(self.quote);
        to.extend_from_slice(self.text.as_bytes());
    }
}
