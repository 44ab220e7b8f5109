//! The content of a file: its columns, and how it can be divided.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use arrow_schema::{Field, Schema, SchemaRef};

use super::error::ReadError;
use super::ipc_limits::IPC_LIMITS;
use super::{csv, ipc, json};
use crate::catalog::{Compression, DataFile, Format, TableSpec};

/// Size from which a CSV file is searched for line breaks within quotes; without any it is read in parallel.
const DIVIDED_FROM: u64 = 16 << 20;

/// A file that was looked at.
#[derive(Clone, Debug)]
pub(in super::super) struct Inspected {
    pub(in super::super) file: DataFile,
    /// The file's own columns.
    pub(in super::super) schema: SchemaRef,
    /// Its division for reading in parallel.
    pub(super) division: Division,
}

impl Inspected {
    /// A file that another reader divides.
    pub(in super::super) fn whole(file: DataFile, schema: SchemaRef) -> Self {
        Inspected { file, schema, division: Division::Whole }
    }

    /// Whether several threads can read parts of the file.
    pub(super) fn can_be_divided(&self) -> bool {
        self.division != Division::Whole
    }
}

/// How a file can be read in parts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Division {
    /// Only as a whole.
    Whole,
    /// By lines.
    Lines,
    /// By its record batches, of which there are this many.
    Batches(usize),
}

/// The options of a CSV file of a table.
pub(super) fn csv_options(spec: &TableSpec, file: &DataFile) -> csv::CsvOptions {
    let config = &spec.config;
    // The validated configuration contains only ASCII here.
    let byte = |c: char| u8::try_from(c).unwrap_or(b',');
    csv::CsvOptions {
        compression: file.compression,
        header: config.header,
        delimiter: config.delimiter.map_or(file.delimiter, byte),
        quote: byte(config.quote),
        escape: config.escape.map(byte),
        comment: config.comment.map(byte),
        null: config.null.clone(),
        quoted_newlines: config.quoted_newlines,
        sample_rows: config.sample_rows,
        all_text: config.all_text,
        declared: config.types.keys().cloned().collect(),
    }
}

/// Looks at a file of text or of Arrow IPC.
pub(in super::super) fn inspect(spec: &TableSpec, file: &DataFile) -> Result<Inspected, String> {
    // Readers of formats are known to panic on unexpected input.
    let looked = catch_unwind(AssertUnwindSafe(|| look(spec, file)));
    match looked {
        Ok(done) => done.map_err(|e| e.to_string()),
        Err(_) => Err("its content contradicts itself".to_owned()),
    }
}

fn look(spec: &TableSpec, file: &DataFile) -> Result<Inspected, ReadError> {
    let plain = file.compression == Compression::None;
    let (schema, division) = match spec.format {
        Format::Csv => {
            let options = csv_options(spec, file);
            let schema = csv::inspect(&file.path, &options)?;
            // A large file is worth a look whether it can be read in parallel.
            let is_large = file.stamp.len >= DIVIDED_FROM;
            let by_lines =
                plain && (!options.quoted_newlines || (is_large && !csv::has_quoted_newlines(&file.path, &options)?));
            (schema, if by_lines { Division::Lines } else { Division::Whole })
        }
        Format::Json => {
            let found = json::inspect(&file.path, &json::JsonOptions { compression: file.compression })?;
            (found.schema, if plain && found.is_lines { Division::Lines } else { Division::Whole })
        }
        Format::Arrow => {
            let found = ipc::inspect(&file.path, &IPC_LIMITS)?;
            let division = found.batches.filter(|batches| *batches > 1).map_or(Division::Whole, Division::Batches);
            return Ok(Inspected { file: file.clone(), schema: found.schema, division });
        }
        Format::Parquet => return Err(ReadError::invalid("Parquet has a reader of its own")),
    };
    Ok(Inspected { file: file.clone(), schema: Arc::new(declared(spec, schema)), division })
}

/// The columns with the types of the configuration.
fn declared(spec: &TableSpec, schema: Schema) -> Schema {
    let fields: Vec<_> = schema
        .fields()
        .iter()
        .map(|field| match spec.config.types.get(field.name()) {
            Some(column) => Arc::new(Field::new(field.name(), column.data_type().clone(), true)),
            None => Arc::clone(field),
        })
        .collect();
    Schema::new_with_metadata(fields, schema.metadata().clone())
}
