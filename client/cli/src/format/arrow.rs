//! Arrow IPC, as a file and as a stream.

use std::io::Write;

use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use arrow::ipc::writer::{FileWriter, StreamWriter};

use super::kind::Format;
use super::plain::Plain;
use super::writer::{BatchWriter, WriteError, failure};
use crate::failure::Failure;
use crate::output::{Output, OutputWriter};

struct IpcFile {
    writer: FileWriter<OutputWriter>,
    plain: Plain,
}

/// A writer of the file format. A file has one dictionary for each column, but a server may send one for each batch, so
/// dictionaries are replaced by their values.
pub(super) fn file(schema: &SchemaRef, to: OutputWriter, output: &Output) -> Result<Box<dyn BatchWriter>, Failure> {
    // A dictionary that cannot be replaced stays. It fits if it is the same in all batches.
    let plain = Plain::new(schema, |_| true);
    match FileWriter::try_new(to, plain.schema()) {
        Ok(writer) => Ok(Box::new(IpcFile { writer, plain })),
        Err(error) => Err(failure(Format::Arrow, error.into(), output)),
    }
}

impl BatchWriter for IpcFile {
    fn write(&mut self, batch: &RecordBatch) -> Result<(), WriteError> {
        Ok(self.writer.write(&self.plain.apply(batch)?)?)
    }

    fn finish(mut self: Box<Self>) -> Result<(), WriteError> {
        self.writer.finish()?;
        Ok(self.writer.into_inner()?.flush()?)
    }

    fn notes(&self) -> Vec<String> {
        if self.plain.resolved().is_empty() {
            return Vec::new();
        }
        let columns = self.plain.resolved().join(", ");
        vec![format!(
            "dictionaries are written as plain values ({columns}): an Arrow file has one dictionary a column; an \
             .arrows stream keeps them"
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
