//! Formats of a result. Each streams batch by batch, and refuses unsupported columns before it writes anything.

mod arrow;
mod kind;
mod parquet;
mod plain;
mod table;
mod text;
mod writer;

use ::arrow::datatypes::SchemaRef;

pub use kind::{Compression, Format};
pub use writer::{BatchWriter, WriteError, failure};

use super::failure::Failure;
use super::output::Output;

/// The options of a format.
#[derive(Clone, Copy, Debug)]
pub struct FormatOptions {
    /// The format.
    pub format: Format,
    /// For Parquet.
    pub compression: Compression,
    /// For tables.
    pub max_rows: usize,
    /// For Arrow: whether the file's extension selects the stream format.
    pub stream: bool,
}

/// A writer for results of this schema.
///
/// # Errors
/// [`Failure::Format`] if the format cannot hold such results. Nothing has been written in this case.
pub fn writer(options: FormatOptions, schema: &SchemaRef, output: &Output) -> Result<Box<dyn BatchWriter>, Failure> {
    let to = output.writer()?;
    match options.format {
        Format::Table => Ok(Box::new(table::Table::new(schema, to, options.max_rows, output.is_terminal()))),
        Format::Csv => text::csv(schema, to, output),
        Format::Json => text::json(schema, to),
        Format::Arrow if output.is_regular_file() && !options.stream => arrow::file(schema, to, output),
        Format::Arrow => arrow::stream(schema, to, output),
        Format::Parquet => parquet::writer(schema, to, options.compression, output),
    }
}
