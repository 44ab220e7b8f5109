//! Rows as text, with a line for each value: for rows that are wider than the screen.

use std::io::Write as _;

use arrow::array::{RecordBatch, new_empty_array};
use arrow::datatypes::SchemaRef;

use super::kind::Format;
use super::retype::{Retyped, values};
use super::table::{TERMINAL_CELL, number_of_rows, printable};
use super::value::texts;
use super::writer::{BatchWriter, WriteError, failure};
use crate::failure::Failure;
use crate::output::{Output, OutputWriter};
use thallus_fabric::units::grouped;

/// Writes the first rows, and counts the others.
pub(super) struct Expanded {
    to: OutputWriter,
    retyped: Retyped,
    /// The names of the columns, of equal width.
    names: Vec<String>,
    max_rows: usize,
    shown: usize,
    rows: u64,
}

impl Expanded {
    /// # Errors
    /// [`Failure::Format`] if a column has no texts.
    pub(super) fn new(schema: &SchemaRef, to: OutputWriter, max_rows: usize, output: &Output) -> Result<Self, Failure> {
        let refused = |error| failure(Format::Table, error, output);
        let retyped = Retyped::new(schema, values).map_err(refused)?;
        for field in retyped.schema().fields() {
            let tried = texts(&new_empty_array(field.data_type()), "NULL").map(|_| ());
            tried.map_err(|error| refused(WriteError::column(field, error)))?;
        }
        let names: Vec<_> = schema.fields().iter().map(|field| printable(field.name(), TERMINAL_CELL)).collect();
        let width = names.iter().map(|name| name.chars().count()).max().unwrap_or(0);
        let names = names.iter().map(|name| format!("{name:<width$}")).collect();
        Ok(Expanded { to, retyped, names, max_rows, shown: 0, rows: 0 })
    }
}

impl BatchWriter for Expanded {
    fn write(&mut self, batch: &RecordBatch) -> Result<(), WriteError> {
        let wanted = batch.num_rows().min(self.max_rows - self.shown);
        let shown = self.retyped.apply(&batch.slice(0, wanted))?;
        let schema = shown.schema();
        let columns = schema.fields().iter().zip(shown.columns()).map(|(field, column)| {
            let texts = texts(column, "NULL").map_err(|error| WriteError::column(field, error))?;
            Ok::<_, WriteError>((field, texts))
        });
        let columns = columns.collect::<Result<Vec<_>, _>>()?;
        for row in 0..wanted {
            writeln!(self.to, "── row {} ──", grouped((self.shown + row) as u64 + 1))?;
            for (name, (field, texts)) in self.names.iter().zip(&columns) {
                let text = texts.value(row).try_to_string().map_err(|error| WriteError::column(field, error))?;
                writeln!(self.to, "{name} │ {}", printable(&text, usize::MAX))?;
            }
        }
        self.shown += wanted;
        self.rows += batch.num_rows() as u64;
        Ok(())
    }

    fn add_omitted(&mut self, rows: u64) {
        self.rows += rows;
    }

    fn finish(mut self: Box<Self>) -> Result<(), WriteError> {
        writeln!(self.to, "{}", number_of_rows(self.shown as u64, self.rows))?;
        Ok(self.to.flush()?)
    }
}
