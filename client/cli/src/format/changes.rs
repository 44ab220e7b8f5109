//! The result of a statement that changes rows or tables, for people.

use std::io::Write as _;

use arrow::array::{AsArray, RecordBatch};
use arrow::datatypes::UInt64Type;

use super::writer::{BatchWriter, WriteError};
use crate::output::OutputWriter;
use thallus_fabric::units::grouped;

/// Writes the number of changed rows.
pub(super) struct Changes {
    to: OutputWriter,
    rows: u64,
}

impl Changes {
    pub(super) fn new(to: OutputWriter) -> Self {
        Changes { to, rows: 0 }
    }
}

impl BatchWriter for Changes {
    fn write(&mut self, batch: &RecordBatch) -> Result<(), WriteError> {
        let counts = batch.columns().first().and_then(|column| column.as_primitive_opt::<UInt64Type>());
        for count in counts.into_iter().flatten().flatten() {
            self.rows = self.rows.saturating_add(count);
        }
        Ok(())
    }

    fn finish(mut self: Box<Self>) -> Result<(), WriteError> {
        writeln!(self.to, "{}", rows_changed(self.rows))?;
        Ok(self.to.flush()?)
    }
}

fn rows_changed(rows: u64) -> String {
    format!("{} row{} changed", grouped(rows), if rows == 1 { "" } else { "s" })
}
