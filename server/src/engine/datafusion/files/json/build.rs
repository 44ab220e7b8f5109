//! Values of JSON to arrays of given types. A value of another kind, or one that the type does not hold, is an error.

use std::collections::HashMap;
use std::sync::Arc;

use arrow_array::builder::{BooleanBuilder, Float64Builder, Int64Builder, StringBuilder, UInt64Builder};
use arrow_array::{Array, ArrayRef, LargeListArray, ListArray, NullArray, StringArray, StructArray};
use arrow_buffer::{NullBuffer, OffsetBuffer};
use arrow_cast::{CastOptions, cast_with_options};
use arrow_schema::{DataType, FieldRef, Fields};

use super::super::error::ReadError;
use super::super::numbers;
use super::lexer::Lexer;

/// Builds an array.
pub(super) struct Builder {
    /// Names on the way to it, for errors.
    path: String,
    data_type: DataType,
    column: Column,
}

enum Column {
    Null(usize),
    Boolean(BooleanBuilder),
    Int64(Int64Builder),
    UInt64(UInt64Builder),
    Float64(Float64Builder),
    /// Strings, or the texts of numbers, that are cast at the end, and their lines.
    Text {
        values: StringBuilder,
        lines: Vec<u64>,
        is_number: bool,
    },
    List {
        field: FieldRef,
        lengths: Vec<usize>,
        valid: Vec<bool>,
        items: Box<Builder>,
    },
    Struct(Struct),
}

/// Builds the fields of objects.
pub(super) struct Struct {
    fields: Fields,
    builders: Vec<Builder>,
    places: HashMap<String, usize>,
    /// The last object that had the key, for each field.
    seen: Vec<usize>,
    objects: usize,
    valid: Vec<bool>,
}

impl Struct {
    /// Fields below `path`.
    pub(super) fn new(path: &str, fields: &Fields) -> Result<Self, ReadError> {
        let prefix = if path.is_empty() { String::new() } else { format!("{path}.") };
        let builders = fields
            .iter()
            .map(|field| Builder::new(format!("{prefix}{}", field.name()), field.data_type()))
            .collect::<Result<Vec<_>, _>>()?;
        let places: HashMap<_, _> = fields.iter().enumerate().map(|(at, field)| (field.name().clone(), at)).collect();
        if places.len() != fields.len() {
            return Err(ReadError::invalid(format!("two columns of one name in {:?}", path)));
        }
        let seen = vec![0; fields.len()];
        Ok(Struct { fields: fields.clone(), builders, places, seen, objects: 0, valid: Vec::new() })
    }

    /// Number of arrays that it builds, of all levels.
    pub(super) fn leaves(&self) -> usize {
        self.builders.iter().map(Builder::leaves).sum()
    }

    /// Number of objects since the last [`Self::arrays`].
    pub(super) fn len(&self) -> usize {
        self.valid.len()
    }

    /// Adds the object at the lexer.
    pub(super) fn append(&mut self, lexer: &mut Lexer, depth: usize) -> Result<(), ReadError> {
        lexer.descend(depth)?;
        self.valid.push(true);
        self.objects += 1;
        let mut is_first = true;
        while lexer.has_next(b'}', is_first)? {
            is_first = false;
            lexer.key()?;
            let place = self.places.get(lexer.text()).copied().unwrap_or(usize::MAX);
            let (Some(builder), Some(seen)) = (self.builders.get_mut(place), self.seen.get_mut(place)) else {
                lexer.skip(depth + 1)?;
                continue;
            };
            if *seen == self.objects {
                return Err(builder.flaw(lexer.line(), "the key is twice in one object"));
            }
            *seen = self.objects;
            builder.append(lexer, depth + 1)?;
        }
        for (builder, seen) in self.builders.iter_mut().zip(&self.seen) {
            if *seen != self.objects {
                builder.append_null();
            }
        }
        Ok(())
    }

    fn append_null(&mut self) {
        self.valid.push(false);
        self.builders.iter_mut().for_each(Builder::append_null);
    }

    /// The arrays of the fields, and which objects were not null.
    pub(super) fn arrays(&mut self) -> Result<(Vec<ArrayRef>, Vec<bool>), ReadError> {
        let arrays = self.builders.iter_mut().map(Builder::finish).collect::<Result<Vec<_>, _>>()?;
        Ok((arrays, std::mem::take(&mut self.valid)))
    }
}

impl Builder {
    fn new(path: String, data_type: &DataType) -> Result<Self, ReadError> {
        // Without capacities: there may be very many columns.
        let text =
            |is_number| Column::Text { values: StringBuilder::with_capacity(0, 0), lines: Vec::new(), is_number };
        let column = match data_type {
            DataType::Null => Column::Null(0),
            DataType::Boolean => Column::Boolean(BooleanBuilder::with_capacity(0)),
            DataType::Int64 => Column::Int64(Int64Builder::with_capacity(0)),
            DataType::UInt64 => Column::UInt64(UInt64Builder::with_capacity(0)),
            DataType::Float64 => Column::Float64(Float64Builder::with_capacity(0)),
            DataType::List(field) | DataType::LargeList(field) => {
                let items = Box::new(Builder::new(path.clone(), field.data_type())?);
                Column::List { field: Arc::clone(field), lengths: Vec::new(), valid: Vec::new(), items }
            }
            DataType::Struct(fields) => Column::Struct(Struct::new(&path, fields)?),
            other if other.is_numeric() => text(true),
            other if other.is_nested() && !matches!(other, DataType::Dictionary(..)) => {
                return Err(ReadError::invalid(format!("column {path:?}: JSON is not read as {other}")));
            }
            _ => text(false),
        };
        Ok(Builder { path, data_type: data_type.clone(), column })
    }

    fn leaves(&self) -> usize {
        match &self.column {
            Column::List { items, .. } => 1 + items.leaves(),
            Column::Struct(fields) => 1 + fields.leaves(),
            _ => 1,
        }
    }

    fn flaw(&self, line: u64, reason: &str) -> ReadError {
        ReadError::at_line(line, format!("column {:?}: {reason}", self.path))
    }

    fn invalid(&self, line: u64, text: &str) -> ReadError {
        let shown: String = text.chars().take(100).collect();
        let more = if shown.len() < text.len() { "..." } else { "" };
        self.flaw(line, &format!("{shown}{more} is not a value of {}", self.data_type))
    }

    /// Adds the value at the lexer.
    fn append(&mut self, lexer: &mut Lexer, depth: usize) -> Result<(), ReadError> {
        let first = lexer.peek_token()?;
        let line = lexer.line();
        if first == b'n' {
            lexer.word("null")?;
            self.append_null();
            return Ok(());
        }
        if first == b'{' && !matches!(self.column, Column::Struct(_)) {
            // Objects without a key are NULL, as they are inferred: the type is then that of other files, or text.
            lexer.take();
            if lexer.has_next(b'}', true)? {
                return Err(self.flaw(line, &format!("an object is not a value of {}", self.data_type)));
            }
            self.append_null();
            return Ok(());
        }
        let is_number = matches!(first, b'-' | b'0'..=b'9');
        let is_stored = match &mut self.column {
            Column::Boolean(builder) if matches!(first, b't' | b'f') => {
                let value = first == b't';
                lexer.word(if value { "true" } else { "false" })?;
                builder.append_value(value);
                true
            }
            Column::Int64(builder) if is_number => {
                lexer.number()?;
                lexer.text().parse::<i64>().map(|value| builder.append_value(value)).is_ok()
            }
            Column::UInt64(builder) if is_number => {
                lexer.number()?;
                lexer.text().parse::<u64>().map(|value| builder.append_value(value)).is_ok()
            }
            Column::Float64(builder) if is_number => {
                lexer.number()?;
                numbers::exact_float(lexer.text()).map(|value| builder.append_value(value)).is_some()
            }
            Column::Text { values, lines, is_number: true } if is_number => {
                lexer.number()?;
                values.append_value(lexer.text());
                lines.push(line);
                numbers::keeps_digits(lexer.text(), &self.data_type)
            }
            Column::Text { values, lines, is_number: false } if first == b'"' => {
                lexer.string()?;
                values.append_value(lexer.text());
                lines.push(line);
                numbers::keeps_digits(lexer.text(), &self.data_type)
            }
            Column::List { lengths, valid, items, .. } if first == b'[' => {
                lengths.push(append_items(lexer, items, depth)?);
                valid.push(true);
                true
            }
            Column::Struct(fields) if first == b'{' => {
                fields.append(lexer, depth)?;
                true
            }
            _ => return Err(self.other_kind(lexer, first, depth)),
        };
        if is_stored { Ok(()) } else { Err(self.invalid(line, lexer.text())) }
    }

    /// The error of a value that is not of the column's kind.
    fn other_kind(&self, lexer: &mut Lexer, first: u8, depth: usize) -> ReadError {
        let line = lexer.line();
        let what = match first {
            b'[' => "an array",
            b'"' => "a string",
            // A value that is none of JSON is the first error.
            _ => match lexer.skip(depth) {
                Ok(()) if matches!(first, b't' | b'f') => "a boolean",
                Ok(()) => return self.invalid(line, lexer.text()),
                Err(error) => return error,
            },
        };
        self.flaw(line, &format!("{what} is not a value of {}", self.data_type))
    }

    fn append_null(&mut self) {
        match &mut self.column {
            Column::Null(count) => *count += 1,
            Column::Boolean(builder) => builder.append_null(),
            Column::Int64(builder) => builder.append_null(),
            Column::UInt64(builder) => builder.append_null(),
            Column::Float64(builder) => builder.append_null(),
            Column::Text { values, lines, .. } => {
                values.append_null();
                lines.push(0);
            }
            Column::List { lengths, valid, .. } => {
                lengths.push(0);
                valid.push(false);
            }
            Column::Struct(fields) => fields.append_null(),
        }
    }

    fn finish(&mut self) -> Result<ArrayRef, ReadError> {
        let array: ArrayRef = match &mut self.column {
            Column::Null(count) => Arc::new(NullArray::new(std::mem::take(count))),
            Column::Boolean(builder) => Arc::new(builder.finish()),
            Column::Int64(builder) => Arc::new(builder.finish()),
            Column::UInt64(builder) => Arc::new(builder.finish()),
            Column::Float64(builder) => Arc::new(builder.finish()),
            Column::Text { values, lines, .. } => {
                let (texts, lines) = (values.finish(), std::mem::take(lines));
                return self.cast(texts, &lines);
            }
            Column::List { field, lengths, valid, items } => {
                let (lengths, valid) = (std::mem::take(lengths), Some(NullBuffer::from(std::mem::take(valid))));
                let (field, items) = (Arc::clone(field), items.finish()?);
                let array = if matches!(self.data_type, DataType::LargeList(_)) {
                    let offsets = OffsetBuffer::<i64>::from_lengths(lengths);
                    LargeListArray::try_new(field, offsets, items, valid).map(|array| Arc::new(array) as ArrayRef)
                } else {
                    let offsets = OffsetBuffer::<i32>::from_lengths(lengths);
                    ListArray::try_new(field, offsets, items, valid).map(|array| Arc::new(array) as ArrayRef)
                };
                array.map_err(|error| ReadError::invalid(error.to_string()))?
            }
            Column::Struct(fields) => {
                let (arrays, valid) = fields.arrays()?;
                let (length, valid) = (valid.len(), Some(NullBuffer::from(valid)));
                let array = StructArray::try_new_with_length(fields.fields.clone(), arrays, valid, length);
                Arc::new(array.map_err(|error| ReadError::invalid(error.to_string()))?)
            }
        };
        Ok(array)
    }

    fn cast(&self, texts: StringArray, lines: &[u64]) -> Result<ArrayRef, ReadError> {
        if self.data_type == DataType::Utf8 {
            return Ok(Arc::new(texts));
        }
        let options = CastOptions { safe: false, ..CastOptions::default() };
        cast_with_options(&texts, &self.data_type, &options).map_err(|error| {
            // The cast does not tell where: one value after the other.
            let cast_one = |at: usize| cast_with_options(&texts.slice(at, 1), &self.data_type, &options);
            match (0..texts.len()).find(|at| cast_one(*at).is_err()).filter(|at| texts.is_valid(*at)) {
                Some(at) => self.invalid(lines.get(at).copied().unwrap_or_default(), texts.value(at)),
                None => ReadError::invalid(format!("column {:?}: {error}", self.path)),
            }
        })
    }
}

/// Adds the elements of the array at the lexer, and returns their number.
fn append_items(lexer: &mut Lexer, items: &mut Builder, depth: usize) -> Result<usize, ReadError> {
    lexer.descend(depth)?;
    let mut count = 0;
    while lexer.has_next(b']', count == 0)? {
        items.append(lexer, depth + 1)?;
        count += 1;
    }
    Ok(count)
}
