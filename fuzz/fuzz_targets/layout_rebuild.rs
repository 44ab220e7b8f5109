//! A lent batch, whole and in part: whatever descriptor and bytes come, a batch that is accepted is valid.
#![no_main]

use std::sync::{Arc, LazyLock};

use arrow_schema::SchemaRef;
use libfuzzer_sys::fuzz_target;
use thallus_fuzz::{LIMITS, assert_valid, part, schemas, slab};
use thallus_protocol::layout::{BatchDescriptor, Projection, Step, check, describe, rebuild};

static SCHEMAS: LazyLock<Vec<SchemaRef>> = LazyLock::new(schemas);

fuzz_target!(|input: &[u8]| {
    let [choice, rest @ ..] = input else { return };
    let schema = &SCHEMAS[usize::from(*choice) % SCHEMAS.len()];
    let (descriptor, bytes) = part(rest);
    let Ok(descriptor) = postcard::from_bytes::<BatchDescriptor>(descriptor) else { return };
    let Ok(layout) = check(schema, &descriptor, &LIMITS) else { return };
    let lent = slab(&layout, bytes);
    let columns: Vec<_> = (0..schema.fields().len()).collect();
    let rows = descriptor.rows / 4..descriptor.rows - descriptor.rows / 3;
    let mut projection =
        Projection::new(schema, &Arc::new(descriptor.clone()), &columns, rows).expect("they are there");
    while let Ok(step) = projection.step() {
        match step {
            Step::Done(batch) => break assert_valid(&batch),
            Step::Read(pieces) => projection.give(
                pieces
                    .iter()
                    .map(|piece| lent[piece.buffer].slice_with_length(piece.offset as usize, piece.len as usize))
                    .collect(),
            ),
        }
    }
    if let Ok(batch) = rebuild(schema, &descriptor, &lent) {
        assert_valid(&batch);
        // What was accepted can be lent on.
        let (again, buffers) = describe(&batch).expect("an accepted batch can be described");
        rebuild(schema, &again, &buffers).expect("and rebuilt");
    }
});
