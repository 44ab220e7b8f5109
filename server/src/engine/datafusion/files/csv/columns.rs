//! Fields of CSV to arrays. A value that the type does not hold as it is written is an error.

use std::sync::Arc;

use arrow_array::builder::{BooleanBuilder, PrimitiveBuilder};
use arrow_array::timezone::Tz;
use arrow_array::types::{
    Date32Type, Float64Type, Int64Type, TimestampMicrosecondType, TimestampMillisecondType, TimestampNanosecondType,
    TimestampSecondType, UInt64Type,
};
use arrow_array::{Array, ArrayRef, ArrowPrimitiveType, LargeStringArray, NullArray, StringArray, StringViewArray};
use arrow_cast::parse::{Parser, string_to_datetime};
use arrow_cast::{CastOptions, cast_with_options};
use arrow_schema::{DataType, TimeUnit};

use super::super::error::ReadError;
use super::super::numbers;
use super::records::Rows;

/// A column of some records.
pub(super) struct Column<'a> {
    pub(super) rows: &'a Rows<'a>,
    /// Its number among the kept fields.
    pub(super) index: usize,
    pub(super) name: &'a str,
    /// The word that means NULL, unless it is quoted. Without one an empty field does.
    pub(super) null: Option<&'a str>,
    /// Whether the type was inferred, so that a value that is written otherwise than those of the sample may be none
    /// of the type: `007` among integers. A declared type takes what it can hold.
    pub(super) is_inferred: bool,
}

impl Column<'_> {
    pub(super) fn array(&self, data_type: &DataType) -> Result<ArrayRef, ReadError> {
        let array: ArrayRef = match data_type {
            DataType::Utf8 => Arc::new(self.texts().collect::<StringArray>()),
            DataType::LargeUtf8 => Arc::new(self.texts().collect::<LargeStringArray>()),
            DataType::Utf8View => Arc::new(self.texts().collect::<StringViewArray>()),
            DataType::Null => return self.nulls(),
            DataType::Boolean => return self.booleans(),
            DataType::Int64 => {
                return self.primitive::<Int64Type>(data_type, |text| {
                    self.is_plain_integer(text).then(|| Int64Type::parse(text)).flatten()
                });
            }
            DataType::UInt64 => {
                return self.primitive::<UInt64Type>(data_type, |text| {
                    self.is_plain_integer(text).then(|| UInt64Type::parse(text)).flatten()
                });
            }
            DataType::Float64 => return self.primitive::<Float64Type>(data_type, |text| self.float(text)),
            DataType::Date32 => {
                // Arrow cuts a time off.
                let has_time = |text: &str| text.len() > 10 && !text.starts_with(['-', '+']);
                return self.primitive::<Date32Type>(data_type, |text| {
                    if has_time(text) { None } else { Date32Type::parse(text) }
                });
            }
            DataType::Timestamp(unit, zone) => return self.timestamps(data_type, *unit, zone.as_deref()),
            other => return self.cast(other),
        };
        Ok(array)
    }

    /// Values of a type of text: an empty one that is quoted is a text.
    fn texts(&self) -> impl Iterator<Item = Option<&str>> {
        let null = self.null.unwrap_or_default();
        self.rows.column(self.index).map(move |field| (field.quoted || field.text != null).then_some(field.text))
    }

    /// Values of another type, for which an empty field is NULL, quoted or not.
    fn values(&self) -> impl Iterator<Item = Option<&str>> {
        self.texts().map(|text| text.filter(|text| !text.is_empty()))
    }

    fn primitive<T: ArrowPrimitiveType>(
        &self,
        data_type: &DataType,
        parse: impl Fn(&str) -> Option<T::Native>,
    ) -> Result<ArrayRef, ReadError> {
        let mut builder = PrimitiveBuilder::<T>::with_capacity(self.rows.len()).with_data_type(data_type.clone());
        for (row, text) in self.values().enumerate() {
            match text {
                None => builder.append_null(),
                Some(text) => builder.append_value(parse(text).ok_or_else(|| self.invalid(row, text, data_type))?),
            }
        }
        Ok(Arc::new(builder.finish()))
    }

    fn booleans(&self) -> Result<ArrayRef, ReadError> {
        let mut builder = BooleanBuilder::with_capacity(self.rows.len());
        for (row, text) in self.values().enumerate() {
            match text {
                None => builder.append_null(),
                Some(text) if text.eq_ignore_ascii_case("true") => builder.append_value(true),
                Some(text) if text.eq_ignore_ascii_case("false") => builder.append_value(false),
                Some(text) => return Err(self.invalid(row, text, &DataType::Boolean)),
            }
        }
        Ok(Arc::new(builder.finish()))
    }

    fn nulls(&self) -> Result<ArrayRef, ReadError> {
        match self.values().enumerate().find_map(|(row, text)| text.map(|text| (row, text))) {
            Some((row, text)) => Err(self.invalid(row, text, &DataType::Null)),
            None => Ok(Arc::new(NullArray::new(self.rows.len()))),
        }
    }

    fn float(&self, text: &str) -> Option<f64> {
        let text = text.trim_ascii();
        if self.is_inferred { numbers::exact_float(text) } else { numbers::float(text) }
    }

    /// Whether an integer's text is what the integer is written as.
    fn is_plain_integer(&self, text: &str) -> bool {
        let digits = text.strip_prefix('-').unwrap_or(text);
        let is_padded = digits.starts_with('+') || (digits.len() > 1 && digits.starts_with('0'));
        !(self.is_inferred && is_padded)
    }

    fn timestamps(&self, data_type: &DataType, unit: TimeUnit, zone: Option<&str>) -> Result<ArrayRef, ReadError> {
        let parsed_zone: Option<Tz> = zone
            .map(str::parse)
            .transpose()
            .map_err(|_| self.flaw(0, format!("the time zone of {data_type} is unknown")))?;
        let per_unit: i128 = match unit {
            TimeUnit::Second => 1_000_000_000,
            TimeUnit::Millisecond => 1_000_000,
            TimeUnit::Microsecond => 1000,
            TimeUnit::Nanosecond => 1,
        };
        let parse = |text: &str| {
            // Without a zone among those with one the instant is a guess, and the other way round.
            if self.is_inferred && zone.is_some() == zone_of(text).is_empty() {
                return None;
            }
            let nanoseconds = instant(text, parsed_zone.as_ref())?;
            (nanoseconds % per_unit == 0).then(|| i64::try_from(nanoseconds / per_unit).ok()).flatten()
        };
        match unit {
            TimeUnit::Second => self.primitive::<TimestampSecondType>(data_type, parse),
            TimeUnit::Millisecond => self.primitive::<TimestampMillisecondType>(data_type, parse),
            TimeUnit::Microsecond => self.primitive::<TimestampMicrosecondType>(data_type, parse),
            TimeUnit::Nanosecond => self.primitive::<TimestampNanosecondType>(data_type, parse),
        }
    }

    /// Any other type, by arrow's cast of texts.
    fn cast(&self, data_type: &DataType) -> Result<ArrayRef, ReadError> {
        let texts: StringArray = if is_text(data_type) { self.texts().collect() } else { self.values().collect() };
        for (row, text) in texts.iter().enumerate() {
            if let Some(text) = text.filter(|text| !numbers::keeps_digits(text, data_type)) {
                return Err(self.invalid(row, text, data_type));
            }
        }
        let options = CastOptions { safe: false, ..CastOptions::default() };
        cast_with_options(&texts, data_type, &options).map_err(|error| {
            // The cast does not tell where: one value after the other.
            let row =
                (0..texts.len()).find(|row| cast_with_options(&texts.slice(*row, 1), data_type, &options).is_err());
            match row {
                Some(row) if texts.is_valid(row) => self.invalid(row, texts.value(row), data_type),
                _ => self.flaw(0, error.to_string()),
            }
        })
    }

    fn invalid(&self, row: usize, text: &str, data_type: &DataType) -> ReadError {
        let shown: String = text.chars().take(100).collect();
        let more = if shown.len() < text.len() { "..." } else { "" };
        self.flaw(row, format!("{shown:?}{more} is not a value of {data_type}"))
    }

    fn flaw(&self, row: usize, reason: String) -> ReadError {
        ReadError::Invalid { line: self.rows.line(row), reason: format!("column {:?}: {reason}", self.name) }
    }
}

fn is_text(data_type: &DataType) -> bool {
    match data_type {
        DataType::Dictionary(_, value) => is_text(value),
        other => other.is_string() || other.is_binary(),
    }
}

/// The nanoseconds since 1970 of a date or time. One without a zone is in `zone`, or else as in UTC.
pub(super) fn instant(text: &str, zone: Option<&Tz>) -> Option<i128> {
    // Arrow cuts what lies beyond nanoseconds.
    let fraction = numbers::fraction(text);
    if fraction.len() > 9 {
        return None;
    }
    let (seconds, nanoseconds) = match zone {
        Some(zone) => string_to_datetime(zone, text).ok().map(|time| (time.timestamp(), time.timestamp_subsec_nanos())),
        None => {
            let utc: Tz = "+00:00".parse().ok()?;
            string_to_datetime(&utc, text).ok().map(|time| (time.timestamp(), time.timestamp_subsec_nanos()))
        }
    }?;
    Some(i128::from(seconds) * 1_000_000_000 + i128::from(nanoseconds))
}

/// The time zone at the end of a time, empty if there is none.
pub(super) fn zone_of(text: &str) -> &str {
    let time = text.get(11..).unwrap_or_default();
    let end = time.find(|c: char| !matches!(c, '0'..='9' | ':' | '.')).unwrap_or(time.len());
    time.get(end..).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn instants() {
        assert_eq!(instant("1970-01-01", None), Some(0));
        assert_eq!(instant("1970-01-01T00:00:01.5Z", None), Some(1_500_000_000));
        assert_eq!(instant("1970-01-01 02:00:00+02:00", None), Some(0));
        assert_eq!(instant("1969-12-31T23:59:59.999999999", None), Some(-1));
        assert_eq!(instant("1970-01-01T00:00:00.1234567890", None), None);
        assert_eq!(instant("1970-01-01T00:00:00", "+01:00".parse().ok().as_ref()), Some(-3_600_000_000_000));
        assert_eq!(instant("x", None), None);
        assert_eq!(zone_of("1970-01-01T00:00:00.5+02:00"), "+02:00");
        assert_eq!(zone_of("1970-01-01T00:00:00.5"), "");
        assert_eq!(zone_of("1970-01-01"), "");
    }
}
