//! The tables: generated from a seed, so that every process has the same, and held in memory as batches.

mod columns;

use std::collections::BTreeMap;
use std::fs::File;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use arrow::array::{BooleanArray, RecordBatch, UInt32Array};
use arrow::compute::{filter_record_batch, take_record_batch};
use arrow::datatypes::SchemaRef;
use arrow::error::ArrowError;
use arrow::ipc::writer::FileWriter;
use thallus_protocol::layout::{Plan, describe};

use crate::query::{Mode, Query};

pub use columns::NAMES;

/// The batches of a table. A longer result repeats them.
#[derive(Debug)]
pub struct Table {
    pub schema: SchemaRef,
    pub batches: Vec<RecordBatch>,
}

/// All tables, each generated at its first use.
#[derive(Debug, Default)]
pub struct Tables(Mutex<BTreeMap<String, Arc<Table>>>);

impl Tables {
    /// The table of this name.
    pub fn get(&self, name: &str) -> Result<Arc<Table>, String> {
        let mut tables = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(table) = tables.get(name) {
            return Ok(Arc::clone(table));
        }
        let batches = columns::table(name, usize::MAX)?;
        let schema = batches.first().ok_or("a table without batches")?.schema();
        let table = Arc::new(Table { schema, batches });
        tables.insert(name.to_owned(), Arc::clone(&table));
        Ok(table)
    }
}

impl Table {
    /// Number of rows of all batches, each counted once.
    pub fn rows(&self) -> u64 {
        self.batches.iter().map(|batch| batch.num_rows() as u64).sum()
    }

    /// The batches of the query's result, each computed when it is requested.
    pub fn run(
        self: &Arc<Self>,
        query: &Query,
    ) -> impl Iterator<Item = Result<RecordBatch, ArrowError>> + Send + use<> {
        let table = Arc::clone(self);
        let Query { rows, batch, mode, .. } = *query;
        let (mut left, mut number, mut within) = (rows, 0, 0);
        std::iter::from_fn(move || {
            if left == 0 {
                return None;
            }
            let held = &table.batches[number % table.batches.len()];
            let most = (held.num_rows() - within).min(batch.unwrap_or(usize::MAX));
            let len = most.min(usize::try_from(left).unwrap_or(usize::MAX));
            let cut = if len == held.num_rows() { held.clone() } else { held.slice(within, len) };
            left -= len as u64;
            within += len;
            if within == held.num_rows() {
                (number, within) = (number + 1, 0);
            }
            Some(compute(&cut, mode))
        })
        // As an engine that never returns a batch without rows.
        .filter(|batch| batch.as_ref().map_or(true, |batch| batch.num_rows() > 0))
    }

    /// Rows, bytes that the rows use, and batches of a query's result. A dictionary counts once for each batch.
    pub fn size(self: &Arc<Self>, query: &Query) -> Result<Size, String> {
        let mut size = Size::default();
        let plan = Plan::new(&self.schema).map_err(|e| e.to_string())?;
        for batch in self.run(query) {
            let batch = batch.map_err(|e| e.to_string())?;
            let (descriptor, _) = describe(&plan, &batch).map_err(|e| e.to_string())?;
            size.rows += batch.num_rows() as u64;
            size.bytes += descriptor.live_bytes();
            size.batches += 1;
        }
        Ok(size)
    }

    /// Writes the batches as an Arrow IPC file, for contenders in other languages.
    pub fn write(&self, path: &Path) -> Result<(), ArrowError> {
        let mut writer = FileWriter::try_new(File::create(path)?, &self.schema)?;
        for batch in &self.batches {
            writer.write(batch)?;
        }
        writer.finish()
    }
}

/// The first batch of a table. The others are not generated.
pub fn first_batch(name: &str) -> Result<RecordBatch, String> {
    columns::table(name, 1)?.into_iter().next().ok_or_else(|| format!("{name} is empty"))
}

/// Size of a result.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Size {
    pub rows: u64,
    pub bytes: u64,
    pub batches: u64,
}

fn compute(batch: &RecordBatch, mode: Mode) -> Result<RecordBatch, ArrowError> {
    let rows = u32::try_from(batch.num_rows()).map_err(|e| ArrowError::ComputeError(e.to_string()))?;
    match mode {
        Mode::Held => Ok(batch.clone()),
        Mode::Fresh => take_record_batch(batch, &UInt32Array::from_iter_values(0..rows)),
        Mode::Keep(share) => {
            // Fibonacci hashing of the row's number: the kept rows are spread evenly, and are always the same.
            let below = (share.clamp(0.0, 1.0) * f64::from(u32::MAX)) as u32;
            let mask: BooleanArray = (0..rows).map(|row| Some(row.wrapping_mul(0x9E37_79B1) <= below)).collect();
            filter_record_batch(batch, &mask)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_result_has_the_rows_that_were_asked_for_and_goes_round_the_table() {
        let table = Tables::default().get("int4").unwrap();
        let whole = table.rows();
        let query = Query::held("int4", whole + 5);
        assert_eq!(table.size(&query).unwrap().rows, whole + 5);
        let cut = Query { batch: Some(1000), ..Query::held("int4", 2500) };
        let lens: Vec<_> = table.run(&cut).map(|batch| batch.unwrap().num_rows()).collect();
        assert_eq!(lens, [1000, 1000, 500]);
    }

    #[test]
    fn computed_rows_are_the_held_ones_in_memory_of_their_own() {
        for name in NAMES {
            let table = Tables::default().get(name).unwrap();
            let held = Query { batch: Some(100), ..Query::held(name, 100) };
            let fresh = Query { mode: Mode::Fresh, ..held.clone() };
            let (held, fresh): (Vec<_>, Vec<_>) = (table.run(&held).collect(), table.run(&fresh).collect());
            assert_eq!(held[0].as_ref().unwrap(), fresh[0].as_ref().unwrap(), "{name}");
        }
    }

    #[test]
    fn a_filter_keeps_its_share() {
        let table = Tables::default().get("num8").unwrap();
        let size = table.size(&Query { mode: Mode::Keep(0.1), ..Query::held("num8", 100_000) }).unwrap();
        assert!((9_000..11_000).contains(&size.rows), "{size:?}");
    }
}
