//! Choices from a seed.

use std::time::Duration;

use thallus_fabric::random::SplitMix64;

/// Draws choices, the same for the same seed.
#[derive(Clone, Debug)]
pub struct Dice(SplitMix64);

impl Dice {
    /// A sequence of its own for the `part`th part of a run.
    #[must_use]
    pub fn new(seed: u64, part: u64) -> Self {
        Dice(SplitMix64::split(seed, part))
    }

    /// A number of the range, ends included.
    pub fn within(&mut self, least: u32, most: u32) -> u32 {
        self.0.within(&(least..=most))
    }

    /// True in so many of a hundred cases.
    pub fn percent(&mut self, percent: u32) -> bool {
        self.within(1, 100) <= percent
    }

    /// One of these.
    pub fn pick<T: Clone>(&mut self, of: &[T]) -> T {
        of[self.within(0, of.len() as u32 - 1) as usize].clone()
    }

    /// Milliseconds.
    pub fn millis(&mut self, least: u32, most: u32) -> Duration {
        Duration::from_millis(u64::from(self.within(least, most)))
    }

    /// `value`, in so many of a hundred cases; else 0.
    pub fn sometimes(&mut self, percent: u32, least: u32, most: u32) -> u32 {
        let value = self.within(least, most);
        if self.percent(percent) { value } else { 0 }
    }
}
