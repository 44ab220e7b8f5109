//! Sizes and durations as text: `64MiB`, `1.5s`.
//!
//! The one parser of both, for URLs, flags and configuration files.

use std::time::Duration;

use thiserror::Error;

/// Units of size with their bytes. Single letters are binary, as in most tools that move data.
const SIZES: &[(&str, u128)] = &[
    ("B", 1),
    ("kB", 1_000),
    ("KB", 1_000),
    ("K", 1 << 10),
    ("KiB", 1 << 10),
    ("MB", 1_000_000),
    ("M", 1 << 20),
    ("MiB", 1 << 20),
    ("GB", 1_000_000_000),
    ("G", 1 << 30),
    ("GiB", 1 << 30),
    ("TB", 1_000_000_000_000),
    ("T", 1 << 40),
    ("TiB", 1 << 40),
];

/// Units of time with their nanoseconds. Those that come first are named in errors.
const TIMES: &[(&str, u128)] = &[
    ("ns", 1),
    ("us", 1_000),
    ("µs", 1_000),
    ("ms", 1_000_000),
    ("s", SECOND),
    ("min", 60 * SECOND),
    ("m", 60 * SECOND),
    ("h", HOUR),
    ("d", 24 * HOUR),
    ("nsec", 1),
    ("usec", 1_000),
    ("msec", 1_000_000),
    ("sec", SECOND),
    ("secs", SECOND),
    ("second", SECOND),
    ("seconds", SECOND),
    ("mins", 60 * SECOND),
    ("minute", 60 * SECOND),
    ("minutes", 60 * SECOND),
    ("hr", HOUR),
    ("hrs", HOUR),
    ("hour", HOUR),
    ("hours", HOUR),
    ("day", 24 * HOUR),
    ("days", 24 * HOUR),
];

/// Number of [`TIMES`] that an error names; the others are synonyms.
const TIMES_NAMED: usize = 9;

const SECOND: u128 = 1_000_000_000;
const HOUR: u128 = 3_600 * SECOND;

/// Most digits of a number, before and after the point together.
const MAX_DIGITS: usize = 30;

/// A text that is not a size or a duration.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum UnitError {
    /// The text does not begin with a number.
    #[error("expected a number and a unit, as in {example}")]
    NoNumber {
        /// An example of a valid text.
        example: &'static str,
    },
    /// The number has no unit, but needs one.
    #[error("the unit is missing (known: {known})")]
    NoUnit {
        /// The known units.
        known: String,
    },
    /// The unit is unknown.
    #[error("unknown unit {unit:?} (known: {known})")]
    UnknownUnit {
        /// The unknown unit.
        unit: String,
        /// The known units.
        known: String,
    },
    /// The value is not a whole number of bytes or nanoseconds.
    #[error("not a whole number of {of}")]
    NotWhole {
        /// The smallest unit.
        of: &'static str,
    },
    /// The value needs more than 64 bits.
    #[error("too large (at most {most})")]
    TooLarge {
        /// The largest value.
        most: &'static str,
    },
}

/// Parses a number of bytes: `65536`, `64KiB`, `1.5 GiB`, `2GB`. A bare number is in bytes; `K`, `M`, `G`, `T` are
/// binary.
///
/// # Errors
/// [`UnitError`], with the known units.
pub fn parse_size(text: &str) -> Result<u64, UnitError> {
    let (number, unit) = split(text, "64MiB")?;
    let scale = if unit.is_empty() { 1 } else { scale(unit, SIZES, SIZES)? };
    let bytes = number.times(scale, "bytes", "16 EiB")?;
    u64::try_from(bytes).map_err(|_| UnitError::TooLarge { most: "16 EiB" })
}

/// Parses a duration: `250ms`, `1.5s`, `2min`, `1h 30m`, and `0`.
///
/// # Errors
/// [`UnitError`], with the known units.
pub fn parse_duration(text: &str) -> Result<Duration, UnitError> {
    let too_large = || UnitError::TooLarge { most: "584 years" };
    let (mut rest, mut total) = (text.trim(), 0_u64);
    loop {
        let (number, after) = split(rest, "10s")?;
        let end = after.find(|c: char| c.is_ascii_digit() || c.is_whitespace()).unwrap_or(after.len());
        let (unit, after) = after.split_at(end);
        if unit.is_empty() {
            // Nothing is nothing in every unit.
            let zero = number.digits == 0 && total == 0 && after.is_empty();
            return if zero { Ok(Duration::ZERO) } else { Err(UnitError::NoUnit { known: known(named_times()) }) };
        }
        let nanos = number.times(scale(unit, TIMES, named_times())?, "nanoseconds", "584 years")?;
        let nanos = u64::try_from(nanos).map_err(|_| too_large())?;
        total = total.checked_add(nanos).ok_or_else(too_large)?;
        rest = after.trim_start();
        if rest.is_empty() {
            return Ok(Duration::from_nanos(total));
        }
    }
}

/// A decimal number: `digits / 10^places`.
struct Decimal {
    digits: u128,
    places: u32,
}

impl Decimal {
    fn times(&self, scale: u128, of: &'static str, most: &'static str) -> Result<u128, UnitError> {
        let product = self.digits.checked_mul(scale).ok_or(UnitError::TooLarge { most })?;
        let divisor = 10_u128.pow(self.places);
        if product.is_multiple_of(divisor) { Ok(product / divisor) } else { Err(UnitError::NotWhole { of }) }
    }
}

fn split<'a>(text: &'a str, example: &'static str) -> Result<(Decimal, &'a str), UnitError> {
    let text = text.trim();
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(end);
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    let fraction_given = number.contains('.');
    if whole.is_empty() || fraction.contains('.') || (fraction_given && fraction.is_empty()) {
        return Err(UnitError::NoNumber { example });
    }
    if whole.len() + fraction.len() > MAX_DIGITS {
        return Err(UnitError::TooLarge { most: "30 digits" });
    }
    let digits = format!("{whole}{fraction}").parse().map_err(|_| UnitError::NoNumber { example })?;
    // At most MAX_DIGITS, so ten to that power fits in 128 bits.
    let places = fraction.len() as u32;
    Ok((Decimal { digits, places }, unit.trim_start()))
}

fn named_times() -> &'static [(&'static str, u128)] {
    &TIMES[..TIMES_NAMED]
}

fn scale(unit: &str, units: &[(&str, u128)], named: &[(&str, u128)]) -> Result<u128, UnitError> {
    let exact = units.iter().find(|(name, _)| *name == unit);
    let found = exact.or_else(|| units.iter().find(|(name, _)| name.eq_ignore_ascii_case(unit)));
    found
        .map(|(_, scale)| *scale)
        .ok_or_else(|| UnitError::UnknownUnit { unit: unit.chars().take(16).collect(), known: known(named) })
}

fn known(units: &[(&str, u128)]) -> String {
    units.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(", ")
}

/// Writes a size so that [`parse_size`] returns the same number.
pub fn exact_size(bytes: u64) -> String {
    let binary = [("TiB", 40), ("GiB", 30), ("MiB", 20), ("KiB", 10)];
    match binary.iter().find(|(_, shift)| bytes != 0 && bytes.is_multiple_of(1 << shift)) {
        Some((unit, shift)) => format!("{}{unit}", bytes >> shift),
        None => bytes.to_string(),
    }
}

/// Writes a duration so that [`parse_duration`] returns the same duration.
pub fn exact_duration(duration: Duration) -> String {
    let nanos = duration.as_nanos();
    let units =
        [("h", 3_600_000_000_000), ("min", 60_000_000_000), ("s", 1_000_000_000), ("ms", 1_000_000), ("us", 1_000)];
    match units.iter().find(|(_, scale)| nanos != 0 && nanos.is_multiple_of(*scale)) {
        Some((unit, scale)) => format!("{}{unit}", nanos / scale),
        None => format!("{nanos}ns"),
    }
}

/// Writes a size with about three digits: `1.25 GiB`.
pub fn human_size(bytes: u64) -> String {
    let units = ["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    let mut value = bytes as f64;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < units.len() {
        value /= 1024.0;
        unit += 1;
    }
    match unit {
        0 => format!("{bytes} B"),
        _ if value < 10.0 => format!("{value:.2} {}", units[unit]),
        _ if value < 100.0 => format!("{value:.1} {}", units[unit]),
        _ => format!("{value:.0} {}", units[unit]),
    }
}

/// Writes a duration with a suitable unit: `1.25 s`, `310 µs`.
pub fn human_duration(duration: Duration) -> String {
    let seconds = duration.as_secs_f64();
    match seconds {
        _ if duration.is_zero() => "0 s".into(),
        s if s < 1e-6 => format!("{} ns", duration.as_nanos()),
        s if s < 1e-3 => format!("{:.1} µs", s * 1e6),
        s if s < 1.0 => format!("{:.2} ms", s * 1e3),
        s => format!("{s:.3} s"),
    }
}

/// Writes a count with thousands separators: `6,001,215`.
pub fn grouped(count: u64) -> String {
    let digits = count.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn sizes() {
        let cases = [
            ("0", 0),
            ("65536", 65536),
            ("64KiB", 65536),
            ("64 kib", 65536),
            ("64K", 65536),
            ("64kB", 64_000),
            ("64KB", 64_000),
            ("1.5GiB", 3 << 29),
            (" 2TB ", 2_000_000_000_000),
            ("18446744073709551615", u64::MAX),
        ];
        for (text, bytes) in cases {
            assert_eq!(parse_size(text), Ok(bytes), "{text}");
        }
    }

    #[test]
    fn durations() {
        let cases = [
            ("0", Duration::ZERO),
            ("250ms", Duration::from_millis(250)),
            ("1.5s", Duration::from_millis(1500)),
            ("2min", Duration::from_secs(120)),
            ("2 m", Duration::from_secs(120)),
            ("1h", Duration::from_secs(3600)),
            ("1h 30m", Duration::from_secs(5400)),
            ("1min30s 5ms", Duration::from_millis(90_005)),
            ("2 days", Duration::from_secs(172_800)),
            ("7µs", Duration::from_micros(7)),
        ];
        for (text, duration) in cases {
            assert_eq!(parse_duration(text), Ok(duration), "{text}");
        }
    }

    #[test]
    fn refusals_say_why() {
        assert!(matches!(parse_size(""), Err(UnitError::NoNumber { .. })));
        assert!(matches!(parse_size("-1"), Err(UnitError::NoNumber { .. })));
        assert!(matches!(parse_size("1.2.3M"), Err(UnitError::NoNumber { .. })));
        assert!(matches!(parse_size("1."), Err(UnitError::NoNumber { .. })));
        assert!(matches!(parse_size("0.3B"), Err(UnitError::NotWhole { of: "bytes" })));
        assert!(matches!(parse_size("17000000 TiB"), Err(UnitError::TooLarge { .. })));
        assert!(matches!(parse_size(&"9".repeat(40)), Err(UnitError::TooLarge { .. })));
        assert_eq!(
            parse_size("3 parsecs").unwrap_err().to_string(),
            "unknown unit \"parsecs\" (known: B, kB, KB, K, KiB, MB, M, MiB, GB, G, GiB, TB, T, TiB)"
        );
        assert!(matches!(parse_duration("10"), Err(UnitError::NoUnit { .. })));
        assert!(matches!(parse_duration("1m 30"), Err(UnitError::NoUnit { .. })));
        assert!(matches!(parse_duration("1m soon"), Err(UnitError::NoNumber { .. })));
        assert!(matches!(parse_duration("600 years"), Err(UnitError::UnknownUnit { .. })));
        assert!(matches!(parse_duration("10 fortnights"), Err(UnitError::UnknownUnit { .. })));
    }

    #[test]
    fn for_people() {
        assert_eq!(human_size(0), "0 B");
        assert_eq!(human_size(1536), "1.50 KiB");
        assert_eq!(human_size(u64::MAX), "16.0 EiB");
        assert_eq!(human_duration(Duration::from_micros(310)), "310.0 µs");
        assert_eq!(grouped(6_001_215), "6,001,215");
        assert_eq!(grouped(100), "100");
    }

    proptest! {
        #[test]
        fn never_panics(text in "\\PC*") {
            let _ = parse_size(&text);
            let _ = parse_duration(&text);
        }

        #[test]
        fn exact_forms_read_back(value: u64) {
            prop_assert_eq!(parse_size(&exact_size(value)), Ok(value));
            let duration = Duration::from_nanos(value);
            prop_assert_eq!(parse_duration(&exact_duration(duration)), Ok(duration));
        }
    }
}
