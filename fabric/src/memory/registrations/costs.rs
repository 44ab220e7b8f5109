//! The costs of registering memory and of copying it.

use std::time::Duration;

use super::super::{Pages, StagingArena};
use crate::{Fabric, FabricError};

/// Lengths at which both costs are measured, in bytes. The cost of other lengths is on the line through them.
const LENGTHS: [usize; 2] = [64 << 10, 1 << 20];
/// Number of measurements. The shortest time counts, since other work of the machine only adds time.
const TIMES: usize = 3;

/// Time as a linear function of length.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Line {
    base: f64,
    per_byte: f64,
}

impl Line {
    fn through(times: [Duration; 2]) -> Self {
        let [short, long] = times.map(|time| time.as_secs_f64());
        let [from, to] = LENGTHS.map(|len| len as f64);
        // By noise, the longer one may take less time.
        let per_byte = ((long - short) / (to - from)).max(0.0);
        Line { base: (short - per_byte * from).max(0.0), per_byte }
    }

    fn at(self, len: usize) -> f64 {
        self.base + self.per_byte * len as f64
    }
}

/// The measured costs. The default is for hosts where they cannot be measured: registrations cost nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Costs {
    /// Cost of registering and of deregistering later.
    register: Line,
    copy: Line,
}

impl Costs {
    /// Registers and copies memory a few times each. The memory consists of touched pages, as an engine has that does
    /// not use our memory. `None` where either fails.
    pub(super) fn measure(fabric: &dyn Fabric, staging: &StagingArena, clock: fn() -> Duration) -> Option<Self> {
        let mut least = [[Duration::MAX; 2]; 2];
        for (index, len) in LENGTHS.into_iter().enumerate() {
            // All samples exist at once, so that each is other memory: some libraries keep registrations themselves.
            let samples =
                (0..TIMES).map(|_| Pages::new(len).map(Pages::into_buffer)).collect::<Result<Vec<_>, _>>().ok()?;
            for sample in &samples {
                let times = [
                    timed(clock, || fabric.register(sample.clone()).map(drop))?,
                    timed(clock, || staging.stage(&[sample]).map(drop))?,
                ];
                least.iter_mut().zip(times).for_each(|(least, time)| least[index] = least[index].min(time));
            }
        }
        let [register, copy] = least.map(Line::through);
        Some(Costs { register, copy })
    }

    /// Whether a registration costs no more than `copies` copies of `len` bytes.
    pub(super) fn is_registration_worth(self, len: usize, copies: u32) -> bool {
        self.register.at(len) <= self.copy.at(len) * f64::from(copies)
    }
}

fn timed(clock: fn() -> Duration, act: impl FnOnce() -> Result<(), FabricError>) -> Option<Duration> {
    let start = clock();
    act().ok()?;
    Some(clock().saturating_sub(start))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_goes_through_what_was_measured_and_never_below_zero() {
        let us = Duration::from_micros;
        let line = Line::through([us(164), us(1124)]);
        for (len, us) in [(64 << 10, 164.0), (1 << 20, 1124.0), (2 << 20, 2148.0)] {
            assert!((line.at(len) * 1e6 - us).abs() < 1e-3, "{len}: {line:?}");
        }
        assert_eq!(Line::through([us(9), us(7)]), Line { base: 9e-6, per_byte: 0.0 });
        assert_eq!(Line::through([us(1), us(1000)]).base, 0.0);
        assert_eq!(Line::through([Duration::ZERO; 2]).at(1 << 30), 0.0);
    }

    #[test]
    fn what_is_dear_is_worth_it_after_so_many_copies() {
        let us = Duration::from_micros;
        let costs = Costs { register: Line::through([us(100), us(100)]), copy: Line::through([us(10), us(160)]) };
        assert!(!costs.is_registration_worth(64 << 10, 9));
        assert!(costs.is_registration_worth(64 << 10, 10));
        assert!(costs.is_registration_worth(1 << 20, 1));
    }
}
