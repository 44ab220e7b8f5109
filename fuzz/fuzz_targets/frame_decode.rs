//! The frame decoder: any split of the bytes gives the same messages and the same end.
#![no_main]

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use thallus_fuzz::part;
use thallus_protocol::codec::{DecodeError, Decoded, Decoder, FrameLimits};
use thallus_protocol::message::Message;

const LIMITS: FrameLimits = FrameLimits { message: 1 << 12, payload: 1 << 12 };

/// Decodes pieces of the given lengths and then the rest of the bytes, until the first error.
fn decode<M>(bytes: &[u8], lens: &[u8]) -> (Vec<Decoded<M>>, Option<DecodeError>)
where
    M: serde::de::DeserializeOwned,
{
    let (mut decoder, mut found, mut rest) = (Decoder::new(LIMITS), Vec::new(), bytes);
    // The fuzzer cannot produce valid checksums.
    decoder.verify_checksums(false);
    for len in lens.iter().map(|len| usize::from(*len)).chain([usize::MAX]) {
        let (piece, later) = rest.split_at(len.min(rest.len()));
        rest = later;
        decoder.push(piece);
        loop {
            match decoder.decode() {
                Ok(Some(decoded)) => found.push(decoded),
                Ok(None) => break,
                // The error contains the bytes received so far, which depend on the split.
                Err(DecodeError::Magic { .. }) => return (found, Some(DecodeError::Magic { found: [0; 8] })),
                Err(error) => return (found, Some(error)),
            }
        }
    }
    (found, None)
}

fuzz_target!(|input: &[u8]| {
    let (lens, bytes) = part(input);
    let whole = decode::<Message>(bytes, &[]);
    assert_eq!(decode::<Message>(bytes, lens), whole);
    for decoded in whole.0 {
        let Decoded::Message(message, payload) = decoded else { continue };
        let frame =
            thallus_protocol::codec::encode(&message, Bytes::clone(&payload), LIMITS).expect("a decoded message fits");
        let mut decoder = Decoder::new(LIMITS);
        decoder.push(&bytes[..24]);
        decoder.push(&frame.head);
        decoder.push(&frame.payload);
        assert!(matches!(decoder.decode::<Message>(), Ok(Some(Decoded::Preface(_)))));
        assert_eq!(decoder.decode(), Ok(Some(Decoded::Message(message, payload))));
    }
});
