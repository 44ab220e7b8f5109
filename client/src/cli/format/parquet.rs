//! Parquet files.

use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use parquet::arrow::ArrowWriter;
use parquet::basic;
use parquet::file::properties::WriterProperties;

use super::{BatchWriter, Compression, Failure, Format, WriteError, failure};
use crate::cli::output::{Output, OutputWriter};

/// A row group is held in memory until it is whole, so its bytes are bounded besides its rows.
const ROW_GROUP_BYTES: usize = 128 << 20;

struct Parquet {
    writer: ArrowWriter<OutputWriter>,
}

/// A writer of Parquet with Arrow's schema in its metadata.
pub(super) fn writer(
    schema: &SchemaRef,
    to: OutputWriter,
    compression: Compression,
    output: &Output,
) -> Result<Box<dyn BatchWriter>, Failure> {
    let compression = match compression {
        Compression::Zstd => basic::Compression::ZSTD(basic::ZstdLevel::default()),
        Compression::Snappy => basic::Compression::SNAPPY,
        Compression::None => basic::Compression::UNCOMPRESSED,
    };
    let properties = WriterProperties::builder().set_compression(compression).build();
    match ArrowWriter::try_new(to, schema.clone(), Some(properties)) {
        Ok(writer) => Ok(Box::new(Parquet { writer })),
        Err(error) => Err(failure(Format::Parquet, error.into(), output)),
    }
}

impl BatchWriter for Parquet {
    fn write(&mut self, batch: &RecordBatch) -> Result<(), WriteError> {
        self.writer.write(batch)?;
        if self.writer.memory_size() >= ROW_GROUP_BYTES {
            self.writer.flush()?;
        }
        Ok(())
    }

    fn finish(mut self: Box<Self>) -> Result<(), WriteError> {
        self.writer.finish()?;
        Ok(std::io::Write::flush(self.writer.inner_mut())?)
    }
}
