//! Reads JSON: objects, one a line, one after the other, or in an array. A value is read exactly or is an error with
//! its line. The types come from the whole file, so that no key and no form of a number is missed.

mod build;
mod infer;
mod lexer;
mod records;

use std::io::Read;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use arrow_array::{RecordBatch, RecordBatchOptions};
use arrow_schema::{Schema, SchemaRef};

use self::build::Struct;
use self::infer::Inference;
use self::records::Records;
use super::error::{Batches, ReadError};
use super::input;
use super::part::{PartBatches, PartReader};
use crate::catalog::Compression;

/// Values of a batch at most, of all columns and levels.
const MAX_VALUES: usize = 1 << 19;
/// A batch ends with the record that passes this many bytes of the file.
const MAX_TEXT: u64 = 8 << 20;

/// How a file is written.
#[derive(Clone, Debug)]
pub(super) struct JsonOptions {
    pub(super) compression: Compression,
}

/// The content of a file.
#[derive(Debug)]
pub(super) struct Inspection {
    /// The keys, in order of appearance; a Null is one without a value.
    pub(super) schema: Schema,
    /// Whether each record is a line of its own, so that the file can be read in parts.
    pub(super) is_lines: bool,
}

/// Names and types of a file's columns. Reads the whole file.
pub(super) fn inspect(path: &Path, options: &JsonOptions) -> Result<Inspection, ReadError> {
    let mut records = Records::new(input::open(path, options.compression, None)?, false);
    let mut inference = Inference::default();
    while records.next()? {
        inference.record(&mut records.lexer)?;
        records.end()?;
    }
    inference.check()?;
    if records.lexer.offset() == 0 {
        return Err(ReadError::invalid("the file is empty"));
    }
    Ok(Inspection { schema: Schema::new(inference.fields()), is_lines: records.is_lines })
}

/// The records of a file, or of the lines that begin in `range` of one that has a record a line. `schema` has the
/// columns to return, with the types to read.
pub(super) fn read(
    path: &Path,
    options: &JsonOptions,
    schema: &SchemaRef,
    batch_rows: usize,
    range: Option<Range<u64>>,
) -> Result<Batches, ReadError> {
    let first = range.as_ref().map_or(0, |range| range.start);
    let is_part = range.is_some();
    let input: Box<dyn Read + Send> = input::open(path, options.compression, range)?;
    let columns = Struct::new("", schema.fields())?;
    let batch_rows = batch_rows.min(MAX_VALUES / columns.leaves().max(1)).max(1);
    let records = Records::new(input, is_part);
    let schema = Arc::clone(schema);
    let reader = Reader { records, columns, schema, batch_rows, is_done: false };
    Ok(Box::new(PartBatches::new(path, first, reader)))
}

struct Reader {
    records: Records,
    columns: Struct,
    schema: SchemaRef,
    batch_rows: usize,
    /// There are no more records.
    is_done: bool,
}

impl PartReader for Reader {
    fn batch(&mut self) -> Result<Option<RecordBatch>, ReadError> {
        let start = self.records.lexer.offset();
        while !self.is_done && self.columns.len() < self.batch_rows && self.records.lexer.offset() - start < MAX_TEXT {
            if !self.records.next()? {
                self.is_done = true;
                break;
            }
            self.columns.append(&mut self.records.lexer, 1)?;
            self.records.end()?;
        }
        let (arrays, rows) = self.columns.arrays()?;
        if rows.is_empty() {
            return Ok(None);
        }
        let options = RecordBatchOptions::new().with_row_count(Some(rows.len()));
        RecordBatch::try_new_with_options(Arc::clone(&self.schema), arrays, &options)
            .map(Some)
            .map_err(|error| ReadError::invalid(error.to_string()))
    }
}

#[cfg(test)]
mod tests;
