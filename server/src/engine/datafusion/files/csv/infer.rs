//! The type of a column of CSV, from a sample. The kinds are those of arrow-csv's inference, but what the type would
//! not give back is text: leading zeros, a leading plus, too many digits, dates that do not exist.

use arrow_array::types::Date32Type;
use arrow_cast::parse::Parser;
use arrow_schema::{DataType, TimeUnit};

use super::super::numbers;
use super::columns::{instant, zone_of};

const BOOLEAN: u16 = 1;
const INTEGER: u16 = 1 << 1;
const FLOAT: u16 = 1 << 2;
const DATE: u16 = 1 << 3;
const SECOND: u16 = 1 << 4;
const MILLISECOND: u16 = 1 << 5;
const MICROSECOND: u16 = 1 << 6;
const NANOSECOND: u16 = 1 << 7;
const TEXT: u16 = 1 << 8;
/// An integer that no float holds.
const LARGE: u16 = 1 << 9;
/// A time with a zone, and one (or a date) without.
const ZONE: u16 = 1 << 10;
const NO_ZONE: u16 = 1 << 11;
/// A time or date beyond what 64 bits of nanoseconds reach.
const FAR: u16 = 1 << 12;

const TIMES: u16 = SECOND | MILLISECOND | MICROSECOND | NANOSECOND;

/// The kinds of the values of a column.
#[derive(Clone, Copy, Default)]
pub(super) struct Evidence(u16);

impl Evidence {
    pub(super) fn add(&mut self, text: &str) {
        if self.0 & TEXT == 0 {
            self.0 |= kind(text);
        }
    }

    /// The type; Null if there was no value.
    pub(super) fn data_type(self) -> DataType {
        let kinds = self.0 & (TEXT | BOOLEAN | INTEGER | FLOAT | DATE | TIMES);
        match kinds {
            0 => DataType::Null,
            BOOLEAN => DataType::Boolean,
            INTEGER => DataType::Int64,
            _ if kinds & !(INTEGER | FLOAT) == 0 && self.0 & LARGE == 0 => DataType::Float64,
            DATE => DataType::Date32,
            _ if kinds & !(DATE | TIMES) == 0 => self.timestamp(),
            _ => DataType::Utf8,
        }
    }

    fn timestamp(self) -> DataType {
        let unit = match self.0 {
            bits if bits & NANOSECOND != 0 => TimeUnit::Nanosecond,
            bits if bits & MICROSECOND != 0 => TimeUnit::Microsecond,
            bits if bits & MILLISECOND != 0 => TimeUnit::Millisecond,
            _ => TimeUnit::Second,
        };
        match self.0 & (ZONE | NO_ZONE) {
            _ if unit == TimeUnit::Nanosecond && self.0 & FAR != 0 => DataType::Utf8,
            // Some are instants and some are not: no type holds both.
            bits if bits == ZONE | NO_ZONE => DataType::Utf8,
            ZONE => DataType::Timestamp(unit, Some("UTC".into())),
            _ => DataType::Timestamp(unit, None),
        }
    }
}

fn kind(text: &str) -> u16 {
    match text.as_bytes() {
        _ if text.eq_ignore_ascii_case("true") || text.eq_ignore_ascii_case("false") => BOOLEAN,
        b"NaN" | b"nan" | b"inf" | b"-inf" => FLOAT,
        [b'0'..=b'9', b'0'..=b'9', b'0'..=b'9', b'0'..=b'9', b'-', ..] => date_or_time(text),
        [b'-' | b'.' | b'0'..=b'9', ..] => number(text),
        _ => TEXT,
    }
}

fn number(text: &str) -> u16 {
    let unsigned = text.strip_prefix('-').unwrap_or(text);
    let mantissa_end = unsigned.find(['e', 'E']).unwrap_or(unsigned.len());
    let (mantissa, exponent) = unsigned.split_at(mantissa_end);
    let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    let is_digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    let has_leading_zero = whole.len() > 1 && whole.starts_with('0');
    if !is_digits(whole) || !is_digits(fraction) || whole.len() + fraction.len() == 0 || has_leading_zero {
        return TEXT;
    }
    if unsigned == whole {
        return match text.parse::<i64>() {
            Ok(value) if numbers::is_beyond_float(value.into()) => INTEGER | LARGE,
            Ok(_) => INTEGER,
            Err(_) => TEXT,
        };
    }
    if !exponent.is_empty() {
        let digits = exponent.get(1..).unwrap_or_default();
        let digits = digits.strip_prefix(['-', '+']).unwrap_or(digits);
        if digits.is_empty() || !is_digits(digits) {
            return TEXT;
        }
    }
    // Longer than what programs write of a float, so it is none.
    let significant = format!("{whole}{fraction}");
    let is_long = significant.trim_matches('0').len() > 19;
    let is_large = exponent.is_empty() && !fraction.is_empty() && whole.len() > 16;
    if is_long || is_large || numbers::float(text).is_none() { TEXT } else { FLOAT }
}

fn date_or_time(text: &str) -> u16 {
    let is_shape = text.bytes().take(10).enumerate().all(|(at, byte)| match at {
        4 | 7 => byte == b'-',
        _ => byte.is_ascii_digit(),
    });
    if !is_shape || text.len() < 10 {
        return TEXT;
    }
    if text.len() == 10 {
        let Some(days) = Date32Type::parse(text) else { return TEXT };
        let is_far = i64::from(days).checked_mul(86_400_000_000_000).is_none();
        return DATE | NO_ZONE | if is_far { FAR } else { 0 };
    }
    // As in arrow-csv, a time is written with colons and seconds.
    let has_colons = text.as_bytes().get(13) == Some(&b':') && text.as_bytes().get(16) == Some(&b':');
    let Some(nanoseconds) = instant(text, None).filter(|_| has_colons) else { return TEXT };
    let unit = match numbers::fraction(text).len() {
        0 => SECOND,
        1..=3 => MILLISECOND,
        4..=6 => MICROSECOND,
        _ => NANOSECOND,
    };
    let zone = if zone_of(text).is_empty() { NO_ZONE } else { ZONE };
    unit | zone | if i64::try_from(nanoseconds).is_err() { FAR } else { 0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(values: &[&str]) -> DataType {
        let mut evidence = Evidence::default();
        values.iter().for_each(|value| evidence.add(value));
        evidence.data_type()
    }

    #[test]
    fn numbers_that_lose_nothing() {
        assert_eq!(of(&[]), DataType::Null);
        assert_eq!(of(&["1", "-20", "0", "9223372036854775807"]), DataType::Int64);
        assert_eq!(of(&["1", "1.5"]), DataType::Float64);
        for float in ["1.", ".5", "-1e5", "1.5E-3", "nan", "NaN", "-inf", "1.000000000000000056e-01", "0.50"] {
            assert_eq!(of(&[float]), DataType::Float64, "{float}");
        }
        for text in [
            "01234",
            "-01",
            "+1",
            "9223372036854775808",
            "12345678901234567890123",
            "1e400",
            "1e-400",
            "1_000",
            "1,5",
            "01.5",
            "-",
            ".",
            "-.",
            "1e",
            "e5",
            "1e+",
            "1.2.3",
            "x",
            " 1",
            "1 ",
            "123456789012345678.12",
            "0x1f",
            "--1",
            "0.12345678901234567890123",
        ] {
            assert_eq!(of(&[text]), DataType::Utf8, "{text}");
        }
        assert_eq!(of(&["9007199254740993", "1.5"]), DataType::Utf8);
        assert_eq!(of(&["9007199254740993", "1"]), DataType::Int64);
        assert_eq!(of(&["1", "x", "1"]), DataType::Utf8);
    }

    #[test]
    fn other_kinds() {
        let timestamp = |unit, zone: Option<&str>| DataType::Timestamp(unit, zone.map(Into::into));
        assert_eq!(of(&["true", "FALSE"]), DataType::Boolean);
        assert_eq!(of(&["true", "1"]), DataType::Utf8);
        assert_eq!(of(&["2024-02-29"]), DataType::Date32);
        assert_eq!(of(&["2023-02-29"]), DataType::Utf8);
        assert_eq!(of(&["0000-00-00"]), DataType::Utf8);
        assert_eq!(of(&["2024-1-1"]), DataType::Utf8);
        assert_eq!(of(&["2024-01-01", "2024-01-01T10:00:00"]), timestamp(TimeUnit::Second, None));
        assert_eq!(of(&["2024-01-01 10:00:00.5"]), timestamp(TimeUnit::Millisecond, None));
        assert_eq!(of(&["2024-01-01 10:00:00.1234", "2024-01-01 10:00:00"]), timestamp(TimeUnit::Microsecond, None));
        assert_eq!(of(&["2024-01-01T10:00:00.123456789"]), timestamp(TimeUnit::Nanosecond, None));
        assert_eq!(of(&["2024-01-01T10:00:00.1234567891"]), DataType::Utf8);
        assert_eq!(of(&["2024-01-01T10:00:00Z"]), timestamp(TimeUnit::Second, Some("UTC")));
        assert_eq!(of(&["2024-01-01T10:00:00+02:00", "2024-01-01T10:00:00"]), DataType::Utf8);
        assert_eq!(of(&["2024-01-01T10:00:00.123456789", "9999-12-31"]), DataType::Utf8);
        assert_eq!(of(&["9999-12-31T00:00:00"]), timestamp(TimeUnit::Second, None));
        assert_eq!(of(&["2024-01-01", "1"]), DataType::Utf8);
        assert_eq!(of(&["2024-01-01T25:00:00"]), DataType::Utf8);
        assert_eq!(of(&["2024-01-01é"]), DataType::Utf8);
    }
}
