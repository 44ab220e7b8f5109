//! The text of a value. It is the value, or there is an error: never an error's text in the value's place.

use std::fmt::{Display, Write};
use std::ops::RangeInclusive;

use arrow::array::timezone::Tz;
use arrow::array::{Array, ArrowPrimitiveType, AsArray, PrimitiveArray};
use arrow::datatypes::{
    ArrowTimestampType, DataType, Decimal32Type, Decimal64Type, Decimal128Type, Decimal256Type, DecimalType,
    DurationMillisecondType, DurationSecondType, Field, Time32MillisecondType, Time32SecondType, Time64MicrosecondType,
    Time64NanosecondType, TimeUnit, TimestampMicrosecondType, TimestampMillisecondType, TimestampNanosecondType,
    TimestampSecondType,
};
use arrow::error::ArrowError;
use arrow::temporal_conversions::as_datetime;
use arrow::util::display::{ArrayFormatter, ArrayFormatterFactory, DisplayIndex, FormatOptions, FormatResult};
use chrono::{FixedOffset, Offset, SecondsFormat, TimeZone, Utc};

/// The texts of an array's values, in Arrow's own form where that is right.
///
/// # Errors
/// [`ArrowError`] if no value of the type has a text, as with an unknown time zone.
pub(super) fn texts<'a>(array: &'a dyn Array, null: &'a str) -> Result<ArrayFormatter<'a>, ArrowError> {
    let options = FormatOptions::new().with_null(null).with_display_error(false);
    let options = options.with_formatter_factory(Some(&Exact));
    match Exact.create_array_formatter(array, &options, None)? {
        Some(formatter) => Ok(formatter),
        None => ArrayFormatter::try_new(array, &options),
    }
}

/// Formatters for the types of which Arrow writes wrong texts, also within other types (arrow-cast 59.3): decimals
/// longer than their precision are cut, zero with a negative scale is 000, local times at offsets with seconds lose
/// these, and large durations are `<invalid>`.
#[derive(Debug)]
struct Exact;

impl ArrayFormatterFactory for Exact {
    fn create_array_formatter<'a>(
        &self,
        array: &'a dyn Array,
        options: &FormatOptions<'a>,
        _field: Option<&'a Field>,
    ) -> Result<Option<ArrayFormatter<'a>>, ArrowError> {
        use TimeUnit::*;
        let format: Box<dyn DisplayIndex + 'a> = match array.data_type() {
            DataType::Decimal32(_, scale) => decimals::<Decimal32Type>(array, *scale, options),
            DataType::Decimal64(_, scale) => decimals::<Decimal64Type>(array, *scale, options),
            DataType::Decimal128(_, scale) => decimals::<Decimal128Type>(array, *scale, options),
            DataType::Decimal256(_, scale) => decimals::<Decimal256Type>(array, *scale, options),
            DataType::Timestamp(unit, Some(zone)) => match unit {
                Second => zoned::<TimestampSecondType>(array, zone, options)?,
                Millisecond => zoned::<TimestampMillisecondType>(array, zone, options)?,
                Microsecond => zoned::<TimestampMicrosecondType>(array, zone, options)?,
                Nanosecond => zoned::<TimestampNanosecondType>(array, zone, options)?,
            },
            DataType::Time32(Second) => times::<Time32SecondType>(array, 1, options)?,
            DataType::Time32(_) => times::<Time32MillisecondType>(array, 1_000, options)?,
            DataType::Time64(Nanosecond) => times::<Time64NanosecondType>(array, 1_000_000_000, options)?,
            DataType::Time64(_) => times::<Time64MicrosecondType>(array, 1_000_000, options)?,
            DataType::Duration(Second) => durations::<DurationSecondType>(array, 1, options)?,
            DataType::Duration(Millisecond) => durations::<DurationMillisecondType>(array, 1_000, options)?,
            _ => return Ok(None),
        };
        Ok(Some(ArrayFormatter::new(format, options.safe())))
    }
}

struct Decimals<'a, T: DecimalType> {
    array: &'a PrimitiveArray<T>,
    scale: i8,
    null: &'a str,
}

fn decimals<'a, T: DecimalType>(
    array: &'a dyn Array,
    scale: i8,
    options: &FormatOptions<'a>,
) -> Box<dyn DisplayIndex + 'a>
where
    T::Native: Display,
{
    Box::new(Decimals::<T> { array: array.as_primitive(), scale, null: options.null() })
}

impl<T: DecimalType> DisplayIndex for Decimals<'_, T>
where
    T::Native: Display,
{
    fn write(&self, row: usize, to: &mut dyn Write) -> FormatResult {
        if self.array.is_null(row) {
            return Ok(to.write_str(self.null)?);
        }
        Ok(decimal(&self.array.value(row).to_string(), self.scale, to)?)
    }
}

/// Writes a decimal with its point, from the digits of its integer.
fn decimal(integer: &str, scale: i8, to: &mut dyn Write) -> std::fmt::Result {
    let places = usize::from(scale.unsigned_abs());
    if scale <= 0 {
        to.write_str(integer)?;
        return if integer == "0" { Ok(()) } else { to.write_str(&"0".repeat(places)) };
    }
    let (sign, digits) = integer.strip_prefix('-').map_or(("", integer), |digits| ("-", digits));
    to.write_str(sign)?;
    match digits.len().checked_sub(places) {
        Some(whole @ 1..) => {
            to.write_str(&digits[..whole])?;
            to.write_char('.')?;
            to.write_str(&digits[whole..])
        }
        _ => write!(to, "0.{digits:0>places$}"),
    }
}

struct Zoned<'a, T: ArrowTimestampType> {
    array: &'a PrimitiveArray<T>,
    zone: Tz,
    null: &'a str,
}

fn zoned<'a, T: ArrowTimestampType>(
    array: &'a dyn Array,
    zone: &str,
    options: &FormatOptions<'a>,
) -> Result<Box<dyn DisplayIndex + 'a>, ArrowError> {
    // Arrow does not know ISO 8601's name of UTC, which some writers put in a schema.
    let zone = if zone.eq_ignore_ascii_case("z") { "UTC" } else { zone };
    Ok(Box::new(Zoned::<T> { array: array.as_primitive(), zone: zone.parse()?, null: options.null() }))
}

impl<T: ArrowTimestampType> DisplayIndex for Zoned<'_, T> {
    fn write(&self, row: usize, to: &mut dyn Write) -> FormatResult {
        if self.array.is_null(row) {
            return Ok(to.write_str(self.null)?);
        }
        let value = self.array.value(row);
        let utc = as_datetime::<T>(value).ok_or_else(|| beyond(value, self.array.data_type()))?;
        let at = Utc.from_utc_datetime(&utc);
        // RFC 3339 has no seconds in an offset. Zones had such offsets before they took standard time, in Europe until
        // about 1900: such an instant is written at the next offset of whole minutes.
        let seconds = at.with_timezone(&self.zone).offset().fix().local_minus_utc();
        let whole = FixedOffset::east_opt(seconds - seconds % 60).unwrap_or_else(|| Utc.fix());
        Ok(to.write_str(&at.with_timezone(&whole).to_rfc3339_opts(SecondsFormat::AutoSi, true))?)
    }
}

/// Values of which Arrow's formatter is right about some.
struct Within<'a, T: ArrowPrimitiveType> {
    array: &'a PrimitiveArray<T>,
    right: RangeInclusive<i64>,
    format: ArrayFormatter<'a>,
    /// The text of another value; without it there is an error.
    other: Option<fn(i64, units: i64) -> String>,
    units: i64,
}

/// Times of a day, of this number of units in a second.
fn times<'a, T: ArrowPrimitiveType<Native: Into<i64>>>(
    array: &'a dyn Array,
    units: i64,
    options: &FormatOptions<'a>,
) -> Result<Box<dyn DisplayIndex + 'a>, ArrowError> {
    let format = ArrayFormatter::try_new(array, options)?;
    let right = 0..=86_400 * units - 1;
    Ok(Box::new(Within::<T> { array: array.as_primitive(), right, format, other: None, units }))
}

fn durations<'a, T: ArrowPrimitiveType<Native: Into<i64>>>(
    array: &'a dyn Array,
    units: i64,
    options: &FormatOptions<'a>,
) -> Result<Box<dyn DisplayIndex + 'a>, ArrowError> {
    let format = ArrayFormatter::try_new(array, options)?;
    let most = i64::MAX / 1000 * units;
    Ok(Box::new(Within::<T> { array: array.as_primitive(), right: -most..=most, format, other: Some(duration), units }))
}

impl<T: ArrowPrimitiveType<Native: Into<i64>>> DisplayIndex for Within<'_, T> {
    fn write(&self, row: usize, to: &mut dyn Write) -> FormatResult {
        let value: i64 = self.array.value(row).into();
        if self.array.is_null(row) || self.right.contains(&value) {
            return Ok(self.format.value(row).write(to)?);
        }
        match self.other {
            Some(text) => Ok(to.write_str(&text(value, self.units))?),
            None => Err(beyond(value, self.array.data_type()).into()),
        }
    }
}

/// ISO 8601, as Arrow writes durations.
fn duration(value: i64, units: i64) -> String {
    let sign = if value < 0 { "-" } else { "" };
    let (units, value) = (units.unsigned_abs(), value.unsigned_abs());
    match value % units {
        0 => format!("{sign}PT{}S", value / units),
        // Milliseconds.
        part => format!("{sign}PT{}.{}S", value / units, format!("{part:03}").trim_end_matches('0')),
    }
}

fn beyond(value: i64, data_type: &DataType) -> ArrowError {
    ArrowError::CastError(format!("{value} is beyond the range of {data_type} that has a text"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn decimals_of_every_scale() {
        for (integer, scale, text) in [
            ("0", -3, "0"),
            ("-5", -3, "-5000"),
            ("-5", 0, "-5"),
            ("-5", 2, "-0.05"),
            ("12345", 2, "123.45"),
            ("12345", 5, "0.12345"),
            ("0", 2, "0.00"),
        ] {
            let mut written = String::new();
            decimal(integer, scale, &mut written).unwrap();
            assert_eq!(written, text, "{integer} {scale}");
        }
    }

    #[test]
    fn durations_beyond_those_of_arrow() {
        assert_eq!(duration(i64::MIN, 1), "-PT9223372036854775808S");
        assert_eq!(duration(i64::MIN, 1000), "-PT9223372036854775.808S");
        assert_eq!(duration(i64::MAX - 7, 1000), "PT9223372036854775.8S");
    }
}
