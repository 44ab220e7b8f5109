//! Choices from a seed, for generators of arrays.

use thallus_protocol::random::SplitMix64;

/// Draws choices. The same seed gives the same choices on every machine.
#[derive(Clone, Debug)]
pub struct Dice(SplitMix64);

impl Dice {
    /// A source that starts at `seed`.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Dice(SplitMix64::new(seed))
    }

    /// Any number.
    pub fn number(&mut self) -> u64 {
        self.0.next_u64()
    }

    /// A number below `bound`, which is not 0.
    pub fn below(&mut self, bound: usize) -> usize {
        (self.number() % bound as u64) as usize
    }

    /// True with a probability of 1 in `n`.
    pub fn one_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }

    /// `len` bytes.
    pub fn bytes(&mut self, len: usize) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(len + 8);
        while bytes.len() < len {
            bytes.extend_from_slice(&self.number().to_le_bytes());
        }
        bytes.truncate(len);
        bytes
    }

    /// Number of elements to put around the used ones: often none, sometimes more than a byte has bits.
    pub fn padding(&mut self) -> usize {
        if self.one_in(2) { 0 } else { self.below(11) }
    }
}
