//! Tests with functions inside the engine that panic on purpose.

use std::sync::Arc;

use arrow_schema::DataType;
use datafusion::common::Result;
use datafusion::logical_expr::{ColumnarValue, Volatility, create_udf};
use datafusion::object_store::path::Path;
use datafusion::object_store::{ObjectStore, ObjectStoreExt};
use futures::{StreamExt, TryStreamExt};

use super::*;
use crate::engine::EngineErrorKind;

/// A function that panics on a scalar, which happens while planning, and on a batch with the number 70000, which is not
/// the first.
fn buggy(arguments: &[ColumnarValue]) -> Result<ColumnarValue> {
    if let ColumnarValue::Scalar(_) = &arguments[0] {
        panic!("the planner's bug");
    }
    let numbers = arguments[0].to_array(1)?;
    let numbers = arrow_array::cast::as_primitive_array::<arrow_array::types::Int64Type>(&numbers);
    assert!(!numbers.values().contains(&70_000), "the executor's bug");
    Ok(arguments[0].clone())
}

async fn engine(partitions: usize) -> DataFusionEngine {
    let mut config = ServerConfig::default();
    config.engine.partitions = Some(partitions);
    let engine = DataFusionEngine::open(&config).await.unwrap();
    let function = create_udf("buggy", vec![DataType::Int64], DataType::Int64, Volatility::Immutable, Arc::new(buggy));
    engine.shared.context.register_udf(function);
    engine
}

async fn failure(engine: &DataFusionEngine, sql: &str) -> EngineError {
    match engine.execute(QueryRequest::new(sql)).await {
        Ok(stream) => stream.batches.try_collect::<Vec<_>>().await.unwrap_err(),
        Err(e) => e,
    }
}

#[tokio::test]
async fn plans_are_kept_if_their_meaning_does_not_change() {
    let engine = engine(2).await;
    let run = async |sql: &str| {
        let stream = engine.execute(QueryRequest::new(sql)).await.unwrap();
        stream.batches.try_collect::<Vec<_>>().await.unwrap()
    };
    let first = run("SELECT 1 + 1 AS two").await;
    assert_eq!(engine.shared.plans.len(), 1);
    assert_eq!(run("SELECT 1 + 1 AS two").await, first);
    for sql in ["SELECT now()", "SELECT random()", "EXPLAIN SELECT 1", "SELECT count(*) FROM server.tables"] {
        run(sql).await;
        assert_eq!(engine.shared.plans.len(), 1, "{sql}");
    }
    for number in 0..300 {
        run(&format!("SELECT {number}")).await;
    }
    assert_eq!(engine.shared.plans.len(), 256);
}

#[tokio::test]
async fn a_panic_is_one_querys_error_and_the_engine_lives_on() {
    let engine = engine(2).await;
    let series = "FROM generate_series(1, 100000)";
    for (sql, message) in [
        ("SELECT buggy(1)".to_owned(), "the planner's bug"),
        (format!("SELECT buggy(value) {series}"), "the executor's bug"),
        // In a task that the query's own task spawned.
        (format!("SELECT b, count(*) FROM (SELECT buggy(value) AS b {series}) GROUP BY b"), "the executor's bug"),
    ] {
        let error = failure(&engine, &sql).await;
        assert_eq!(error.kind(), EngineErrorKind::Internal, "{sql}: {error}");
        assert!(error.message().contains(message), "{sql}: {error}");
    }
    let rows = engine.execute(QueryRequest::new("SELECT 1")).await.unwrap().batches.count().await;
    assert_eq!(rows, 1);
}

#[tokio::test]
async fn rows_before_the_panic_are_delivered_and_then_the_error() {
    // In several partitions the last rows may come first.
    let engine = engine(1).await;
    let sql = "SELECT buggy(value) FROM generate_series(1, 100000)";
    let items: Vec<_> = engine.execute(QueryRequest::new(sql)).await.unwrap().batches.collect().await;
    assert_eq!(items.len(), 2);
    assert!(items[0].is_ok() && items[1].is_err());
}

#[tokio::test]
async fn the_store_reads_the_tables_and_nothing_else() {
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| Path::from_absolute_path(directory.path().join(name)).unwrap();
    std::fs::create_dir(directory.path().join("table")).unwrap();
    for name in ["table/a", "table/.hidden", "table2", "secret"] {
        std::fs::write(directory.path().join(name), "bytes").unwrap();
    }
    let store = ReadOnlyStore::new(vec![at("table")]);
    assert_eq!(store.get(&at("table/a")).await.unwrap().bytes().await.unwrap(), "bytes");
    for path in ["secret", "table2"] {
        assert!(store.get(&at(path)).await.is_err(), "{path}");
        assert!(store.get_range(&at(path), 0..1).await.is_err(), "{path}");
        assert!(store.head(&at(path)).await.is_err(), "{path}");
    }
    assert!(store.list(None).try_collect::<Vec<_>>().await.is_err());
    assert!(store.list_with_delimiter(None).await.is_err());

    let a = at("table/a");
    assert!(store.put(&at("table/b"), "new".into()).await.is_err());
    assert!(store.put_multipart(&at("table/b")).await.is_err());
    assert!(store.delete(&a).await.is_err());
    assert!(store.copy(&a, &at("table/b")).await.is_err());
    assert!(store.rename(&a, &at("table/b")).await.is_err());
    assert_eq!(std::fs::read_dir(directory.path().join("table")).unwrap().count(), 2);
}

/// A kind of nesting, and a function that makes a query of a given depth.
type NestedQuery = (&'static str, fn(usize) -> String);

/// Shapes of queries that are trees as deep as they are long, by their [`guard`] count.
const SHAPES: [NestedQuery; 11] = [
    ("literals added", |n| format!("SELECT 1{}", "+1".repeat(n))),
    ("columns added", |n| format!("SELECT id{} FROM t", "+id".repeat(n))),
    ("disjunction", |n| {
        let terms: Vec<_> = (0..n).map(|i| format!("id = {i}")).collect();
        format!("SELECT id FROM t WHERE {}", terms.join(" OR "))
    }),
    ("conjunction", |n| {
        let terms: Vec<_> = (0..n).map(|i| format!("id <> {i}")).collect();
        format!("SELECT id FROM t WHERE {}", terms.join(" AND "))
    }),
    ("concatenation", |n| format!("SELECT id::text{} FROM t", "||'x'".repeat(n))),
    ("casts", |n| format!("SELECT id{} FROM t", "::int::bigint".repeat(n / 4))),
    ("alternating", |n| {
        let terms: Vec<_> = (0..n / 6).map(|i| format!("id = {i} AND id < {i} OR NOT id > {i}")).collect();
        format!("SELECT id FROM t WHERE {}", terms.join(" OR "))
    }),
    ("union", |n| format!("SELECT 1{}", " UNION ALL SELECT 1".repeat(n / 4))),
    ("distinct union", |n| format!("SELECT 1{}", " UNION SELECT 1".repeat(n / 8))),
    ("cross joins", |n| {
        let tables: String = (0..n / 4).map(|i| format!(", (SELECT 1) t{i}")).collect();
        format!("SELECT count(*) FROM t{tables}")
    }),
    ("common table expressions", |n| {
        let tables: String = (1..=n / 16).map(|i| format!(", c{i} AS (SELECT id + 1 AS id FROM c{})", i - 1)).collect();
        format!("WITH c0 AS (SELECT id FROM t){tables} SELECT id FROM c{}", n / 16)
    }),
];

/// With a quarter of the stack, so that other versions and other shapes may need more.
#[tokio::test]
async fn the_deepest_queries_let_through_need_a_quarter_of_the_stack() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("t.csv");
    std::fs::write(&path, "id\n1\n2\n3\n").unwrap();
    let mut config = ServerConfig::default();
    config.tables.insert("t".to_owned(), crate::config::TableConfig::at(path));
    let engine = DataFusionEngine::open_with_stack(&config, STACK_BYTES / 4).await.unwrap();
    for (name, shape) in SHAPES {
        let start = std::time::Instant::now();
        // A small margin for the query around the chain.
        let query = engine.execute(QueryRequest::new(shape(guard::MAX_NESTING - 16))).await;
        let rows: Vec<_> = query.unwrap_or_else(|e| panic!("{name}: {e}")).batches.try_collect().await.unwrap();
        println!("{name}: {} batches in {:?}", rows.len(), start.elapsed());
        let beyond = engine.execute(QueryRequest::new(shape(guard::MAX_NESTING * 20))).await;
        assert!(matches!(beyond.map(|_| ()), Err(EngineError::TooLarge { .. })), "{name}");
    }
}
