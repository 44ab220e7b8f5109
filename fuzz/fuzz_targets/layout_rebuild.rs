//! A lent batch: whatever descriptor and bytes come, a batch that is accepted is valid.
#![no_main]

use std::sync::LazyLock;

use arrow_schema::SchemaRef;
use libfuzzer_sys::fuzz_target;
use thallus_fuzz::{LIMITS, assert_valid, part, schemas, slab};
use thallus_protocol::layout::{BatchDescriptor, check, describe, rebuild};

static SCHEMAS: LazyLock<Vec<SchemaRef>> = LazyLock::new(schemas);

fuzz_target!(|input: &[u8]| {
    let [choice, rest @ ..] = input else { return };
    let schema = &SCHEMAS[usize::from(*choice) % SCHEMAS.len()];
    let (descriptor, bytes) = part(rest);
    let Ok(descriptor) = postcard::from_bytes::<BatchDescriptor>(descriptor) else { return };
    let Ok(layout) = check(schema, &descriptor, &LIMITS) else { return };
    if let Ok(batch) = rebuild(schema, &descriptor, &slab(&layout, bytes)) {
        assert_valid(&batch);
        // What was accepted can be lent on.
        let (again, buffers) = describe(&batch).expect("an accepted batch can be described");
        rebuild(schema, &again, &buffers).expect("and rebuilt");
    }
});
