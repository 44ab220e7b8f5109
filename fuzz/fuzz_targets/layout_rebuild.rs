//! A lent batch, whole and in part: with any descriptor and any bytes, an accepted batch is valid.
#![no_main]

use std::sync::{Arc, LazyLock};

use arrow_array::RecordBatch;
use arrow_buffer::Buffer;
use libfuzzer_sys::fuzz_target;
use thallus_fuzz::{LIMITS, assert_valid, part, schemas, slab};
use thallus_protocol::layout::{
    BatchDescriptor, CheckedDescriptor, KeptDictionaries, LayoutError, LayoutLimits, Plan, Projection, Step, check,
    describe, describe_compact, rebuild_after,
};
use thallus_protocol_testing::{Dice, Distrust, batch};

static PLANS: LazyLock<Vec<Plan>> =
    LazyLock::new(|| schemas().iter().map(|schema| Plan::new(schema).expect("supported types")).collect());

/// Rebuilds a batch, and panics if Arrow's validation refuses an array that ours accepted. Dictionaries of an earlier
/// batch come from a valid batch.
fn rebuild(descriptor: &CheckedDescriptor, buffers: &[Buffer]) -> Result<RecordBatch, LayoutError> {
    let mut kept = KeptDictionaries::default();
    if !descriptor.is_complete() {
        let plan = descriptor.plan();
        let good = batch(plan.schema(), 7, &mut Dice::new(7));
        let (before, lent) = describe(plan, &good).expect("a valid batch can be described");
        let before = check(plan, before, &LayoutLimits::default()).expect("a valid descriptor fits its plan");
        rebuild_after(&before, &lent, &mut kept, &Distrust).expect("a valid batch can be rebuilt");
    }
    rebuild_after(descriptor, buffers, &mut kept, &Distrust)
}

fuzz_target!(|input: &[u8]| {
    let [choice, rest @ ..] = input else { return };
    let plan = &PLANS[usize::from(*choice) % PLANS.len()];
    let (descriptor, bytes) = part(rest);
    let Ok(descriptor) = postcard::from_bytes::<BatchDescriptor>(descriptor) else { return };
    let Ok(mut descriptor) = check(plan, descriptor, &LIMITS) else { return };
    let mut buffers = slab(descriptor.layout(), bytes);
    let columns: Vec<_> = (0..plan.schema().fields().len()).collect();
    let rows = descriptor.rows / 4..descriptor.rows - descriptor.rows / 3;
    let mut projection = Projection::new(&Arc::new(descriptor.clone()), &columns, rows);
    assert_eq!(projection.is_ok(), descriptor.is_complete(), "{projection:?}");
    while let Ok(projection) = &mut projection
        && let Ok(step) = projection.step()
    {
        match step {
            Step::Done(batch) => {
                assert_valid(&batch);
                break;
            }
            Step::Read(pieces) => projection.give(
                pieces
                    .iter()
                    .map(|piece| buffers[piece.buffer].slice_with_length(piece.offset as usize, piece.len as usize))
                    .collect(),
            ),
        }
    }
    let as_it_came = rebuild(&descriptor, &buffers);
    if let Ok(batch) = &as_it_came {
        assert_valid(batch);
        // An accepted batch can be lent again.
        let again = describe_compact(plan, batch).expect("an accepted batch can be described");
        let checked = check(plan, again.descriptor, &LayoutLimits::default()).expect("its descriptor fits the plan");
        rebuild(&checked, &again.buffers).expect("an accepted batch can be rebuilt");
    }
    // The same batch, with its views rebased in place.
    for rebase in descriptor.rebases() {
        let ranges = &descriptor.layout().ranges;
        let at = ranges.iter().position(|range| *range == rebase.range && range.len > 0);
        let Some(at) = at else { continue };
        let mut views = buffers[at].to_vec();
        rebase.apply(&mut views);
        buffers[at] = Buffer::from_vec(views);
    }
    let rebased = rebuild(&descriptor, &buffers);
    assert_eq!(as_it_came.is_ok(), rebased.is_ok(), "{as_it_came:?}, but rebased in place {rebased:?}");
    if let Ok(batch) = rebased {
        assert_valid(&batch);
    }
});
