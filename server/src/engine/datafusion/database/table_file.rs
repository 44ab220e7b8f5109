//! Writes the data files of a table. Everything here blocks.

use std::error::Error;
use std::io::{self, Write};
use std::sync::Arc;

use arrow_array::cast::AsArray;
use arrow_array::{ArrayRef, RecordBatch};
use arrow_schema::{DataType, Schema, SchemaRef};
use datafusion::parquet::arrow::ArrowWriter;
use datafusion::parquet::basic::Compression;
use datafusion::parquet::errors::ParquetError;
use datafusion::parquet::file::properties::WriterProperties;
use thallus_protocol::inline::InlineEncoder;

use super::disk::{DataSink, Disk};
use super::error::of_write;
use super::name::Name;
use super::stored_file::StoredFile;
use crate::catalog::Format;
use crate::engine::EngineError;

/// Rows and encoded bytes of a row group, at most. The encoded columns of one row group are the memory of a writer.
const MAX_GROUP_ROWS: usize = 1 << 20;
const MAX_GROUP_BYTES: usize = 64 << 20;

/// The end of a stream: a continuation and a length of zero.
const END_OF_STREAM: [u8; 8] = [0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0];

type BoxedError = Box<dyn Error + Send + Sync>;

/// A data file of a table, from its first row on. Dropping it removes the file.
pub(super) struct TableFile {
    disk: Arc<Disk>,
    table: Name,
    schema: SchemaRef,
    format: Format,
    /// `None` before the first row.
    open: Option<OpenFile>,
    rows: u64,
}

struct OpenFile {
    // Before the file, which is removed only after it was closed.
    writer: Writer,
    file: StoredFile,
}

enum Writer {
    Parquet(Box<ParquetFile>),
    Arrow(Box<ArrowFile>),
}

impl TableFile {
    pub(super) fn new(disk: Arc<Disk>, table: Name, schema: SchemaRef, format: Format) -> Self {
        TableFile { disk, table, schema, format, open: None, rows: 0 }
    }

    /// Adds the rows of a batch, which has the columns of the table.
    pub(super) fn write(&mut self, batch: &RecordBatch) -> Result<(), EngineError> {
        if batch.num_rows() == 0 {
            return Ok(());
        }
        if self.open.is_none() {
            self.open = Some(self.create()?);
        }
        let Some(open) = &mut self.open else { return Ok(()) };
        let written = match &mut open.writer {
            Writer::Parquet(file) => file.write(batch).map_err(|e| of_write(&self.table.to_string(), &e)),
            Writer::Arrow(file) => file.write(batch).map_err(|e| of_write(&self.table.to_string(), &*e)),
        };
        written?;
        self.rows += batch.num_rows() as u64;
        Ok(())
    }

    fn create(&self) -> Result<OpenFile, EngineError> {
        let failed = |error: &(dyn Error + 'static)| of_write(&self.table.to_string(), error);
        let extension = if self.format == Format::Parquet { "parquet" } else { "arrow" };
        let (name, sink) = self.disk.create_data(extension).map_err(|e| failed(&e))?;
        let file = StoredFile::unnamed(Arc::clone(&self.disk), name, 0, 0);
        let writer = match self.format {
            Format::Parquet => {
                let writer = ArrowWriter::try_new(sink, Arc::clone(&self.schema), Some(properties()));
                Writer::Parquet(Box::new(ParquetFile {
                    writer: writer.map_err(|e| failed(&e))?,
                    dictionaries: Vec::new(),
                }))
            }
            _ => Writer::Arrow(Box::new(ArrowFile::new(&self.schema, sink).map_err(|e| failed(&*e))?)),
        };
        Ok(OpenFile { writer, file })
    }

    /// Completes the file, and makes it durable. No catalog names it yet. `None`: there were no rows.
    pub(super) fn finish(mut self) -> Result<Option<StoredFile>, EngineError> {
        let Some(OpenFile { writer, file }) = self.open.take() else { return Ok(None) };
        let failed = |error: &(dyn Error + 'static)| of_write(&self.table.to_string(), error);
        let sink = match writer {
            Writer::Parquet(file) => file.writer.into_inner().map_err(|e| failed(&e))?,
            Writer::Arrow(file) => file.finish().map_err(|e| failed(&e))?,
        };
        let bytes = sink.sync().and_then(|bytes| self.disk.sync_data().map(|()| bytes)).map_err(|e| failed(&e))?;
        Ok(Some(file.complete(self.rows, bytes)))
    }
}

/// Compression costs more time of an upload than it saves of a query on a local disk.
fn properties() -> WriterProperties {
    WriterProperties::builder()
        .set_compression(Compression::UNCOMPRESSED)
        .set_max_row_group_row_count(Some(MAX_GROUP_ROWS))
        .set_max_row_group_bytes(Some(MAX_GROUP_BYTES))
        .build()
}

/// A Parquet file whose dictionaries can be read back.
struct ParquetFile {
    writer: ArrowWriter<DataSink>,
    /// The dictionaries of the row group, of the columns whose keys are short.
    dictionaries: Vec<ArrayRef>,
}

impl ParquetFile {
    /// A row group has the values of one dictionary: the values of several may be more than short keys can tell apart.
    fn write(&mut self, batch: &RecordBatch) -> Result<(), ParquetError> {
        let dictionaries: Vec<ArrayRef> = batch.columns().iter().filter_map(short_dictionary).collect();
        let is_same = |(a, b): (&ArrayRef, &ArrayRef)| Arc::ptr_eq(a, b) || a == b;
        if !self.dictionaries.iter().zip(&dictionaries).all(is_same) {
            self.writer.flush()?;
        }
        self.dictionaries = dictionaries;
        self.writer.write(batch)
    }
}

/// The values of a dictionary whose keys have one or two bytes.
fn short_dictionary(column: &ArrayRef) -> Option<ArrayRef> {
    match column.data_type() {
        DataType::Dictionary(keys, _) if keys.primitive_width().is_some_and(|width| width <= 2) => {
            Some(Arc::clone(column.as_any_dictionary().values()))
        }
        _ => None,
    }
}

/// A file in Arrow's stream format. The encoder of inline batches writes it: `arrow_ipc` writes wrong values for slices
/// of lists of unions and of runs, and has one dictionary for all batches in its file format.
struct ArrowFile {
    encoder: InlineEncoder,
    sink: DataSink,
}

impl ArrowFile {
    fn new(schema: &Schema, mut sink: DataSink) -> Result<Self, BoxedError> {
        let (encoder, message) = InlineEncoder::new(schema)?;
        sink.write_all(&message)?;
        Ok(ArrowFile { encoder, sink })
    }

    fn write(&mut self, batch: &RecordBatch) -> Result<(), BoxedError> {
        let message = self.encoder.encode(batch)?;
        Ok(self.sink.write_all(&message)?)
    }

    fn finish(mut self) -> io::Result<DataSink> {
        self.sink.write_all(&END_OF_STREAM)?;
        Ok(self.sink)
    }
}
