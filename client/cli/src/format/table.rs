//! Tables as text.

use std::fmt::Write as _;
use std::io::Write as _;

use arrow::array::{RecordBatch, new_empty_array};
use arrow::datatypes::{DataType, SchemaRef};
use comfy_table::{Cell, CellAlignment, ContentArrangement, Table as Drawn, presets};

use super::kind::Format;
use super::retype::{Retyped, values};
use super::value::texts;
use super::writer::{BatchWriter, WriteError, failure};
use crate::failure::Failure;
use crate::output::{Output, OutputWriter};
use thallus_fabric::units::grouped;

/// Most characters of a value on a terminal.
pub(super) const TERMINAL_CELL: usize = 500;

/// Most characters of a value elsewhere. A table takes time for each of them in each of its lines, and a longer value
/// makes no line that is read.
const CELL: usize = 100_000;

/// Formats the first rows as they arrive, so that no batch is held, and counts the others.
pub(super) struct Table {
    to: OutputWriter,
    retyped: Retyped,
    drawn: Drawn,
    max_rows: usize,
    shown: usize,
    rows: u64,
    max_cell: usize,
}

impl Table {
    /// # Errors
    /// [`Failure::Format`] if a column has no texts.
    pub(super) fn new(schema: &SchemaRef, to: OutputWriter, max_rows: usize, output: &Output) -> Result<Self, Failure> {
        let refused = |error| failure(Format::Table, error, output);
        let (terminal, retyped) = (output.is_terminal(), Retyped::new(schema, values).map_err(refused)?);
        for field in retyped.schema().fields() {
            let tried = texts(&new_empty_array(field.data_type()), "NULL").map(|_| ());
            tried.map_err(|error| refused(WriteError::column(field, error)))?;
        }
        let mut drawn = Drawn::new();
        drawn.load_preset(presets::UTF8_FULL_CONDENSED);
        // Wrapped to the terminal's width; unlimited elsewhere.
        let arrangement = if terminal { ContentArrangement::Dynamic } else { ContentArrangement::Disabled };
        drawn.set_content_arrangement(arrangement);
        drawn.set_header(schema.fields().iter().map(|field| printable(field.name(), TERMINAL_CELL)));
        for (column, field) in drawn.column_iter_mut().zip(schema.fields()) {
            if is_number(field.data_type()) {
                column.set_cell_alignment(CellAlignment::Right);
            }
        }
        let max_cell = if terminal { TERMINAL_CELL } else { CELL };
        Ok(Table { to, retyped, drawn, max_rows, shown: 0, rows: 0, max_cell })
    }
}

impl BatchWriter for Table {
    fn write(&mut self, batch: &RecordBatch) -> Result<(), WriteError> {
        let wanted = batch.num_rows().min(self.max_rows - self.shown);
        if wanted > 0 {
            let shown = self.retyped.apply(&batch.slice(0, wanted))?;
            let schema = shown.schema();
            let columns = schema.fields().iter().zip(shown.columns());
            let columns = columns.map(|(field, column)| {
                let texts = texts(column, "NULL").map_err(|error| WriteError::column(field, error))?;
                Ok::<_, WriteError>((field, texts))
            });
            let columns = columns.collect::<Result<Vec<_>, _>>()?;
            for row in 0..wanted {
                let mut cells = Vec::with_capacity(columns.len());
                for (field, texts) in &columns {
                    let text = texts.value(row).try_to_string().map_err(|error| WriteError::column(field, error))?;
                    cells.push(Cell::new(printable(&text, self.max_cell)));
                }
                self.drawn.add_row(cells);
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
        if !self.retyped.schema().fields().is_empty() {
            for line in self.drawn.lines() {
                writeln!(self.to, "{}", line.trim_end())?;
            }
        }
        writeln!(self.to, "{}", number_of_rows(self.shown as u64, self.rows))?;
        Ok(self.to.flush()?)
    }
}

/// The last line of a table.
pub(super) fn number_of_rows(shown: u64, all: u64) -> String {
    let rows = |count: u64| format!("{} row{}", grouped(count), if count == 1 { "" } else { "s" });
    match all - shown {
        0 => rows(shown),
        omitted => format!(
            "{} shown, {} more left out: see them with --max-rows {all}, or write all to a file with --output",
            rows(shown),
            grouped(omitted)
        ),
    }
}

fn is_number(data_type: &DataType) -> bool {
    match data_type {
        DataType::Dictionary(_, values) => is_number(values),
        other => other.is_numeric(),
    }
}

/// Escapes characters that would break the table's lines or control the terminal.
pub(super) fn printable(text: &str, max: usize) -> String {
    let mut shown = String::with_capacity(text.len().min(max));
    for (i, c) in text.chars().enumerate() {
        if i == max {
            shown.push('…');
            break;
        }
        // Marks that change the direction of writing would hide the text.
        if c.is_control() || matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}') {
            // Writing to a String cannot fail.
            let _ = write!(shown, "{}", c.escape_default());
        } else {
            shown.push(c);
        }
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn data_does_not_control_the_terminal() {
        assert_eq!(printable("a\nb\u{1b}[31m\u{202e}é", 100), "a\\nb\\u{1b}[31m\\u{202e}é");
        assert_eq!(printable("abcdef", 3), "abc…");
        assert_eq!(printable("abc", 3), "abc");
    }
}
