//! Reads CSV. A row, field or value that is not as it should be is an error with its line: none is lost or changed.

mod columns;
mod infer;
mod machine;
mod read;
mod records;

use std::io::{BufReader, Read};
use std::ops::Range;
use std::path::Path;

use arrow_schema::{DataType, Field, Schema};

use self::infer::Evidence;
pub(super) use self::read::read;
use self::records::{Records, Splitter};
use super::error::{Batches, ReadError};
use super::{input, numbers};
use crate::catalog::Compression;

const BUFFER: usize = 256 * 1024;

/// How a file is written.
#[derive(Clone, Debug)]
pub(in super::super) struct CsvOptions {
    pub(super) compression: Compression,
    /// Whether the first record has the names of the columns.
    pub(super) header: bool,
    pub(super) delimiter: u8,
    pub(super) quote: u8,
    /// A character that takes its meaning from the next one, within quotes.
    pub(super) escape: Option<u8>,
    /// The first character of lines to skip.
    pub(super) comment: Option<u8>,
    /// The word for NULL, unless quoted. With it an empty text is a text, without it NULL.
    pub(super) null: Option<String>,
    /// Whether texts may have several lines, so that the file cannot be read in parts.
    pub(super) quoted_newlines: bool,
    /// Number of records that the types are inferred from.
    pub(super) sample_rows: usize,
    /// Whether all columns are text.
    pub(super) all_text: bool,
    /// Columns of a declared type: they take `007` as an integer, and round large integers to floats.
    pub(super) declared: Vec<String>,
}

impl Default for CsvOptions {
    fn default() -> Self {
        CsvOptions {
            compression: Compression::None,
            header: true,
            delimiter: b',',
            quote: b'"',
            escape: None,
            comment: None,
            null: None,
            quoted_newlines: false,
            sample_rows: 1000,
            all_text: false,
            declared: Vec::new(),
        }
    }
}

type Input = BufReader<Box<dyn Read + Send>>;

/// Names and types of a file's columns, the names as they are written, even if empty or one twice. The type of a
/// column without a value in the sample is Null.
pub(super) fn inspect(path: &Path, options: &CsvOptions) -> Result<Schema, ReadError> {
    let mut splitter = splitter(path, options, None)?;
    let mut records = Records::default();
    if !splitter.next(&mut records)? {
        return Err(ReadError::invalid(match (splitter.consumed(), options.header) {
            (0, _) => "the file is empty",
            (_, true) => "the file has no header line",
            (_, false) => "the file has no records",
        }));
    }
    let width = splitter.width();
    splitter.keep(vec![true; width]);
    let names = if options.header {
        let names = texts(&records, width)?;
        records.clear();
        names
    } else {
        (1..=width).map(|number| format!("column_{number}")).collect()
    };
    let types = if options.all_text {
        vec![DataType::Utf8; width]
    } else {
        sampled(&mut splitter, &mut records, &names, options)?
    };
    Ok(Schema::new(names.into_iter().zip(types).map(|(name, kind)| Field::new(name, kind, true)).collect::<Vec<_>>()))
}

/// The types of the columns. `records` has the first record if there is no header.
fn sampled(
    splitter: &mut Splitter<Input>,
    records: &mut Records,
    names: &[String],
    options: &CsvOptions,
) -> Result<Vec<DataType>, ReadError> {
    let mut evidence = vec![Evidence::default(); names.len()];
    for _ in 0..options.sample_rows {
        if records.len() == 0 && !splitter.next(records)? {
            break;
        }
        let rows = records.rows(names.len(), |column| column_name(names, column))?;
        for (evidence, field) in evidence.iter_mut().zip(rows.first()) {
            let is_null = !field.quoted && options.null.as_deref() == Some(field.text);
            if !field.text.is_empty() && !is_null {
                evidence.add(field.text);
            }
        }
        records.clear();
    }
    Ok(evidence.into_iter().map(Evidence::data_type).collect())
}

/// Whether a text of the file goes over several lines, so that it cannot be read in parts. Reads the whole file.
pub(super) fn has_quoted_newlines(path: &Path, options: &CsvOptions) -> Result<bool, ReadError> {
    let mut splitter = splitter(path, options, None)?;
    let mut records = Records::default();
    while splitter.next(&mut records)? {
        if splitter.saw_break_in_quotes() {
            return Ok(true);
        }
        // After the first record only the number of fields is of interest.
        if records.size() > 0 {
            let width = splitter.width();
            splitter.keep(vec![false; width]);
        }
        records.clear();
    }
    Ok(false)
}

fn splitter(path: &Path, options: &CsvOptions, range: Option<Range<u64>>) -> Result<Splitter<Input>, ReadError> {
    let is_part = range.is_some();
    let input = BufReader::with_capacity(BUFFER, input::open(path, options.compression, range)?);
    Ok(Splitter::new(input, options, is_part))
}

/// The fields of a single record.
fn texts(records: &Records, width: usize) -> Result<Vec<String>, ReadError> {
    let rows = records.rows(width, |column| format!("column {}", column + 1))?;
    Ok(rows.first().map(|field| field.text.to_owned()).collect())
}

fn column_name(names: &[String], column: usize) -> String {
    format!("column {:?}", names.get(column).map_or("", String::as_str))
}

#[cfg(test)]
mod tests;
