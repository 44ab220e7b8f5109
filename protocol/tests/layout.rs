//! Any batch survives being described, read into a slab and rebuilt; nothing hostile does harm.

use std::sync::Arc;

use arrow_array::{Array, RecordBatch, StringArray};
use arrow_buffer::{Buffer, MutableBuffer};
use arrow_schema::{Field, Schema};
use proptest::prelude::*;
use thallus_protocol::layout::{BatchDescriptor, LayoutError, LayoutLimits, SLAB_ALIGNMENT, check, describe, rebuild};
use thallus_protocol::testing::{
    Dice, all_types, arb_batch, arb_schema, array, batch, mutate_bytes, mutate_descriptor, same_array, same_batch,
};

/// Copies what is lent into a fresh slab, where `check` says, as a one-sided read does.
fn read(schema: &Schema, descriptor: &BatchDescriptor, lent: &[Buffer]) -> Result<Vec<Buffer>, LayoutError> {
    let layout = check(schema, descriptor, &LayoutLimits::default())?;
    let mut slab = MutableBuffer::from_len_zeroed(layout.len as usize);
    for (range, buffer) in layout.ranges.iter().zip(lent) {
        assert_eq!(range.offset % SLAB_ALIGNMENT, 0);
        slab.as_slice_mut()[range.offset as usize..][..range.len as usize].copy_from_slice(buffer);
    }
    let slab = Buffer::from(slab);
    Ok(layout.ranges.iter().map(|range| slab.slice_with_length(range.offset as usize, range.len as usize)).collect())
}

fn round_trip(batch: &RecordBatch) -> RecordBatch {
    let (descriptor, lent) = describe(batch).expect("a valid batch can be described");
    assert_eq!(descriptor.live_bytes(), lent.iter().map(|buffer| buffer.len() as u64).sum::<u64>());
    let bytes = postcard::to_stdvec(&descriptor).unwrap();
    let descriptor: BatchDescriptor = postcard::from_bytes(&bytes).unwrap();
    let read = read(&batch.schema(), &descriptor, &lent).expect("an honest descriptor passes");
    rebuild(&batch.schema(), &descriptor, &read).expect("honest bytes pass")
}

fn is_valid(batch: &RecordBatch) {
    for column in batch.columns() {
        assert_eq!(column.len(), batch.num_rows());
        column.to_data().validate_full().expect("an array that was accepted is valid");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1024))]

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
        // ... and whatever bytes have the lengths that it asks for.
        if let Ok(layout) = check(&schema, &descriptor, &limits) {
            prop_assert!(layout.len <= limits.max_bytes);
            let mut dice = Dice::new(seed);
            let bytes: Vec<_> = layout.ranges.iter().map(|range| {
                let mut bytes = if dice.one_in(2) { vec![0; range.len as usize] } else { dice.bytes(range.len as usize) };
                mutate_bytes(&mut bytes, &mut dice);
                Buffer::from_vec(bytes)
            }).collect();
            if let Ok(back) = rebuild(&schema, &descriptor, &bytes) {
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
        if let Ok(back) = rebuild(&batch.schema(), &descriptor, &buffers) {
            is_valid(&back);
        }
    }

    #[test]
    fn buffers_at_odd_addresses_are_used_all_the_same(batch in arb_batch(), shift in 1..16_usize) {
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
    fn lent_buffers_are_the_batch_s_own(schema in arb_schema(), rows in 0..40_usize, seed in any::<u64>()) {
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

/// Every type by name, every slice of an array of twelve, so that a failure says which type and which slice.
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
                    // Arrow's own idea of equality agrees, where NaN does not spoil it.
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
