//! Schema and batch as Arrow IPC. The fuzzer aborts on any panic, even on a panic that the decoder would catch.
#![no_main]

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use thallus_fuzz::{assert_valid, part};
use thallus_protocol::inline::{InlineDecoder, InlineLimits};

fuzz_target!(|input: &[u8]| {
    let (schema, message) = part(input);
    let limits = InlineLimits { max_fields: 1000, max_len: 1 << 20 };
    let Ok(mut decoder) = InlineDecoder::new(schema, limits) else { return };
    if let Ok(batch) = decoder.decode(Bytes::copy_from_slice(message)) {
        assert_valid(&batch);
    }
});
