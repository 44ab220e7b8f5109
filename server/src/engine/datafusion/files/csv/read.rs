//! Reads the records of a file or a part of it.

use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use arrow_array::{RecordBatch, RecordBatchOptions};
use arrow_schema::SchemaRef;

use super::super::error::{Batches, ReadError};
use super::super::input;
use super::super::part::{PartBatches, PartReader};
use super::columns::Column;
use super::options::CsvOptions;
use super::records::{Records, column_name, texts};
use super::splitter::{self, Input, Splitter};

/// Fields of a batch at most, 9 bytes each beside their text.
const MAX_FIELDS: usize = 1 << 19;
/// A batch ends with the record that passes this many bytes of text.
const MAX_TEXT: usize = 8 << 20;

/// The records of a file, or of the lines that begin in `range`. `schema` has all the file's columns; those of
/// `projection` are returned in its order. The parts are complete only if no text goes over several lines; one that
/// does is an error.
pub(in super::super) fn read(
    path: &Path,
    options: &CsvOptions,
    schema: &SchemaRef,
    projection: Option<&[usize]>,
    batch_rows: usize,
    range: Option<Range<u64>>,
) -> Result<Batches, ReadError> {
    let projection: Vec<usize> = projection.map_or_else(|| (0..schema.fields().len()).collect(), <[usize]>::to_vec);
    let projected = schema.project(&projection).map_err(|error| ReadError::invalid(error.to_string()))?;
    let mut keep = vec![false; schema.fields().len()];
    for column in &projection {
        if let Some(kept) = keep.get_mut(*column) {
            *kept = true;
        }
    }
    let kept: Vec<usize> = (0..keep.len()).filter(|column| keep.get(*column) == Some(&true)).collect();
    let places = projection.iter().filter_map(|column| kept.binary_search(column).ok()).collect();
    let Some((mut splitter, first)) = positioned(path, options, schema, range)? else {
        return Ok(Box::new(std::iter::empty()));
    };
    splitter.keep(keep);
    let reader = Reader {
        splitter,
        records: Records::default(),
        names: schema.fields().iter().map(|field| field.name().clone()).collect(),
        kept,
        places,
        schema: Arc::new(projected),
        options: options.clone(),
        batch_rows: batch_rows.min(MAX_FIELDS / schema.fields().len().max(1)).max(1),
        is_done: false,
    };
    Ok(Box::new(PartBatches::new(path, first, reader)))
}

/// The splitter behind the header, which has to be that of `schema`, and the first byte of its lines.
fn positioned(
    path: &Path,
    options: &CsvOptions,
    schema: &SchemaRef,
    range: Option<Range<u64>>,
) -> Result<Option<(Splitter<Input>, u64)>, ReadError> {
    let mut whole = splitter::open(path, options, None)?;
    let header_end = if options.header {
        check_header(&mut whole, schema)?;
        whole.consumed() + input::bom_length(path)?
    } else {
        0
    };
    let Some(range) = range else { return Ok(Some((whole, 0))) };
    if range.start > 0 {
        // The header, which may follow comments, belongs to the first part.
        let rest = range.start.max(header_end)..range.end;
        return if rest.is_empty() {
            Ok(None)
        } else {
            Ok(Some((splitter::open(path, options, Some(rest.clone()))?, rest.start)))
        };
    }
    let mut first = splitter::open(path, options, Some(0..range.end.max(header_end)))?;
    if options.header {
        check_header(&mut first, schema)?;
    }
    Ok(Some((first, 0)))
}

fn check_header(splitter: &mut Splitter<Input>, schema: &SchemaRef) -> Result<(), ReadError> {
    let changed = |reason: String| ReadError::invalid(format!("the file has changed since it was inspected: {reason}"));
    let mut records = Records::default();
    if !splitter.next(&mut records)? {
        return Err(changed("it has no header line".to_owned()));
    }
    let names = texts(&records, splitter.width())?;
    let fields = schema.fields();
    if names.len() != fields.len() {
        return Err(changed(format!("{} columns instead of {}", names.len(), fields.len())));
    }
    match names.iter().zip(fields).enumerate().find(|(_, (name, field))| *name != field.name()) {
        Some((at, (name, field))) => {
            Err(changed(format!("the name of column {} is {name:?} instead of {:?}", at + 1, field.name())))
        }
        None => Ok(()),
    }
}

struct Reader {
    splitter: Splitter<Input>,
    records: Records,
    /// Names of all columns.
    names: Vec<String>,
    /// The columns that the records keep, in the file's order.
    kept: Vec<usize>,
    /// For each column of the batch its place in `kept`.
    places: Vec<usize>,
    schema: SchemaRef,
    options: CsvOptions,
    batch_rows: usize,
    /// The splitter has no more records.
    is_done: bool,
}

impl PartReader for Reader {
    fn batch(&mut self) -> Result<Option<RecordBatch>, ReadError> {
        self.records.clear();
        while !self.is_done && self.records.len() < self.batch_rows && self.records.size() < MAX_TEXT {
            if !self.splitter.next(&mut self.records)? {
                self.is_done = true;
                break;
            }
        }
        if self.records.len() == 0 {
            return Ok(None);
        }
        let name = |place: usize| column_name(&self.names, self.kept.get(place).copied().unwrap_or(usize::MAX));
        let rows = self.records.rows(self.kept.len(), name)?;
        let mut arrays = Vec::with_capacity(self.places.len());
        for (field, place) in self.schema.fields().iter().zip(&self.places) {
            let column = Column {
                rows: &rows,
                index: *place,
                name: field.name(),
                null: self.options.null.as_deref(),
                is_inferred: !self.options.declared.contains(field.name()),
            };
            arrays.push(column.array(field.data_type())?);
        }
        let options = RecordBatchOptions::new().with_row_count(Some(rows.len()));
        RecordBatch::try_new_with_options(Arc::clone(&self.schema), arrays, &options)
            .map(Some)
            .map_err(|error| ReadError::invalid(error.to_string()))
    }
}
