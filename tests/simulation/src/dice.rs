//! Random choices from a seed.

use std::time::Duration;

use thallus_fabric::random::SplitMix64;

/// Draws choices. The same seed gives the same choices.
#[derive(Clone, Debug)]
pub struct Dice(SplitMix64);

impl Dice {
    /// The sequence for part number `part` of a run.
    #[must_use]
    pub fn new(seed: u64, part: u64) -> Self {
        Dice(SplitMix64::split(seed, part))
    }

    /// A number from `least` to `most`, inclusive.
    pub fn within(&mut self, least: u32, most: u32) -> u32 {
        self.0.within(&(least..=most))
    }

    /// True with a probability of `percent`.
    pub fn percent(&mut self, percent: u32) -> bool {
        self.within(1, 100) <= percent
    }

    /// One of the given values.
    pub fn pick<T: Clone>(&mut self, of: &[T]) -> T {
        of[self.within(0, of.len() as u32 - 1) as usize].clone()
    }

    /// A duration from `least` to `most` milliseconds.
    pub fn millis(&mut self, least: u32, most: u32) -> Duration {
        Duration::from_millis(u64::from(self.within(least, most)))
    }

    /// A number from `least` to `most` with a probability of `percent`; otherwise 0.
    pub fn sometimes(&mut self, percent: u32, least: u32, most: u32) -> u32 {
        let value = self.within(least, most);
        if self.percent(percent) { value } else { 0 }
    }
}
