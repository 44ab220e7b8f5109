//! A lent batch, whole and in part: whatever descriptor and bytes come, a batch that is accepted is valid.
#![no_main]

use std::sync::{Arc, LazyLock};

use arrow_array::RecordBatch;
use arrow_buffer::Buffer;
use arrow_schema::SchemaRef;
use libfuzzer_sys::fuzz_target;
use thallus_fuzz::{LIMITS, assert_valid, part, schemas, slab};
use thallus_protocol::layout::{
    BatchDescriptor, KeptDictionaries, LayoutError, Projection, Step, check, describe, describe_compact, rebuild_after,
};
use thallus_protocol::testing::{Dice, Distrust, batch};

static SCHEMAS: LazyLock<Vec<SchemaRef>> = LazyLock::new(schemas);

/// Whatever passes our own validation has to pass Arrow's. Where dictionaries are those of a batch before, that was a good one.
fn rebuild(schema: &SchemaRef, descriptor: &BatchDescriptor, buffers: &[Buffer]) -> Result<RecordBatch, LayoutError> {
    let mut kept = KeptDictionaries::default();
    if !descriptor.is_complete() {
        let (before, lent) = describe(&batch(schema, 7, &mut Dice::new(7))).expect("a good batch can be described");
        rebuild_after(schema, &before, &lent, &mut kept, &Distrust).expect("and rebuilt");
    }
    rebuild_after(schema, descriptor, buffers, &mut kept, &Distrust)
}

fuzz_target!(|input: &[u8]| {
    let [choice, rest @ ..] = input else { return };
    let schema = &SCHEMAS[usize::from(*choice) % SCHEMAS.len()];
    let (descriptor, bytes) = part(rest);
    let Ok(descriptor) = postcard::from_bytes::<BatchDescriptor>(descriptor) else { return };
    let Ok(layout) = check(schema, &descriptor, &LIMITS) else { return };
    let mut buffers = slab(&layout, bytes);
    let columns: Vec<_> = (0..schema.fields().len()).collect();
    let rows = descriptor.rows / 4..descriptor.rows - descriptor.rows / 3;
    let mut projection = Projection::new(schema, &Arc::new(descriptor.clone()), &columns, rows);
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
    let as_it_came = rebuild(schema, &descriptor, &buffers);
    if let Ok(batch) = &as_it_came {
        assert_valid(batch);
        // What was accepted can be lent on.
        let again = describe_compact(batch).expect("an accepted batch can be described");
        rebuild(schema, &again.descriptor, &again.buffers).expect("and rebuilt");
    }
    // The same, with views rebased where they lie.
    let mut descriptor = descriptor;
    for rebase in layout.rebases(&mut descriptor) {
        let at = layout.ranges.iter().position(|range| *range == rebase.range && range.len > 0);
        let Some(at) = at else { continue };
        let mut views = buffers[at].to_vec();
        rebase.apply(&mut views);
        buffers[at] = Buffer::from_vec(views);
    }
    let rebased = rebuild(schema, &descriptor, &buffers);
    assert_eq!(as_it_came.is_ok(), rebased.is_ok(), "{as_it_came:?}, but rebased in place {rebased:?}");
    if let Ok(batch) = rebased {
        assert_valid(&batch);
    }
});
