//! CSV and JSON lines.

use std::collections::BTreeSet;
use std::io::Write;

use arrow::array::{RecordBatch, new_empty_array};
use arrow::csv;
use arrow::datatypes::{DataType, Field, Fields, SchemaRef};
use arrow::json::writer::{EncoderOptions, make_encoder};
use arrow::json::{LineDelimitedWriter, WriterBuilder};

use super::kind::Format;
use super::plain::Plain;
use super::writer::{BatchWriter, WriteError, failure, refusal};
use crate::failure::Failure;
use crate::output::{Output, OutputWriter};

struct Csv {
    writer: csv::Writer<OutputWriter>,
}

/// A writer of CSV with a header. It refuses nested columns.
pub(super) fn csv(schema: &SchemaRef, to: OutputWriter, output: &Output) -> Result<Box<dyn BatchWriter>, Failure> {
    if let Some(field) = schema.fields().iter().find(|field| is_nested(field.data_type())) {
        let (name, data_type) = (field.name(), field.data_type());
        return Err(refusal(Format::Csv, &format!("column {name:?} is nested ({data_type})")));
    }
    let mut writer = csv::WriterBuilder::new().with_header(true).build(to);
    // The header is written with the first batch, and a result may have none.
    let header = writer.write(&RecordBatch::new_empty(schema.clone()));
    header.map_err(|error| failure(Format::Csv, error.into(), output))?;
    Ok(Box::new(Csv { writer }))
}

fn is_nested(data_type: &DataType) -> bool {
    match data_type {
        DataType::RunEndEncoded(_, values) => is_nested(values.data_type()),
        other => other.is_nested(),
    }
}

impl BatchWriter for Csv {
    fn write(&mut self, batch: &RecordBatch) -> Result<(), WriteError> {
        // arrow-csv treats run ends as nested, whatever their values are.
        let mut columns = Vec::with_capacity(batch.num_columns());
        let mut fields = Vec::with_capacity(batch.num_columns());
        for (field, column) in batch.schema().fields().iter().zip(batch.columns()) {
            if let DataType::RunEndEncoded(_, values) = field.data_type() {
                columns.push(arrow::compute::cast(column, values.data_type())?);
                fields.push(Field::new(field.name(), values.data_type().clone(), true).into());
            } else {
                columns.push(column.clone());
                fields.push(field.clone());
            }
        }
        let options = arrow::array::RecordBatchOptions::new().with_row_count(Some(batch.num_rows()));
        let schema = arrow::datatypes::Schema::new(fields);
        Ok(self.writer.write(&RecordBatch::try_new_with_options(schema.into(), columns, &options)?)?)
    }

    fn finish(self: Box<Self>) -> Result<(), WriteError> {
        Ok(self.writer.into_inner().flush()?)
    }
}

struct Json {
    writer: LineDelimitedWriter<OutputWriter>,
    plain: Plain,
}

/// A writer of JSON, one object per line. Nulls are written, so that every line has every column.
pub(super) fn json(schema: &SchemaRef, to: OutputWriter) -> Result<Box<dyn BatchWriter>, Failure> {
    names_are_unique(schema.fields())?;
    // arrow-json panics if the values of a dictionary or a run have the null type (59.3).
    let plain = Plain::new(schema, |values| {
        matches!(values, DataType::Null | DataType::Dictionary(..) | DataType::RunEndEncoded(..))
    });
    if let Some(field) = plain.stuck() {
        return Err(refusal(Format::Json, &format!("column {:?} is {}", field.name(), field.data_type())));
    }
    let options = EncoderOptions::default().with_explicit_nulls(true);
    for field in plain.schema().fields() {
        let column = new_empty_array(field.data_type());
        if let Err(error) = make_encoder(field, &column, &options) {
            return Err(refusal(Format::Json, &format!("column {:?}: {error}", field.name())));
        }
    }
    Ok(Box::new(Json { writer: WriterBuilder::new().with_explicit_nulls(true).build(to), plain }))
}

/// Most readers of JSON keep one of two values of the same name, and drop the other silently.
fn names_are_unique(fields: &Fields) -> Result<(), Failure> {
    let mut seen = BTreeSet::new();
    match fields.iter().find(|field| !seen.insert(field.name())) {
        Some(twice) => {
            Err(refusal(Format::Json, &format!("two columns are called {:?}; rename one with AS", twice.name())))
        }
        None => Ok(()),
    }
}

impl BatchWriter for Json {
    fn write(&mut self, batch: &RecordBatch) -> Result<(), WriteError> {
        Ok(self.writer.write(&self.plain.apply(batch)?)?)
    }

    fn finish(mut self: Box<Self>) -> Result<(), WriteError> {
        self.writer.finish()?;
        Ok(self.writer.into_inner().flush()?)
    }
}
