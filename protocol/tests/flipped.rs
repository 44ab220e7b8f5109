//! Any flipped bit on the control connection ends in an error, and never in a wrong delivered value. The pair's
//! borrowers compare every delivered batch with the lent bytes.

mod pair;

use pair::script::{Batch, Ending, Knobs, Script, plain};
use pair::{Op, Pair, config, open};
use proptest::prelude::*;
use thallus_protocol::ConnectionError;
use thallus_protocol::client::UploadOptions;
use thallus_protocol::codes::CloseCode;
use thallus_protocol::message::{Access, LendFrom, OpenOptions};

/// Position of the flipped bit.
#[derive(Clone, Copy, Debug)]
struct Flip {
    to_server: bool,
    byte: usize,
    bit: u8,
}

/// Outcome of a conversation.
struct Outcome {
    /// Reasons for which the server and the client closed.
    closed: [ConnectionError; 2],
    /// Bytes to the server and to the client.
    written: [usize; 2],
    /// Whether each result, and then each upload, ended without an error.
    well: Vec<bool>,
}

fn scripts() -> Vec<Script> {
    let batches = vec![Batch::Inline { bytes: 20 }, Batch::Lent { rows: 3, own_region: true }];
    vec![Script { batches, ending: Ending::Finish }]
}

/// Runs a result and an upload, each with all batches of the script, from the preface to the last byte before the
/// close.
fn conversation(knobs: Knobs, scripts: Vec<Script>, access: Access, flip: Option<Flip>) -> Outcome {
    let mut pair = Pair::new(knobs, scripts);
    if let Some(Flip { to_server, byte, bit }) = flip {
        pair.flip(to_server, byte, bit);
    }
    let lend_from = LendFrom::Bytes(0);
    let options = OpenOptions { lend_from, access, credit: 5000, ..OpenOptions::default() };
    let upload = UploadOptions { lend_from, ..UploadOptions::default() };
    let asked = [Op::Execute { script: 0, options }, Op::Upload { script: 0, options: upload }];
    for op in open().into_iter().chain(asked) {
        pair.apply(op);
    }
    let mut well = pair.streams_end();
    well.extend(pair.client.uploads.values().map(|answer| matches!(answer, Some(Ok(_)))));
    // A last message in each direction, so that both ends decode every byte before it.
    pair.apply(Op::Ping);
    for _ in 0..3 {
        pair.apply(Op::ToServer(usize::MAX));
        pair.apply(Op::ToClient(usize::MAX));
    }
    let written = [pair.to_server.written(), pair.to_client.written()];
    Outcome { closed: pair.finish(), written, well }
}

/// Whether an end reports damage, or a timeout because a damaged length announced bytes that never arrive.
fn is_noticed(error: &ConnectionError) -> bool {
    let normal = ConnectionError::Goodbye { code: CloseCode::Normal, message: String::new() };
    !matches!(error, ConnectionError::Closed | ConnectionError::ControlLost(_)) && *error != normal
}

#[test]
fn every_flipped_bit_of_a_conversation_ends_in_an_error() {
    let honest = conversation(plain(), scripts(), Access::Read, None);
    assert_eq!(honest.well, [true, true]);
    assert!(!honest.closed.iter().any(is_noticed), "{:?}", honest.closed);
    for (to_server, bytes) in [(true, honest.written[0]), (false, honest.written[1])] {
        assert!(bytes > 300, "{bytes}");
        for byte in 0..bytes {
            for bit in 0..8 {
                let flip = Flip { to_server, byte, bit };
                let Outcome { closed, .. } = conversation(plain(), scripts(), Access::Read, Some(flip));
                assert!(closed.iter().any(is_noticed), "{flip:?} is not noticed: {closed:?}");
            }
        }
    }
}

proptest! {
    #![proptest_config(config(1500, "tests/regressions/flipped.txt"))]

    /// One bit of a longer conversation.
    #[test]
    fn any_flipped_bit_ends_in_an_error(
        inline in prop::collection::vec(1..9000_usize, 0..4),
        lent in prop::collection::vec(1..90_u64, 0..4),
        on_demand in any::<bool>(),
        to_server in any::<bool>(),
        at in 0.0..1.0_f64,
        bit in 0..8_u8,
    ) {
        let inline = inline.into_iter().map(|bytes| Batch::Inline { bytes });
        let lent = lent.into_iter().map(|rows| Batch::Lent { rows, own_region: rows % 2 == 0 });
        let batches = inline.chain(lent).collect();
        let scripts = vec![Script { batches, ending: Ending::Finish }];
        let access = if on_demand { Access::OnDemand } else { Access::Read };
        let honest = conversation(plain(), scripts.clone(), access, None);
        let bytes = honest.written[usize::from(!to_server)];
        let flip = Flip { to_server, byte: (bytes as f64 * at) as usize, bit };
        let Outcome { closed, .. } = conversation(plain(), scripts, access, Some(flip));
        prop_assert!(closed.iter().any(is_noticed), "{:?} is not noticed: {:?}", flip, closed);
    }
}
