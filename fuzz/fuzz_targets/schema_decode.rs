//! A schema message: an accepted schema that can be encoded decodes to the same schema.
#![no_main]

use libfuzzer_sys::fuzz_target;
use thallus_protocol::inline::{InlineLimits, decode_schema, encode_schema};

fuzz_target!(|input: &[u8]| {
    let limits = InlineLimits { max_fields: 1000, max_len: 1 << 20 };
    let Ok(schema) = decode_schema(input, &limits) else { return };
    if let Ok(message) = encode_schema(&schema) {
        assert_eq!(decode_schema(&message, &limits).expect("an encoded schema can be decoded"), schema);
    }
});
