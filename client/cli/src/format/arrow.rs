//! Arrow IPC, as a file and as a stream.

use std::io::Write;

use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use arrow::ipc::writer::{FileWriter, StreamWriter};

use super::kind::Format;
use super::retype::{Retyped, dictionaries};
use super::writer::{BatchWriter, WriteError, failure};
use crate::failure::Failure;
use crate::output::{Output, OutputWriter};

struct IpcFile {
    writer: FileWriter<OutputWriter>,
    retyped: Retyped,
}

/// A writer of the file format. A file has one dictionary for each column, but a server may send one for each batch, so
/// dictionaries are replaced by their values.
pub(super) fn file(schema: &SchemaRef, to: OutputWriter, output: &Output) -> Result<Box<dyn BatchWriter>, Failure> {
    let retyped = Retyped::new(schema, dictionaries).map_err(|error| failure(Format::Arrow, error, output))?;
    match FileWriter::try_new(to, retyped.schema()) {
        Ok(writer) => Ok(Box::new(IpcFile { writer, retyped })),
        Err(error) => Err(failure(Format::Arrow, error.into(), output)),
    }
}

impl BatchWriter for IpcFile {
    fn write(&mut self, batch: &RecordBatch) -> Result<(), WriteError> {
        Ok(self.writer.write(&self.retyped.apply(batch)?)?)
    }

    fn finish(mut self: Box<Self>) -> Result<(), WriteError> {
        self.writer.finish()?;
        Ok(self.writer.into_inner()?.flush()?)
    }

    fn notes(&self) -> Vec<String> {
        if self.retyped.changed().is_empty() {
            return Vec::new();
        }
        let columns = self.retyped.changed().join(", ");
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
