//! Whether a number's text fits a type without loss. For CSV and JSON.

use arrow_schema::DataType;

/// Integers up to this size have a value of their own among the 64-bit floats.
const EXACT_IN_FLOAT: i128 = 1 << 53;

/// The 64-bit float of `text`, `None` if it is none or none in range, or if it is an integer and the float another.
/// A fraction is rounded to the next float, as everywhere.
pub(super) fn exact_float(text: &str) -> Option<f64> {
    let value = float(text)?;
    (!is_integer(text) || is_exact_in_float(text)).then_some(value)
}

/// As [`exact_float`], but integers are rounded as well.
pub(super) fn float(text: &str) -> Option<f64> {
    let value: f64 = text.parse().ok()?;
    let has_digits = text.bytes().any(|byte| byte.is_ascii_digit());
    // Out of range: infinity, or zero, is another number.
    let is_lost = has_digits && (value.is_infinite() || (value == 0.0 && has_nonzero_mantissa(text)));
    (!is_lost).then_some(value)
}

/// Whether `text` is an integer's: a sign and digits.
pub(super) fn is_integer(text: &str) -> bool {
    let digits = text.strip_prefix(['-', '+']).unwrap_or(text);
    !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit())
}

/// Whether the integer `text` is the same as a 64-bit float.
pub(super) fn is_exact_in_float(text: &str) -> bool {
    let Ok(value) = text.parse::<i128>() else { return false };
    if value.unsigned_abs() <= EXACT_IN_FLOAT.unsigned_abs() {
        return true;
    }
    // Bits beyond the 53 of a float's mantissa have to be zero.
    let magnitude = value.unsigned_abs();
    magnitude.ilog2() - magnitude.trailing_zeros() < 53
}

/// Whether the integer `value` lies beyond those of which each has a float of its own.
pub(super) fn is_beyond_float(value: i128) -> bool {
    value.unsigned_abs() > EXACT_IN_FLOAT.unsigned_abs()
}

/// Whether a cast of `text` to `data_type` drops no digits: the casts of arrow round decimals and cut times.
pub(super) fn keeps_digits(text: &str, data_type: &DataType) -> bool {
    use arrow_schema::TimeUnit;
    let digits = match data_type {
        DataType::Decimal32(_, scale)
        | DataType::Decimal64(_, scale)
        | DataType::Decimal128(_, scale)
        | DataType::Decimal256(_, scale) => {
            let is_plain = text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'.' | b'-' | b'+'));
            return is_plain && digits_after_point(text) <= i64::from(*scale);
        }
        DataType::Time32(TimeUnit::Second) => 0,
        DataType::Time32(_) | DataType::Date64 => 3,
        DataType::Time64(TimeUnit::Microsecond) => 6,
        DataType::Time64(_) => 9,
        _ => return true,
    };
    fraction(text).trim_end_matches('0').len() <= digits
}

/// Number of decimals that `text` needs; negative if it ends in zeros before the point.
fn digits_after_point(text: &str) -> i64 {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let fraction = fraction.trim_end_matches('0');
    let count = if fraction.is_empty() {
        let significant = whole.trim_end_matches('0');
        // Zero needs no digit at all.
        if significant.trim_start_matches(['-', '+']).is_empty() {
            return i64::from(i8::MIN);
        }
        return -i64::try_from(whole.len() - significant.len()).unwrap_or(i64::MAX);
    } else {
        fraction.len()
    };
    i64::try_from(count).unwrap_or(i64::MAX)
}

/// The digits of a time's fraction of a second.
pub(super) fn fraction(text: &str) -> &str {
    let Some((_, rest)) = text.split_once('.') else { return "" };
    let end = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
    rest.get(..end).unwrap_or_default()
}

fn has_nonzero_mantissa(text: &str) -> bool {
    text.bytes().take_while(|byte| !matches!(byte, b'e' | b'E')).any(|byte| matches!(byte, b'1'..=b'9'))
}

#[cfg(test)]
mod tests {
    use arrow_schema::TimeUnit;

    use super::*;

    #[test]
    fn floats() {
        for (text, want) in [
            ("1.5", Some(1.5)),
            ("-0.9", Some(-0.9)),
            ("9007199254740992", Some(9007199254740992.0)),
            ("-9007199254740993", None),
            ("9007199254740994", Some(9007199254740994.0)),
            ("100000000000000000000", Some(1e20)),
            ("99999999999999999999", None),
            ("1e300", Some(1e300)),
            ("1e400", None),
            ("-1e400", None),
            ("1e-400", None),
            ("0e-400", Some(0.0)),
            ("0.000", Some(0.0)),
            ("inf", Some(f64::INFINITY)),
            ("x", None),
            ("", None),
            ("1_000", None),
        ] {
            assert_eq!(exact_float(text), want, "{text}");
        }
        assert_eq!(float("9007199254740993"), Some(9007199254740992.0));
        assert!(exact_float("nan").is_some_and(f64::is_nan));
        assert!(is_exact_in_float("0") && is_exact_in_float("-1") && !is_exact_in_float(&"9".repeat(60)));
    }

    #[test]
    fn digits() {
        let decimal = |scale| DataType::Decimal128(38, scale);
        for (text, data_type, want) in [
            ("1.25", decimal(2), true),
            ("1.255", decimal(2), false),
            ("1.2500", decimal(2), true),
            ("7", decimal(0), true),
            ("7.0", decimal(0), true),
            ("1200", decimal(-2), true),
            ("1230", decimal(-2), false),
            ("0", decimal(-2), true),
            ("1e2", decimal(0), false),
            ("10:00:00.5", DataType::Time32(TimeUnit::Second), false),
            ("10:00:00.0", DataType::Time32(TimeUnit::Second), true),
            ("10:00:00.123", DataType::Time32(TimeUnit::Millisecond), true),
            ("10:00:00.1234567", DataType::Time64(TimeUnit::Microsecond), false),
            ("x.y", DataType::Utf8, true),
        ] {
            assert_eq!(keeps_digits(text, &data_type), want, "{text} {data_type}");
        }
        assert_eq!(fraction("10:00:00.12Z"), "12");
    }
}
