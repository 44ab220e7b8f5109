//! Numbers from a seed, the same on every machine: for faults, simulation, tests and values that must differ.
//! They are not for secrets.
//!
//! The seed is an argument: this module draws no entropy.

use std::ops::RangeInclusive;

/// Increment of the state of a [`SplitMix64`] per step: 2^64 divided by the golden ratio, made odd.
const STEP: u64 = 0x9E37_79B9_7F4A_7C15;

/// The mixing function of SplitMix64: a bijection of 64-bit words. Every bit of the input affects every bit of the
/// output.
#[must_use]
pub fn mix(word: u64) -> u64 {
    let mut mixed = word;
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    mixed ^ (mixed >> 31)
}

/// SplitMix64 (Steele, Lea, Flood: Fast splittable pseudorandom number generators, OOPSLA 2014).
#[derive(Clone, Debug)]
pub struct SplitMix64(u64);

impl SplitMix64 {
    /// The sequence that `seed` begins.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        SplitMix64(seed)
    }

    /// An independent sequence for the `index`th part of the run that has the seed `seed`.
    #[must_use]
    pub fn split(seed: u64, index: u64) -> Self {
        let mut parts = SplitMix64(seed ^ index.wrapping_mul(0xA24B_AED4_963E_E407));
        SplitMix64(parts.next_u64())
    }

    /// 64 random bits.
    pub fn next_u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(STEP);
        mix(self.0)
    }

    /// The `index`th number of the sequence that `seed` begins, counted from 1, without drawing those before it.
    #[must_use]
    pub fn nth(seed: u64, index: u64) -> u64 {
        mix(seed.wrapping_add(index.wrapping_mul(STEP)))
    }

    /// A number of the range, all about equally likely. The start of the range, if the range is empty.
    pub fn within(&mut self, range: &RangeInclusive<u32>) -> u32 {
        let span = u64::from(range.end().saturating_sub(*range.start())) + 1;
        // Below `span`, which is at most 2^32: the sum fits.
        range.start() + ((u128::from(self.next_u64()) * u128::from(span)) >> 64) as u32
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sequence_is_the_published_one() {
        // From the reference implementation (Vigna, splitmix64.c) with seed 1234567.
        let mut random = SplitMix64::new(1_234_567);
        let expected = [6_457_827_717_110_365_317, 3_203_168_211_198_807_973, 9_817_491_932_198_370_423];
        assert_eq!([0; 3].map(|_| random.next_u64()), expected);
        assert_eq!([1, 2, 3].map(|index| SplitMix64::nth(1_234_567, index)), expected);
    }

    #[test]
    fn every_number_of_a_range_comes_up_and_no_other() {
        let mut random = SplitMix64::new(1);
        let mut seen = [0; 5];
        (0..1000).for_each(|_| seen[random.within(&(3..=7)) as usize - 3] += 1);
        assert!(seen.iter().all(|&count| count > 100), "{seen:?}");
        assert_eq!(random.within(&(9..=9)), 9);
        random.within(&(0..=u32::MAX));
    }
}
