use arrow_schema::{TimeUnit, UnionFields, UnionMode};

use super::*;

const STRICT: Widening = Widening { int_to_float: false };
const LOOSE: Widening = Widening { int_to_float: true };

fn file(path: &str, fields: Vec<Field>) -> FileColumns {
    FileColumns { path: PathBuf::from(path), schema: Arc::new(Schema::new(fields)) }
}

fn column(data_type: DataType) -> Vec<Field> {
    vec![Field::new("a", data_type, false)]
}

/// The type of both, in either order.
fn merged(first: DataType, second: DataType, widening: &Widening) -> Option<DataType> {
    let of = |first: &DataType, second: &DataType| {
        let files = [file("1", column(first.clone())), file("2", column(second.clone()))];
        merge(&files, widening).ok().map(|schema| schema.field(0).data_type().clone())
    };
    let found = of(&first, &second);
    assert_eq!(found, of(&second, &first), "{first} and {second}");
    found
}

fn with(field: Field, metadata: &[(&str, &str)]) -> Field {
    field.with_metadata(metadata.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect())
}

fn list(name: &str, data_type: DataType) -> DataType {
    DataType::List(Arc::new(Field::new(name, data_type, true)))
}

fn dictionary(key: DataType, value: DataType) -> DataType {
    DataType::Dictionary(Box::new(key), Box::new(value))
}

#[test]
fn a_name_that_stands_twice_is_refused_at_any_depth() {
    let twice = || Fields::from(vec![Field::new("x", DataType::Int8, true), Field::new("x", DataType::Utf8, true)]);
    let check = |data_type: DataType| check_names(&Schema::new(vec![Field::new("s", data_type, true)]));
    let error = Err("two columns are named `s.x`".to_owned());
    assert_eq!(check(DataType::Struct(twice())), error);
    assert_eq!(check(list("item", list("item", DataType::Struct(twice())))), error);
    assert_eq!(check(dictionary(DataType::Int8, DataType::Struct(twice()))), error);
    let pair = vec![Field::new("k", DataType::Utf8, false), Field::new("v", DataType::Struct(twice()), true)];
    let entries = Field::new("entries", DataType::Struct(pair.into()), false);
    let error = Err("two columns are named `s.v.x`".to_owned());
    assert_eq!(check(DataType::Map(Arc::new(entries), false)), error);
    let member = (3_i8, Arc::new(Field::new("u", DataType::Struct(twice()), true)));
    let union = DataType::Union(UnionFields::from_iter([member]), UnionMode::Sparse);
    assert_eq!(check(union), Err("two columns are named `s.u.x`".to_owned()));
    assert_eq!(check_names(&Schema::new(twice())), Err("two columns are named `x`".to_owned()));
}

#[test]
fn names_are_compared_exactly_and_in_their_own_struct() {
    let inner = DataType::Struct(vec![Field::new("a", DataType::Int8, true)].into());
    let names = ["a", "A", " a", "", "ä", "a\u{308}"];
    let mut fields: Vec<Field> = names.iter().map(|name| Field::new(*name, DataType::Int8, true)).collect();
    fields.push(Field::new("s", inner, true));
    assert_eq!(check_names(&Schema::new(fields)), Ok(()));
    assert_eq!(check_names(&Schema::empty()), Ok(()));
}

#[test]
fn columns_go_by_name_in_the_order_of_first_appearance() {
    let field = |name: &str| Field::new(name, DataType::Int64, false);
    let files = [
        file("1", vec![field("b"), field("a")]),
        file("2", vec![field("c"), field("a")]),
        file("3", vec![field("a").with_nullable(true), field("b"), field("c"), field("d")]),
        file("4", vec![]),
    ];
    let found = merge(&files[..3], &STRICT).unwrap();
    let found: Vec<_> = found.fields().iter().map(|field| (field.name().as_str(), field.is_nullable())).collect();
    assert_eq!(found, [("b", true), ("a", true), ("c", true), ("d", true)]);
    let found = merge(&files[..2], &STRICT).unwrap();
    assert!(!found.field_with_name("a").unwrap().is_nullable());
    assert!(merge(&files, &STRICT).unwrap().fields().iter().all(|field| field.is_nullable()));
    assert_eq!(merge(&[], &STRICT).unwrap().fields().len(), 0);
}

#[test]
fn integers_widen_to_the_smallest_type_of_both() {
    use DataType::{Decimal128, Int8, Int16, Int32, Int64, UInt8, UInt16, UInt32, UInt64};
    let cases = [
        (Int8, Int16, Int16),
        (Int32, Int64, Int64),
        (UInt8, UInt64, UInt64),
        (UInt8, Int8, Int16),
        (UInt8, Int16, Int16),
        (UInt16, Int8, Int32),
        (UInt16, Int64, Int64),
        (UInt32, Int32, Int64),
        (UInt64, Int8, Decimal128(20, 0)),
        (UInt64, Int64, Decimal128(20, 0)),
    ];
    for (first, second, both) in cases {
        assert_eq!(merged(first, second, &STRICT), Some(both));
    }
}

#[test]
fn integers_and_floats_are_floats_where_nothing_is_lost_or_by_option() {
    use DataType::{Decimal128, Float16, Float32, Float64, Int8, Int32, Int64, UInt32, UInt64};
    assert_eq!(merged(Float16, Float32, &STRICT), Some(Float32));
    assert_eq!(merged(Float16, Float64, &STRICT), Some(Float64));
    for small in [Int8, Int32, UInt32] {
        assert_eq!(merged(small, Float16, &STRICT), Some(Float64));
    }
    for large in [Int64, UInt64, Decimal128(20, 0)] {
        assert_eq!(merged(large.clone(), Float32, &STRICT), None);
        assert_eq!(merged(large, Float32, &LOOSE), Some(Float64));
    }
    assert_eq!(merged(Decimal128(20, 1), Float64, &LOOSE), None);
}

#[test]
fn the_order_of_files_does_not_matter_for_numbers() {
    let types = [DataType::UInt64, DataType::Int8, DataType::Float64];
    for order in [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]] {
        let files: Vec<_> = order.iter().map(|place| file("f", column(types[*place].clone()))).collect();
        assert_eq!(*merge(&files, &LOOSE).unwrap().field(0).data_type(), DataType::Float64);
    }
}

#[test]
fn decimals_keep_all_digits() {
    use DataType::{Decimal32, Decimal64, Decimal128, Decimal256, Int8, Int64, UInt64};
    let cases = [
        (Decimal128(10, 2), Decimal128(12, 2), Some(Decimal128(12, 2))),
        (Decimal32(9, 0), Decimal32(9, 9), Some(Decimal64(18, 9))),
        (Decimal128(38, 0), Decimal128(38, 38), Some(Decimal256(76, 38))),
        (Decimal256(76, 0), Decimal32(1, 1), None),
        (Decimal32(5, -2), Decimal32(3, 0), Some(Decimal32(7, 0))),
        (Decimal128(5, -100), Decimal128(5, 5), None),
        (Decimal32(4, 2), Int8, Some(Decimal32(5, 2))),
        (Decimal32(4, 2), Int64, Some(Decimal128(21, 2))),
        (Decimal256(60, 57), UInt64, None),
        (Decimal256(60, 56), UInt64, Some(Decimal256(76, 56))),
    ];
    for (first, second, both) in cases {
        assert_eq!(merged(first, second, &STRICT), both);
    }
}

#[test]
fn text_and_bytes_widen_and_do_not_mix() {
    use DataType::{Binary, BinaryView, FixedSizeBinary, Int32, LargeBinary, LargeUtf8, Null, Utf8, Utf8View};
    assert_eq!(merged(Utf8, LargeUtf8, &STRICT), Some(LargeUtf8));
    assert_eq!(merged(Utf8, Utf8View, &STRICT), Some(Utf8View));
    assert_eq!(merged(LargeUtf8, Utf8View, &STRICT), Some(LargeUtf8));
    assert_eq!(merged(FixedSizeBinary(2), FixedSizeBinary(3), &STRICT), Some(Binary));
    assert_eq!(merged(FixedSizeBinary(2), BinaryView, &STRICT), Some(BinaryView));
    assert_eq!(merged(Binary, LargeBinary, &STRICT), Some(LargeBinary));
    for other in [Binary, Int32, DataType::Boolean, DataType::Date32] {
        assert_eq!(merged(Utf8, other, &LOOSE), None);
    }
    assert_eq!(merged(dictionary(Int32, Utf8), Utf8, &STRICT), Some(Utf8));
    let large = dictionary(DataType::Int16, LargeUtf8);
    assert_eq!(merged(dictionary(DataType::UInt8, Utf8), large.clone(), &STRICT), Some(large.clone()));
    assert_eq!(merged(Null, large.clone(), &STRICT), Some(large));
    let unsigned = dictionary(DataType::UInt64, Utf8);
    assert_eq!(merged(unsigned, dictionary(Int32, Utf8), &STRICT), Some(dictionary(DataType::Int64, Utf8)));
    let nested = dictionary(Int32, list("item", Utf8));
    assert_eq!(merged(nested, list("item", Utf8), &STRICT), None);
}

#[test]
fn times_take_the_finer_unit_of_one_zone() {
    use DataType::{Date32, Date64, Duration, Time32, Time64, Timestamp};
    use TimeUnit::{Microsecond, Millisecond, Nanosecond, Second};
    let zoned = |unit, zone: &str| Timestamp(unit, Some(Arc::from(zone)));
    let cases = [
        (Timestamp(Microsecond, None), Timestamp(Nanosecond, None), Some(Timestamp(Nanosecond, None))),
        (zoned(Second, "Asia/Tokyo"), zoned(Millisecond, "Asia/Tokyo"), Some(zoned(Millisecond, "Asia/Tokyo"))),
        (zoned(Second, "UTC"), zoned(Second, "+00:00"), Some(zoned(Second, "UTC"))),
        (zoned(Second, "UTC"), zoned(Second, "+01:00"), None),
        (zoned(Second, "UTC"), Timestamp(Second, None), None),
        (Date32, Date64, Some(Date64)),
        (Date32, Timestamp(Second, None), None),
        (Time32(Second), Time32(Millisecond), Some(Time32(Millisecond))),
        (Time32(Millisecond), Time64(Microsecond), Some(Time64(Microsecond))),
        (Duration(Second), Duration(Nanosecond), Some(Duration(Nanosecond))),
    ];
    for (first, second, both) in cases {
        assert_eq!(merged(first, second, &STRICT), both);
    }
}

#[test]
fn nested_types_are_merged_within() {
    let structure = |fields: Vec<Field>| DataType::Struct(fields.into());
    let field = |name: &str, data_type| Field::new(name, data_type, false);
    let first = structure(vec![field("x", DataType::Int8), field("y", DataType::Utf8)]);
    let second = structure(vec![field("z", DataType::Utf8), field("x", DataType::Int16)]);
    let nullable = |name: &str| Field::new(name, DataType::Utf8, true);
    let both = structure(vec![field("x", DataType::Int16), nullable("y"), nullable("z")]);
    let files = [file("1", column(list("item", first))), file("2", column(list("element", second)))];
    assert_eq!(*merge(&files, &STRICT).unwrap().field(0).data_type(), list("item", both));

    let item = Arc::new(Field::new("item", DataType::Int8, true));
    let sized = |size| DataType::FixedSizeList(Arc::clone(&item), size);
    let (large, view) = (DataType::LargeList(Arc::clone(&item)), DataType::ListView(Arc::clone(&item)));
    assert_eq!(merged(sized(2), sized(3), &STRICT), Some(DataType::List(Arc::clone(&item))));
    assert_eq!(merged(sized(2), large.clone(), &STRICT), Some(large.clone()));
    assert_eq!(merged(sized(2), view.clone(), &STRICT), Some(view.clone()));
    assert_eq!(merged(large, view, &STRICT), Some(DataType::LargeListView(item)));
}

#[test]
fn maps_are_merged_by_position() {
    let map = |name: &str, key, value, is_sorted| {
        let pair = vec![Field::new(name, key, false), Field::new("value", value, true)];
        DataType::Map(Arc::new(Field::new("entries", DataType::Struct(pair.into()), false)), is_sorted)
    };
    let files = [
        file("1", column(map("key", DataType::Int8, DataType::Null, true))),
        file("2", column(map("keys", DataType::Int32, DataType::Utf8, false))),
    ];
    let both = map("key", DataType::Int32, DataType::Utf8, false);
    assert_eq!(*merge(&files, &STRICT).unwrap().field(0).data_type(), both);
}

#[test]
fn null_with_anything_may_be_null() {
    let files = [file("1", column(DataType::Null)), file("2", column(DataType::Utf8))];
    let found = merge(&files, &STRICT).unwrap();
    assert_eq!(found.field(0), &Field::new("a", DataType::Utf8, true));
}

#[test]
fn metadata_stays_where_all_agree() {
    let text = |metadata: &[(&str, &str)]| with(Field::new("a", DataType::Utf8, true), metadata);
    let lone = with(Field::new("b", DataType::Utf8, true), &[("only", "here")]);
    let schema = |fields: Vec<Field>, key: &str| {
        let metadata = HashMap::from([("same".to_owned(), "1".to_owned()), (key.to_owned(), key.to_owned())]);
        FileColumns { path: PathBuf::new(), schema: Arc::new(Schema::new_with_metadata(fields, metadata)) }
    };
    let files = [
        schema(vec![text(&[("k", "1"), ("x", "1"), ("y", "1")])], "pandas"),
        schema(vec![lone.clone()], "other"),
        schema(vec![text(&[("k", "1"), ("x", "2")])], "pandas"),
    ];
    let found = merge(&files, &STRICT).unwrap();
    assert_eq!(found.metadata(), &HashMap::from([("same".to_owned(), "1".to_owned())]));
    assert_eq!(found.field(0), &text(&[("k", "1")]));
    assert_eq!(found.field(1), &lone);
}

#[test]
fn an_extension_type_stays_whole_or_goes() {
    let (name, parameters) = ("ARROW:extension:name", "ARROW:extension:metadata");
    let kept = |first: Field, second: Field| {
        let files = [file("1", vec![first]), file("2", vec![second])];
        merge(&files, &STRICT).unwrap().field(0).metadata().len()
    };
    let json =
        |data_type, extra: &str| with(Field::new("a", data_type, true), &[(name, "arrow.json"), (parameters, extra)]);
    assert_eq!(kept(json(DataType::Utf8, ""), json(DataType::LargeUtf8, "")), 2);
    assert_eq!(kept(json(DataType::Utf8, ""), json(DataType::Utf8, "{}")), 0);
    let uuid = |data_type| with(Field::new("a", data_type, true), &[(name, "arrow.uuid")]);
    assert_eq!(kept(uuid(DataType::FixedSizeBinary(16)), uuid(DataType::FixedSizeBinary(16))), 1);
    // A reader would refuse a UUID of any length.
    assert_eq!(kept(uuid(DataType::FixedSizeBinary(16)), uuid(DataType::Binary)), 0);
}

#[test]
fn a_mismatch_names_both_files_the_column_and_the_types() {
    let files = [
        file("/d/0.parquet", vec![]),
        file("/d/1.parquet", column(DataType::Null)),
        file("/d/2.parquet", column(DataType::Int64)),
        file("/d/3.parquet", column(DataType::Utf8)),
    ];
    let error = merge(&files, &STRICT).unwrap_err();
    assert_eq!(error.to_string(), "column `a` is Int64 in /d/2.parquet and Utf8 in /d/3.parquet");
    let inner = |data_type| DataType::Struct(vec![Field::new("x", list("item", data_type), true)].into());
    let files = [file("1", column(inner(DataType::Int64))), file("2", column(inner(DataType::Utf8)))];
    let error = merge(&files, &STRICT).unwrap_err();
    assert_eq!(error.to_string(), "column `a.x.item` is Int64 in 1 and Utf8 in 2");
}

#[test]
fn names_have_a_limit_together() {
    let of =
        |name: String| Schema::new(vec![Field::new("a", DataType::Null, true), Field::new(name, DataType::Null, true)]);
    assert!(check_names(&of("x".repeat(MAX_NAMES - 1))).is_ok());
    assert!(check_names(&of("x".repeat(MAX_NAMES))).is_err());
    let inner = Fields::from(vec![Field::new("x".repeat(MAX_NAMES), DataType::Null, true)]);
    assert!(check_names(&Schema::new(vec![Field::new("s", DataType::Struct(inner), true)])).is_err());
}
