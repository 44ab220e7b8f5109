//! Arrow IPC, as a file and as a stream.

use std::io::Write;
use std::sync::Arc;

use arrow::array::{RecordBatch, RecordBatchOptions};
use arrow::compute::{can_cast_types, cast};
use arrow::datatypes::{DataType, Field, Fields, Schema, SchemaRef};
use arrow::ipc::writer::{FileWriter, StreamWriter};

use super::{BatchWriter, Failure, Format, WriteError, failure};
use crate::cli::output::{Output, OutputWriter};

struct IpcFile {
    writer: FileWriter<OutputWriter>,
    schema: SchemaRef,
    /// Names of columns whose dictionaries are resolved.
    resolved: Vec<String>,
}

/// A writer of the file format. It has one dictionary a column for the whole file, and what a server sends has one a batch; so
/// dictionaries are resolved.
pub(super) fn file(schema: &SchemaRef, to: OutputWriter, output: &Output) -> Result<Box<dyn BatchWriter>, Failure> {
    let mut resolved = Vec::new();
    let plain = |field: &Arc<Field>| {
        let data_type = resolve(field.data_type());
        if data_type == *field.data_type() || !can_cast_types(field.data_type(), &data_type) {
            return Arc::clone(field);
        }
        resolved.push(field.name().clone());
        Arc::new(field.as_ref().clone().with_data_type(data_type))
    };
    let fields: Fields = schema.fields().iter().map(plain).collect();
    let schema = Arc::new(Schema::new_with_metadata(fields, schema.metadata().clone()));
    match FileWriter::try_new(to, &schema) {
        Ok(writer) => Ok(Box::new(IpcFile { writer, schema, resolved })),
        Err(error) => Err(failure(Format::Arrow, error.into(), output)),
    }
}

/// The same type without dictionaries, down to the children of lists and structs.
fn resolve(data_type: &DataType) -> DataType {
    let child = |field: &Arc<Field>| {
        let data_type = resolve(field.data_type());
        Arc::new(field.as_ref().clone().with_data_type(data_type))
    };
    match data_type {
        DataType::Dictionary(_, values) => resolve(values),
        DataType::List(field) => DataType::List(child(field)),
        DataType::LargeList(field) => DataType::LargeList(child(field)),
        DataType::FixedSizeList(field, len) => DataType::FixedSizeList(child(field), *len),
        DataType::Struct(fields) => DataType::Struct(fields.iter().map(child).collect()),
        other => other.clone(),
    }
}

impl BatchWriter for IpcFile {
    fn write(&mut self, batch: &RecordBatch) -> Result<(), WriteError> {
        if self.resolved.is_empty() {
            return Ok(self.writer.write(batch)?);
        }
        let columns = batch.columns().iter().zip(self.schema.fields());
        let columns = columns.map(|(column, field)| cast(column, field.data_type())).collect::<Result<_, _>>()?;
        let options = RecordBatchOptions::new().with_row_count(Some(batch.num_rows()));
        Ok(self.writer.write(&RecordBatch::try_new_with_options(self.schema.clone(), columns, &options)?)?)
    }

    fn finish(mut self: Box<Self>) -> Result<(), WriteError> {
        self.writer.finish()?;
        Ok(self.writer.into_inner()?.flush()?)
    }

    fn notes(&self) -> Vec<String> {
        if self.resolved.is_empty() {
            return Vec::new();
        }
        let columns = self.resolved.join(", ");
        vec![format!(
            "dictionaries are written as plain values ({columns}): an Arrow file has one dictionary a column; an .arrows \
             stream keeps them"
        )]
    }
}

struct IpcStream {
    writer: StreamWriter<OutputWriter>,
}

/// A writer of the stream format.
pub(super) fn stream(schema: &SchemaRef, to: OutputWriter, output: &Output) -> Result<Box<dyn BatchWriter>, Failure> {
    match StreamWriter::try_new(to, schema) {
        Ok(writer) => Ok(Box::new(IpcStream { writer })),
        Err(error) => Err(failure(Format::Arrow, error.into(), output)),
    }
}

impl BatchWriter for IpcStream {
    fn write(&mut self, batch: &RecordBatch) -> Result<(), WriteError> {
        Ok(self.writer.write(batch)?)
    }

    fn finish(mut self: Box<Self>) -> Result<(), WriteError> {
        self.writer.finish()?;
        Ok(self.writer.into_inner()?.flush()?)
    }
}
