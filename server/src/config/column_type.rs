//! Types of columns in the configuration.

use std::fmt;
use std::str::FromStr;

use arrow_schema::{DataType, TimeUnit};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// The type of a column: a name of SQL such as `bigint`, `text` or `decimal(10, 2)`, or an Arrow type such as
/// `Timestamp(ms, "Europe/Berlin")`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ColumnType {
    text: String,
    data_type: DataType,
}

impl ColumnType {
    /// The Arrow type.
    #[must_use]
    pub fn data_type(&self) -> &DataType {
        &self.data_type
    }
}

impl FromStr for ColumnType {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let lower = text.trim().to_ascii_lowercase();
        let by_name = match lower.as_str() {
            "boolean" | "bool" => Some(DataType::Boolean),
            "tinyint" => Some(DataType::Int8),
            "smallint" => Some(DataType::Int16),
            "int" | "integer" => Some(DataType::Int32),
            "bigint" => Some(DataType::Int64),
            "real" | "float" => Some(DataType::Float32),
            "double" => Some(DataType::Float64),
            "text" | "string" | "varchar" => Some(DataType::Utf8),
            "date" => Some(DataType::Date32),
            "time" => Some(DataType::Time64(TimeUnit::Microsecond)),
            "timestamp" => Some(DataType::Timestamp(TimeUnit::Microsecond, None)),
            "timestamptz" => Some(DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into()))),
            _ => decimal(&lower),
        };
        let data_type = match by_name {
            Some(data_type) => data_type,
            None => text.trim().parse().map_err(|_| {
                format!(
                    "`{text}` is no type: write one of boolean, tinyint, smallint, int, bigint, real, double, text, \
                     date, time, timestamp, timestamptz, decimal(P, S), or an Arrow type such as Timestamp(ms)"
                )
            })?,
        };
        Ok(ColumnType { text: text.to_owned(), data_type })
    }
}

/// `decimal(10, 2)`, with a precision of at most 76.
fn decimal(lower: &str) -> Option<DataType> {
    let inner = lower.strip_prefix("decimal(").or_else(|| lower.strip_prefix("numeric("))?.strip_suffix(')')?;
    let (precision, scale) = inner.split_once(',').unwrap_or((inner, "0"));
    let (precision, scale): (u8, i8) = (precision.trim().parse().ok()?, scale.trim().parse().ok()?);
    if scale < 0 || scale.unsigned_abs() > precision {
        return None;
    }
    match precision {
        1..=38 => Some(DataType::Decimal128(precision, scale)),
        39..=76 => Some(DataType::Decimal256(precision, scale)),
        _ => None,
    }
}

impl fmt::Display for ColumnType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl Serialize for ColumnType {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.text)
    }
}

impl<'de> Deserialize<'de> for ColumnType {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_sql_and_of_arrow() {
        let of = |text: &str| text.parse::<ColumnType>().map(|column| column.data_type);
        assert_eq!(of("BIGINT"), Ok(DataType::Int64));
        assert_eq!(of(" text "), Ok(DataType::Utf8));
        assert_eq!(of("decimal(10, 2)"), Ok(DataType::Decimal128(10, 2)));
        assert_eq!(of("numeric(50)"), Ok(DataType::Decimal256(50, 0)));
        assert_eq!(of("Timestamp(ms)"), Ok(DataType::Timestamp(TimeUnit::Millisecond, None)));
        assert_eq!(of("Int16"), Ok(DataType::Int16));
        for wrong in ["", "integre", "decimal(99, 1)", "decimal(2, 3)", "decimal(2, -1)"] {
            assert!(of(wrong).unwrap_err().contains("no type"), "{wrong}");
        }
    }
}
