//! One direction of the control connection.

use std::collections::VecDeque;

use thallus_protocol::codec::Frame;

/// Bytes that were written and not read.
#[derive(Debug, Default)]
pub(crate) struct Pipe {
    pub(super) bytes: VecDeque<u8>,
    /// What is written is gone: broken, or swallowed by the network.
    pub(super) deaf: bool,
    /// No more is written; the reader hears of it after the last byte.
    pub(super) ended: bool,
    /// The reader has heard.
    pub(super) told: bool,
    /// Bytes that were written.
    written: usize,
    /// Which of them is to be damaged, and how.
    flip: Option<(usize, u8)>,
}

impl Pipe {
    pub(crate) fn write(&mut self, frame: &Frame) {
        if !self.deaf && !self.ended {
            self.bytes.extend(frame.head.iter().chain(frame.payload.iter()));
            self.written += frame.len();
            if let Some((byte, bit)) = self.flip.take_if(|(byte, _)| *byte < self.written) {
                self.damage(byte, bit);
            }
        }
    }

    /// Flips a bit of the byte of this number, now or when it is written.
    pub(super) fn flip(&mut self, byte: usize, bit: u8) {
        if byte < self.written {
            self.damage(byte, bit);
        } else {
            self.flip = Some((byte, bit));
        }
    }

    /// Does nothing if the byte has been read.
    fn damage(&mut self, byte: usize, bit: u8) {
        let taken = self.written - self.bytes.len();
        if let Some(byte) = byte.checked_sub(taken).and_then(|at| self.bytes.get_mut(at)) {
            *byte ^= 1 << bit;
        }
    }

    /// Bytes that were written, all in all.
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
