//! One direction of the control connection.

use std::collections::VecDeque;

use thallus_protocol::codec::Frame;

/// A queue of bytes that were written and not read.
#[derive(Debug, Default)]
pub(crate) struct Pipe {
    pub(super) bytes: VecDeque<u8>,
    /// Written bytes are lost, because the connection is broken or the network drops them.
    pub(super) discards: bool,
    /// No more bytes are written. The reader gets the end after the last byte.
    pub(super) ended: bool,
    /// The reader has got the end.
    pub(super) end_reported: bool,
    /// Number of bytes written so far.
    written: usize,
    /// Number of a byte to be damaged, and the bit to be flipped.
    flip: Option<(usize, u8)>,
}

impl Pipe {
    pub(crate) fn write(&mut self, frame: &Frame) {
        if !self.discards && !self.ended {
            self.bytes.extend(frame.head.iter().chain(frame.payload.iter()));
            self.written += frame.len();
            if let Some((byte, bit)) = self.flip.take_if(|(byte, _)| *byte < self.written) {
                self.damage(byte, bit);
            }
        }
    }

    /// Flips a bit of the byte with this number, now or when it is written.
    pub(super) fn flip(&mut self, byte: usize, bit: u8) {
        if byte < self.written {
            self.damage(byte, bit);
        } else {
            self.flip = Some((byte, bit));
        }
    }

    /// Flips a bit, unless the byte has already been read.
    fn damage(&mut self, byte: usize, bit: u8) {
        let taken = self.written - self.bytes.len();
        if let Some(byte) = byte.checked_sub(taken).and_then(|at| self.bytes.get_mut(at)) {
            *byte ^= 1 << bit;
        }
    }

    /// Number of bytes written so far.
    pub(crate) fn written(&self) -> usize {
        self.written
    }

    pub(crate) fn close(&mut self) {
        self.ended = true;
    }

    pub(crate) fn len(&self) -> usize {
        self.bytes.len()
    }

    pub(crate) fn take(&mut self, most: usize) -> Vec<u8> {
        let len = most.min(self.bytes.len());
        self.bytes.drain(..len).collect()
    }
}
