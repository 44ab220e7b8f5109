//! Every Arrow type in every format is written, or refused without leaving a file. It never causes a panic.

mod support;

use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, DictionaryArray, FixedSizeListArray, Int8Array, Int32Array, Int64Array, LargeListArray,
    LargeListViewArray, ListArray, ListViewArray, MapArray, RecordBatch, RunArray, StringArray, StructArray,
    UnionArray, new_null_array,
};
use arrow::buffer::{OffsetBuffer, ScalarBuffer};
use arrow::compute::{can_cast_types, cast};
use arrow::datatypes::{DataType, Field, Fields, IntervalUnit, TimeUnit, UnionFields};
use thallus_cli::failure::Failure;
use thallus_cli::format::Format;

use support::{Scratch, Synthetic, options, run};

const ROWS: usize = 4;

fn plain_types() -> Vec<DataType> {
    use DataType::*;
    let mut types =
        vec![Null, Boolean, Int8, Int16, Int32, Int64, UInt8, UInt16, UInt32, UInt64, Float16, Float32, Float64];
    types.extend([Date32, Date64, Time32(TimeUnit::Second), Time32(TimeUnit::Millisecond)]);
    types.extend([Time64(TimeUnit::Microsecond), Time64(TimeUnit::Nanosecond)]);
    for unit in [TimeUnit::Second, TimeUnit::Millisecond, TimeUnit::Microsecond, TimeUnit::Nanosecond] {
        types.extend([Timestamp(unit, None), Timestamp(unit, Some("+01:00".into())), Duration(unit)]);
    }
    types.extend([IntervalUnit::YearMonth, IntervalUnit::DayTime, IntervalUnit::MonthDayNano].map(Interval));
    types.extend([Decimal32(9, 2), Decimal64(18, 2), Decimal128(38, 2), Decimal256(76, 2)]);
    types.extend([Binary, LargeBinary, BinaryView, FixedSizeBinary(4), Utf8, LargeUtf8, Utf8View]);
    types
}

/// Values that are not all null, if arrow can cast numbers or strings to this type.
fn plain(data_type: &DataType) -> ArrayRef {
    if *data_type == DataType::Date64 {
        // Of whole days.
        return cast(&plain(&DataType::Date32), data_type).unwrap();
    }
    let numbers = Arc::new(Int64Array::from(vec![Some(1), None, Some(2), Some(3)])) as ArrayRef;
    let words = Arc::new(StringArray::from(vec![Some("abcd"), None, Some("efgh"), Some("ijkl")])) as ArrayRef;
    for source in [numbers, words] {
        if can_cast_types(source.data_type(), data_type)
            && let Ok(values) = cast(&source, data_type)
        {
            return values;
        }
    }
    new_null_array(data_type, ROWS)
}

fn item(values: &ArrayRef) -> Arc<Field> {
    Arc::new(Field::new("item", values.data_type().clone(), true))
}

/// The values alone, and as children of every nested type that can contain them.
fn wrapped(values: ArrayRef) -> Vec<ArrayRef> {
    let offsets = [0, 1, 1, 3, 4];
    let narrow = OffsetBuffer::new(ScalarBuffer::from(offsets.to_vec()));
    let wide = OffsetBuffer::new(ScalarBuffer::from(offsets.map(i64::from).to_vec()));
    let (starts, sizes) = (vec![0, 1, 1, 3], vec![1, 0, 2, 1]);
    let names: Fields = vec![Field::new("a", values.data_type().clone(), true)].into();
    let strings = Arc::new(StringArray::from(vec!["k", "l", "m", "n"])) as ArrayRef;
    let key = Field::new("keys", DataType::Utf8, false);
    let entry: Fields = vec![key, Field::new("values", values.data_type().clone(), true)].into();
    let entries = StructArray::new(entry, vec![strings, values.clone()], None);
    let entries_field = Arc::new(Field::new("entries", entries.data_type().clone(), false));
    let variants: UnionFields = [(3, item(&values))].into_iter().collect();
    let wide_views = (starts.iter().map(|i| i64::from(*i)).collect(), sizes.iter().map(|i| i64::from(*i)).collect());
    vec![
        values.clone(),
        Arc::new(DictionaryArray::new(Int8Array::from(vec![Some(2), Some(0), None, Some(1)]), values.clone())),
        Arc::new(RunArray::try_new(&Int32Array::from(vec![1, 2, 3, 4]), &values).unwrap()),
        Arc::new(ListArray::new(item(&values), narrow.clone(), values.clone(), None)),
        Arc::new(LargeListArray::new(item(&values), wide, values.clone(), None)),
        Arc::new(FixedSizeListArray::new(item(&values), 1, values.clone(), None)),
        Arc::new(ListViewArray::new(item(&values), starts.into(), sizes.into(), values.clone(), None)),
        Arc::new(LargeListViewArray::new(item(&values), wide_views.0, wide_views.1, values.clone(), None)),
        Arc::new(StructArray::new(names, vec![values.clone()], None)),
        Arc::new(MapArray::new(entries_field, narrow, entries, None, false)),
        Arc::new(UnionArray::try_new(variants, ScalarBuffer::from(vec![3_i8; ROWS]), None, vec![values]).unwrap()),
    ]
}

/// A column of every plain type, alone and wrapped once. Some types are also wrapped twice.
fn columns() -> Vec<ArrayRef> {
    let twice = [DataType::Null, DataType::Utf8View];
    let mut columns = Vec::new();
    for data_type in plain_types() {
        let once = wrapped(plain(&data_type));
        if twice.contains(&data_type) {
            columns.extend(once.iter().cloned().flat_map(wrapped));
        }
        columns.extend(once);
    }
    columns
}

/// Writes a column of every type, and returns the refused types.
fn refused(format: Format) -> Vec<DataType> {
    let dir = Scratch::new("types");
    let path = dir.path("out");
    let mut refused = Vec::new();
    for column in columns() {
        assert_eq!(column.len(), ROWS);
        let data_type = column.data_type().clone();
        let batch = RecordBatch::try_from_iter_with_nullable([("c", column, true)]).unwrap();
        // Two batches, so that dictionaries are written twice.
        let mut options = options(format);
        // Without a text for it, NULL in the only column would be a blank line.
        options.null = "NULL".into();
        match run(Synthetic::of(vec![batch.clone(), batch]), options, &path) {
            Ok(()) => std::fs::remove_file(&path).unwrap(),
            Err(Failure::Format { .. }) => refused.push(data_type),
            Err(other) => panic!("{data_type}: {other}"),
        }
        assert!(dir.names().is_empty(), "{:?}", dir.names());
    }
    refused
}

/// Whether the predicate holds for a type or for one of its descendants.
fn has(data_type: &DataType, what: fn(&DataType) -> bool) -> bool {
    what(data_type) || {
        let children: Vec<DataType> = match data_type {
            DataType::Dictionary(_, values) => vec![values.as_ref().clone()],
            DataType::Struct(fields) => fields.iter().map(|f| f.data_type().clone()).collect(),
            DataType::Union(fields, _) => fields.iter().map(|(_, f)| f.data_type().clone()).collect(),
            DataType::List(f)
            | DataType::LargeList(f)
            | DataType::ListView(f)
            | DataType::LargeListView(f)
            | DataType::FixedSizeList(f, _)
            | DataType::Map(f, _)
            | DataType::RunEndEncoded(_, f) => vec![f.data_type().clone()],
            _ => Vec::new(),
        };
        children.iter().any(|child| has(child, what))
    }
}

fn is_union(data_type: &DataType) -> bool {
    matches!(data_type, DataType::Union(..))
}

#[test]
fn tables_show_everything() {
    assert_eq!(refused(Format::Table), []);
}

#[test]
fn arrow_files_hold_everything() {
    assert_eq!(refused(Format::Arrow), []);
}

#[test]
fn csv_holds_all_flat_types() {
    let flat = |data_type: &DataType| match data_type {
        DataType::Dictionary(_, inner) => !inner.is_nested(),
        DataType::RunEndEncoded(_, inner) => !inner.data_type().is_nested(),
        other => !other.is_nested(),
    };
    let wrongly: Vec<_> = refused(Format::Csv).into_iter().filter(flat).collect();
    assert_eq!(wrongly, []);
}

#[test]
fn json_holds_all_but_unions() {
    let refused = refused(Format::Json);
    let others: Vec<_> = refused.iter().filter(|data_type| !has(data_type, is_union)).collect();
    assert!(others.is_empty(), "{others:?}");
    assert!(refused.len() >= plain_types().len());
}

#[test]
fn parquet_holds_all_but_unions_durations_and_intervals() {
    let refused = refused(Format::Parquet);
    let known =
        |data_type: &DataType| matches!(data_type, DataType::Union(..) | DataType::Interval(_) | DataType::Duration(_));
    let others: Vec<_> = refused.iter().filter(|data_type| !has(data_type, known)).collect();
    assert!(others.is_empty(), "{others:?}");
    assert!(refused.len() >= plain_types().len());
}
