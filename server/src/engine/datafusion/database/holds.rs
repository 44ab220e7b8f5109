//! The format of a table's data files: Parquet, unless it cannot hold every value of the columns' types.

use arrow_schema::{DataType, Schema};

use crate::catalog::Format;

/// The format for these columns. The types that are left to Arrow's own format are those that Parquet does not have
/// (unions, intervals, structs without fields), or that its reader returns as another type or not at all.
pub(super) fn format_of(schema: &Schema) -> Format {
    let all_fit = schema.fields().iter().all(|field| column_fits(field.data_type()));
    if all_fit { Format::Parquet } else { Format::Arrow }
}

fn column_fits(data_type: &DataType) -> bool {
    match data_type {
        // Only as a column of its own. Within other types the reader flattens dictionaries.
        DataType::Dictionary(_, values) => {
            matches!(**values, DataType::Utf8 | DataType::LargeUtf8 | DataType::Binary | DataType::LargeBinary)
        }
        other => fits(other),
    }
}

fn fits(data_type: &DataType) -> bool {
    match data_type {
        DataType::Boolean
        | DataType::Int8
        | DataType::Int16
        | DataType::Int32
        | DataType::Int64
        | DataType::UInt8
        | DataType::UInt16
        | DataType::UInt32
        | DataType::UInt64
        | DataType::Float16
        | DataType::Float32
        | DataType::Float64
        | DataType::Date32
        | DataType::Date64
        | DataType::Time32(_)
        | DataType::Time64(_)
        | DataType::Timestamp(..)
        | DataType::Duration(_)
        | DataType::Utf8
        | DataType::LargeUtf8
        | DataType::Utf8View
        | DataType::Binary
        | DataType::LargeBinary
        | DataType::BinaryView => true,
        DataType::FixedSizeBinary(width) => *width > 0,
        // Parquet has no decimals that end left of the point, and none with zeros only after it.
        DataType::Decimal32(precision, scale)
        | DataType::Decimal64(precision, scale)
        | DataType::Decimal128(precision, scale)
        | DataType::Decimal256(precision, scale) => u8::try_from(*scale).is_ok_and(|scale| scale <= *precision),
        DataType::List(item) | DataType::LargeList(item) => fits(item.data_type()),
        DataType::FixedSizeList(item, size) => *size > 0 && fits(item.data_type()),
        DataType::Struct(fields) => !fields.is_empty() && fields.iter().all(|field| fits(field.data_type())),
        DataType::Map(entries, _) => fits(entries.data_type()),
        _ => false,
    }
}
