//! Merges several sorted sequences of batches into one, with arrow's row format, which compares rows as bytes.

use std::cmp::Ordering;
use std::collections::VecDeque;

use arrow::array::{Array, RecordBatch};
use arrow::compute::{SortOptions, interleave_record_batch};
use arrow::datatypes::SchemaRef;
use arrow::error::ArrowError;
use arrow::row::{RowConverter, Rows, SortField};
use thallus_protocol::message::SortKey;

/// Rows of a merged batch, unless the query sets another number.
const ROWS: usize = 16 * 1024;
/// Length of a run of rows of one input from which the run is passed on as a slice, without a copy.
const SLICE_FROM: usize = 2048;
/// Most batches of each input in one merged batch. Many small batches would hold much memory for few rows.
const INPUTS_HELD: usize = 16;

/// A batch, and the position that it is merged to.
struct Cursor {
    batch: RecordBatch,
    keys: Rows,
    at: usize,
    /// Its position in [`Merger::held`], once one of its rows is merged.
    held: Option<usize>,
}

/// Consecutive rows of one batch in [`Merger::held`].
#[derive(Clone, Copy)]
struct Run {
    held: usize,
    start: usize,
    len: usize,
}

/// Merges sorted inputs. Of equal rows, those of the earlier input come first.
pub(super) struct Merger {
    columns: Vec<usize>,
    converter: RowConverter,
    /// By input. `None`: the merger wants a batch, or the input has ended.
    cursors: Vec<Option<Cursor>>,
    /// Inputs that have a batch, sorted by their next rows.
    sorted: Vec<usize>,
    runs: Vec<Run>,
    held: Vec<RecordBatch>,
    rows: usize,
    rows_wanted: usize,
    ready: VecDeque<RecordBatch>,
    copied: u64,
}

impl Merger {
    /// Merges `inputs` inputs with this schema by the columns of `order`.
    pub(super) fn new(
        inputs: usize,
        schema: &SchemaRef,
        order: &[SortKey],
        batch_rows: Option<u32>,
    ) -> Result<Self, ArrowError> {
        let columns: Vec<_> = order.iter().map(|key| key.column as usize).collect();
        let field = |key: &SortKey| {
            let options = SortOptions { descending: key.descending, nulls_first: key.nulls_first };
            SortField::new_with_options(schema.field(key.column as usize).data_type().clone(), options)
        };
        let converter = RowConverter::new(order.iter().map(field).collect())?;
        let rows_wanted = batch_rows.map_or(ROWS, |rows| rows.max(1) as usize);
        Ok(Merger {
            columns,
            converter,
            cursors: (0..inputs).map(|_| None).collect(),
            sorted: Vec::with_capacity(inputs),
            runs: Vec::new(),
            held: Vec::new(),
            rows: 0,
            rows_wanted,
            ready: VecDeque::new(),
            copied: 0,
        })
    }

    /// Whether an input has no rows left to merge.
    pub(super) fn wants(&self, input: usize) -> bool {
        self.cursors[input].is_none()
    }

    /// Adds the next batch of an input. Call it only if [`Merger::wants`] is true for the input.
    pub(super) fn push(&mut self, input: usize, batch: RecordBatch) -> Result<(), ArrowError> {
        if batch.num_rows() == 0 {
            return Ok(());
        }
        let columns: Vec<_> = self.columns.iter().map(|column| batch.column(*column).clone()).collect();
        let keys = self.converter.convert_columns(&columns)?;
        self.cursors[input] = Some(Cursor { batch, keys, at: 0, held: None });
        self.insert(input);
        Ok(())
    }

    /// Merges until an input needs another batch, or a merged batch is ready. Call it once every input has a batch or
    /// has ended.
    pub(super) fn merge(&mut self) -> Option<RecordBatch> {
        while self.ready.is_empty() && !self.sorted.is_empty() {
            let input = self.sorted.remove(0);
            let len = self.run_of(input);
            let Some(cursor) = &mut self.cursors[input] else { continue };
            let start = cursor.at;
            cursor.at += len;
            let exhausted = cursor.at == cursor.keys.num_rows();
            self.take(input, start, len);
            if exhausted {
                self.cursors[input] = None;
                break;
            }
            self.insert(input);
        }
        self.ready.pop_front()
    }

    /// The rows merged so far, if any, for when further input is late.
    pub(super) fn flush(&mut self) -> Option<RecordBatch> {
        if self.ready.is_empty() {
            self.gather();
        }
        self.ready.pop_front()
    }

    /// Bytes copied so far.
    pub(super) fn copied(&self) -> u64 {
        self.copied
    }

    fn compare(&self, one: usize, other: usize) -> Ordering {
        match (&self.cursors[one], &self.cursors[other]) {
            (Some(a), Some(b)) => a.keys.row(a.at).cmp(&b.keys.row(b.at)).then(one.cmp(&other)),
            // Only inputs with a cursor are compared.
            _ => one.cmp(&other),
        }
    }

    fn insert(&mut self, input: usize) {
        let place = self.sorted.partition_point(|other| self.compare(*other, input) == Ordering::Less);
        self.sorted.insert(place, input);
    }

    /// Number of rows of the first input that precede the next row of every other input; at least one.
    fn run_of(&self, input: usize) -> usize {
        let Some(first) = &self.cursors[input] else { return 0 };
        let left = first.keys.num_rows() - first.at;
        let Some((next, second)) = self.sorted.first().and_then(|next| Some((*next, self.cursors[*next].as_ref()?)))
        else {
            return left;
        };
        let limit = second.keys.row(second.at);
        let before = |row: usize| first.keys.row(first.at + row).cmp(&limit).then(input.cmp(&next)) == Ordering::Less;
        // Steps that double, then a binary search: short runs cost little, long runs not much more.
        let mut step = 1;
        while step < left && before(step) {
            step *= 2;
        }
        let (mut from, mut to) = (step / 2, step.min(left));
        while to - from > 1 {
            let middle = from + (to - from) / 2;
            if before(middle) { from = middle } else { to = middle }
        }
        from + 1
    }

    fn take(&mut self, input: usize, start: usize, len: usize) {
        let Some(cursor) = &self.cursors[input] else { return };
        if len >= SLICE_FROM.min(self.rows_wanted) {
            let slice = cursor.batch.slice(start, len);
            self.gather();
            self.ready.push_back(slice);
            return;
        }
        if self.rows + len > self.rows_wanted {
            self.gather();
        }
        let Some(cursor) = &mut self.cursors[input] else { return };
        let held = *cursor.held.get_or_insert_with(|| {
            self.held.push(cursor.batch.clone());
            self.held.len() - 1
        });
        match self.runs.last_mut() {
            Some(last) if last.held == held && last.start + last.len == start => last.len += len,
            _ => self.runs.push(Run { held, start, len }),
        }
        self.rows += len;
        if self.rows >= self.rows_wanted || self.held.len() >= INPUTS_HELD * self.cursors.len() {
            self.gather();
        }
    }

    /// Makes a batch of the runs so far.
    fn gather(&mut self) {
        let (runs, held) = (std::mem::take(&mut self.runs), std::mem::take(&mut self.held));
        self.cursors.iter_mut().flatten().for_each(|cursor| cursor.held = None);
        let rows = std::mem::take(&mut self.rows);
        let slice = |run: &Run| held[run.held].slice(run.start, run.len);
        if let [run] = runs[..] {
            self.ready.push_back(slice(&run));
            return;
        }
        if runs.is_empty() {
            return;
        }
        let mut places = Vec::with_capacity(rows);
        places.extend(runs.iter().flat_map(|run| (run.start..run.start + run.len).map(|row| (run.held, row))));
        let batches: Vec<_> = held.iter().collect();
        match interleave_record_batch(&batches, &places) {
            Ok(batch) => {
                let bytes = batch.columns().iter().map(|column| column.to_data().get_slice_memory_size().unwrap_or(0));
                self.copied += bytes.sum::<usize>() as u64;
                self.ready.push_back(batch);
            }
            // A type that arrow cannot interleave, or dictionaries that do not fit into one: pass the runs on as
            // smaller batches.
            Err(_) => self.ready.extend(runs.iter().map(slice)),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::array::{ArrayRef, Int8Array, Int64Array, StringViewArray, UInt32Array};
    use arrow::compute::{concat_batches, take_record_batch};
    use proptest::prelude::*;

    use super::*;

    /// A row: two keys, and an identity.
    type Row = (Option<i8>, String, i64);

    fn batch(rows: &[Row]) -> RecordBatch {
        let columns: [(&str, ArrayRef, bool); 3] = [
            ("who", Arc::new(rows.iter().map(|row| row.2).collect::<Int64Array>()), false),
            ("name", Arc::new(rows.iter().map(|row| Some(&*row.1)).collect::<StringViewArray>()), true),
            ("number", Arc::new(rows.iter().map(|row| row.0).collect::<Int8Array>()), true),
        ];
        RecordBatch::try_from_iter_with_nullable(columns).unwrap()
    }

    fn keys(number: (bool, bool), name: (bool, bool)) -> Vec<SortKey> {
        let key = |column, (descending, nulls_first)| SortKey { column, descending, nulls_first };
        vec![key(2, number), key(1, name)]
    }

    /// The rows in order; equal rows keep their sequence.
    fn sorted(batch: &RecordBatch, order: &[SortKey]) -> RecordBatch {
        let field = |key: &SortKey| {
            let options = SortOptions { descending: key.descending, nulls_first: key.nulls_first };
            SortField::new_with_options(batch.column(key.column as usize).data_type().clone(), options)
        };
        let columns: Vec<_> = order.iter().map(|key| batch.column(key.column as usize).clone()).collect();
        let converter = RowConverter::new(order.iter().map(field).collect()).unwrap();
        let rows = converter.convert_columns(&columns).unwrap();
        let mut places: Vec<u32> = (0..batch.num_rows() as u32).collect();
        places.sort_by_key(|place| rows.row(*place as usize));
        take_record_batch(batch, &UInt32Array::from(places)).unwrap()
    }

    /// Merges inputs that are cut into batches of at most `cut` rows; `late` decides which input comes late.
    fn merged(
        inputs: &[RecordBatch],
        order: &[SortKey],
        cut: usize,
        batch_rows: Option<u32>,
        late: &[bool],
    ) -> Vec<RecordBatch> {
        let mut merger = Merger::new(inputs.len(), &inputs[0].schema(), order, batch_rows).unwrap();
        let (mut taken, mut late) = (vec![0; inputs.len()], late.iter().copied());
        let mut out = Vec::new();
        loop {
            let mut waits = false;
            for (at, input) in inputs.iter().enumerate() {
                if merger.wants(at) && taken[at] < input.num_rows() {
                    if late.next() == Some(true) {
                        waits = true;
                        continue;
                    }
                    let len = cut.min(input.num_rows() - taken[at]);
                    merger.push(at, input.slice(taken[at], len)).unwrap();
                    taken[at] += len;
                }
            }
            let over = (0..inputs.len()).all(|at| merger.wants(at) && taken[at] == inputs[at].num_rows());
            let batch = if waits { merger.flush() } else { merger.merge() };
            match batch {
                Some(batch) => out.push(batch),
                None if over => {
                    out.extend(merger.flush());
                    return out;
                }
                None => {}
            }
        }
    }

    proptest! {
        #[test]
        fn is_a_stable_sort_of_all_inputs(
            inputs in prop::collection::vec(
                prop::collection::vec((prop::option::of(-3..3_i8), "[ab]{0,2}"), 0..40), 1..6),
            number: (bool, bool), name: (bool, bool),
            cut in 1..30_usize,
            batch_rows in prop::option::of(1..20_u32),
            late in prop::collection::vec(any::<bool>(), 0..40),
        ) {
            let order = keys(number, name);
            let mut who = 0;
            let inputs: Vec<_> = inputs.into_iter().map(|rows| {
                let rows: Vec<Row> = rows.into_iter().map(|(number, name)| { who += 1; (number, name, who) }).collect();
                sorted(&batch(&rows), &order)
            }).collect();
            let out = merged(&inputs, &order, cut, batch_rows, &late);
            for batch in &out {
                prop_assert!(batch.num_rows() > 0);
                if let Some(rows) = batch_rows.filter(|rows| *rows as usize >= cut) {
                    prop_assert!(batch.num_rows() <= rows as usize);
                }
            }
            let schema = inputs[0].schema();
            let expected = sorted(&concat_batches(&schema, &inputs).unwrap(), &order);
            prop_assert_eq!(concat_batches(&schema, &out).unwrap(), expected);
        }
    }

    #[test]
    fn long_runs_are_not_copied() {
        let ids =
            |from: i64, rows: i64| batch(&(from..from + rows).map(|id| (None, String::new(), id)).collect::<Vec<_>>());
        let order = [SortKey { column: 0, descending: false, nulls_first: false }];
        let inputs = [ids(0, 10_000), ids(10_000, 10_000)];
        let mut merger = Merger::new(2, &inputs[0].schema(), &order, None).unwrap();
        inputs.iter().enumerate().for_each(|(at, input)| merger.push(at, input.clone()).unwrap());
        let first = merger.merge().unwrap();
        assert_eq!(first, inputs[0]);
        assert_eq!(
            first.column(0).to_data().buffers()[0].as_ptr(),
            inputs[0].column(0).to_data().buffers()[0].as_ptr()
        );
        assert_eq!((merger.merge().unwrap(), merger.copied()), (inputs[1].clone(), 0));
    }

    #[test]
    fn merged_rows_do_not_wait_for_a_late_input() {
        let ids = |ids: &[i64]| batch(&ids.iter().map(|id| (None, String::new(), *id)).collect::<Vec<_>>());
        let order = [SortKey { column: 0, descending: false, nulls_first: false }];
        let mut merger = Merger::new(2, &ids(&[]).schema(), &order, None).unwrap();
        merger.push(0, ids(&[1, 3, 5])).unwrap();
        merger.push(1, ids(&[2, 4])).unwrap();
        assert!(merger.merge().is_none() && merger.wants(1) && !merger.wants(0));
        assert_eq!(merger.flush().unwrap(), ids(&[1, 2, 3, 4]));
        assert!(merger.flush().is_none(), "another row may precede 5");
        assert!(merger.copied() > 0);
    }
}
