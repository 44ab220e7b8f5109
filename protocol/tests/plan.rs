//! A plan is compiled once for a schema, and a descriptor is bound to the plan that checked it.

use std::sync::Arc;

use arrow_array::types::Int8Type;
use arrow_array::{Array, ArrayRef, DictionaryArray, Int8Array, Int32Array, RecordBatch, StringArray};
use arrow_buffer::Buffer;
use arrow_schema::{DataType, Field, Schema, TimeUnit};
use thallus_protocol::layout::{
    CheckedDescriptor, LayoutError, LayoutLimits, LayoutProblem, MAX_DEPTH, Plan, check, describe, rebuild_with,
};
use thallus_protocol_testing::{Distrust, same_batch};

/// Rebuilds a batch, and panics if Arrow's validation refuses an array that ours accepted.
fn rebuild(descriptor: &CheckedDescriptor, buffers: &[Buffer]) -> Result<RecordBatch, LayoutError> {
    rebuild_with(descriptor, buffers, &Distrust)
}

#[test]
fn nesting_is_bounded_and_invalid_types_are_refused() {
    let mut deep = DataType::Int8;
    for _ in 0..MAX_DEPTH {
        deep = DataType::List(Arc::new(Field::new("item", deep, true)));
    }
    let refused = [
        deep,
        DataType::Time32(TimeUnit::Nanosecond),
        DataType::Decimal128(39, 0),
        DataType::FixedSizeBinary(-1),
        DataType::FixedSizeList(Arc::new(Field::new("item", DataType::Int8, true)), -1),
        DataType::Map(Arc::new(Field::new("entries", DataType::Int8, false)), false),
        DataType::Dictionary(DataType::Utf8.into(), DataType::Utf8.into()),
        DataType::RunEndEncoded(
            Arc::new(Field::new("run_ends", DataType::Int8, false)),
            Arc::new(Field::new("values", DataType::Int8, true)),
        ),
    ];
    for data_type in refused {
        let schema = Arc::new(Schema::new(vec![Field::new("c", data_type.clone(), true)]));
        let error = Plan::new(&schema).unwrap_err();
        assert!(error.path().starts_with('c'), "{error}");
        assert!(matches!(error.problem(), LayoutProblem::TooDeep { .. } | LayoutProblem::Type { .. }), "{error}");
    }
}

fn plan_of(columns: &[(&str, DataType, bool)]) -> Plan {
    let fields: Vec<_> = columns.iter().map(|(name, of, nullable)| Field::new(*name, of.clone(), *nullable)).collect();
    Plan::new(&Arc::new(Schema::new(fields))).unwrap()
}

/// A descriptor may fit several plans. `rebuild` always uses the plan that checked the descriptor. The documentation of
/// `CheckedDescriptor` shows that no other function can create or change one.
#[test]
fn a_descriptor_is_rebuilt_by_the_plan_against_which_it_was_checked() {
    let strings: ArrayRef = Arc::new(StringArray::from(vec!["one", "two"]));
    let batch = RecordBatch::try_from_iter([("c", strings)]).unwrap();
    let (descriptor, mut lent) = describe(&plan_of(&[("c", DataType::Utf8, false)]), &batch).unwrap();
    // No UTF-8: valid for a binary column, invalid for a column of strings.
    lent[1] = Buffer::from_vec(vec![0xff_u8; 6]);
    let limits = LayoutLimits::default();
    let text = check(&plan_of(&[("c", DataType::Utf8, false)]), descriptor.clone(), &limits).unwrap();
    let binary = check(&plan_of(&[("c", DataType::Binary, false)]), descriptor.clone(), &limits).unwrap();
    let error = rebuild(&text, &lent).unwrap_err();
    assert!(matches!(error.problem(), LayoutProblem::NotUtf8 { at: 0 }), "{error}");
    assert_eq!(rebuild(&binary, &lent).unwrap().column(0).data_type(), &DataType::Binary);
    // A clone stays bound to its plan, also after its views were rebased.
    let mut again = text.clone();
    assert!(again.rebases().is_empty());
    assert!(rebuild(&again, &lent).is_err());
    assert_eq!(again.plan().schema(), text.plan().schema());
    // Another plan must check the plain descriptor before it can rebuild it.
    let numbers = plan_of(&[("c", DataType::Int32, false)]);
    assert!(check(&numbers, again.into_descriptor(), &limits).is_err());
}

#[test]
fn a_batch_of_another_schema_is_not_described() {
    let numbers: ArrayRef = Arc::new(Int32Array::from(vec![1, 2]));
    let batch = RecordBatch::try_from_iter([("n", numbers)]).unwrap();
    let error = describe(&plan_of(&[("n", DataType::Int64, false)]), &batch).unwrap_err();
    assert!(matches!(error.problem(), LayoutProblem::OtherType { .. }), "{error}");
    assert_eq!(error.path(), "n");
    let error = describe(&plan_of(&[]), &batch).unwrap_err();
    assert!(matches!(error.problem(), LayoutProblem::Mismatch { expected: 0, got: 1, .. }), "{error}");
    // A column that is nullable in the plan need not be nullable in the batch.
    describe(&plan_of(&[("n", DataType::Int32, true)]), &batch).unwrap();
}

/// Negative keys of 8 bits, with more values than such keys can address. Read as unsigned, the keys would be in range.
#[test]
fn negative_keys_are_refused_for_any_dictionary() {
    let values: ArrayRef = Arc::new(Int32Array::from_iter_values(0..200));
    let keys = Int8Array::from_iter_values((0..100).chain([127]));
    let column: ArrayRef = Arc::new(DictionaryArray::<Int8Type>::new(keys, values));
    let batch = RecordBatch::try_from_iter([("d", column)]).unwrap();
    let plan = Plan::new(&batch.schema()).unwrap();
    let (descriptor, mut lent) = describe(&plan, &batch).unwrap();
    let descriptor = check(&plan, descriptor, &LayoutLimits::default()).unwrap();
    assert_eq!(same_batch(&batch, &rebuild(&descriptor, &lent).unwrap()), Ok(()));
    let mut keys = lent[0].to_vec();
    keys[7] = 0x9c;
    lent[0] = Buffer::from_vec(keys);
    let error = rebuild(&descriptor, &lent).unwrap_err();
    assert!(matches!(error.problem(), LayoutProblem::OutOfRange { what: "key", at: 7 }), "{error}");
}
