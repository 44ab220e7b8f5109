//! How the targets of the connection machines cut their input: steps, each a kind and its bytes.

use std::time::Duration;

use thallus_protocol::Timestamp;
use thallus_protocol::codec::{Preface, VERSIONS};

use crate::{part, with_part};

/// One thing that happens to a machine.
#[derive(Debug)]
pub enum Step {
    /// Bytes come on the control connection.
    Bytes(Vec<u8>),
    /// The driver answers what it was asked, by this choice.
    Answer(u8),
    /// Time passes.
    Pass(Duration),
}

/// A message's body and payload as a step of the input.
#[must_use]
pub fn message_step(body: &[u8], payload: &[u8]) -> Vec<u8> {
    with_part(&[&[0], with_part(body, payload).as_slice()].concat(), &[])
}

/// An answer by this choice as a step of the input.
#[must_use]
pub fn answer_step(choice: u8) -> Vec<u8> {
    with_part(&[5, choice], &[])
}

/// The steps of an input. Most are messages, framed here: a fuzzer would not guess their lengths.
pub fn steps(mut input: &[u8]) -> impl Iterator<Item = Step> {
    std::iter::from_fn(move || {
        let (step, rest) = part(input);
        input = rest;
        let (kind, data) = step.split_first()?;
        Some(match kind % 8 {
            4 => Step::Bytes(data.to_vec()),
            5 | 6 => Step::Answer(data.first().copied().unwrap_or(0)),
            7 => Step::Pass(Duration::from_millis(250) * u32::from(data.first().copied().unwrap_or(0))),
            _ => {
                let (body, payload) = part(data);
                // Without checksums: neither end asks for any.
                let header = [body.len() as u32, payload.len() as u32, 0, 0].map(u32::to_le_bytes).concat();
                Step::Bytes([&header, body, payload].concat())
            }
        })
    })
}

/// What a peer's bytes begin with.
#[must_use]
pub fn preface() -> [u8; 24] {
    Preface { versions: VERSIONS, features: 0 }.encode()
}

/// Where every run begins.
pub const START: Timestamp = Timestamp::ZERO;
