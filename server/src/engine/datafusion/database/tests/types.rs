//! Every type of Arrow comes back from a table, value for value, with every detail of its schema.

use arrow_array::cast::AsArray;
use arrow_schema::{DataType, Field, Schema};
use thallus_protocol_testing::{Dice, all_types, arb_data_type, batch, same_array};

use super::super::super::files::check_names;
use super::*;

/// Compares two sequences of batches whose cuts may differ.
fn compare(found: &[RecordBatch], expected: &[RecordBatch]) -> Result<(), String> {
    let rows = |batches: &[RecordBatch]| batches.iter().map(RecordBatch::num_rows).sum::<usize>();
    if rows(found) != rows(expected) {
        return Err(format!("{} rows instead of {}", rows(found), rows(expected)));
    }
    let (mut found, mut expected) = (found.iter().cloned(), expected.iter().cloned());
    let (mut a, mut b) = (found.next(), expected.next());
    while let (Some(left), Some(right)) = (&a, &b) {
        let count = left.num_rows().min(right.num_rows());
        if left.schema() != right.schema() {
            return Err(format!("schemas differ: {:#?} {:#?}", left.schema(), right.schema()));
        }
        for (left, right) in left.columns().iter().zip(right.columns()) {
            same_array(&flat(&left.slice(0, count)), &flat(&right.slice(0, count)))?;
        }
        let rest = |batch: &RecordBatch| batch.slice(count, batch.num_rows() - count);
        let (left, right) = (rest(left), rest(right));
        a = if left.num_rows() > 0 { Some(left) } else { found.next() };
        b = if right.num_rows() > 0 { Some(right) } else { expected.next() };
    }
    Ok(())
}

fn schema_of(data_type: &DataType, nullable: bool) -> SchemaRef {
    let metadata = [("ARROW:extension:name".to_owned(), "arrow.uuid".to_owned()), ("k".to_owned(), "ä".to_owned())];
    let field = Field::new("c", data_type.clone(), nullable).with_metadata(metadata.into());
    let other = Field::new("n", DataType::Int32, false);
    Arc::new(Schema::new_with_metadata(vec![field, other], [("of".to_owned(), "schema".to_owned())].into()))
}

/// Stores two uploads of two batches each, and reads them back. `None`: the type cannot be in a table.
async fn round_trip(fixture: &Fixture, schema: &SchemaRef, seed: u64) -> Result<(), String> {
    if check_names(schema).is_err() {
        return Ok(());
    }
    let mut dice = Dice::new(seed);
    let batches: Vec<RecordBatch> = [37, 1, 300, 5].iter().map(|rows| batch(schema, *rows, &mut dice)).collect();
    let say = |what: &str, e: EngineError| format!("{what}: {e}");
    fixture.ingest("t", IngestMode::Replace, &batches[..2]).await.map_err(|e| say("create", e))?;
    fixture.ingest("t", IngestMode::Append, &batches[2..]).await.map_err(|e| say("append", e))?;
    let stream = fixture.engine.execute(QueryRequest::new("SELECT * FROM t")).await.map_err(|e| say("plan", e))?;
    if stream.schema != *schema {
        return Err(format!("the schema is {:#?} instead of {schema:#?}", stream.schema));
    }
    let found: Vec<RecordBatch> = stream.batches.try_collect().await.map_err(|e| say("read", e))?;
    compare(&found, &batches)
}

/// Whether arrays have NULLs without a bitmap of their own. A column that takes none refuses these, too.
fn holds_nulls(data_type: &DataType) -> bool {
    matches!(data_type, DataType::Null | DataType::Union(..) | DataType::RunEndEncoded(..))
}

/// A dictionary without its keys. A key of NULL and a key of a value that is NULL are the same.
fn flat(column: &ArrayRef) -> ArrayRef {
    let Some(dictionary) = column.as_any_dictionary_opt() else { return Arc::clone(column) };
    let keys = arrow_cast::cast(dictionary.keys(), &DataType::UInt64).unwrap();
    arrow_select::take::take(dictionary.values().as_ref(), &keys, None).unwrap()
}

#[tokio::test]
async fn every_type_comes_back() {
    let fixture = Fixture::new().await;
    let mut failures = Vec::new();
    for data_type in all_types() {
        for nullable in [true, false] {
            if !nullable && holds_nulls(&data_type) {
                continue;
            }
            if let Err(e) = round_trip(&fixture, &schema_of(&data_type, nullable), 7).await {
                let e: String = e.chars().take(300).collect();
                failures.push(format!("{data_type} (nullable: {nullable}): {e}"));
            }
        }
    }
    assert!(failures.is_empty(), "{} of them\n{}", failures.len(), failures.join("\n"));
}

#[tokio::test]
async fn nested_types_come_back() {
    use proptest::strategy::{Strategy, ValueTree};
    let fixture = Fixture::new().await;
    let mut runner = proptest::test_runner::TestRunner::deterministic();
    let mut failures = Vec::new();
    for seed in 0..200 {
        let data_type = arb_data_type().new_tree(&mut runner).unwrap().current();
        if let Err(e) = round_trip(&fixture, &schema_of(&data_type, true), seed).await {
            // Arrow has no format for it.
            if e.contains("not supported: a table with these columns") && data_type.to_string().contains("Dictionary") {
                continue;
            }
            let e: String = e.chars().take(300).collect();
            failures.push(format!("{data_type} (seed {seed}): {e}"));
        }
    }
    assert!(failures.is_empty(), "{} of them\n{}", failures.len(), failures.join("\n"));
}

#[tokio::test]
async fn dictionaries_with_short_keys_may_have_many_values_together() {
    use arrow_array::types::Int8Type;
    use arrow_array::{DictionaryArray, Int8Array};
    let fixture = Fixture::new().await;
    let batches: Vec<RecordBatch> = (0..5)
        .map(|part| {
            let values: StringArray = (0..100).map(|value| Some(format!("{part} {value}"))).collect();
            let keys = Int8Array::from_iter_values((0..300).map(|row| (row % 100) as i8));
            let column: ArrayRef = Arc::new(DictionaryArray::<Int8Type>::try_new(keys, Arc::new(values)).unwrap());
            RecordBatch::try_from_iter_with_nullable([("d", column, true)]).unwrap()
        })
        .collect();
    fixture.ingest("t", IngestMode::Create, &batches).await.unwrap();
    let found = fixture.query("SELECT * FROM t").await.unwrap();
    compare(&found, &batches).unwrap();
}

#[tokio::test]
async fn statistics_of_a_table_do_not_change_its_values() {
    let fixture = Fixture::new().await;
    let floats: ArrayRef = Arc::new(arrow_array::Float64Array::from(vec![1.0, f64::NAN, -0.0, f64::INFINITY]));
    let batch = RecordBatch::try_from_iter([("f", floats)]).unwrap();
    fixture.ingest("t", IngestMode::Create, &[batch]).await.unwrap();
    assert_eq!(fixture.numbers("SELECT count(*) FROM t WHERE f > 1e300").await, [2]);
    fixture.ingest("n", IngestMode::Create, &[rows(0..2000), rows(2000..4000)]).await.unwrap();
    assert_eq!(fixture.numbers("SELECT count(name) FROM n WHERE id >= 3990").await, [6]);
    assert_eq!(fixture.numbers("SELECT max(id) + min(id) FROM n").await, [3999]);
}
