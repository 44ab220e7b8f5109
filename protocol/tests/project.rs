//! Any columns and rows of any batch are read correctly and without unneeded bytes. Hostile input is refused or
//! harmless.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use arrow_array::builder::StringViewBuilder;
use arrow_array::types::Int32Type;
use arrow_array::{
    Array, ArrayRef, BooleanArray, Int32Array, Int64Array, ListArray, RecordBatch, RunArray, StringArray,
};
use arrow_buffer::Buffer;
use arrow_schema::SchemaRef;
use proptest::prelude::*;
use thallus_protocol::layout::{
    self, BatchDescriptor, CheckedDescriptor, LayoutError, LayoutLimits, LayoutProblem, MAX_DEPTH, Piece, Plan,
    Projection, Step, column_bytes,
};
use thallus_protocol_testing::{Dice, arb_batch, mutate_bytes, mutate_descriptor, same_batch};

/// Pieces read in each round.
type Rounds = Vec<Vec<Piece>>;

fn describe(batch: &RecordBatch) -> Result<(BatchDescriptor, Vec<Buffer>), LayoutError> {
    layout::describe(&Plan::new(&batch.schema())?, batch)
}

fn checked(schema: &SchemaRef, descriptor: &BatchDescriptor) -> Result<Arc<CheckedDescriptor>, LayoutError> {
    let limits = LayoutLimits { max_bytes: 1 << 20, max_len: 1 << 20, max_buffers: 1 << 10 };
    layout::check(&Plan::new(schema)?, descriptor.clone(), &limits).map(Arc::new)
}

fn project(
    schema: &SchemaRef,
    descriptor: &BatchDescriptor,
    lent: &[Buffer],
    columns: &[usize],
    rows: Range<u64>,
) -> Result<(RecordBatch, Rounds), LayoutError> {
    let mut projection = Projection::new(&checked(schema, descriptor)?, columns, rows)?;
    let mut rounds = Vec::new();
    loop {
        match projection.step()? {
            Step::Done(batch) => return Ok((batch, rounds)),
            Step::Read(pieces) => {
                // Each level of nesting takes one round, and run ends take one more.
                assert!(rounds.len() < 2 * MAX_DEPTH, "too many rounds: {rounds:?}");
                let bytes = |piece: &Piece| {
                    assert!(piece.len > 0);
                    assert!(piece.offset + piece.len <= descriptor.buffers[piece.buffer], "{piece:?}");
                    // In memory of its own, as for a real read.
                    Buffer::from_slice_ref(&lent[piece.buffer][piece.offset as usize..][..piece.len as usize])
                };
                projection.give(pieces.iter().map(bytes).collect());
                rounds.push(pieces);
            }
        }
    }
}

/// Numbers of bytes and rounds. Each byte may be read only once.
fn bytes(rounds: &Rounds) -> (u64, usize) {
    let mut seen: BTreeMap<usize, Vec<Range<u64>>> = BTreeMap::new();
    for piece in rounds.iter().flatten() {
        let (range, others) = (piece.offset..piece.offset + piece.len, seen.entry(piece.buffer).or_default());
        assert!(others.iter().all(|other| other.end <= range.start || range.end <= other.start), "{rounds:?}");
        others.push(range);
    }
    (rounds.iter().flatten().map(|piece| piece.len).sum(), rounds.len())
}

fn of_batch(batch: &RecordBatch, columns: &[usize], rows: Range<u64>) -> (u64, usize) {
    let (descriptor, lent) = describe(batch).unwrap();
    let (found, rounds) = project(&batch.schema(), &descriptor, &lent, columns, rows.clone()).unwrap();
    let expected = batch.project(columns).unwrap().slice(rows.start as usize, (rows.end - rows.start) as usize);
    assert_eq!(same_batch(&found, &expected), Ok(()));
    bytes(&rounds)
}

fn arb_selection() -> impl Strategy<Value = (RecordBatch, Vec<usize>, Range<u64>)> {
    (arb_batch(), prop::collection::vec(any::<prop::sample::Index>(), 0..4), any::<[prop::sample::Index; 2]>())
        .prop_map(|(batch, columns, ends)| {
            let of = batch.num_columns();
            let columns = columns.iter().filter(|_| of > 0).map(|index| index.index(of)).collect();
            let mut ends = ends.map(|index| index.index(batch.num_rows() + 1) as u64);
            ends.sort_unstable();
            (batch, columns, ends[0]..ends[1])
        })
}

// 256 cases each; PROPTEST_CASES sets another number.
proptest! {
    #[test]
    fn any_columns_and_rows_are_those_of_the_batch((batch, columns, rows) in arb_selection()) {
        let (descriptor, lent) = describe(&batch).unwrap();
        let (found, rounds) = project(&batch.schema(), &descriptor, &lent, &columns, rows.clone()).unwrap();
        for column in found.columns() {
            column.to_data().validate_full().unwrap();
        }
        let expected = batch.project(&columns).unwrap().slice(rows.start as usize, (rows.end - rows.start) as usize);
        prop_assert_eq!(same_batch(&found, &expected), Ok(()));
        let all = column_bytes(&checked(&batch.schema(), &descriptor).unwrap()).unwrap();
        prop_assert_eq!(all.iter().sum::<u64>(), descriptor.live_bytes());
        let distinct: std::collections::BTreeSet<_> = columns.iter().collect();
        prop_assert!(bytes(&rounds).0 <= distinct.iter().map(|column| all[**column]).sum());
    }

    #[test]
    fn whole_columns_take_one_round((batch, columns, _) in arb_selection()) {
        let rows = batch.num_rows() as u64;
        let (_, rounds) = of_batch(&batch, &columns, 0..rows);
        prop_assert!(rounds <= 1);
    }

    #[test]
    fn no_rows_take_no_round((batch, columns, rows) in arb_selection()) {
        prop_assert_eq!(of_batch(&batch, &columns, rows.start..rows.start), (0, 0));
    }

    #[test]
    fn hostile_bytes_are_refused_or_harmless((batch, columns, rows) in arb_selection(), seed in any::<u64>()) {
        let (descriptor, lent) = describe(&batch).unwrap();
        let mut dice = Dice::new(seed);
        let mut lent: Vec<Vec<u8>> = lent.iter().map(|buffer| buffer.to_vec()).collect();
        let filled: Vec<usize> = (0..lent.len()).filter(|index| !lent[*index].is_empty()).collect();
        for _ in 0..if filled.is_empty() { 0 } else { 3 } {
            mutate_bytes(&mut lent[filled[dice.below(filled.len())]], &mut dice);
        }
        let lent: Vec<Buffer> = lent.into_iter().map(Buffer::from_vec).collect();
        if let Ok((found, _)) = project(&batch.schema(), &descriptor, &lent, &columns, rows) {
            for column in found.columns() {
                column.to_data().validate_full().unwrap();
            }
        }
    }

    #[test]
    fn a_hostile_descriptor_is_refused_or_harmless(
        (batch, columns, rows, descriptor) in arb_selection().prop_flat_map(|(batch, columns, rows)| {
            let (descriptor, _) = describe(&batch).unwrap();
            (Just(batch), Just(columns), Just(rows), mutate_descriptor(descriptor))
        }),
        seed in any::<u64>(),
    ) {
        let schema = batch.schema();
        // A lazy batch is checked before it is announced.
        if checked(&schema, &descriptor).is_ok() {
            let mut dice = Dice::new(seed);
            let lent = descriptor.buffers.iter().map(|len| Buffer::from_vec(dice.bytes(*len as usize)));
            let lent: Vec<Buffer> = lent.collect();
            let rows = rows.start.min(descriptor.rows)..rows.end.min(descriptor.rows);
            if let Ok((found, _)) = project(&schema, &descriptor, &lent, &columns, rows) {
                for column in found.columns() {
                    column.to_data().validate_full().unwrap();
                }
            }
        }
    }
}

fn one(name: &str, column: impl Array + 'static) -> RecordBatch {
    RecordBatch::try_from_iter_with_nullable([(name, Arc::new(column) as ArrayRef, true)]).unwrap()
}

#[test]
fn rows_read_their_numbers_and_the_bytes_with_their_bits() {
    let numbers = one("n", (0..1000).collect::<Int64Array>());
    assert_eq!(of_batch(&numbers, &[0], 10..20), (80, 1));
    let nulls = one("n", (0..1000).map(|n| (n % 2 == 0).then_some(n)).collect::<Int64Array>());
    // Bits 15, 16 and 17 are in two bytes.
    assert_eq!(of_batch(&nulls, &[0], 15..18), (24 + 2, 1));
    let bits = one("b", (0..1000).map(|n| Some(n % 3 == 0)).collect::<BooleanArray>());
    assert_eq!(of_batch(&bits, &[0], 8..16), (1, 1));
}

#[test]
fn strings_read_their_offsets_first_and_then_their_bytes() {
    let texts = one("t", (0..1000).map(|n| Some(format!("{n:010}"))).collect::<StringArray>());
    assert_eq!(of_batch(&texts, &[0], 500..503), (4 * 4 + 3 * 10, 2));
    // A slice, whose offsets do not begin at zero.
    assert_eq!(of_batch(&texts.slice(100, 800), &[0], 500..503), (4 * 4 + 3 * 10, 2));
}

#[test]
fn views_read_only_the_bytes_that_the_rows_reference() {
    let mut builder = StringViewBuilder::new().with_fixed_block_size(1 << 16);
    (0..1000).for_each(|n| builder.append_value(format!("{n:020}")));
    let views = one("v", builder.finish());
    assert_eq!(of_batch(&views, &[0], 500..503), (3 * 16 + 3 * 20, 2));
    let short = one("v", StringArray::from(vec!["short"; 100]));
    let short = RecordBatch::try_from_iter([("v", arrow_view(&short))]).unwrap();
    assert_eq!(of_batch(&short, &[0], 50..53), (3 * 16, 1));
}

fn arrow_view(batch: &RecordBatch) -> ArrayRef {
    let texts: &StringArray = batch.column(0).as_any().downcast_ref().unwrap();
    Arc::new(texts.iter().collect::<arrow_array::StringViewArray>())
}

#[test]
fn each_level_of_lists_takes_one_round() {
    let lists = |n: i32| Some((0..4).map(move |i| Some(n * 4 + i)));
    let lists = one("l", ListArray::from_iter_primitive::<Int32Type, _, _>((0..100).map(lists)));
    assert_eq!(of_batch(&lists, &[0], 50..52), (3 * 4 + 8 * 4, 2));
}

#[test]
fn runs_read_all_ends_and_the_values_of_the_runs_of_the_rows() {
    let values = Int64Array::from_iter_values(0..100);
    let ends = Int32Array::from_iter_values((1..=100).map(|run| run * 10));
    let runs = one("r", RunArray::try_new(&ends, &values).unwrap());
    // Rows 95 to 115 are in runs 9, 10 and 11.
    assert_eq!(of_batch(&runs, &[0], 95..115), (100 * 4 + 3 * 8, 2));
}

#[test]
fn one_column_of_many_reads_only_its_bytes() {
    let columns = (0..50).map(|n| (format!("c{n}"), Arc::new(Int64Array::from_iter_values(0..1000)) as ArrayRef));
    let batch = RecordBatch::try_from_iter(columns).unwrap();
    assert_eq!(of_batch(&batch, &[7], 0..1000), (8000, 1));
    // A column requested twice is read once.
    assert_eq!(of_batch(&batch, &[7, 3, 7], 0..1000), (16_000, 1));
    assert_eq!(of_batch(&batch, &[], 0..1000), (0, 0));
    let (descriptor, _) = describe(&batch).unwrap();
    assert_eq!(column_bytes(&checked(&batch.schema(), &descriptor).unwrap()).unwrap(), [8000; 50]);
}

#[test]
fn a_column_or_row_out_of_range_is_an_error() {
    let batch = one("n", Int64Array::from_iter_values(0..10));
    let (descriptor, _) = describe(&batch).unwrap();
    let descriptor = checked(&batch.schema(), &descriptor).unwrap();
    let refused = |columns: &[usize], rows| Projection::new(&descriptor, columns, rows).unwrap_err();
    let error = refused(&[1], 0..10);
    assert!(matches!(error.problem(), LayoutProblem::TooLarge { what: "column", got: 1, limit: 0 }), "{error}");
    for rows in [0..11, Range { start: 5, end: 4 }, 11..11] {
        let error = refused(&[0], rows);
        assert!(matches!(error.problem(), LayoutProblem::TooLarge { what: "row", .. }), "{error}");
    }
}
