//! Parquet files.

use arrow::array::RecordBatch;
use arrow::datatypes::{DataType, Field, IntervalUnit, SchemaRef};
use parquet::arrow::ArrowWriter;
use parquet::basic;
use parquet::file::properties::WriterProperties;

use super::kind::{Compression, Format};
use super::plain::{Plain, has};
use super::writer::{BatchWriter, WriteError, failure, refusal};
use crate::failure::Failure;
use crate::output::{Output, OutputWriter};

/// A row group is held in memory until it is complete, so its bytes are bounded as well as its rows.
const ROW_GROUP_BYTES: usize = 128 << 20;

struct Parquet {
    writer: ArrowWriter<OutputWriter>,
    plain: Plain,
}

/// A writer of Parquet with Arrow's schema in its metadata.
pub(super) fn writer(
    schema: &SchemaRef,
    to: OutputWriter,
    compression: Compression,
    output: &Output,
) -> Result<Box<dyn BatchWriter>, Failure> {
    // The crate panics at unions and at dictionaries of views (59.3), and rejects other types only with the first
    // batch.
    let plain = Plain::new(schema, |values| !fits_a_dictionary(values));
    let unfit = |field: &&Field| has(field.data_type(), cannot_be_parquet);
    let columns = schema.fields().iter().map(AsRef::as_ref);
    if let Some(field) = columns.clone().find(unfit).or_else(|| plain.stuck()) {
        let (name, data_type) = (field.name(), field.data_type());
        return Err(refusal(Format::Parquet, &format!("column {name:?} is {data_type}, which it cannot hold")));
    }
    let compression = match compression {
        Compression::Zstd => basic::Compression::ZSTD(basic::ZstdLevel::default()),
        Compression::Snappy => basic::Compression::SNAPPY,
        Compression::None => basic::Compression::UNCOMPRESSED,
    };
    let properties = WriterProperties::builder().set_compression(compression).build();
    match ArrowWriter::try_new(to, plain.schema().clone(), Some(properties)) {
        Ok(writer) => Ok(Box::new(Parquet { writer, plain })),
        Err(error) => Err(failure(Format::Parquet, error.into(), output)),
    }
}

fn fits_a_dictionary(values: &DataType) -> bool {
    use DataType::{Binary, Boolean, FixedSizeBinary, LargeBinary, LargeUtf8, Null, Utf8};
    let bytes = matches!(values, Boolean | Null | Utf8 | LargeUtf8 | Binary | LargeBinary | FixedSizeBinary(_));
    bytes || values.is_primitive()
}

fn cannot_be_parquet(data_type: &DataType) -> bool {
    matches!(data_type, DataType::Union(..) | DataType::Interval(IntervalUnit::MonthDayNano))
}

impl BatchWriter for Parquet {
    fn write(&mut self, batch: &RecordBatch) -> Result<(), WriteError> {
        self.writer.write(&self.plain.apply(batch)?)?;
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
