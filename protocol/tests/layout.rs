//! Any batch survives being described, read into a slab and rebuilt. Hostile input is refused or harmless.

use std::sync::Arc;

use arrow_array::builder::StringViewBuilder;
use arrow_array::types::Int32Type;
use arrow_array::{
    Array, ArrayRef, Int32Array, ListArray, ListViewArray, RecordBatch, RecordBatchOptions, RunArray, StringArray,
    StringViewArray, StructArray, UnionArray,
};
use arrow_buffer::{Buffer, MutableBuffer, OffsetBuffer};
use arrow_data::ByteView;
use arrow_schema::{DataType, Field, Schema, SchemaRef, UnionFields, UnionMode};
use proptest::prelude::*;
use thallus_protocol::layout::{
    self, BatchDescriptor, CheckedDescriptor, Described, Detail, Extent, LayoutError, LayoutLimits, LayoutProblem,
    NodeDescriptor, Plan, SLAB_ALIGNMENT, SlabLayout, rebuild_with,
};
use thallus_protocol_testing::{
    Dice, Distrust, all_types, arb_batch, arb_schema, array, batch, mutate_bytes, mutate_descriptor, same_array,
    same_batch, shared_views,
};

/// Limits that no batch in memory exceeds.
const UNLIMITED: LayoutLimits =
    LayoutLimits { max_bytes: i64::MAX as u64, max_len: i64::MAX as u64, max_buffers: usize::MAX };

fn check(
    schema: &SchemaRef,
    descriptor: &BatchDescriptor,
    limits: &LayoutLimits,
) -> Result<CheckedDescriptor, LayoutError> {
    layout::check(&Plan::new(schema)?, descriptor.clone(), limits)
}

fn describe(batch: &RecordBatch) -> Result<(BatchDescriptor, Vec<Buffer>), LayoutError> {
    layout::describe(&Plan::new(&batch.schema())?, batch)
}

fn describe_compact(batch: &RecordBatch) -> Result<Described, LayoutError> {
    layout::describe_compact(&Plan::new(&batch.schema())?, batch)
}

/// Rebuilds a batch, and panics if Arrow's validation refuses an array that ours accepted.
fn rebuild_checked(descriptor: &CheckedDescriptor, buffers: &[Buffer]) -> Result<RecordBatch, LayoutError> {
    rebuild_with(descriptor, buffers, &Distrust)
}

fn rebuild(schema: &SchemaRef, descriptor: &BatchDescriptor, buffers: &[Buffer]) -> Result<RecordBatch, LayoutError> {
    rebuild_checked(&check(schema, descriptor, &UNLIMITED)?, buffers)
}

/// Copies the lent bytes into a new slab at the offsets from `check`, as a one-sided read does.
fn read(schema: &SchemaRef, descriptor: &BatchDescriptor, lent: &[Buffer]) -> Result<Vec<Buffer>, LayoutError> {
    let checked = check(schema, descriptor, &LayoutLimits::default())?;
    let slab = Buffer::from(slab(checked.layout(), lent));
    Ok(cut(&slab, checked.layout()))
}

/// Does the same as `read`, and rebases views in place.
fn read_and_rebase(
    schema: &SchemaRef,
    descriptor: &BatchDescriptor,
    lent: &[Buffer],
) -> Result<(CheckedDescriptor, Vec<Buffer>), LayoutError> {
    let mut checked = check(schema, descriptor, &LayoutLimits::default())?;
    let mut slab = slab(checked.layout(), lent);
    for rebase in checked.rebases() {
        // In pieces, because the owner of a slab may choose their size.
        let views = &mut slab[rebase.range.offset as usize..][..rebase.range.len as usize];
        views.chunks_mut(16 * 7).for_each(|views| rebase.apply(views));
    }
    let slab = Buffer::from(slab);
    let buffers = cut(&slab, checked.layout());
    Ok((checked, buffers))
}

fn slab(layout: &SlabLayout, lent: &[Buffer]) -> MutableBuffer {
    let mut slab = MutableBuffer::from_len_zeroed(layout.len as usize);
    for (range, buffer) in layout.ranges.iter().zip(lent) {
        assert_eq!(range.offset % SLAB_ALIGNMENT, 0);
        slab.as_slice_mut()[range.offset as usize..][..range.len as usize].copy_from_slice(buffer);
    }
    slab
}

fn cut(slab: &Buffer, layout: &SlabLayout) -> Vec<Buffer> {
    layout.ranges.iter().map(|range| slab.slice_with_length(range.offset as usize, range.len as usize)).collect()
}

fn round_trip(batch: &RecordBatch) -> RecordBatch {
    let (descriptor, lent) = describe(batch).expect("a valid batch can be described");
    assert_eq!(descriptor.live_bytes(), lent.iter().map(|buffer| buffer.len() as u64).sum::<u64>());
    let bytes = postcard::to_stdvec(&descriptor).unwrap();
    let descriptor: BatchDescriptor = postcard::from_bytes(&bytes).unwrap();
    let slices = read(&batch.schema(), &descriptor, &lent).expect("an honest descriptor passes");
    let back = rebuild(&batch.schema(), &descriptor, &slices).expect("honest bytes pass");
    // Also with views rebased in place, and with scattered strings copied side by side.
    let compact = describe_compact(batch).expect("a valid batch can be described");
    for (descriptor, lent) in [(descriptor, lent), (compact.descriptor, compact.buffers)] {
        let (descriptor, read) = read_and_rebase(&batch.schema(), &descriptor, &lent).unwrap();
        let in_place = rebuild_checked(&descriptor, &read).expect("honest bytes pass");
        assert_eq!(same_batch(&back, &in_place), Ok(()));
    }
    back
}

fn is_valid(batch: &RecordBatch) {
    for column in batch.columns() {
        assert_eq!(column.len(), batch.num_rows());
        column.to_data().validate_full().expect("an accepted array is valid");
    }
}

// 256 cases each; PROPTEST_CASES sets another number.
proptest! {
    #[test]
    fn any_batch_survives(batch in arb_batch()) {
        let back = round_trip(&batch);
        is_valid(&back);
        prop_assert_eq!(same_batch(&batch, &back), Ok(()));
    }

    #[test]
    fn a_hostile_descriptor_is_refused_or_harmless(
        (batch, descriptor) in arb_batch().prop_flat_map(|batch| {
            let (descriptor, _) = describe(&batch).unwrap();
            (Just(batch), mutate_descriptor(descriptor))
        }),
        seed in any::<u64>(),
    ) {
        let schema = batch.schema();
        let limits = LayoutLimits { max_bytes: 1 << 20, max_len: 1 << 20, max_buffers: 1 << 10 };
        let (_, lent) = describe(&batch).unwrap();
        // The true bytes under a false descriptor ...
        if let Ok(back) = rebuild(&schema, &descriptor, &lent) {
            is_valid(&back);
        }
        let slab = check(&schema, &descriptor, &limits).ok().filter(|checked| checked.buffers.len() == lent.len());
        let whole = |slab: &SlabLayout| {
            slab.ranges.iter().zip(&lent).all(|(range, buffer)| range.len == buffer.len() as u64)
        };
        if slab.is_some_and(|slab| whole(slab.layout())) {
            let (descriptor, read) = read_and_rebase(&schema, &descriptor, &lent).unwrap();
            if let Ok(back) = rebuild_checked(&descriptor, &read) {
                is_valid(&back);
            }
        }
        // ... and arbitrary bytes of the lengths that it states.
        if let Ok(checked) = check(&schema, &descriptor, &limits) {
            let layout = checked.layout();
            prop_assert!(layout.len <= limits.max_bytes);
            let mut dice = Dice::new(seed);
            let bytes: Vec<_> = layout.ranges.iter().map(|range| {
                let len = range.len as usize;
                let mut bytes = if dice.one_in(2) { vec![0; len] } else { dice.bytes(len) };
                mutate_bytes(&mut bytes, &mut dice);
                Buffer::from_vec(bytes)
            }).collect();
            if let Ok(back) = rebuild_checked(&checked, &bytes) {
                is_valid(&back);
            }
        }
    }

    #[test]
    fn hostile_bytes_are_refused_or_harmless(batch in arb_batch(), seed in any::<u64>()) {
        let (descriptor, lent) = describe(&batch).unwrap();
        let mut dice = Dice::new(seed);
        let mut bytes: Vec<Vec<u8>> = lent.iter().map(|buffer| buffer.to_vec()).collect();
        let filled: Vec<usize> = (0..bytes.len()).filter(|index| !bytes[*index].is_empty()).collect();
        for _ in 0..if filled.is_empty() { 0 } else { 3 } {
            mutate_bytes(&mut bytes[filled[dice.below(filled.len())]], &mut dice);
        }
        let buffers: Vec<Buffer> = bytes.into_iter().map(Buffer::from_vec).collect();
        let copied = rebuild(&batch.schema(), &descriptor, &buffers);
        if let Ok(back) = &copied {
            is_valid(back);
        }
        let (descriptor, read) = read_and_rebase(&batch.schema(), &descriptor, &buffers).unwrap();
        let in_place = rebuild_checked(&descriptor, &read);
        match (copied, in_place) {
            (Ok(copied), Ok(in_place)) => prop_assert_eq!(same_batch(&copied, &in_place), Ok(())),
            (copied, in_place) => prop_assert_eq!(copied.is_ok(), in_place.is_ok()),
        }
    }

    #[test]
    fn views_into_shared_buffers_survive(
        (utf8, nullable, rows, start, seed) in (any::<bool>(), any::<bool>(), 0..200_usize, 0..200_usize, any::<u64>()),
    ) {
        let data_type = if utf8 { DataType::Utf8View } else { DataType::BinaryView };
        let array = shared_views(&data_type, nullable, rows + start, &mut Dice::new(seed)).slice(start, rows);
        let batch = RecordBatch::try_from_iter_with_nullable([("v", array, nullable)]).unwrap();
        let back = round_trip(&batch);
        is_valid(&back);
        prop_assert_eq!(same_batch(&batch, &back), Ok(()));
        let (descriptor, lent) = describe(&batch).unwrap();
        prop_assert!(!lent[1..].iter().any(|buffer| buffer.is_empty()), "an empty data buffer is lent");

        // Null views contain arbitrary bytes.
        let mut dice = Dice::new(seed);
        let mut lent = lent;
        let nulls = batch.column(0).nulls().cloned();
        let at = usize::from(nulls.as_ref().is_some_and(|nulls| nulls.null_count() > 0));
        let mut views = lent[at].to_vec();
        for (at, view) in views.chunks_exact_mut(16).enumerate() {
            if nulls.as_ref().is_some_and(|nulls| nulls.is_null(at)) {
                view.copy_from_slice(&dice.bytes(16));
            }
        }
        lent[at] = Buffer::from_vec(views);
        let (in_place, read) = read_and_rebase(&batch.schema(), &descriptor, &lent).unwrap();
        let as_it_came = check(&batch.schema(), &descriptor, &UNLIMITED).unwrap();
        for (descriptor, lent) in [(&as_it_came, &lent), (&in_place, &read)] {
            let back = rebuild_checked(descriptor, lent).expect("null views are ignored");
            is_valid(&back);
            prop_assert_eq!(same_batch(&batch, &back), Ok(()));
        }
    }

    #[test]
    fn buffers_at_odd_addresses_are_accepted(batch in arb_batch(), shift in 1..16_usize) {
        let (descriptor, lent) = describe(&batch).unwrap();
        let odd: Vec<Buffer> = lent.iter().map(|buffer| {
            let mut bytes = vec![0xaa; shift];
            bytes.extend_from_slice(buffer);
            Buffer::from_vec(bytes).slice(shift)
        }).collect();
        let back = rebuild(&batch.schema(), &descriptor, &odd).unwrap();
        is_valid(&back);
        prop_assert_eq!(same_batch(&batch, &back), Ok(()));
    }

    #[test]
    fn lent_buffers_are_no_copies(schema in arb_schema(), rows in 0..40_usize, seed in any::<u64>()) {
        let batch = batch(&schema, rows, &mut Dice::new(seed));
        let (_, lent) = describe(&batch).unwrap();
        let mut own = Vec::new();
        batch.columns().iter().for_each(|column| addresses(&column.to_data(), &mut own));
        for buffer in lent.iter().filter(|buffer| !buffer.is_empty()) {
            let start = buffer.as_ptr() as usize;
            let end = start + buffer.len();
            prop_assert!(own.iter().any(|(low, high)| *low <= start && end <= *high), "a lent buffer is a copy");
        }
    }
}

fn addresses(data: &arrow_data::ArrayData, out: &mut Vec<(usize, usize)>) {
    let nulls = data.nulls().map(|nulls| nulls.buffer());
    out.extend(data.buffers().iter().chain(nulls).map(|b| (b.as_ptr() as usize, b.as_ptr() as usize + b.len())));
    data.child_data().iter().for_each(|child| addresses(child, out));
}

/// Tests every slice of an array of twelve for every type. A failure names the type and the slice.
#[test]
fn every_type_survives_every_slice() {
    for data_type in all_types() {
        for nullable in [true, false] {
            let schema = Arc::new(Schema::new(vec![Field::new("column", data_type.clone(), nullable)]));
            let whole = array(schema.field(0), 12, &mut Dice::new(7));
            for start in 0..=12 {
                for len in 0..=12 - start {
                    let batch = RecordBatch::try_new(schema.clone(), vec![whole.slice(start, len)]).unwrap();
                    let back = round_trip(&batch);
                    same_array(batch.column(0), back.column(0))
                        .unwrap_or_else(|e| panic!("{data_type} nullable {nullable} [{start}..][..{len}]: {e}"));
                    is_valid(&back);
                    // Arrow's equality agrees, except for NaN.
                    if !data_type.is_floating() {
                        assert_eq!(batch.column(0).to_data(), back.column(0).to_data(), "{data_type}");
                    }
                }
            }
        }
    }
}

fn lent_bytes(batch: &RecordBatch) -> u64 {
    describe(batch).unwrap().0.live_bytes()
}

#[test]
fn a_slice_lends_its_live_range_only() {
    let strings = StringArray::from_iter((0..1_000_000).map(|n| (n % 7 != 0).then(|| format!("value {n:07}"))));
    let batch = RecordBatch::try_from_iter_with_nullable([("s", Arc::new(strings) as _, true)]).unwrap();
    assert!(lent_bytes(&batch) > 11_000_000);
    let slice = batch.slice(654_321, 10);
    assert!(lent_bytes(&slice) <= 10 * 13 + 11 * 4 + 3, "{}", lent_bytes(&slice));
    assert_eq!(same_batch(&slice, &round_trip(&slice)), Ok(()));
}

#[test]
fn each_nested_type_lends_its_live_range_only() {
    let rows = 100_000_i32;
    let numbers: ArrayRef = Arc::new(Int32Array::from_iter_values(0..rows));
    let item = Arc::new(Field::new("item", DataType::Int32, true));
    let list =
        ListArray::new(item.clone(), OffsetBuffer::from_repeated_length(1, rows as usize), numbers.clone(), None);
    let places: Vec<i32> = (0..rows).collect();
    let sizes = vec![1_i32; rows as usize];
    let views = ListViewArray::new(item, places.clone().into(), sizes.into(), numbers.clone(), None);
    let fields: UnionFields = [(3, Arc::new(Field::new("n", DataType::Int32, true)))].into_iter().collect();
    let ids = vec![3_i8; rows as usize];
    let union = UnionArray::try_new(fields, ids.into(), Some(places.into()), vec![numbers.clone()]).unwrap();
    let ends = Int32Array::from_iter_values((1..=rows).map(|n| n * 3));
    let runs = RunArray::<Int32Type>::try_new(&ends, &numbers).unwrap();
    let strings = StringViewArray::from_iter_values((0..rows).map(|n| format!("longer than twelve bytes {n:06}")));
    let columns: [(&str, ArrayRef, u64); 6] = [
        ("list", Arc::new(list), 4 * 11 + 4 * 10),
        ("list view", Arc::new(views), 4 * 10 + 4 * 10 + 4 * 10),
        ("union", Arc::new(union), 10 + 4 * 10 + 4 * 10),
        ("runs", Arc::new(runs), 8 * 5),
        ("string view", Arc::new(strings), 16 * 10 + 31 * 10),
        ("struct", Arc::new(StructArray::from(vec![(Field::new("n", DataType::Int32, true).into(), numbers)])), 40),
    ];
    for (name, column, most) in columns {
        let batch = RecordBatch::try_from_iter([(name, column)]).unwrap().slice(70_000, 10);
        assert!(lent_bytes(&batch) <= most, "{name}: {} bytes, more than {most} bytes", lent_bytes(&batch));
        assert_eq!(same_batch(&batch, &round_trip(&batch)), Ok(()), "{name}");
    }
}

#[test]
fn data_buffers_that_no_view_references_are_not_lent() {
    let long = "a string that is longer than a view holds";
    let mut builder = StringViewBuilder::new().with_fixed_block_size(256);
    (0..1000).for_each(|_| builder.append_value(long));
    builder.append_value("short");
    let batch = RecordBatch::try_from_iter([("s", Arc::new(builder.finish()) as ArrayRef)]).unwrap().slice(1000, 1);
    assert_eq!(lent_bytes(&batch), 16);
    let (descriptor, lent) = describe(&batch).unwrap();
    assert_eq!(lent.len(), 1, "the views");
    assert_eq!(same_batch(&batch, &rebuild(&batch.schema(), &descriptor, &lent).unwrap()), Ok(()));
}

#[test]
fn rows_survive_without_columns_and_unions_without_variants() {
    let schema = Arc::new(Schema::empty());
    let options = RecordBatchOptions::new().with_row_count(Some(7));
    let batch = RecordBatch::try_new_with_options(schema, vec![], &options).unwrap();
    assert_eq!(round_trip(&batch).num_rows(), 7);
    for mode in [UnionMode::Sparse, UnionMode::Dense] {
        let offsets = (mode == UnionMode::Dense).then(|| Vec::<i32>::new().into());
        let union = UnionArray::try_new(UnionFields::empty(), Vec::<i8>::new().into(), offsets, vec![]).unwrap();
        let batch = RecordBatch::try_from_iter([("u", Arc::new(union) as ArrayRef)]).unwrap();
        assert_eq!(same_batch(&batch, &round_trip(&batch)), Ok(()));
    }
}

#[test]
fn a_whole_batch_is_copied_by_neither_side() {
    for data_type in all_types() {
        let schema = Arc::new(Schema::new(vec![Field::new("column", data_type.clone(), true)]));
        let whole = batch(&schema, 20, &mut Dice::new(3));
        let (descriptor, lent) = describe(&whole).unwrap();
        let slab = read(&schema, &descriptor, &lent).unwrap();
        let back = rebuild(&schema, &descriptor, &slab).unwrap();
        let bases_are_zero = descriptor.nodes.iter().all(|node| match &node.detail {
            Detail::Base(base) => *base == 0,
            Detail::UnionBases(bases) => bases.iter().all(|base| *base == 0),
            Detail::Views(extents) => (0..).zip(extents).all(|(buffer, e)| e.buffer == buffer && e.base == 0),
            _ => true,
        });
        // If nothing has to be rebased, every byte of the arrays lies in the slab. Values always lie in the slab.
        let mut own = Vec::new();
        addresses(&back.column(0).to_data(), &mut own);
        let in_slab = |(low, high): &(usize, usize)| {
            slab.iter().any(|b| b.as_ptr() as usize <= *low && *high <= b.as_ptr() as usize + b.len())
        };
        let copied = own.iter().filter(|range| range.1 > range.0 && !in_slab(range)).count();
        // Booleans may be moved to bit 0, and arrow allocates the offset of an empty array.
        let moves = |node: &&NodeDescriptor| node.len == 0 || matches!(node.detail, Detail::Bits { .. });
        let moved = descriptor.nodes.iter().filter(moves).count();
        let may_copy = if bases_are_zero { moved } else { moved + descriptor.nodes.len() };
        assert!(copied <= may_copy, "{data_type}: {copied} buffers copied");
    }
}

#[test]
fn errors_contain_the_problem_and_the_path() {
    let item = Field::new("item", DataType::Utf8, true);
    let list = Field::new("list", DataType::List(Arc::new(item)), true);
    let schema = Arc::new(Schema::new(vec![Field::new("s", DataType::Struct(vec![list].into()), true)]));
    let batch = batch(&schema, 30, &mut Dice::new(5));
    let (descriptor, lent) = describe(&batch).unwrap();
    let limits = LayoutLimits::default();
    let error = |descriptor: &BatchDescriptor| check(&schema, descriptor, &limits).unwrap_err();

    let mut short = descriptor.clone();
    short.nodes.pop();
    assert_eq!(
        error(&short).to_string(),
        "s.list.item: the descriptor ends before the schema does: no array for this field"
    );
    let mut long = descriptor.clone();
    long.buffers.push(9);
    assert!(matches!(error(&long).problem(), LayoutProblem::ExtraBuffers { extra: 1 }));
    let mut other = descriptor.clone();
    other.nodes[1].detail = Detail::None;
    assert!(matches!(error(&other).problem(), LayoutProblem::Detail { got: "none", .. }));
    assert_eq!(error(&other).path(), "s.list");
    let mut uneven = descriptor.clone();
    uneven.nodes[1].len += 1;
    assert!(matches!(error(&uneven).problem(), LayoutProblem::Mismatch { expected: 30, got: 31, .. }));
    let mut huge = descriptor.clone();
    *huge.buffers.last_mut().unwrap() = u64::MAX;
    assert!(matches!(error(&huge).problem(), LayoutProblem::Overflow { .. }));
    let tight = LayoutLimits { max_bytes: 64, ..limits };
    assert!(matches!(check(&schema, &descriptor, &tight).unwrap_err().problem(), LayoutProblem::TooLarge { .. }));

    let mut not_utf8 = lent.clone();
    let last = not_utf8.len() - 1;
    not_utf8[last] = Buffer::from_vec(vec![0xff_u8; lent[last].len()]);
    let error = rebuild(&schema, &descriptor, &not_utf8).unwrap_err();
    assert_eq!(error.path(), "s.list.item");
    assert!(matches!(error.problem(), LayoutProblem::NotUtf8 { .. }), "{error}");
}

#[test]
fn fields_that_are_not_nullable_stay_free_of_nulls() {
    let nullable = |item| Arc::new(Schema::new(vec![Field::new("c", item, false)]));
    let list_view = |null| DataType::ListView(Arc::new(Field::new("item", DataType::Int8, null)));
    let list = |null| DataType::List(Arc::new(Field::new("item", DataType::Int8, null)));
    let entries = |null| {
        DataType::Struct(
            vec![Field::new("key", DataType::Int8, false), Field::new("value", DataType::Int8, null)].into(),
        )
    };
    let map = |null| DataType::Map(Arc::new(Field::new("entries", entries(null), false)), false);
    let types: [&dyn Fn(bool) -> DataType; 3] = [&list_view, &list, &map];
    for of in types {
        let batch = (0..)
            .map(|seed| batch(&nullable(of(true)), 30, &mut Dice::new(seed)))
            .find(|batch| describe(batch).unwrap().0.nodes.last().unwrap().nulls > 0);
        let (descriptor, lent) = describe(&batch.unwrap()).unwrap();
        rebuild(&nullable(of(true)), &descriptor, &lent).unwrap();
        assert!(rebuild(&nullable(of(false)), &descriptor, &lent).is_err(), "{}", of(false));
    }
}

/// Three data buffers: no view references the first, two references to the second are far apart, one is to the third.
fn sparse_views() -> RecordBatch {
    let mut text = "first string, long".to_owned();
    text.push_str(&" ".repeat(100_000));
    text.push_str("second string, long");
    let data: Vec<Buffer> =
        ["nobody needs this", &text, "third string, long"].map(|text| Buffer::from_slice_ref(text.as_bytes())).into();
    let view = |buffer_index, offset: usize, string: &str| {
        let prefix = u32::from_le_bytes(*string.as_bytes().first_chunk().unwrap());
        ByteView { length: string.len() as u32, prefix, buffer_index, offset: offset as u32 }.as_u128()
    };
    let views = vec![
        view(2, 0, "third string, long"),
        view(1, text.len() - 19, "second string, long"),
        view(1, 0, "first string, long"),
    ];
    let array = StringViewArray::try_new(views.into(), data, None).unwrap();
    RecordBatch::try_from_iter([("s", Arc::new(array) as ArrayRef)]).unwrap()
}

#[test]
fn only_the_referenced_parts_of_a_data_buffer_are_lent() {
    let batch = sparse_views();
    let (descriptor, lent) = describe(&batch).unwrap();
    let extents = [(1, 0), (1, 100_018), (2, 0)].map(|(buffer, base)| Extent { buffer, base });
    assert_eq!(descriptor.nodes[0].detail, Detail::Views(extents.into()));
    assert_eq!(descriptor.buffers, [48, 18, 19, 18]);
    let back = round_trip(&batch);
    assert_eq!(same_batch(&batch, &back), Ok(()));
    // The array uses the slab's bytes without a copy.
    let (descriptor, read) = read_and_rebase(&batch.schema(), &descriptor, &lent).unwrap();
    let back = rebuild_checked(&descriptor, &read).unwrap();
    let views = back.column(0).to_data();
    assert_eq!(
        views.buffers().iter().map(Buffer::as_ptr).collect::<Vec<_>>(),
        read.iter().map(Buffer::as_ptr).collect::<Vec<_>>()
    );
}

#[test]
fn scattered_strings_are_copied_side_by_side() {
    let strings: Vec<String> = (0..10_000).map(|n| format!("the string of number {n}")).collect();
    let views: ArrayRef = Arc::new(StringViewArray::from_iter_values(&strings));
    let whole = RecordBatch::try_from_iter([("s", views)]).unwrap();
    let rows: Vec<u64> = (0..50).map(|n| n * 7919 % 10_000).collect();
    let picked = whole.column(0).to_data().buffers()[0].clone();
    let picked: Vec<u128> =
        rows.iter().map(|row| u128::from_le_bytes(*picked[*row as usize * 16..].first_chunk().unwrap())).collect();
    let data = whole.column(0).to_data().buffers()[1..].to_vec();
    let array = StringViewArray::try_new(picked.into(), data, None).unwrap();
    let batch = RecordBatch::try_from_iter([("s", Arc::new(array) as ArrayRef)]).unwrap();
    let used: u64 = rows.iter().map(|row| strings[*row as usize].len() as u64).sum();

    let compact = describe_compact(&batch).unwrap();
    assert_eq!((compact.descriptor.live_bytes(), compact.copied), (16 * 50 + used, 16 * 50 + used));
    let back = rebuild(&batch.schema(), &compact.descriptor, &compact.buffers).unwrap();
    assert_eq!(same_batch(&batch, &back), Ok(()));
    // Contiguous strings are not copied.
    assert_eq!(describe_compact(&whole).unwrap().copied, 0);
}

type Change<'a> = &'a dyn Fn(&mut Vec<Extent>, &mut Vec<u64>);

#[test]
fn extents_are_checked_against_each_other_and_views_against_extents() {
    let batch = sparse_views();
    let (schema, limits) = (batch.schema(), LayoutLimits::default());
    let (descriptor, lent) = describe(&batch).unwrap();
    let with = |change: Change<'_>| {
        let mut descriptor = descriptor.clone();
        let Detail::Views(extents) = &mut descriptor.nodes[0].detail else { panic!("views") };
        change(extents, &mut descriptor.buffers);
        descriptor
    };
    let refused: [Change<'_>; 5] = [
        &|extents, _| extents[1].base = 17,
        &|extents, _| extents.swap(0, 1),
        &|extents, _| extents[2].buffer = 1,
        &|extents, _| extents[1] = extents[0],
        &|_, lens| lens[2] = 0,
    ];
    for change in refused {
        let error = check(&schema, &with(change), &limits).unwrap_err();
        assert!(matches!(error.problem(), LayoutProblem::Extent { .. }), "{error}");
    }
    let beyond = with(&|extents, _| extents[2].base = u32::MAX);
    assert!(matches!(check(&schema, &beyond, &limits).unwrap_err().problem(), LayoutProblem::TooLarge { .. }));
    let fewer = with(&|extents, _| extents.truncate(2));
    assert!(matches!(check(&schema, &fewer, &limits).unwrap_err().problem(), LayoutProblem::ExtraBuffers { .. }));

    // Views into a gap, into a buffer that was not lent, and beyond an extent.
    let elsewhere: [Change<'_>; 3] =
        [&|extents, _| extents[1].base -= 100, &|extents, _| extents[2].buffer = 3, &|extents, _| extents[0].base = 1];
    for (at, change) in [1, 0, 2].into_iter().zip(elsewhere) {
        let (rebased, read) = read_and_rebase(&schema, &with(change), &lent).unwrap();
        for result in [rebuild(&schema, &with(change), &lent), rebuild_checked(&rebased, &read)] {
            let error = result.unwrap_err();
            assert_eq!(error.path(), "s");
            assert!(
                matches!(error.problem(), LayoutProblem::OutOfRange { what: "view", at: found } if *found == at),
                "{error}"
            );
        }
    }
    let mut prefix = lent;
    prefix[2] = Buffer::from_slice_ref(b"SECOND string, long");
    let error = rebuild(&schema, &descriptor, &prefix).unwrap_err();
    assert!(matches!(error.problem(), LayoutProblem::View { at: 1, .. }), "{error}");
}
