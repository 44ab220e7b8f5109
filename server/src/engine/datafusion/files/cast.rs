//! Arrays without children as arrays of a wider type: every value stays what it is, or is an error.
//!
//! `arrow_cast` keeps this promise for most of the casts that `widen` demands. The others, checked here (arrow 59.3):
//! it rounds integers to floats, wraps microseconds of a day to nanoseconds, multiplies decimals beyond their declared
//! precision without a check, makes "" of a NULL in a dictionary that becomes views, and allocates what views or a
//! dictionary's keys claim.

use std::sync::Arc;

use arrow_array::cast::AsArray;
use arrow_array::types::{
    ArrowPrimitiveType, Decimal32Type, Decimal64Type, Decimal128Type, Decimal256Type, DecimalType, Float64Type,
    Int64Type, Time64MicrosecondType, Time64NanosecondType, UInt64Type,
};
use arrow_array::{AnyDictionaryArray, Array, ArrayRef, new_null_array};
use arrow_cast::{CastOptions, cast_with_options};
use arrow_data::ByteView;
use arrow_schema::{DataType, TimeUnit};
use arrow_select::take::take;

/// Most bytes that one array may take that is made larger than what the file holds. A forged or repetitive file of a
/// few bytes could ask for any number.
const MOST_BYTES: u128 = i32::MAX as u128;

/// `array` as the wider type `to`, of which `widen::leaf` says that it holds the values.
pub(super) fn widened(array: &dyn Array, to: &DataType) -> Result<ArrayRef, String> {
    use DataType::{Decimal128, Float64, Int64, Time64, UInt64};
    match (array.data_type(), to) {
        (Int64, Float64) => exact::<Int64Type>(array),
        (UInt64, Float64) => exact::<UInt64Type>(array),
        // Integers: `widen` allows no other scale.
        (Decimal128(precision, 0), Float64) => {
            check_digits::<Decimal128Type>(array, *precision)?;
            exact::<Decimal128Type>(array)
        }
        (Time64(TimeUnit::Microsecond), Time64(TimeUnit::Nanosecond)) => nanoseconds(array),
        (from, _) => {
            check(array, to)?;
            let options = CastOptions { safe: false, ..CastOptions::default() };
            cast_with_options(array, to, &options).map_err(|error| format!("{from} cannot be read as {to}: {error}"))
        }
    }
}

/// Integers as floats. One that lies between two floats is an error.
fn exact<T>(array: &dyn Array) -> Result<ArrayRef, String>
where
    T: ArrowPrimitiveType,
    T::Native: Into<i128>,
{
    let floats = array.as_primitive::<T>().try_unary::<_, Float64Type, String>(|value| {
        let integer: i128 = value.into();
        let float = integer as f64;
        // Values of up to 20 digits: the cast back cannot saturate.
        if float as i128 == integer { Ok(float) } else { Err(format!("Float64 does not hold the integer {integer}")) }
    })?;
    Ok(Arc::new(floats))
}

fn nanoseconds(array: &dyn Array) -> Result<ArrayRef, String> {
    let times = array.as_primitive::<Time64MicrosecondType>();
    let times = times.try_unary::<_, Time64NanosecondType, String>(|time| {
        time.checked_mul(1000).ok_or_else(|| format!("{time} microseconds are too many for Time64(ns)"))
    })?;
    Ok(Arc::new(times))
}

/// Refuses arrays that `arrow_cast` would not cast right.
fn check(array: &dyn Array, to: &DataType) -> Result<(), String> {
    match (array.data_type(), to) {
        (DataType::Decimal32(precision, _), _) => check_digits::<Decimal32Type>(array, *precision),
        (DataType::Decimal64(precision, _), _) => check_digits::<Decimal64Type>(array, *precision),
        (DataType::Decimal128(precision, _), _) => check_digits::<Decimal128Type>(array, *precision),
        (DataType::Decimal256(precision, _), _) => check_digits::<Decimal256Type>(array, *precision),
        // Views may share their bytes, the cast to offsets writes them once for each.
        (DataType::Utf8View, DataType::LargeUtf8) => bounded(view_bytes(array.as_string_view().views())),
        (DataType::BinaryView, DataType::LargeBinary) => bounded(view_bytes(array.as_binary_view().views())),
        // A view's block is of less than 4 GiB: the constructor panics.
        (DataType::Utf8, DataType::Utf8View) => bounded(array.as_string::<i32>().values().len() as u128),
        (DataType::Binary, DataType::BinaryView) => bounded(array.as_binary::<i32>().values().len() as u128),
        _ => Ok(()),
    }
}

fn check_digits<D: DecimalType>(array: &dyn Array, precision: u8) -> Result<(), String> {
    let is_longer = |value: D::Native| !D::is_valid_decimal_precision(value, precision);
    if array.as_primitive::<D>().iter().flatten().any(is_longer) {
        return Err(format!("a value has more digits than its type {} allows", array.data_type()));
    }
    Ok(())
}

fn view_bytes(views: &[u128]) -> u128 {
    views.iter().map(|view| u128::from(ByteView::from(*view).length)).sum()
}

fn bounded(bytes: u128) -> Result<(), String> {
    if bytes > MOST_BYTES {
        return Err(format!("its values take {bytes} bytes of memory at once, more than {MOST_BYTES}"));
    }
    Ok(())
}

/// The values of a dictionary's rows, without the dictionary. `values` are its values, of any plain type.
pub(super) fn flattened(dictionary: &dyn AnyDictionaryArray, values: &ArrayRef) -> Result<ArrayRef, String> {
    if values.is_empty() {
        // Every row is NULL.
        return nulls(values.data_type(), dictionary.len());
    }
    if let Some(lengths) = lengths(values) {
        let keys = dictionary.normalized_keys();
        let valid = keys.iter().enumerate().filter(|(row, _)| dictionary.is_valid(*row));
        bounded(valid.filter_map(|(_, key)| lengths.get(*key)).sum())?;
    }
    take(values.as_ref(), dictionary.keys(), None).map_err(|error| error.to_string())
}

/// Bytes of each value, where a copy of them would be written for each key.
fn lengths(values: &ArrayRef) -> Option<Vec<u128>> {
    let widen = |length: usize| length as u128;
    match values.data_type() {
        DataType::Utf8 => Some(values.as_string::<i32>().offsets().lengths().map(widen).collect()),
        DataType::LargeUtf8 => Some(values.as_string::<i64>().offsets().lengths().map(widen).collect()),
        DataType::Binary => Some(values.as_binary::<i32>().offsets().lengths().map(widen).collect()),
        DataType::LargeBinary => Some(values.as_binary::<i64>().offsets().lengths().map(widen).collect()),
        DataType::FixedSizeBinary(width) => Some(vec![u128::try_from(*width).unwrap_or(0); values.len()]),
        _ => None,
    }
}

/// `len` NULLs.
pub(super) fn nulls(data_type: &DataType, len: usize) -> Result<ArrayRef, String> {
    let bytes = null_bytes(data_type, len as u128)?;
    if bytes > MOST_BYTES {
        return Err(format!("{len} NULLs of type {data_type} take {bytes} bytes of memory, more than {MOST_BYTES}"));
    }
    Ok(new_null_array(data_type, len))
}

/// An upper bound of the memory of NULLs. An error for types of which arrow can make none: it panics.
fn null_bytes(data_type: &DataType, len: u128) -> Result<u128, String> {
    let times = |size: i32| {
        let size = u128::try_from(size).map_err(|_| format!("{data_type} has a negative size"))?;
        Ok::<u128, String>(len.saturating_mul(size))
    };
    let sum = |bytes: u128, other: &DataType| Ok::<u128, String>(bytes.saturating_add(null_bytes(other, len)?));
    match data_type {
        DataType::FixedSizeBinary(width) => Ok(times(*width)?.saturating_add(len)),
        DataType::FixedSizeList(item, size) => Ok(null_bytes(item.data_type(), times(*size)?)?.saturating_add(len)),
        DataType::Struct(fields) => fields.iter().map(|field| field.data_type()).try_fold(len, sum),
        DataType::Union(fields, _) if fields.is_empty() => Err("a union of no types has no NULL".to_owned()),
        DataType::Union(fields, _) => {
            fields.iter().map(|(_, field)| field.data_type()).try_fold(len.saturating_mul(5), sum)
        }
        DataType::RunEndEncoded(ends, values) => {
            let longest = if *ends.data_type() == DataType::Int16 { i16::MAX as u128 } else { i32::MAX as u128 };
            if len > longest {
                return Err(format!("{data_type} has no run of {len} rows"));
            }
            null_bytes(values.data_type(), 1)
        }
        other => Ok(len.saturating_mul(other.primitive_width().unwrap_or(16) as u128 + 1)),
    }
}
