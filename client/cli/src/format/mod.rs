//! Formats of a result. Each streams batch by batch, and refuses unsupported columns before it writes anything.

mod arrow;
mod changes;
mod convert;
mod csv;
mod expanded;
mod json;
mod kind;
mod parquet;
mod plain_strings;
mod retype;
mod table;
mod valid;
mod value;
mod writer;

use ::arrow::datatypes::SchemaRef;

pub use kind::{Compression, Format};
pub use writer::{BatchWriter, WriteError, failure};

use self::plain_strings::{Adapter, PlainStrings};
use super::failure::Failure;
use super::output::Output;
use thallus_client::is_change;

/// The options of a format.
#[derive(Clone, Debug)]
pub struct FormatOptions {
    /// The format.
    pub format: Format,
    /// For Parquet.
    pub compression: Compression,
    /// For tables.
    pub max_rows: usize,
    /// For tables: whether each value has a line of its own.
    pub expanded: bool,
    /// For CSV: the text for NULL.
    pub null: String,
    /// For Arrow and Parquet: whether views become plain strings.
    pub plain_strings: bool,
    /// For Arrow: whether the file's extension selects the stream format.
    pub stream: bool,
}

impl FormatOptions {
    /// A table of at most these rows.
    #[must_use]
    pub fn table(max_rows: usize) -> Self {
        FormatOptions {
            format: Format::Table,
            compression: Compression::default(),
            max_rows,
            expanded: false,
            null: String::new(),
            plain_strings: false,
            stream: false,
        }
    }
}

/// A writer for results of this schema.
///
/// # Errors
/// [`Failure::Format`] if the format cannot hold such results. Nothing has been written in this case.
pub fn writer(options: &FormatOptions, schema: &SchemaRef, output: &Output) -> Result<Box<dyn BatchWriter>, Failure> {
    if options.plain_strings {
        let plain = PlainStrings::new(schema).map_err(|error| failure(options.format, error, output))?;
        let options = FormatOptions { plain_strings: false, ..options.clone() };
        let inner = writer(&options, plain.schema(), output)?;
        return Ok(Box::new(Adapter { plain, inner }));
    }
    let to = output.writer()?;
    match options.format {
        Format::Table if is_change(schema) => Ok(Box::new(changes::Changes::new(to))),
        Format::Table if options.expanded => {
            Ok(Box::new(expanded::Expanded::new(schema, to, options.max_rows, output)?))
        }
        Format::Table => Ok(Box::new(table::Table::new(schema, to, options.max_rows, output)?)),
        Format::Csv => csv::writer(schema, to, &options.null, output),
        Format::Json => json::writer(schema, to, output),
        Format::Arrow if output.is_regular_file() && !options.stream => arrow::file(schema, to, output),
        Format::Arrow => arrow::stream(schema, to, output),
        Format::Parquet => parquet::writer(schema, to, options.compression, output),
    }
}
