//! A dictionary that several batches of a stream share is lent once, and the borrower keeps it.

use std::sync::Arc;

use arrow_array::cast::AsArray;
use arrow_array::types::Int32Type;
use arrow_array::{Array, ArrayRef, DictionaryArray, Int32Array, RecordBatch, StringArray};
use arrow_buffer::{Buffer, MutableBuffer};
use arrow_schema::{DataType, Field, Schema};
use proptest::prelude::*;
use thallus_protocol::layout::{
    self, BatchDescriptor, CheckedDescriptor, Described, Detail, KeptDictionaries, LayoutError, LayoutLimits,
    LayoutProblem, LentDictionaries, NodeDescriptor, Plan, Projection, column_bytes, rebuild_after,
};
use thallus_protocol_testing::{Distrust, arb_batches, same_batch};

fn plan(batch: &RecordBatch) -> Plan {
    Plan::new(&batch.schema()).unwrap()
}

fn describe_compact(batch: &RecordBatch) -> Described {
    layout::describe_compact(&plan(batch), batch).unwrap()
}

fn describe_after(batch: &RecordBatch, before: &LentDictionaries) -> Described {
    layout::describe_after(&plan(batch), batch, before).unwrap()
}

fn check(like: &RecordBatch, descriptor: &BatchDescriptor) -> CheckedDescriptor {
    layout::check(&plan(like), descriptor.clone(), &LayoutLimits::default()).unwrap()
}

/// Both ends of a stream.
#[derive(Default)]
struct Ends {
    lent: LentDictionaries,
    kept: KeptDictionaries,
}

impl Ends {
    /// Sends a batch. Returns the received batch, the number of bytes moved, and the slab that contains them.
    fn send(&mut self, batch: &RecordBatch) -> (RecordBatch, u64, Buffer) {
        let Described { descriptor, buffers, dictionaries, spared, .. } = describe_after(batch, &self.lent);
        let complete = describe_compact(batch).descriptor;
        assert_eq!(descriptor.is_complete(), descriptor == complete);
        assert!(spared == 0 || !descriptor.is_complete());
        self.lent = dictionaries;
        let (moved, slab) = (descriptor.live_bytes(), slab(batch, &descriptor, &buffers));
        (self.receive(batch, &descriptor, &slab).unwrap(), moved, slab)
    }

    fn receive(
        &mut self,
        like: &RecordBatch,
        descriptor: &BatchDescriptor,
        slab: &Buffer,
    ) -> Result<RecordBatch, LayoutError> {
        let checked = check(like, descriptor);
        let cut = checked
            .layout()
            .ranges
            .iter()
            .map(|range| slab.slice_with_length(range.offset as usize, range.len as usize));
        rebuild_after(&checked, &cut.collect::<Vec<_>>(), &mut self.kept, &Distrust)
    }
}

fn slab(like: &RecordBatch, descriptor: &BatchDescriptor, lent: &[Buffer]) -> Buffer {
    let checked = check(like, descriptor);
    let layout = checked.layout();
    let mut slab = MutableBuffer::from_len_zeroed(layout.len as usize);
    for (range, buffer) in layout.ranges.iter().zip(lent) {
        slab.as_slice_mut()[range.offset as usize..][..range.len as usize].copy_from_slice(buffer);
    }
    slab.into()
}

fn words(count: usize, prefix: &str) -> ArrayRef {
    Arc::new(StringArray::from_iter_values((0..count).map(|i| format!("{prefix}{i:08}"))))
}

/// Rows of keys into `words`, and numbers beside them.
fn batch(words: &ArrayRef, rows: usize) -> RecordBatch {
    let keys = (0..rows).map(|row| (row % 7 > 0).then_some((row % words.len()) as i32));
    let dictionary = DictionaryArray::<Int32Type>::new(keys.collect(), words.clone());
    let numbers = Int32Array::from_iter_values(0..rows as i32);
    let columns: [(&str, ArrayRef); 2] = [("word", Arc::new(dictionary)), ("number", Arc::new(numbers))];
    RecordBatch::try_from_iter_with_nullable(columns.map(|(name, column)| (name, column, true))).unwrap()
}

proptest! {
    /// Batches of any schema, with shared and with different dictionaries.
    #[test]
    fn any_stream_survives(
        batches in arb_batches(3),
        order in prop::collection::vec((0..3_usize, 0..8_usize, 0..8_usize), 1..12),
    ) {
        let mut ends = Ends::default();
        for (which, start, len) in order {
            let batch = &batches[which];
            let start = start.min(batch.num_rows());
            let batch = batch.slice(start, len.min(batch.num_rows() - start));
            let (back, ..) = ends.send(&batch);
            prop_assert_eq!(same_batch(&batch, &back), Ok(()));
        }
    }
}

#[test]
fn a_dictionary_moves_once_until_another_comes() {
    let (a, b) = (words(1000, "a"), words(1000, "b"));
    let (bytes, mut ends) = (1000 * 9 + 1001 * 4, Ends::default());
    let moved = [&a, &a, &a, &b, &b, &a].map(|words| {
        let batch = batch(words, 100);
        let (back, moved, _) = ends.send(&batch);
        assert_eq!(back, batch);
        moved
    });
    let rows = moved[1];
    assert_eq!(moved, [rows + bytes, rows, rows, rows + bytes, rows, rows + bytes]);
    assert!(rows < 1000, "{rows} bytes");
    // An equal dictionary in other memory is another dictionary.
    let (_, moved, _) = ends.send(&batch(&words(1000, "a"), 100));
    assert_eq!(moved, rows + bytes);
}

#[test]
fn a_kept_dictionary_is_copied_out_of_a_slab_that_is_mostly_other_data() {
    // The dictionary is a small part of its batch, or most of it.
    for (count, rows, moves_out) in [(10, 10_000, true), (10_000, 10, false)] {
        let (words, mut ends) = (words(count, "word"), Ends::default());
        let (first, _, slab) = ends.send(&batch(&words, rows));
        let (second, ..) = ends.send(&batch(&words, rows));
        let (third, ..) = ends.send(&batch(&words, rows));
        let at = |batch: &RecordBatch| batch.column(0).as_any_dictionary().values().to_data().buffers()[1].as_ptr();
        assert_eq!(at(&second), at(&third), "the dictionary is moved once");
        assert_eq!(at(&first) != at(&second), moves_out);
        drop((first, second, third));
        assert_eq!(slab.strong_count() == 1, moves_out, "{count} words, {rows} rows");
    }
}

#[test]
fn a_missing_dictionary_is_an_error() {
    let batch = batch(&words(3, ""), 4);
    let mut described = describe_compact(&batch);
    described.descriptor.nodes[0].detail = Detail::SameValues;
    described.descriptor.nodes.remove(1);
    // Validity and keys remain.
    let values = 2..4;
    described.descriptor.buffers.drain(values.clone());
    described.buffers.drain(values);
    let slab = slab(&batch, &described.descriptor, &described.buffers);
    let mut ends = Ends::default();
    let error = ends.receive(&batch, &described.descriptor, &slab).unwrap_err();
    assert!(matches!(error.problem(), LayoutProblem::NoDictionary), "{error}");
    assert_eq!(error.path(), "word.values");
    // Reads of parts of a batch have no dictionary either.
    let alone = Arc::new(check(&batch, &described.descriptor));
    assert!(column_bytes(&alone).is_err());
    assert!(Projection::new(&alone, &[0], 1..2).is_err());
    // If a dictionary is kept, keys are checked against it.
    let (_, _, _) = ends.send(&self::batch(&words(2, ""), 4));
    let error = ends.receive(&batch, &described.descriptor, &slab).unwrap_err();
    assert!(!matches!(error.problem(), LayoutProblem::NoDictionary), "{error}");
}

/// Three dictionaries, each new in another batch: together they may exceed the limit of one batch.
#[test]
fn kept_dictionaries_are_bounded() {
    let columns = |sizes: [usize; 3]| {
        let column = |(index, count): (usize, usize)| {
            let batch = batch(&words(count, "word"), 5);
            (format!("c{index}"), batch.column(0).clone())
        };
        RecordBatch::try_from_iter(sizes.into_iter().enumerate().map(column)).unwrap()
    };
    let size = |count: usize| (count * 12 + (count + 1) * 4) as u64;
    for (max, fits) in [(3 * size(1000), true), (3 * size(1000) - 1, false)] {
        let mut ends = Ends { kept: KeptDictionaries::new(max), ..Ends::default() };
        let mut last = columns([1, 1, 1]);
        ends.send(&last);
        for index in 0..3 {
            // All columns but one are unchanged.
            let new = columns([1000; 3]).column(index).clone();
            let old = last.columns().to_vec();
            let mixed = (0..3).map(|i| (format!("c{i}"), if i == index { new.clone() } else { old[i].clone() }));
            last = RecordBatch::try_from_iter(mixed).unwrap();
            let Described { descriptor, buffers, dictionaries, .. } = describe_after(&last, &ends.lent);
            ends.lent = dictionaries;
            let slab = slab(&last, &descriptor, &buffers);
            let received = ends.receive(&last, &descriptor, &slab);
            assert_eq!(received.is_ok(), fits || index < 2, "{index} of {max} bytes: {received:?}");
        }
    }
}

#[test]
fn only_dictionaries_of_plain_values_are_shared() {
    let keys = DataType::Int32;
    let list = DataType::List(Arc::new(Field::new("item", DataType::Int8, true)));
    for (values, allowed) in
        [(DataType::Utf8, true), (DataType::Utf8View, true), (DataType::Int64, true), (list, false)]
    {
        let schema = Schema::new(vec![Field::new("d", DataType::Dictionary(keys.clone().into(), values.into()), true)]);
        let node = NodeDescriptor { len: 0, nulls: 0, null_bit: 0, detail: Detail::SameValues };
        let descriptor = BatchDescriptor { rows: 0, nodes: vec![node], buffers: vec![0] };
        let schema = Arc::new(schema);
        let checked = layout::check(&Plan::new(&schema).unwrap(), descriptor, &LayoutLimits::default());
        assert_eq!(checked.is_ok(), allowed, "{schema}: {checked:?}");
    }
}
