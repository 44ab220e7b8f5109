//! A result in partitions has the same rows in the same order for any number of partitions in the plan.

use arrow::array::{AsArray, RecordBatch};
use arrow::compute::{SortColumn, SortOptions, concat_batches, lexsort};
use futures::future::try_join_all;
use futures::{StreamExt, TryStreamExt};
use tempfile::TempDir;
use thallus_protocol::message::SortKey;
use thallus_server::engine::datafusion::DataFusionEngine;
use thallus_server::engine::{Engine, EngineError, EngineErrorKind, QueryRequest};

use crate::engine::{numbers, open, query, settled};
use crate::files::{config, directory, rows, write};

/// Six thousand rows in six files, and an engine that reads them in four partitions.
async fn engine() -> (TempDir, DataFusionEngine) {
    let directory = directory();
    for part in 0..6 {
        write(directory.path().join(format!("t/{part}.parquet")), &rows(part * 1000..(part + 1) * 1000));
    }
    let engine = open(&config(&[("t", &directory.path().join("t"))])).await;
    (directory, engine)
}

/// Each partition as one batch, and the sort order of the partitions.
async fn divided(
    engine: &DataFusionEngine,
    sql: &str,
    count: usize,
) -> Result<(Vec<RecordBatch>, Vec<SortKey>), EngineError> {
    let query = engine.execute_partitioned(QueryRequest::new(sql), count).await?;
    assert_eq!(query.partitions.len(), count, "{sql}");
    // All partitions at the same time, as connections do.
    let parts = query.partitions.into_iter().map(|part| part.try_collect::<Vec<_>>());
    let parts = try_join_all(parts).await?;
    let batch = |batches: &Vec<RecordBatch>| concat_batches(&query.schema, batches).unwrap();
    Ok((parts.iter().map(batch).collect(), query.order))
}

fn filled(parts: &[RecordBatch]) -> usize {
    parts.iter().filter(|part| part.num_rows() > 0).count()
}

fn sorted(parts: &[RecordBatch]) -> Vec<i64> {
    let mut ids: Vec<_> = parts.iter().flat_map(numbers).collect();
    ids.sort_unstable();
    ids
}

#[tokio::test]
async fn every_row_is_in_one_partition() {
    let (_directory, engine) = engine().await;
    for count in [1, 2, 3, 4, 5, 9] {
        // In a scan, the partition read first may take all files. Groups are distributed by their keys.
        let grouped = "SELECT id, count(*) FROM t GROUP BY id";
        for sql in ["SELECT * FROM t", grouped, "SELECT id FROM t WHERE id % 2 = 0"] {
            let (parts, order) = divided(&engine, sql, count).await.unwrap();
            let expected = numbers(&query(&engine, sql).await.unwrap()).len();
            let ids = sorted(&parts);
            assert!(ids.windows(2).all(|pair| pair[0] < pair[1]), "{sql}: a row is in two partitions");
            assert_eq!((ids.len(), order), (expected, Vec::new()), "{sql} in {count}");
            assert!(filled(&parts) > 1 || count == 1 || sql != grouped, "{sql} in {count}: nothing is parallel");
        }
    }
    settled(&engine).await;
}

#[tokio::test]
async fn partitions_of_a_sorted_result_are_each_sorted() {
    let (_directory, engine) = engine().await;
    let key = |column, descending, nulls_first| SortKey { column, descending, nulls_first };
    for (sql, expected) in [
        ("SELECT DISTINCT id FROM t ORDER BY id", vec![key(0, false, false)]),
        (
            "SELECT id, name FROM t GROUP BY id, name ORDER BY name DESC NULLS LAST, id",
            vec![key(1, true, false), key(0, false, false)],
        ),
        ("SELECT max(id) AS m, id % 700 AS r FROM t GROUP BY r ORDER BY r NULLS FIRST", vec![key(1, false, true)]),
    ] {
        // More partitions than the plan has, as many, and fewer; the engine merges surplus ones.
        for count in [2, 3, 4, 7] {
            let (parts, order) = divided(&engine, sql, count).await.unwrap();
            assert_eq!(order, expected, "{sql} in {count}");
            assert!(filled(&parts) > 1, "{sql} in {count}: nothing is parallel");
            for part in &parts {
                let columns: Vec<_> = order
                    .iter()
                    .map(|key| SortColumn {
                        values: part.column(key.column as usize).clone(),
                        options: Some(SortOptions { descending: key.descending, nulls_first: key.nulls_first }),
                    })
                    .collect();
                let again = lexsort(&columns, None).unwrap();
                let keys: Vec<_> = columns.into_iter().map(|column| column.values).collect();
                assert_eq!(again, keys, "{sql} in {count}");
            }
            assert_eq!(sorted(&parts), sorted(&[query(&engine, sql).await.unwrap()]), "{sql} in {count}");
        }
    }
    settled(&engine).await;
}

#[tokio::test]
async fn indivisible_results_stay_whole_and_in_order() {
    let (_directory, engine) = engine().await;
    for sql in [
        "SELECT id FROM t ORDER BY id DESC LIMIT 100",
        "SELECT id FROM t ORDER BY id LIMIT 10 OFFSET 50",
        "SELECT count(*) FROM t",
        "SELECT value FROM generate_series(1, 100000)",
        "SELECT 1",
    ] {
        let (parts, order) = divided(&engine, sql, 3).await.unwrap();
        assert_eq!((filled(&parts), order), (1, Vec::new()), "{sql}");
        assert_eq!(parts[0], query(&engine, sql).await.unwrap(), "{sql}");
    }
    // A sort key that is not in the result: no client could merge by it.
    let (parts, order) = divided(&engine, "SELECT name FROM t ORDER BY id", 3).await.unwrap();
    assert_eq!((filled(&parts), order), (1, Vec::new()));
    assert_eq!(parts[0].column(0).as_string_view().value(5999), "name 5999");
}

#[tokio::test]
async fn errors_are_those_of_any_query() {
    let (_directory, engine) = engine().await;
    for (sql, kind) in [
        ("SELEC 1", EngineErrorKind::Syntax),
        ("SELECT * FROM nowhere", EngineErrorKind::UnknownTable),
        ("SELECT nothing FROM t", EngineErrorKind::Column),
        ("DROP TABLE t", EngineErrorKind::ReadOnly),
        ("SELECT 1 / (id - 4321) FROM t", EngineErrorKind::Execution),
    ] {
        let error = divided(&engine, sql, 3).await.unwrap_err();
        assert_eq!(error.kind(), kind, "{sql}: {error}");
    }
    settled(&engine).await;
}

#[tokio::test]
async fn dropped_queries_leave_nothing_behind() {
    let (_directory, engine) = engine().await;
    let endless = "SELECT id FROM t, generate_series(1, 1000000000) ORDER BY id";
    drop(engine.execute_partitioned(QueryRequest::new(endless), 3).await.unwrap());
    settled(&engine).await;
    let unordered = "SELECT t.id, s.value FROM t CROSS JOIN generate_series(1, 1000000000) s";
    let mut query = engine.execute_partitioned(QueryRequest::new(unordered), 3).await.unwrap();
    let mut first = query.partitions.remove(0);
    drop(query);
    // The remaining partition continues alone.
    for _ in 0..5 {
        assert!(first.next().await.is_none_or(|batch| batch.is_ok()));
    }
    drop(first);
    settled(&engine).await;
}
