//! Data types for generated arrays.

use std::sync::Arc;

use arrow_schema::{DataType, Field, FieldRef, Fields, IntervalUnit, TimeUnit, UnionFields, UnionMode};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;

fn leaves() -> Vec<DataType> {
    use DataType::*;
    let mut types = vec![
        Null,
        Boolean,
        Int8,
        Int16,
        Int32,
        Int64,
        UInt8,
        UInt16,
        UInt32,
        UInt64,
        Float16,
        Float32,
        Float64,
        Date32,
        Date64,
        Utf8,
        LargeUtf8,
        Utf8View,
        Binary,
        LargeBinary,
        BinaryView,
    ];
    types.extend([FixedSizeBinary(0), FixedSizeBinary(1), FixedSizeBinary(7), FixedSizeBinary(16)]);
    types.extend([Decimal32(9, 2), Decimal64(18, -3), Decimal128(38, 10), Decimal256(76, 0)]);
    types.extend([Time32(TimeUnit::Second), Time32(TimeUnit::Millisecond)]);
    types.extend([Time64(TimeUnit::Microsecond), Time64(TimeUnit::Nanosecond)]);
    for unit in [TimeUnit::Second, TimeUnit::Millisecond, TimeUnit::Microsecond, TimeUnit::Nanosecond] {
        types.extend([Timestamp(unit, None), Timestamp(unit, Some("Europe/Berlin".into())), Duration(unit)]);
    }
    for unit in [IntervalUnit::YearMonth, IntervalUnit::DayTime, IntervalUnit::MonthDayNano] {
        types.push(Interval(unit));
    }
    types
}

fn keys() -> Vec<DataType> {
    use DataType::*;
    vec![Int8, Int16, Int32, Int64, UInt8, UInt16, UInt32, UInt64]
}

fn run_ends() -> Vec<DataType> {
    vec![DataType::Int16, DataType::Int32, DataType::Int64]
}

fn map_of(key: DataType, value: FieldRef, sorted: bool) -> DataType {
    let key = Field::new("keys", key, false);
    let entries = DataType::Struct(vec![Arc::new(key), value].into());
    DataType::Map(Arc::new(Field::new("entries", entries, false)), sorted)
}

fn runs_of(ends: DataType, value: FieldRef) -> DataType {
    DataType::RunEndEncoded(Arc::new(Field::new("run_ends", ends, false)), value)
}

/// Type ids that are neither dense nor in order.
fn union_of(fields: Vec<FieldRef>, mode: UnionMode) -> DataType {
    let ids = (0..fields.len()).map(|index| [5_i8, 127, 0, 77, 3][index % 5]);
    DataType::Union(ids.zip(fields).collect::<UnionFields>(), mode)
}

/// Every type of Arrow: each parameter at least once, nested types around a child with nulls.
pub fn all_types() -> Vec<DataType> {
    let item = |data_type| Arc::new(Field::new("item", data_type, true));
    let mut types = leaves();
    for child in [DataType::Int32, DataType::Utf8, DataType::Boolean] {
        types.push(DataType::List(item(child.clone())));
        types.push(DataType::LargeList(item(child.clone())));
        types.push(DataType::ListView(item(child.clone())));
        types.push(DataType::LargeListView(item(child.clone())));
        types.extend([0, 1, 3].map(|size| DataType::FixedSizeList(item(child.clone()), size)));
        types.push(map_of(child.clone(), item(DataType::Utf8View), false));
        types.push(union_of(vec![item(child.clone()), item(DataType::Float64)], UnionMode::Sparse));
        types.push(union_of(vec![item(child.clone()), item(DataType::Utf8)], UnionMode::Dense));
        types.extend(run_ends().into_iter().map(|ends| runs_of(ends, item(child.clone()))));
        types.extend(keys().into_iter().map(|key| DataType::Dictionary(key.into(), child.clone().into())));
    }
    types.push(DataType::Struct(Fields::empty()));
    types.push(DataType::Struct(vec![item(DataType::Int8), item(DataType::Boolean)].into()));
    types
}

/// Any type, nested up to three levels below the top.
pub fn arb_data_type() -> impl Strategy<Value = DataType> {
    // Leaves that nested types commonly contain are more frequent than the many temporal types.
    let common = vec![DataType::Int32, DataType::Utf8, DataType::Boolean, DataType::Utf8View, DataType::Null];
    let leaf = prop_oneof![select(leaves()), select(common)];
    leaf.prop_recursive(3, 12, 3, |inner| {
        let field = (inner.clone(), any::<bool>()).prop_map(|(data_type, nullable)| field("item", data_type, nullable));
        let fields = vec(field.clone(), 0..4);
        // A union without a variant cannot have an element, so that no slice could be cut from it.
        let variants = vec(field.clone(), 1..4);
        prop_oneof![
            field.clone().prop_map(DataType::List),
            field.clone().prop_map(DataType::LargeList),
            field.clone().prop_map(DataType::ListView),
            field.clone().prop_map(DataType::LargeListView),
            (field.clone(), 0..4).prop_map(|(field, size)| DataType::FixedSizeList(field, size)),
            fields.prop_map(|fields| DataType::Struct(fields.into())),
            (select(leaves()[1..].to_vec()), field.clone(), any::<bool>())
                .prop_map(|(key, value, sorted)| map_of(key, value, sorted)),
            variants.clone().prop_map(|fields| union_of(fields, UnionMode::Sparse)),
            variants.prop_map(|fields| union_of(fields, UnionMode::Dense)),
            (select(keys()), inner.clone()).prop_map(|(key, value)| DataType::Dictionary(key.into(), value.into())),
            (select(run_ends()), field).prop_map(|(ends, value)| runs_of(ends, value)),
        ]
    })
}

fn field(name: &str, data_type: DataType, nullable: bool) -> FieldRef {
    // `StructArray::try_new`, and so Arrow IPC, also counts these nulls as nulls of the field.
    let nullable = nullable || holds_nulls(&data_type);
    Arc::new(Field::new(name, data_type, nullable))
}

/// Whether arrays of a type can have nulls without a bitmap of their own.
fn holds_nulls(data_type: &DataType) -> bool {
    match data_type {
        DataType::Null => true,
        DataType::RunEndEncoded(_, values) => values.is_nullable(),
        DataType::Dictionary(_, values) => holds_nulls(values),
        DataType::Union(fields, _) => fields.iter().any(|(_, field)| field.is_nullable()),
        _ => false,
    }
}

/// A column of any type, sometimes with metadata (for example of an extension type).
pub fn arb_field() -> impl Strategy<Value = FieldRef> {
    let metadata = select(vec![
        vec![],
        vec![("ARROW:extension:name".to_owned(), "arrow.uuid".to_owned()), ("k".to_owned(), "ä".to_owned())],
    ]);
    ("[a-zü]{0,4}", arb_data_type(), any::<bool>(), metadata).prop_map(|(name, data_type, nullable, metadata)| {
        Arc::new(Field::new(name, data_type, nullable).with_metadata(metadata.into_iter().collect()))
    })
}
