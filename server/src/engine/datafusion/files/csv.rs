//! Reads CSV. A row, field or value that is not as it should be is an error with its line: none is lost or changed.

mod columns;
mod infer;
mod machine;
mod options;
mod read;
mod records;
mod splitter;

use std::path::Path;

use arrow_schema::{DataType, Field, Schema};

use self::infer::Evidence;
pub(super) use self::options::CsvOptions;
pub(super) use self::read::read;
use self::records::{Records, column_name, texts};
use self::splitter::{Input, Splitter};
use super::error::ReadError;

/// Names and types of a file's columns, the names as they are written, even if empty or one twice. The type of a
/// column without a value in the sample is Null.
pub(super) fn inspect(path: &Path, options: &CsvOptions) -> Result<Schema, ReadError> {
    let mut splitter = splitter::open(path, options, None)?;
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
    let mut splitter = splitter::open(path, options, None)?;
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

#[cfg(test)]
mod tests;
