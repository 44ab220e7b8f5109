//! The input of the connection machines' targets: a sequence of steps, each a kind and its bytes.

use std::time::Duration;

use thallus_protocol::Timestamp;
use thallus_protocol::codec::{Preface, VERSIONS};

use crate::{part, with_part};

/// One input to a machine.
#[derive(Debug)]
pub enum Step {
    /// Bytes arrive on the control connection.
    Bytes(Vec<u8>),
    /// The driver answers a task of the machine. The byte chooses the answer.
    Answer(u8),
    /// Time passes.
    Pass(Duration),
}

/// Encodes a message's body and payload as a step of the input.
#[must_use]
pub fn message_step(body: &[u8], payload: &[u8]) -> Vec<u8> {
    with_part(&[&[0], with_part(body, payload).as_slice()].concat(), &[])
}

/// Encodes an answer as a step of the input.
#[must_use]
pub fn answer_step(choice: u8) -> Vec<u8> {
    with_part(&[5, choice], &[])
}

/// The steps of an input. Most steps are messages. This function adds the frame header, because the fuzzer would not
/// produce correct lengths.
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
                // Without checksums: neither end requests them.
                let header = [body.len() as u32, payload.len() as u32, 0, 0].map(u32::to_le_bytes).concat();
                Step::Bytes([&header, body, payload].concat())
            }
        })
    })
}

/// The preface that a peer sends first.
#[must_use]
pub fn preface() -> [u8; 24] {
    Preface { versions: VERSIONS, features: 0 }.encode()
}

/// Time at the beginning of each run.
pub const START: Timestamp = Timestamp::ZERO;
