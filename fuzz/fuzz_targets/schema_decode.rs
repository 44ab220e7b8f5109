//! A schema message: what is accepted can be sent on, and is then the same.
#![no_main]

use libfuzzer_sys::fuzz_target;
use thallus_protocol::inline::{InlineLimits, decode_schema, encode_schema};

fuzz_target!(|input: &[u8]| {
    let limits = InlineLimits { max_fields: 1000, max_len: 1 << 20 };
    let Ok(schema) = decode_schema(input, &limits) else { return };
    if let Ok(message) = encode_schema(&schema) {
        assert_eq!(decode_schema(&message, &limits).expect("what was encoded can be decoded"), schema);
    }
});
