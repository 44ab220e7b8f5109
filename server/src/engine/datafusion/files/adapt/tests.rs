//! Every pair of types that a table's schema merges, with extreme values.

use std::path::PathBuf;

use arrow_array::types::{ArrowPrimitiveType, Float16Type, Int8Type, Int16Type, Int32Type, UInt64Type};
use arrow_array::*;
use arrow_buffer::{NullBuffer, OffsetBuffer, ScalarBuffer, i256};
use arrow_cast::{CastOptions, cast_with_options};
use arrow_schema::{Field, Schema, TimeUnit};

use super::super::schema::{FileColumns, merge};
use super::*;

type F16 = <Float16Type as ArrowPrimitiveType>::Native;

fn batch(array: &ArrayRef) -> RecordBatch {
    let schema = Schema::new(vec![Field::new("a", array.data_type().clone(), true)]);
    RecordBatch::try_new(Arc::new(schema), vec![Arc::clone(array)]).unwrap()
}

/// The column as `to`, or the error.
fn through(array: &ArrayRef, to: &DataType) -> Result<ArrayRef, String> {
    let table = Arc::new(Schema::new(vec![Field::new("a", to.clone(), true)]));
    let batch = batch(array);
    let adapter = Adapter::new(&batch.schema(), &table).map_err(|error| error.to_string())?;
    let adapted = adapter.adapt(&batch).map_err(|error| error.to_string())?;
    assert_eq!(adapted.schema(), table);
    Ok(Arc::clone(adapted.column(0)))
}

/// The type that a table with files of both types has.
fn merged(first: &ArrayRef, second: &ArrayRef, int_to_float: bool) -> Option<DataType> {
    let file = |array: &ArrayRef| FileColumns { path: PathBuf::from("f"), schema: batch(array).schema() };
    let schema = merge(&[file(first), file(second)], &Widening { int_to_float }).ok()?;
    Some(schema.field(0).data_type().clone())
}

fn arc(array: impl Array + 'static) -> ArrayRef {
    Arc::new(array)
}

fn integers() -> Vec<ArrayRef> {
    vec![
        arc(Int8Array::from(vec![Some(i8::MIN), None, Some(0), Some(i8::MAX)])),
        arc(Int16Array::from(vec![Some(i16::MIN), None, Some(i16::MAX)])),
        arc(Int32Array::from(vec![Some(i32::MIN), None, Some(i32::MAX)])),
        arc(Int64Array::from(vec![Some(i64::MIN), None, Some(i64::MAX)])),
        arc(UInt8Array::from(vec![Some(u8::MAX), None, Some(0)])),
        arc(UInt16Array::from(vec![Some(u16::MAX), None, Some(0)])),
        arc(UInt32Array::from(vec![Some(u32::MAX), None, Some(0)])),
        arc(UInt64Array::from(vec![Some(u64::MAX), None, Some(0)])),
    ]
}

fn decimals() -> Vec<ArrayRef> {
    let longest = i256::from_i128(10_i128.pow(38)).wrapping_mul(i256::from_i128(10_i128.pow(2)));
    let longest = longest.wrapping_sub(i256::ONE);
    vec![
        arc(Decimal32Array::from(vec![Some(999_999_999), None, Some(-999_999_999)])
            .with_precision_and_scale(9, 9)
            .unwrap()),
        arc(Decimal32Array::from(vec![Some(99_999), None]).with_precision_and_scale(5, -2).unwrap()),
        arc(Decimal64Array::from(vec![Some(10_i64.pow(18) - 1), None]).with_precision_and_scale(18, 0).unwrap()),
        arc(Decimal128Array::from(vec![Some(10_i128.pow(38) - 1), None]).with_precision_and_scale(38, 10).unwrap()),
        arc(Decimal128Array::from(vec![Some(1 - 10_i128.pow(38)), None]).with_precision_and_scale(38, 0).unwrap()),
        arc(Decimal256Array::from(vec![Some(longest), None]).with_precision_and_scale(40, 0).unwrap()),
    ]
}

fn floats() -> Vec<ArrayRef> {
    vec![
        arc(Float16Array::from(vec![Some(F16::MAX), None, Some(F16::INFINITY), Some(F16::MIN_POSITIVE_SUBNORMAL)])),
        arc(Float32Array::from(vec![Some(f32::MIN), None, Some(-0.0), Some(f32::from_bits(1)), Some(0.1)])),
        arc(Float64Array::from(vec![Some(f64::MAX), None, Some(f64::NEG_INFINITY), Some(0.1)])),
    ]
}

fn texts_and_bytes() -> Vec<ArrayRef> {
    let texts = vec![Some(""), None, Some("short"), Some("longer than twelve bytes: ä€𝄞\0")];
    let bytes = vec![Some(&b""[..]), None, Some(&b"\x00\xff"[..]), Some(&[128_u8; 40][..])];
    let sized = |bytes: &[u8]| FixedSizeBinaryArray::try_from_iter([bytes, bytes].into_iter()).unwrap();
    vec![
        arc(StringArray::from(texts.clone())),
        arc(LargeStringArray::from(texts.clone())),
        arc(StringViewArray::from(texts)),
        arc(BinaryArray::from(bytes.clone())),
        arc(LargeBinaryArray::from(bytes.clone())),
        arc(BinaryViewArray::from(bytes)),
        arc(sized(&[0, 255])),
        arc(sized(&[7; 20])),
    ]
}

/// Values that the finest unit holds.
fn times() -> Vec<ArrayRef> {
    let seconds = i64::MAX / 1_000_000_000;
    let (millis, micros) = (seconds * 1000, seconds * 1_000_000);
    let day = 86_399;
    vec![
        arc(TimestampSecondArray::from(vec![Some(seconds), None, Some(-seconds)])),
        arc(TimestampMillisecondArray::from(vec![Some(millis), None, Some(-millis)])),
        arc(TimestampMicrosecondArray::from(vec![Some(micros), None, Some(-1)])),
        arc(TimestampNanosecondArray::from(vec![Some(i64::MAX), None, Some(i64::MIN)])),
        arc(TimestampSecondArray::from(vec![seconds, -1]).with_timezone("UTC")),
        arc(TimestampMicrosecondArray::from(vec![micros, -1]).with_timezone("+00:00")),
        arc(DurationSecondArray::from(vec![Some(seconds), None, Some(-seconds)])),
        arc(DurationMillisecondArray::from(vec![Some(millis), None])),
        arc(DurationMicrosecondArray::from(vec![Some(micros), None])),
        arc(DurationNanosecondArray::from(vec![Some(i64::MIN), None])),
        arc(Date32Array::from(vec![Some(i32::MIN), None, Some(i32::MAX)])),
        arc(Date64Array::from(vec![Some(86_400_000), None, Some(1)])),
        arc(Time32SecondArray::from(vec![Some(day), None, Some(0)])),
        arc(Time32MillisecondArray::from(vec![Some(day * 1000 + 999), None])),
        arc(Time64MicrosecondArray::from(vec![Some(86_399_999_999), None])),
        arc(Time64NanosecondArray::from(vec![Some(86_399_999_999_999), None])),
    ]
}

/// What `array` becomes is what it was: cast back, nothing differs.
fn assert_keeps(array: &ArrayRef, to: &DataType) {
    let from = array.data_type();
    let adapted = through(array, to).unwrap_or_else(|error| panic!("{from} as {to}: {error}"));
    let options = CastOptions { safe: false, ..CastOptions::default() };
    // arrow casts no views to bytes of a fixed size.
    let adapted = match to {
        DataType::BinaryView => cast_with_options(&adapted, &DataType::LargeBinary, &options).unwrap(),
        _ => adapted,
    };
    let back = cast_with_options(&adapted, from, &options).unwrap_or_else(|error| panic!("{to} to {from}: {error}"));
    assert_eq!(&back, array, "{from} as {to}");
}

#[test]
fn every_pair_that_merges_keeps_its_values() {
    let groups = [[integers(), decimals()].concat(), floats(), texts_and_bytes(), times()];
    let null = arc(NullArray::new(3));
    for group in groups {
        for first in &group {
            assert_eq!(merged(first, &null, false).as_ref(), Some(first.data_type()));
            let nulls = through(&null, first.data_type()).unwrap();
            assert_eq!((nulls.len(), nulls.null_count()), (3, 3));
            for second in &group {
                if let Some(both) = merged(first, second, false) {
                    assert_keeps(first, &both);
                    assert_keeps(second, &both);
                }
            }
        }
    }
}

#[test]
fn small_integers_are_floats_exactly() {
    for integer in integers().iter().filter(|array| array.data_type().primitive_width() < Some(8)) {
        for float in floats() {
            let both = merged(integer, &float, false).unwrap();
            assert_eq!(both, DataType::Float64);
            assert_keeps(integer, &both);
            assert_keeps(&float, &both);
        }
    }
}

#[test]
fn large_integers_are_floats_exactly_or_an_error() {
    let exact = 1_i64 << 53;
    assert_keeps(&arc(Int64Array::from(vec![Some(exact), None, Some(-exact), Some(i64::MIN)])), &DataType::Float64);
    assert_keeps(&arc(UInt64Array::from(vec![1_u64 << 63, 0])), &DataType::Float64);
    for lost in [exact + 1, -exact - 1, i64::MAX] {
        let error = through(&arc(Int64Array::from(vec![0, lost])), &DataType::Float64).unwrap_err();
        assert_eq!(error, format!("column `a`: Float64 does not hold the integer {lost}"));
    }
    let error = through(&arc(UInt64Array::from(vec![u64::MAX])), &DataType::Float64).unwrap_err();
    assert!(error.contains("18446744073709551615"), "{error}");
    let merged = |value: i128| arc(Decimal128Array::from(vec![value]).with_precision_and_scale(20, 0).unwrap());
    assert_keeps(&merged(1 << 63), &DataType::Float64);
    assert!(through(&merged((1 << 63) + 1), &DataType::Float64).is_err());
}

#[test]
fn what_a_finer_unit_does_not_hold_is_an_error() {
    use TimeUnit::{Microsecond, Millisecond, Nanosecond};
    let cases = [
        (arc(TimestampMicrosecondArray::from(vec![i64::MAX / 1000 + 1])), DataType::Timestamp(Nanosecond, None)),
        (arc(TimestampSecondArray::from(vec![i64::MIN])), DataType::Timestamp(Millisecond, None)),
        (arc(DurationSecondArray::from(vec![i64::MAX])), DataType::Duration(Microsecond)),
        (arc(Time32SecondArray::from(vec![i32::MAX])), DataType::Time32(Millisecond)),
        (arc(Time64MicrosecondArray::from(vec![i64::MAX])), DataType::Time64(Nanosecond)),
    ];
    for (array, to) in cases {
        let error = through(&array, &to).unwrap_err();
        assert!(error.starts_with("column `a`: "), "{error}");
    }
}

#[test]
fn a_decimal_beyond_its_precision_is_an_error() {
    let array = arc(Decimal128Array::from(vec![1000]).with_precision_and_scale(3, 0).unwrap());
    for to in [DataType::Decimal128(38, 35), DataType::Decimal128(4, 0), DataType::Decimal256(40, 0)] {
        assert!(through(&array, &to).is_err(), "{to}");
    }
}

#[test]
fn types_that_lose_values_are_refused_at_once() {
    let long = arc(Int64Array::from(vec![1]));
    for to in [DataType::Int32, DataType::Utf8, DataType::Float32, DataType::Decimal128(18, 0), DataType::Boolean] {
        let error = through(&long, &to).unwrap_err();
        assert_eq!(error, format!("column `a`: it is Int64, which {to} does not hold"));
    }
    let text = arc(StringArray::from(vec!["1"]));
    assert!(through(&text, &DataType::Int64).is_err());
    assert!(through(&arc(Float64Array::from(vec![1.0])), &DataType::Int64).is_err());
}

#[test]
fn dictionaries_are_flattened_and_their_keys_widened() {
    let values = arc(StringArray::from(vec![Some("a value of many bytes"), None, Some("b")]));
    let keys = Int8Array::from(vec![Some(2), None, Some(1), Some(0)]);
    let array = arc(DictionaryArray::<Int8Type>::try_new(keys, values).unwrap());
    let expected = vec![Some("b"), None, None, Some("a value of many bytes")];
    assert_eq!(&through(&array, &DataType::Utf8).unwrap(), &arc(StringArray::from(expected.clone())));
    assert_eq!(&through(&array, &DataType::LargeUtf8).unwrap(), &arc(LargeStringArray::from(expected.clone())));
    let views = through(&array, &DataType::Utf8View).unwrap();
    assert_eq!(&views, &arc(StringViewArray::from(expected.clone())));
    let wider = DataType::Dictionary(Box::new(DataType::Int32), Box::new(DataType::LargeUtf8));
    let dictionary = through(&array, &wider).unwrap();
    assert_eq!(&through(&dictionary, &DataType::LargeUtf8).unwrap(), &arc(LargeStringArray::from(expected)));
    let narrower = DataType::Dictionary(Box::new(DataType::UInt8), Box::new(DataType::Utf8));
    assert!(through(&array, &narrower).is_err());
}

#[test]
fn keys_without_a_sign_are_signed_beside_signed_ones() {
    let values = arc(StringArray::from(vec!["a"]));
    let array = DictionaryArray::<UInt64Type>::try_new(UInt64Array::from(vec![Some(0), None]), values).unwrap();
    let to = DataType::Dictionary(Box::new(DataType::Int64), Box::new(DataType::Utf8));
    let found = through(&arc(array), &to).unwrap();
    assert_eq!(&through(&found, &DataType::Utf8).unwrap(), &arc(StringArray::from(vec![Some("a"), None])));
}

#[test]
fn a_dictionary_of_no_values_is_null() {
    let keys = Int16Array::from(vec![None::<i16>, None]);
    let array = arc(DictionaryArray::<Int16Type>::try_new(keys, arc(StringArray::from(Vec::<&str>::new()))).unwrap());
    assert_eq!(&through(&array, &DataType::Utf8).unwrap(), &arc(StringArray::from(vec![None::<&str>, None])));
}

#[test]
fn memory_that_a_small_file_asks_for_is_bounded() {
    let value = "x".repeat(1 << 20);
    let keys = Int32Array::from(vec![0; 4096]);
    let values = arc(StringArray::from(vec![value.as_str()]));
    let array = arc(DictionaryArray::<Int32Type>::try_new(keys, values).unwrap());
    for to in [DataType::Utf8, DataType::LargeUtf8] {
        let error = through(&array, &to).unwrap_err();
        assert!(error.contains("4294967296 bytes"), "{error}");
    }
    let wide = DataType::FixedSizeBinary(i32::MAX);
    let nested = DataType::FixedSizeList(Arc::new(Field::new("item", wide.clone(), true)), i32::MAX);
    for to in [wide, nested] {
        assert!(through(&arc(NullArray::new(8192)), &to).is_err());
    }
    let runs = |ends| {
        let ends = Arc::new(Field::new("run_ends", ends, false));
        DataType::RunEndEncoded(ends, Arc::new(Field::new("values", DataType::Utf8, true)))
    };
    assert!(through(&arc(NullArray::new(40_000)), &runs(DataType::Int16)).is_err());
    assert_eq!(through(&arc(NullArray::new(40_000)), &runs(DataType::Int32)).unwrap().len(), 40_000);
}

fn pairs(fields: Vec<(&str, ArrayRef)>, nulls: Option<Vec<bool>>) -> StructArray {
    let (fields, arrays): (Vec<Field>, Vec<ArrayRef>) =
        fields.into_iter().map(|(name, array)| (Field::new(name, array.data_type().clone(), true), array)).unzip();
    StructArray::try_new(fields.into(), arrays, nulls.map(NullBuffer::from)).unwrap()
}

fn list_of_structs(items: StructArray) -> ListArray {
    let item = Arc::new(Field::new("element", items.data_type().clone(), true));
    ListArray::try_new(item, OffsetBuffer::from_lengths([2, 0, 1]), Arc::new(items), None).unwrap()
}

#[test]
fn structs_go_by_name_at_any_depth() {
    let own = pairs(
        vec![("y", arc(StringArray::from(vec!["p", "q", "r"]))), ("x", arc(Int8Array::from(vec![1, 2, 3])))],
        Some(vec![true, false, true]),
    );
    let wanted = pairs(
        vec![
            ("x", arc(Int64Array::from(vec![Some(1), None, Some(3)]))),
            ("new", arc(Float64Array::from(vec![None, None, None]))),
            ("y", arc(StringArray::from(vec!["p", "q", "r"]))),
        ],
        Some(vec![true, false, true]),
    );
    let found = through(&arc(own.clone()), wanted.data_type()).unwrap();
    assert_eq!(&found, &arc(wanted.clone()));
    let wanted = list_of_structs(wanted);
    let found = through(&arc(list_of_structs(own)), wanted.data_type()).unwrap();
    assert_eq!(&found, &arc(wanted));
}

#[test]
fn what_stands_behind_a_null_is_no_error() {
    let far = arc(TimestampMicrosecondArray::from(vec![i64::MAX, 1]));
    let nanoseconds = DataType::Timestamp(TimeUnit::Nanosecond, None);
    let to = |name: &str| Arc::new(Field::new(name, nanoseconds.clone(), true));
    let array = arc(pairs(vec![("t", Arc::clone(&far))], Some(vec![false, true])));
    let found = through(&array, &DataType::Struct(vec![to("t")].into())).unwrap();
    assert_eq!(found.as_struct().column(0), &arc(TimestampNanosecondArray::from(vec![None, Some(1000)])));
    let item = Arc::new(Field::new("item", far.data_type().clone(), true));
    let nulls = Some(NullBuffer::from(vec![false, true]));
    let offsets = OffsetBuffer::from_lengths([1, 1]);
    let list = ListArray::try_new(Arc::clone(&item), offsets, Arc::clone(&far), nulls.clone()).unwrap();
    let found = through(&arc(list), &DataType::List(to("item"))).unwrap();
    assert!(found.is_null(0));
    assert_eq!(&found.as_list::<i32>().value(1), &arc(TimestampNanosecondArray::from(vec![1000])));
    let list = FixedSizeListArray::try_new(item, 1, far, nulls).unwrap();
    let found = through(&arc(list), &DataType::FixedSizeList(to("item"), 1)).unwrap();
    assert_eq!(&found.as_fixed_size_list().value(1), &arc(TimestampNanosecondArray::from(vec![1000])));
}

#[test]
fn lists_of_every_layout_become_wider_ones() {
    let items = arc(Int8Array::from(vec![Some(1), None, Some(-128), Some(127)]));
    let own = Arc::new(Field::new("item", DataType::Int8, true));
    let item = Arc::new(Field::new("element", DataType::Int64, true));
    let nulls = || Some(NullBuffer::from(vec![true, true]));
    let (offsets, large) = (OffsetBuffer::<i32>::from_lengths([2, 2]), OffsetBuffer::<i64>::from_lengths([2, 2]));
    let lists: Vec<ArrayRef> = vec![
        arc(FixedSizeListArray::try_new(Arc::clone(&own), 2, Arc::clone(&items), nulls()).unwrap()),
        arc(ListArray::try_new(Arc::clone(&own), offsets, Arc::clone(&items), nulls()).unwrap()),
        arc(LargeListArray::try_new(Arc::clone(&own), large, Arc::clone(&items), nulls()).unwrap()),
        arc(ListViewArray::try_new(
            own,
            ScalarBuffer::from(vec![0, 2]),
            ScalarBuffer::from(vec![2, 2]),
            items,
            nulls(),
        )
        .unwrap()),
    ];
    let wanted: [ArrayRef; 2] =
        [arc(Int64Array::from(vec![Some(1), None])), arc(Int64Array::from(vec![Some(-128), Some(127)]))];
    for list in &lists {
        for to in [
            DataType::List(Arc::clone(&item)),
            DataType::LargeList(Arc::clone(&item)),
            DataType::ListView(Arc::clone(&item)),
            DataType::LargeListView(Arc::clone(&item)),
            DataType::FixedSizeList(Arc::clone(&item), 2),
        ] {
            let is_wider =
                list_of(list.data_type()).unwrap().0.widened(list_of(&to).unwrap().0) == list_of(&to).unwrap().0;
            let found = through(list, &to);
            assert_eq!(found.is_ok(), is_wider, "{} as {to}", list.data_type());
            let Ok(found) = found else { continue };
            for (row, wanted) in wanted.iter().enumerate() {
                let value = match found.data_type() {
                    DataType::List(_) => found.as_list::<i32>().value(row),
                    DataType::LargeList(_) => found.as_list::<i64>().value(row),
                    DataType::ListView(_) => found.as_list_view::<i32>().value(row),
                    DataType::LargeListView(_) => found.as_list_view::<i64>().value(row),
                    _ => found.as_fixed_size_list().value(row),
                };
                assert_eq!(&value, wanted);
            }
        }
    }
}

#[test]
fn maps_change_keys_values_and_names() {
    let map = |key: &str, pairs: Vec<ArrayRef>| {
        let fields = Fields::from(vec![
            Field::new(key, pairs[0].data_type().clone(), false),
            Field::new("value", pairs[1].data_type().clone(), true),
        ]);
        let entries = Arc::new(Field::new("entries", DataType::Struct(fields.clone()), false));
        let pairs = StructArray::try_new(fields, pairs, None).unwrap();
        let nulls = Some(NullBuffer::from(vec![true, false, true]));
        arc(MapArray::try_new(entries, OffsetBuffer::from_lengths([2, 0, 1]), pairs, nulls, false).unwrap())
    };
    let own = map("keys", vec![arc(StringArray::from(vec!["a", "b", "a"])), arc(Int8Array::from(vec![1, 2, 3]))]);
    let wanted =
        map("key", vec![arc(LargeStringArray::from(vec!["a", "b", "a"])), arc(Int64Array::from(vec![1, 2, 3]))]);
    assert_eq!(&through(&own, wanted.data_type()).unwrap(), &wanted);
}

#[test]
fn columns_are_reordered_filled_and_left_out() {
    let column = |name: &str, data_type| Field::new(name, data_type, true);
    let file = Arc::new(Schema::new(vec![column("b", DataType::Utf8), column("a", DataType::Int32)]));
    let text = arc(StringArray::from(vec!["x", "y"]));
    let columns = vec![Arc::clone(&text), arc(Int32Array::from(vec![1, 2]))];
    let batch = RecordBatch::try_new(Arc::clone(&file), columns).unwrap();
    let metadata = HashMap::from([("k".to_owned(), "v".to_owned())]);
    let fields = vec![
        column("a", DataType::Int64),
        column("c", DataType::Date32),
        column("b", DataType::Utf8).with_metadata(metadata.clone()),
        column("d", DataType::Date32),
    ];
    let table = Arc::new(Schema::new_with_metadata(fields, metadata));
    let found = Adapter::new(&file, &table).unwrap().adapt(&batch).unwrap();
    assert_eq!(found.schema(), table);
    assert_eq!(found.column(0), &arc(Int64Array::from(vec![1, 2])));
    assert_eq!((found.column(1).null_count(), found.column(3).null_count()), (2, 2));
    assert!(Arc::ptr_eq(found.column(1), found.column(3)));
    assert!(Arc::ptr_eq(found.column(2), &text));
    let none = Adapter::new(&file, &Arc::new(Schema::empty())).unwrap().adapt(&batch).unwrap();
    assert_eq!((none.num_columns(), none.num_rows()), (0, 2));
}

#[test]
fn errors_name_the_column() {
    let file = Arc::new(Schema::new(vec![Field::new("a", DataType::Int32, true)]));
    let error = |table: Vec<Field>| Adapter::new(&file, &Arc::new(Schema::new(table))).unwrap_err().to_string();
    let missing = error(vec![Field::new("b", DataType::Int32, false)]);
    assert_eq!(missing, "column `b`: it is missing, and may not be NULL");
    let twice = [DataType::Int8, DataType::Utf8].map(|data_type| Field::new("a", data_type, true));
    let twice = Arc::new(Schema::new(twice.to_vec()));
    assert_eq!(Adapter::new(&twice, &file).unwrap_err().to_string(), "two columns are named `a`");
    let strict = Arc::new(Schema::new(vec![Field::new("a", DataType::Int32, false)]));
    let nulls = batch(&arc(Int32Array::from(vec![None, Some(1)])));
    let error = Adapter::new(&nulls.schema(), &strict).unwrap().adapt(&nulls).unwrap_err().to_string();
    assert!(error.contains("'a'"), "{error}");
    let inner = arc(pairs(vec![("x", arc(Time64MicrosecondArray::from(vec![i64::MAX])))], None));
    let item = Field::new("x", DataType::Time64(TimeUnit::Nanosecond), true);
    let error = through(&inner, &DataType::Struct(vec![item].into())).unwrap_err();
    assert!(error.starts_with("column `a.x`: "), "{error}");
}

#[test]
fn a_batch_of_another_file_is_refused() {
    let adapter_of = |array: &ArrayRef| Adapter::new(&batch(array).schema(), &batch(array).schema()).unwrap();
    let (long, text) = (arc(Int64Array::from(vec![1])), arc(StringArray::from(vec!["x"])));
    assert!(adapter_of(&long).adapt(&batch(&text)).is_err());
    assert!(adapter_of(&long).adapt(&batch(&long)).is_ok());
}

#[test]
fn parts_of_a_null_struct_are_null() {
    let field = Arc::new(Field::new("x", DataType::Int64, true));
    let inner: ArrayRef = arc(Int64Array::from(vec![1, 2, 3]));
    let nulls = NullBuffer::from(vec![true, false, true]);
    let array = arc(StructArray::new(vec![field].into(), vec![inner], Some(nulls)));
    let adapted = through(&array, array.data_type()).unwrap();
    let parts = adapted.as_struct().column(0).as_primitive::<arrow_array::types::Int64Type>();
    assert_eq!(parts.iter().collect::<Vec<_>>(), [Some(1), None, Some(3)]);

    let item = Arc::new(Field::new("item", array.data_type().clone(), true));
    let list = arc(ListArray::new(item, OffsetBuffer::from_lengths([2, 1]), array, None));
    let adapted = through(&list, list.data_type()).unwrap();
    assert!(adapted.as_list::<i32>().values().as_struct().column(0).is_null(1));
}
