//! Finds the parts of frames in a stream of bytes that an end writes.

use std::ops::Range;

const PREFACE: u64 = 24;
const HEADER: u64 = 16;
/// The lengths in a header; the checksums follow.
const LENGTHS: u64 = 8;

/// A kind of bytes on a control connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// The preface.
    Preface,
    /// The two lengths in a frame's header.
    Lengths,
    /// The two checksums in a frame's header.
    Checksums,
    /// A message.
    Message,
    /// A payload: a schema, or a piece of an inline batch.
    Payload,
}

impl Part {
    /// The name in the counts.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Part::Preface => "preface",
            Part::Lengths => "lengths of a frame",
            Part::Checksums => "checksums of a frame",
            Part::Message => "message",
            Part::Payload => "payload",
        }
    }
}

/// Some bytes of one part.
#[derive(Clone, Debug)]
pub struct Piece {
    /// The kind.
    pub part: Part,
    /// Their place in the bytes that are written.
    pub place: Range<usize>,
    /// Bytes of the stream after which the receiver must find damage of this part.
    pub found_at: u64,
}

/// The position in a stream of frames.
#[derive(Clone, Debug, Default)]
pub struct Frames {
    /// Bytes of the stream before the preface or frame at the position.
    before: u64,
    preface_over: bool,
    /// Bytes of that preface or frame before the position.
    within: u64,
    lengths: Vec<u8>,
}

impl Frames {
    /// Moves the position behind these bytes, and returns their pieces.
    pub fn advance(&mut self, bytes: &[u8]) -> Vec<Piece> {
        let mut pieces = Vec::new();
        let mut at = 0;
        while at < bytes.len() {
            let (part, ends, found) = self.part();
            let len = usize::try_from(ends - self.within).unwrap_or(usize::MAX).min(bytes.len() - at);
            if part == Part::Lengths {
                self.lengths.extend_from_slice(&bytes[at..at + len]);
            }
            pieces.push(Piece { part, place: at..at + len, found_at: self.before + found });
            at += len;
            self.within += len as u64;
            if self.within == self.end() {
                self.before += self.within;
                self.within = 0;
                self.preface_over = true;
                self.lengths.clear();
            }
        }
        pieces
    }

    /// The part at the position, its end, and the byte after which damage is found, both within the preface or frame.
    fn part(&self) -> (Part, u64, u64) {
        let message_end = HEADER + self.length(0);
        match self.within {
            _ if !self.preface_over => (Part::Preface, PREFACE, PREFACE),
            within if within < LENGTHS => (Part::Lengths, LENGTHS, HEADER),
            within if within < HEADER => (Part::Checksums, HEADER, HEADER),
            within if within < message_end => (Part::Message, message_end, self.end()),
            _ => (Part::Payload, self.end(), self.end()),
        }
    }

    fn length(&self, at: usize) -> u64 {
        self.lengths
            .get(at..at + 4)
            .map_or(0, |bytes| bytes.iter().rev().fold(0, |sum, &byte| sum << 8 | u64::from(byte)))
    }

    /// Length of the preface or frame at the position, as far as it is known.
    fn end(&self) -> u64 {
        match self.preface_over {
            false => PREFACE,
            true => HEADER + self.length(0) + self.length(4),
        }
    }
}
