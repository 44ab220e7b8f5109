//! CSV, of which every value can be read back: NULL and the empty string differ.

use std::io::Write;

use arrow::array::{RecordBatch, new_empty_array};
use arrow::datatypes::{DataType, FieldRef, SchemaRef};
use arrow::error::ArrowError;
use arrow::util::display::ArrayFormatter;

use super::kind::Format;
use super::retype::{Retyped, values};
use super::value::texts;
use super::writer::{BatchWriter, WriteError, failure, refusal};
use crate::failure::Failure;
use crate::output::{Output, OutputWriter};

/// Text is written in pieces of this size, and a piece only if all its values are right.
const PIECE: usize = 64 << 20;

struct Csv {
    to: OutputWriter,
    retyped: Retyped,
    null: String,
    /// Rows before the current batch.
    rows: u64,
}

/// A writer of CSV with a header. It refuses nested columns. NULL is written as `null`, which has no quote, comma or
/// line break.
pub(super) fn writer(
    schema: &SchemaRef,
    mut to: OutputWriter,
    null: &str,
    output: &Output,
) -> Result<Box<dyn BatchWriter>, Failure> {
    let refused = |error| failure(Format::Csv, error, output);
    let retyped = Retyped::new(schema, values).map_err(refused)?;
    for field in retyped.schema().fields() {
        if field.data_type().is_nested() {
            let (name, data_type) = (field.name(), field.data_type());
            return Err(refusal(Format::Csv, &format!("column {name:?} is nested ({data_type})")));
        }
        texts(&new_empty_array(field.data_type()), "").map_err(|error| refused(WriteError::column(field, error)))?;
    }
    let names: Vec<_> = schema.fields().iter().map(|field| quoted_if_needed(field.name())).collect();
    if !names.is_empty() {
        // A line with one empty name would be blank.
        let line = if names == [""] { "\"\"".to_owned() } else { names.join(",") };
        writeln!(to, "{line}").map_err(|error| refused(error.into()))?;
    }
    Ok(Box::new(Csv { to, retyped, null: null.to_owned(), rows: 0 }))
}

impl BatchWriter for Csv {
    fn write(&mut self, batch: &RecordBatch) -> Result<(), WriteError> {
        if batch.num_columns() == 0 && batch.num_rows() > 0 {
            return Err(WriteError::NoColumns { rows: batch.num_rows() });
        }
        let batch = self.retyped.apply(batch)?;
        let schema = batch.schema();
        let columns = schema.fields().iter().zip(batch.columns());
        let columns = columns.map(|(field, array)| Column::new(field, array, batch.num_columns() == 1));
        let columns = columns.collect::<Result<Vec<_>, _>>()?;
        let mut text = String::new();
        for row in 0..batch.num_rows() {
            for (i, column) in columns.iter().enumerate() {
                if i > 0 {
                    text.push(',');
                }
                let written = column.write(row, &self.null, &mut text);
                let at = self.rows + row as u64 + 1;
                written.map_err(|reason| {
                    WriteError::column(column.field, ArrowError::CsvError(format!("row {at}: {reason}")))
                })?;
            }
            text.push('\n');
            if text.len() >= PIECE {
                self.to.write_all(text.as_bytes())?;
                text.clear();
            }
        }
        self.rows += batch.num_rows() as u64;
        Ok(self.to.write_all(text.as_bytes())?)
    }

    fn finish(mut self: Box<Self>) -> Result<(), WriteError> {
        Ok(self.to.flush()?)
    }
}

struct Column<'a> {
    field: &'a FieldRef,
    array: &'a dyn arrow::array::Array,
    texts: ArrayFormatter<'a>,
    /// A value can be an empty text, or need quotes.
    may_be_empty: bool,
    /// The column is the only one, so that an empty field would be a blank line.
    alone: bool,
}

impl<'a> Column<'a> {
    fn new(field: &'a FieldRef, array: &'a arrow::array::ArrayRef, alone: bool) -> Result<Self, WriteError> {
        use DataType::{Binary, BinaryView, FixedSizeBinary, LargeBinary, LargeUtf8, Utf8, Utf8View};
        let texts = texts(array, "").map_err(|error| WriteError::column(field, error))?;
        let bytes = matches!(field.data_type(), Binary | LargeBinary | BinaryView | FixedSizeBinary(0));
        let may_be_empty = bytes || matches!(field.data_type(), Utf8 | LargeUtf8 | Utf8View);
        Ok(Column { field, array, texts, may_be_empty, alone })
    }

    fn write(&self, row: usize, null: &str, to: &mut String) -> Result<(), String> {
        if self.array.is_null(row) || *self.field.data_type() == DataType::Null {
            match (null, self.alone, self.may_be_empty) {
                ("", true, true) => {
                    return Err("it is the only column, and NULL would be a blank line; give a text with --null".into());
                }
                // Readers take it for NULL, since the column has no empty text.
                ("", true, false) => to.push_str("\"\""),
                _ => to.push_str(null),
            }
            return Ok(());
        }
        let start = to.len();
        self.texts.value(row).write(to).map_err(|error| match error {
            ArrowError::CastError(reason) => reason,
            other => other.to_string(),
        })?;
        let value = &to[start..];
        if value.is_empty() || value == null {
            if !self.may_be_empty {
                return Err(format!("the value {value} is also the text for NULL; give another with --null"));
            }
            to.insert(start, '"');
            to.push('"');
        } else if self.may_be_empty && needs_quotes(value) {
            let quoted = quoted_if_needed(value).into_owned();
            to.replace_range(start.., &quoted);
        }
        Ok(())
    }
}

/// Arrow's writer of CSV quotes the same values, but cannot quote an empty string.
fn quoted_if_needed(text: &str) -> std::borrow::Cow<'_, str> {
    if needs_quotes(text) { format!("\"{}\"", text.replace('"', "\"\"")).into() } else { text.into() }
}

fn needs_quotes(text: &str) -> bool {
    text.bytes().any(|byte| matches!(byte, b'"' | b',' | b'\n' | b'\r'))
}
