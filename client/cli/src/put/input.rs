//! Files to be uploaded: their columns, and their batches.

use std::fs::File;
use std::io::{BufReader, Read, Seek};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::csv;
use arrow::datatypes::{Schema, SchemaRef};
use arrow::ipc::reader::{FileReader, StreamReader};
use arrow::json;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use regex::Regex;

use super::error::InputError;
use super::schema::Columns;
use crate::args::InputFormat;
use crate::failure::Failure;
use crate::format::Format;

/// First bytes of an Arrow file. A stream has others.
const ARROW_MAGIC: &[u8] = b"ARROW1";

/// How to read the files.
#[derive(Clone, Debug)]
pub(super) struct ReadOptions {
    pub(super) batch_rows: usize,
    pub(super) delimiter: u8,
    /// Matches the text of NULL in CSV. `None`: an empty field is NULL.
    pub(super) null: Option<Regex>,
}

/// A file to be uploaded.
#[derive(Clone, Debug)]
pub(super) struct Input {
    path: PathBuf,
    /// The name in messages.
    name: String,
    format: InputFormat,
}

/// The batches of a file.
type Batches = Box<dyn Iterator<Item = Result<RecordBatch, InputError>>>;

impl Input {
    /// A file in a format, by default that of its extension.
    ///
    /// # Errors
    /// [`Failure::Usage`] for an unknown extension; [`Failure::Input`] if it cannot be opened or is no regular file.
    pub(super) fn new(path: PathBuf, format: Option<InputFormat>) -> Result<Self, Failure> {
        let name = path.display().to_string();
        let format = match format {
            Some(format) => format,
            None => format_of(&path)?,
        };
        let input = Input { path, name, format };
        let file = input.open().map_err(Failure::Input)?;
        match file.metadata() {
            Ok(metadata) if metadata.is_file() => Ok(input),
            Ok(_) => Err(Failure::Input(InputError::NotAFile { file: input.name })),
            Err(source) => Err(Failure::Input(InputError::Io { file: input.name, source })),
        }
    }

    /// The name in messages.
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// The columns of the file. For CSV and JSON reads all of it, so that the types fit every row.
    ///
    /// # Errors
    /// The file cannot be read, or has two columns of one name.
    pub(super) fn columns(&self, options: &ReadOptions) -> Result<Columns, InputError> {
        let is_text = matches!(self.format, InputFormat::Csv | InputFormat::Json);
        let columns = Columns { file: self.name.clone(), schema: self.schema(options)?, inferred: is_text };
        columns.check()?;
        Ok(columns)
    }

    fn schema(&self, options: &ReadOptions) -> Result<SchemaRef, InputError> {
        let mut file = self.open()?;
        let failed = InputError::arrow(&self.name, self.format_name());
        Ok(match self.format {
            InputFormat::Csv => {
                let (schema, _rows) = self.csv(options).infer_schema(BufReader::new(file), None).map_err(failed)?;
                Arc::new(schema)
            }
            InputFormat::Json => {
                let inferred = json::reader::infer_json_schema(BufReader::new(file), None);
                Arc::new(inferred.map_err(failed)?.0)
            }
            InputFormat::Arrow if self.is_arrow_file(&mut file)? => {
                FileReader::try_new(BufReader::new(file), None).map_err(failed)?.schema()
            }
            InputFormat::Arrow => StreamReader::try_new(BufReader::new(file), None).map_err(failed)?.schema(),
            InputFormat::Parquet => {
                let opened = ParquetRecordBatchReaderBuilder::try_new(file);
                Arc::clone(opened.map_err(|source| InputError::parquet(&self.name, source))?.schema())
            }
        })
    }

    /// The batches of the file. Those of CSV and JSON have the types of `target`, in the order of `own`.
    ///
    /// # Errors
    /// The file cannot be opened in its format.
    pub(super) fn batches(
        &self,
        own: &Schema,
        target: &SchemaRef,
        options: &ReadOptions,
    ) -> Result<Batches, InputError> {
        let mut file = self.open()?;
        let failed = InputError::arrow(&self.name, self.format_name());
        Ok(match self.format {
            InputFormat::Csv => {
                let fields = own.fields().iter().map(|field| target.field_with_name(field.name()).cloned());
                let schema = Schema::new(fields.collect::<Result<Vec<_>, _>>().map_err(&failed)?);
                let reader = csv::ReaderBuilder::new(Arc::new(schema)).with_format(self.csv(options));
                let reader = reader.with_batch_size(options.batch_rows).build(file).map_err(&failed)?;
                Box::new(reader.map(move |batch| batch.map_err(&failed)))
            }
            InputFormat::Json => {
                let reader = json::ReaderBuilder::new(Arc::clone(target)).with_batch_size(options.batch_rows);
                // A column with numbers and texts is one of texts.
                let reader = reader.with_coerce_primitive(true).build(BufReader::new(file)).map_err(&failed)?;
                Box::new(reader.map(move |batch| batch.map_err(&failed)))
            }
            InputFormat::Arrow if self.is_arrow_file(&mut file)? => {
                let reader = FileReader::try_new(BufReader::new(file), None).map_err(&failed)?;
                Box::new(reader.map(move |batch| batch.map_err(&failed)))
            }
            InputFormat::Arrow => {
                let reader = StreamReader::try_new(BufReader::new(file), None).map_err(&failed)?;
                Box::new(reader.map(move |batch| batch.map_err(&failed)))
            }
            InputFormat::Parquet => {
                let broken = |source| InputError::parquet(&self.name, source);
                let reader = ParquetRecordBatchReaderBuilder::try_new(file).map_err(broken)?;
                let reader = reader.with_batch_size(options.batch_rows).build().map_err(broken)?;
                Box::new(reader.map(move |batch| batch.map_err(&failed)))
            }
        })
    }

    fn csv(&self, options: &ReadOptions) -> csv::reader::Format {
        let format = csv::reader::Format::default().with_header(true).with_delimiter(options.delimiter);
        match &options.null {
            Some(null) => format.with_null_regex(null.clone()),
            None => format,
        }
    }

    fn open(&self) -> Result<File, InputError> {
        File::open(&self.path).map_err(|source| InputError::Io { file: self.name.clone(), source })
    }

    /// Returns whether an Arrow file has a footer, so that it is no stream.
    fn is_arrow_file(&self, file: &mut File) -> Result<bool, InputError> {
        let failed = |source| InputError::Io { file: self.name.clone(), source };
        let mut first = Vec::new();
        file.take(ARROW_MAGIC.len() as u64).read_to_end(&mut first).map_err(failed)?;
        file.rewind().map_err(failed)?;
        Ok(first == ARROW_MAGIC)
    }

    fn format_name(&self) -> &'static str {
        match self.format {
            InputFormat::Csv => "CSV",
            InputFormat::Json => "JSON",
            InputFormat::Arrow => "Arrow IPC",
            InputFormat::Parquet => "Parquet",
        }
    }
}

/// The format of a file's extension.
fn format_of(path: &Path) -> Result<InputFormat, Failure> {
    match Format::of_path(path)? {
        Format::Csv => Ok(InputFormat::Csv),
        Format::Json => Ok(InputFormat::Json),
        Format::Arrow => Ok(InputFormat::Arrow),
        Format::Parquet => Ok(InputFormat::Parquet),
        Format::Table => Err(Failure::Usage {
            message: format!("{} looks like a text, which has no columns", path.display()),
            hint: "give --format if it is one of csv, json, arrow, parquet".into(),
        }),
    }
}
