//! Parquet files, whose values are right for readers with and without Arrow's schema.

use arrow::array::RecordBatch;
use arrow::datatypes::{DataType, SchemaRef, TimeUnit};
use parquet::arrow::ArrowWriter;
use parquet::basic;
use parquet::file::properties::WriterProperties;

use super::kind::{Compression, Format};
use super::retype::{Retyped, has};
use super::valid::check;
use super::writer::{BatchWriter, WriteError, failure, unfit};
use crate::failure::Failure;
use crate::output::{Output, OutputWriter};

/// A row group is held in memory until it is complete, so its bytes are bounded as well as its rows.
const ROW_GROUP_BYTES: usize = 128 << 20;

struct Parquet {
    writer: ArrowWriter<OutputWriter>,
    retyped: Retyped,
}

/// A writer of Parquet with Arrow's schema in its metadata.
pub(super) fn writer(
    schema: &SchemaRef,
    to: OutputWriter,
    compression: Compression,
    output: &Output,
) -> Result<Box<dyn BatchWriter>, Failure> {
    let refused = |error| failure(Format::Parquet, error, output);
    if let Some(field) = schema.fields().iter().find(|field| has(field.data_type(), cannot_be_parquet)) {
        return Err(unfit(Format::Parquet, field));
    }
    let retyped = Retyped::new(schema, replaced).map_err(refused)?;
    let compression = match compression {
        Compression::Zstd => basic::Compression::ZSTD(basic::ZstdLevel::default()),
        Compression::Snappy => basic::Compression::SNAPPY,
        Compression::None => basic::Compression::UNCOMPRESSED,
    };
    let properties = WriterProperties::builder().set_compression(compression).build();
    match ArrowWriter::try_new(to, retyped.schema().clone(), Some(properties)) {
        Ok(writer) => Ok(Box::new(Parquet { writer, retyped })),
        Err(error) => Err(refused(error.into())),
    }
}

/// Types for which Parquet has no type, or the crate no code (59.3). A duration would be a bare integer without Arrow's
/// schema. Parquet's interval has unsigned parts, and many readers take it for bytes.
fn cannot_be_parquet(data_type: &DataType) -> bool {
    match data_type {
        DataType::Union(..) | DataType::Interval(_) | DataType::Duration(_) => true,
        DataType::Struct(fields) => fields.is_empty(),
        // The crate panics.
        DataType::FixedSizeBinary(0) => true,
        DataType::Decimal32(precision, scale)
        | DataType::Decimal64(precision, scale)
        | DataType::Decimal128(precision, scale)
        | DataType::Decimal256(precision, scale) => decimal(*precision, *scale).is_none(),
        _ => false,
    }
}

/// Types with logical types of Parquet in the place of those without, which would be bare integers without Arrow's
/// schema. Dictionaries stay if they are of plain bytes: the crate writes others wrongly, or panics (59.3).
fn replaced(data_type: &DataType) -> Option<DataType> {
    use DataType::*;
    match data_type {
        Dictionary(_, values) if !matches!(**values, Utf8 | LargeUtf8 | Binary | LargeBinary) => {
            Some(values.as_ref().clone())
        }
        RunEndEncoded(_, values) => Some(values.data_type().clone()),
        Timestamp(TimeUnit::Second, zone) => Some(Timestamp(TimeUnit::Millisecond, zone.clone())),
        Time32(TimeUnit::Second) => Some(Time32(TimeUnit::Millisecond)),
        Date64 => Some(Date32),
        Decimal32(precision, scale)
        | Decimal64(precision, scale)
        | Decimal128(precision, scale)
        | Decimal256(precision, scale) => decimal(*precision, *scale).filter(|_| *scale < 0 || odd(*precision, *scale)),
        _ => None,
    }
}

/// Parquet's scale is from zero to the precision.
fn odd(precision: u8, scale: i8) -> bool {
    i16::from(scale) > i16::from(precision)
}

/// The decimal with a scale that Parquet has. `None` if it would have too many digits.
fn decimal(precision: u8, scale: i8) -> Option<DataType> {
    let digits = if scale < 0 { precision + scale.unsigned_abs() } else { precision.max(scale.unsigned_abs()) };
    match digits {
        ..=38 => Some(DataType::Decimal128(digits, scale.max(0))),
        39..=76 => Some(DataType::Decimal256(digits, scale.max(0))),
        77.. => None,
    }
}

impl BatchWriter for Parquet {
    fn write(&mut self, batch: &RecordBatch) -> Result<(), WriteError> {
        if batch.num_columns() == 0 && batch.num_rows() > 0 {
            return Err(WriteError::NoColumns { rows: batch.num_rows() });
        }
        let written = self.retyped.apply(batch)?;
        for (field, column) in batch.schema().fields().iter().zip(written.columns()) {
            check(column).map_err(|error| WriteError::column(field, error))?;
        }
        self.writer.write(&written)?;
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
