//! Arrays converted to another type, value by value: every value is the same, or there is an error.

use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, ArrowPrimitiveType, AsArray, FixedSizeListArray, GenericListArray, GenericListViewArray, MapArray,
    OffsetSizeTrait, PrimitiveArray, RunArray, StructArray, UInt64Array, UnionArray,
};
use arrow::buffer::OffsetBuffer;
use arrow::compute::{CastOptions, cast_with_options, take};
use arrow::datatypes::{
    DataType, Date32Type, Date64Type, FieldRef, Int16Type, Int32Type, Int64Type, RunEndIndexType,
    Time32MillisecondType, Time32SecondType, TimeUnit,
};
use arrow::error::ArrowError;

const DAY: i64 = 86_400_000;

/// The array in another type: dictionaries and runs may become their values, and leaves other types of the same values.
pub(super) fn convert(array: &ArrayRef, to: &DataType) -> Result<ArrayRef, ArrowError> {
    use DataType::*;
    if array.data_type() == to {
        return Ok(Arc::clone(array));
    }
    match (array.data_type(), to) {
        (Dictionary(..), Dictionary(_, values)) => {
            let dictionary = array.as_any_dictionary();
            Ok(dictionary.with_values(convert(dictionary.values(), values)?))
        }
        (Dictionary(..), _) => {
            let dictionary = array.as_any_dictionary();
            convert(&take(dictionary.values(), dictionary.keys(), None)?, to)
        }
        (RunEndEncoded(ends, _), _) => match ends.data_type() {
            Int16 => runs::<Int16Type>(array, to),
            Int32 => runs::<Int32Type>(array, to),
            _ => runs::<Int64Type>(array, to),
        },
        (List(_), List(item)) => list::<i32>(array, item),
        (LargeList(_), LargeList(item)) => list::<i64>(array, item),
        (ListView(_), ListView(item)) => list_view::<i32>(array, item),
        (LargeListView(_), LargeListView(item)) => list_view::<i64>(array, item),
        (FixedSizeList(..), FixedSizeList(item, size)) => {
            let list = array.as_fixed_size_list();
            let values = convert(list.values(), item.data_type())?;
            let (item, nulls) = (Arc::clone(item), list.nulls().cloned());
            Ok(Arc::new(FixedSizeListArray::try_new_with_length(item, *size, values, nulls, list.len())?))
        }
        (Struct(_), Struct(_)) => Ok(Arc::new(structure(array.as_struct(), to)?)),
        (Map(..), Map(entries, sorted)) => {
            let map = array.as_map();
            let (offsets, from, len) = from_zero(map.offsets());
            let rows = structure(&map.entries().slice(from, len), entries.data_type())?;
            Ok(Arc::new(MapArray::try_new(Arc::clone(entries), offsets, rows, map.nulls().cloned(), *sorted)?))
        }
        (Union(..), Union(fields, _)) => {
            let union = array.as_union();
            let children = fields.iter().map(|(id, field)| convert(union.child(id), field.data_type()));
            let children = children.collect::<Result<_, _>>()?;
            let (ids, offsets) = (union.type_ids().clone(), union.offsets().cloned());
            Ok(Arc::new(UnionArray::try_new(fields.clone(), ids, offsets, children)?))
        }
        _ => leaf(array, to),
    }
}

fn runs<R: RunEndIndexType>(array: &ArrayRef, to: &DataType) -> Result<ArrayRef, ArrowError> {
    let runs: &RunArray<R> = array.as_run();
    if let DataType::RunEndEncoded(_, values) = to {
        return Ok(Arc::new(runs.with_values(convert(runs.values(), values.data_type())?)));
    }
    let rows: UInt64Array = (0..runs.len()).map(|row| runs.get_physical_index(row) as u64).collect::<Vec<_>>().into();
    convert(&take(runs.values(), &rows, None)?, to)
}

fn list<O: OffsetSizeTrait>(array: &ArrayRef, item: &FieldRef) -> Result<ArrayRef, ArrowError> {
    let list = array.as_list::<O>();
    let (offsets, from, len) = from_zero(list.offsets());
    let values = convert(&list.values().slice(from, len), item.data_type())?;
    Ok(Arc::new(GenericListArray::try_new(Arc::clone(item), offsets, values, list.nulls().cloned())?))
}

/// Offsets that begin with zero, and the range of values to which they lead: a slice of a list has all values.
fn from_zero<O: OffsetSizeTrait>(offsets: &OffsetBuffer<O>) -> (OffsetBuffer<O>, usize, usize) {
    let (from, to) = (offsets[0], offsets[offsets.len() - 1]);
    let moved = OffsetBuffer::new(offsets.iter().map(|offset| *offset - from).collect());
    (moved, from.as_usize(), (to - from).as_usize())
}

fn list_view<O: OffsetSizeTrait>(array: &ArrayRef, item: &FieldRef) -> Result<ArrayRef, ArrowError> {
    let list = array.as_list_view::<O>();
    let values = convert(list.values(), item.data_type())?;
    let (offsets, sizes, nulls) = (list.offsets().clone(), list.sizes().clone(), list.nulls().cloned());
    Ok(Arc::new(GenericListViewArray::try_new(Arc::clone(item), offsets, sizes, values, nulls)?))
}

fn structure(array: &StructArray, to: &DataType) -> Result<StructArray, ArrowError> {
    let DataType::Struct(fields) = to else { return Err(unfit(array.data_type(), to)) };
    let columns = array.columns().iter().zip(fields).map(|(column, field)| convert(column, field.data_type()));
    let columns = columns.collect::<Result<_, _>>()?;
    StructArray::try_new_with_length(fields.clone(), columns, array.nulls().cloned(), array.len())
}

fn leaf(array: &ArrayRef, to: &DataType) -> Result<ArrayRef, ArrowError> {
    match (array.data_type(), to) {
        // Arrow's cast drops the time of the day, and days beyond 32 bits.
        (DataType::Date64, DataType::Date32) => each::<Date64Type, Date32Type>(array, |value| {
            let day = i32::try_from(value / DAY).ok();
            day.filter(|_| value % DAY == 0).ok_or_else(|| format!("{value} ms since 1970 is not the start of a day"))
        }),
        (DataType::Time32(TimeUnit::Second), DataType::Time32(TimeUnit::Millisecond)) => {
            each::<Time32SecondType, Time32MillisecondType>(array, |value| {
                value.checked_mul(1000).ok_or_else(|| format!("{value} s is no time of a day"))
            })
        }
        // Not safe: in the words of Arrow, a safe cast makes null of a value that does not fit.
        _ => cast_with_options(array, to, &CastOptions { safe: false, ..CastOptions::default() }),
    }
}

fn each<F: ArrowPrimitiveType, T: ArrowPrimitiveType>(
    array: &ArrayRef,
    value: impl Fn(F::Native) -> Result<T::Native, String>,
) -> Result<ArrayRef, ArrowError> {
    let converted: PrimitiveArray<T> =
        array.as_primitive::<F>().try_unary(|from| value(from).map_err(ArrowError::CastError))?;
    Ok(Arc::new(converted))
}

fn unfit(from: &DataType, to: &DataType) -> ArrowError {
    ArrowError::CastError(format!("{from} does not become {to}"))
}
