//! Values that are outside of their type: a format of fixed widths would keep a part of them.

use arrow::array::{Array, ArrayRef, ArrowPrimitiveType, AsArray};
use arrow::datatypes::{
    DataType, Decimal32Type, Decimal64Type, Decimal128Type, Decimal256Type, Time32MillisecondType, Time32SecondType,
    Time64MicrosecondType, Time64NanosecondType, TimeUnit,
};
use arrow::error::ArrowError;

const DAY: i64 = 86_400;

/// Checks that decimals have no more digits than their precision, and that times are within a day.
///
/// # Errors
/// [`ArrowError`] with the first such value.
pub(super) fn check(array: &ArrayRef) -> Result<(), ArrowError> {
    use DataType::*;
    match array.data_type() {
        Decimal32(precision, _) => array.as_primitive::<Decimal32Type>().validate_decimal_precision(*precision),
        Decimal64(precision, _) => array.as_primitive::<Decimal64Type>().validate_decimal_precision(*precision),
        Decimal128(precision, _) => array.as_primitive::<Decimal128Type>().validate_decimal_precision(*precision),
        Decimal256(precision, _) => array.as_primitive::<Decimal256Type>().validate_decimal_precision(*precision),
        Time32(TimeUnit::Second) => times::<Time32SecondType>(array, DAY),
        Time32(_) => times::<Time32MillisecondType>(array, DAY * 1_000),
        Time64(TimeUnit::Nanosecond) => times::<Time64NanosecondType>(array, DAY * 1_000_000_000),
        Time64(_) => times::<Time64MicrosecondType>(array, DAY * 1_000_000),
        Dictionary(..) => check(array.as_any_dictionary().values()),
        List(_) => check(array.as_list::<i32>().values()),
        LargeList(_) => check(array.as_list::<i64>().values()),
        ListView(_) => check(array.as_list_view::<i32>().values()),
        LargeListView(_) => check(array.as_list_view::<i64>().values()),
        FixedSizeList(..) => check(array.as_fixed_size_list().values()),
        Struct(_) => array.as_struct().columns().iter().try_for_each(check),
        Map(..) => array.as_map().entries().columns().iter().try_for_each(check),
        _ => Ok(()),
    }
}

fn times<T: ArrowPrimitiveType<Native: Into<i64>>>(array: &ArrayRef, day: i64) -> Result<(), ArrowError> {
    let wrong = array.as_primitive::<T>().iter().flatten().map(Into::into).find(|time| !(0..day).contains(time));
    match wrong {
        Some(time) => Err(ArrowError::InvalidArgumentError(format!("{time} is no time of a day"))),
        None => Ok(()),
    }
}
