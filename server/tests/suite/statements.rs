//! Statements with parameters, descriptions of statements, and lists of objects.

use std::sync::Arc;

use arrow::array::{ArrayRef, AsArray, Int64Array, RecordBatch, StringArray};
use arrow::compute::concat_batches;
use arrow::datatypes::{DataType, Int64Type};
use futures::TryStreamExt;
use tempfile::TempDir;
use thallus_server::engine::datafusion::DataFusionEngine;
use thallus_server::engine::{
    CatalogObject, Defaults, Depth, Engine, EngineError, EngineErrorKind, ObjectsRequest, QueryRequest,
};

use crate::engine::{numbers, open};
use crate::files::{config, directory, rows, write};

async fn engine() -> (TempDir, DataFusionEngine) {
    let directory = directory();
    let path = write(directory.path().join("t.parquet"), &rows(0..100));
    let engine = open(&config(&[("t", &path), ("Order_Lines", &path)])).await;
    (directory, engine)
}

fn parameters(columns: Vec<(&str, ArrayRef)>) -> Option<RecordBatch> {
    Some(RecordBatch::try_from_iter_with_nullable(columns.into_iter().map(|(name, a)| (name, a, true))).unwrap())
}

fn integers<const N: usize>(values: [i64; N]) -> ArrayRef {
    Arc::new(Int64Array::from(values.to_vec()))
}

async fn run(engine: &DataFusionEngine, sql: &str, with: Option<RecordBatch>) -> Result<RecordBatch, EngineError> {
    let query = engine.execute(QueryRequest { parameters: with, ..QueryRequest::new(sql) }).await?;
    let batches: Vec<_> = query.batches.try_collect().await?;
    Ok(concat_batches(&query.schema, &batches).unwrap())
}

#[tokio::test]
async fn parameters_have_the_values_of_their_columns() {
    let (_directory, engine) = engine().await;
    let two = || parameters(vec![("a", integers([3])), ("b", integers([5]))]);
    for sql in [
        "SELECT id FROM t WHERE id >= $1 AND id < $2",
        "SELECT id FROM t WHERE id < $2 AND id >= $1",
        "SELECT id FROM t WHERE id >= ? AND id < ?",
        "SELECT id FROM t WHERE id >= $a AND id < $b",
        "SELECT id FROM t WHERE id BETWEEN $b - 2 AND $a + 1",
        "SELECT id FROM (SELECT id FROM t WHERE id < $2) WHERE id IN (SELECT id FROM t WHERE id >= $1)",
    ] {
        assert_eq!(numbers(&run(&engine, sql, two()).await.unwrap()), [3, 4], "{sql}");
    }
    let text: ArrayRef = Arc::new(StringArray::from(vec!["name 7"]));
    let by_name = run(&engine, "SELECT id FROM t WHERE name = ?", parameters(vec![("0", text)])).await.unwrap();
    assert_eq!(numbers(&by_name), [7]);
    let limited = run(&engine, "SELECT id FROM t ORDER BY id LIMIT $1", parameters(vec![("0", integers([2]))]));
    assert_eq!(numbers(&limited.await.unwrap()), [0, 1]);
}

#[tokio::test]
async fn a_statement_is_run_once_for_each_row() {
    let (_directory, engine) = engine().await;
    let three = parameters(vec![("0", Arc::new(Int64Array::from(vec![Some(9), None, Some(2)])) as ArrayRef)]);
    let found = run(&engine, "SELECT id FROM t WHERE id = $1", three.clone()).await.unwrap();
    assert_eq!(numbers(&found), [9, 2]);
    let echoed = run(&engine, "SELECT $1 AS given", three).await.unwrap();
    let echoed = echoed.column(0).as_primitive::<Int64Type>();
    assert_eq!(echoed.iter().collect::<Vec<_>>(), [Some(9), None, Some(2)]);
    // The second execution fails: rows of the first are no result.
    let divisors = parameters(vec![("0", integers([1, 0]))]);
    let failed = run(&engine, "SELECT 7 / $1", divisors).await.unwrap_err();
    assert_eq!(failed.kind(), EngineErrorKind::Execution);
}

#[tokio::test]
async fn parameters_that_do_not_fit_are_refused() {
    let (_directory, engine) = engine().await;
    let one = || parameters(vec![("a", integers([3]))]);
    for (sql, with, words) in [
        ("SELECT $1 + $2", one(), "2 parameters, 1 were given"),
        ("SELECT $1", None, "1 parameters, 0 were given"),
        ("SELECT 1", one(), "0 parameters, 1 were given"),
        ("SELECT $b", one(), "no value was given for the parameter $b"),
        ("SELECT $a, $1", one(), "both numbered and named"),
        ("SELECT $99999999", one(), "at most 65535 parameters"),
        ("SELECT $1", parameters(vec![("a", integers([]))]), "no row of parameters"),
    ] {
        let error = run(&engine, sql, with).await.unwrap_err();
        assert_eq!(error.kind(), EngineErrorKind::Parameters, "{sql}: {error}");
        assert!(error.message().contains(words), "{sql}: {error}");
    }
    let mixed = run(&engine, "SELECT ?, $1", one()).await.unwrap_err();
    assert_eq!(mixed.kind(), EngineErrorKind::Syntax);
    let struct_type = run(&engine, "SELECT id FROM t WHERE id = $1", {
        let flag: ArrayRef = Arc::new(arrow::array::BinaryArray::from_vec(vec![b"\xff\xfe"]));
        parameters(vec![("0", flag)])
    });
    assert!(struct_type.await.is_err());
}

#[tokio::test]
async fn a_description_has_the_schema_of_the_result_and_of_the_parameters() {
    let (_directory, engine) = engine().await;
    let describe = async |sql: &str| engine.describe(QueryRequest::new(sql)).await;
    let described = describe("SELECT id, name FROM t WHERE id > $1 AND name = $2").await.unwrap();
    let of = |schema: &arrow::datatypes::Schema| {
        let field = |field: &Arc<arrow::datatypes::Field>| (field.name().clone(), field.data_type().clone());
        schema.fields().iter().map(field).collect::<Vec<_>>()
    };
    assert_eq!(of(&described.result)[0], ("id".to_owned(), DataType::Int64));
    let text = DataType::Utf8View;
    assert_eq!(of(&described.parameters), [("$1".to_owned(), DataType::Int64), ("$2".to_owned(), text)]);
    let unknown = describe("SELECT $1").await.unwrap();
    assert_eq!(of(&unknown.parameters), [("$1".to_owned(), DataType::Null)]);
    for sql in ["SELECT * FROM t", "SELECT count(*) AS n, 1 + 1 FROM t", "SHOW TABLES", "EXPLAIN SELECT 1"] {
        let described = describe(sql).await.unwrap();
        assert_eq!(described.result, engine.execute(QueryRequest::new(sql)).await.unwrap().schema, "{sql}");
        assert!(described.parameters.fields().is_empty());
    }
    assert_eq!(describe("SELECT * FROM nowhere").await.unwrap_err().kind(), EngineErrorKind::UnknownTable);
    assert_eq!(describe("SELEC 1").await.unwrap_err().kind(), EngineErrorKind::Syntax);
}

#[tokio::test]
async fn names_without_a_schema_have_the_default() {
    let (_directory, engine) = engine().await;
    let defaults = |schema: &str| Defaults { catalog: None, schema: Some(schema.to_owned()) };
    let request = |schema| QueryRequest { defaults: defaults(schema), ..QueryRequest::new("SELECT * FROM tables") };
    let query = engine.execute(request("server")).await.unwrap();
    let batches: Vec<_> = query.batches.try_collect().await.unwrap();
    assert_eq!(batches.iter().map(RecordBatch::num_rows).sum::<usize>(), 2);
    let unknown = engine.execute(request("public")).await.unwrap_err();
    assert_eq!(unknown.kind(), EngineErrorKind::UnknownTable);
}

#[tokio::test]
async fn objects_are_listed_as_deep_as_requested() {
    let (_directory, engine) = engine().await;
    let list = async |request: ObjectsRequest| engine.objects(request).await.unwrap();
    let text = |objects: &[CatalogObject]| {
        let one = |object: &CatalogObject| {
            let table = object.table.as_ref().map(|table| format!(".{} {}", table.name, table.kind));
            let schema = object.schema.as_ref().map(|schema| format!(".{schema}"));
            format!("{}{}{}", object.catalog, schema.unwrap_or_default(), table.unwrap_or_default())
        };
        objects.iter().map(one).collect::<Vec<_>>().join("; ")
    };
    let depth = |depth| ObjectsRequest { depth, ..ObjectsRequest::default() };
    assert_eq!(text(&list(depth(Depth::Catalogs)).await), "thallus");
    assert_eq!(text(&list(depth(Depth::Schemas)).await), "thallus.public; thallus.server");
    let public = |depth| ObjectsRequest { depth, schema: Some("public".to_owned()), ..ObjectsRequest::default() };
    let tables = list(public(Depth::Tables)).await;
    assert_eq!(text(&tables), "thallus.public.Order_Lines table; thallus.public.t table");
    assert!(tables.iter().all(|object| object.table.as_ref().unwrap().columns.is_none()));
    let columns = list(public(Depth::Columns)).await;
    let schema = engine.execute(QueryRequest::new("SELECT * FROM t")).await.unwrap().schema;
    assert_eq!(columns[1].table.as_ref().unwrap().columns.as_ref(), Some(&schema));
    let some = |table: &str| ObjectsRequest { table: Some(table.to_owned()), ..public(Depth::Tables) };
    assert_eq!(text(&list(some("Order\\_%")).await), "thallus.public.Order_Lines table");
    assert_eq!(text(&list(some("x")).await), "thallus.public");
    let views = ObjectsRequest { kinds: Some(vec!["view".to_owned()]), ..public(Depth::Tables) };
    assert_eq!(text(&list(views).await), "thallus.public");
    let nowhere = ObjectsRequest { catalog: Some("x".to_owned()), ..ObjectsRequest::default() };
    assert_eq!(list(nowhere).await, []);
}
