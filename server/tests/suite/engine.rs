//! Queries run lazily, can be cancelled, stay within their limits and run in parallel.

use std::fs;
use std::time::{Duration, Instant};

use arrow::array::{AsArray, RecordBatch};
use arrow::compute::concat_batches;
use arrow::datatypes::Int64Type;
use futures::{StreamExt, TryStreamExt};
use thallus_server::config::{ByteSize, MemoryPoolKind, ServerConfig};
use thallus_server::engine::datafusion::{DataFusionEngine, OpenError};
use thallus_server::engine::{Engine, EngineError, EngineErrorKind, QueryRequest};

use crate::files::{config, directory, rows, write};

pub(crate) async fn open(config: &ServerConfig) -> DataFusionEngine {
    DataFusionEngine::open(config).await.unwrap()
}

/// Runs a query, and returns all rows as one batch.
pub(crate) async fn query(engine: &DataFusionEngine, sql: &str) -> Result<RecordBatch, EngineError> {
    let stream = engine.execute(QueryRequest::new(sql)).await?;
    let batches: Vec<_> = stream.batches.try_collect().await?;
    Ok(concat_batches(&stream.schema, &batches).unwrap())
}

/// The values of the first column, which has 64-bit integers.
pub(crate) fn numbers(batch: &RecordBatch) -> Vec<i64> {
    batch.column(0).as_primitive::<Int64Type>().values().to_vec()
}

/// The result of a query `SELECT count(*) ...`.
pub(crate) async fn count(engine: &DataFusionEngine, sql: &str) -> i64 {
    numbers(&query(engine, sql).await.unwrap())[0]
}

/// Waits until no task and no memory of any query is left.
pub(crate) async fn settled(engine: &DataFusionEngine) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while engine.alive_tasks() > 0 || engine.memory_reserved() > 0 {
        let (tasks, bytes) = (engine.alive_tasks(), engine.memory_reserved());
        assert!(Instant::now() < deadline, "{tasks} tasks and {bytes} bytes are left");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// A query with more rows than any test reads.
const ENDLESS: &str = "SELECT value AS id FROM generate_series(1, 1000000000000)";

#[tokio::test]
async fn the_first_rows_come_long_before_the_last() {
    let engine = open(&config(&[])).await;
    let mut stream = engine.execute(QueryRequest::new(ENDLESS)).await.unwrap();
    let first = stream.batches.next().await.unwrap().unwrap();
    assert_eq!(first.schema(), stream.schema);
    assert_eq!(numbers(&first)[0], 1);
    let second = stream.batches.next().await.unwrap().unwrap();
    assert_eq!(numbers(&second)[0], 1 + first.num_rows() as i64);
}

#[tokio::test]
async fn a_dropped_stream_leaves_nothing_behind() {
    let engine = open(&config(&[])).await;
    // Endless queries that sort, group or repartition, each with tasks of its own.
    for sql in [
        ENDLESS.to_owned(),
        format!("SELECT id % 7, count(*) FROM ({ENDLESS}) GROUP BY 1 ORDER BY 2"),
        format!("SELECT a.id FROM ({ENDLESS}) a JOIN ({ENDLESS}) b ON a.id = b.id + 1"),
    ] {
        let mut stream = engine.execute(QueryRequest::new(&sql)).await.unwrap();
        let _ = tokio::time::timeout(Duration::from_millis(100), stream.batches.next()).await;
        assert!(engine.alive_tasks() > 0, "{sql}");
        drop(stream);
        settled(&engine).await;
    }
}

#[tokio::test]
async fn a_dropped_request_leaves_nothing_behind() {
    let engine = open(&config(&[])).await;
    {
        // The request begins and is dropped, while planning may continue in its own task.
        let mut request = std::pin::pin!(engine.execute(QueryRequest::new(ENDLESS)));
        let _begun = futures::poll!(&mut request);
    }
    settled(&engine).await;
}

#[tokio::test]
async fn batches_have_the_rows_asked_for_and_none_is_empty() {
    let engine = open(&config(&[])).await;
    let sizes = async |batch_rows, sql: &str| -> Vec<usize> {
        let request = QueryRequest { batch_rows, ..QueryRequest::new(sql.to_owned()) };
        let stream = engine.execute(request).await.unwrap();
        stream.batches.map_ok(|batch| batch.num_rows()).try_collect().await.unwrap()
    };
    let series = "SELECT * FROM generate_series(1, 100000)";
    assert_eq!(sizes(None, series).await, [65_536, 34_464]);
    assert_eq!(sizes(Some(30_000), series).await, [30_000, 30_000, 30_000, 10_000]);
    // The requested number is a preference, so values out of range are clamped and not refused.
    assert_eq!(sizes(Some(0), "SELECT * FROM generate_series(1, 3)").await, [1, 1, 1]);
    assert_eq!(sizes(Some(usize::MAX), series).await, [100_000]);
    assert_eq!(sizes(None, "SELECT 1 WHERE false").await, [0; 0]);
}

#[tokio::test]
async fn order_holds_over_files_partitions_and_batches() {
    let directory = directory();
    for file in 0..8 {
        write(directory.path().join(format!("{file}.parquet")), &rows(file * 5000..(file + 1) * 5000));
    }
    let engine = open(&config(&[("t", directory.path())])).await;
    let request =
        QueryRequest { batch_rows: Some(777), ..QueryRequest::new("SELECT id, name FROM t ORDER BY id DESC") };
    let stream = engine.execute(request).await.unwrap();
    let batches: Vec<_> = stream.batches.try_collect().await.unwrap();
    let all = concat_batches(&stream.schema, &batches).unwrap();
    assert_eq!(numbers(&all), (0..40_000).rev().collect::<Vec<_>>());
    assert_eq!(all.column(1).as_string_view().value(0), "name 39999");
}

#[tokio::test]
async fn many_queries_at_once_each_get_their_own_rows() {
    let directory = directory();
    let path = write(directory.path().join("t.parquet"), &rows(0..20_000));
    let engine = open(&config(&[("t", &path)])).await;
    let queries = (0..50).map(async |n| {
        let sql = format!("SELECT id FROM t WHERE id % 50 = {n} ORDER BY id");
        assert_eq!(numbers(&query(&engine, &sql).await.unwrap()), (n..20_000).step_by(50).collect::<Vec<_>>());
    });
    futures::future::join_all(queries).await;
    settled(&engine).await;
}

#[tokio::test]
async fn memory_has_a_limit_and_spilling_has_one_too() {
    let spill = directory();
    // A sort of 4 million rows of about 30 bytes, in 64 MiB.
    let sql = "SELECT value AS id, 'some text ' || (value * 7919 % 2000000) AS key FROM generate_series(1, 4000000) \
               ORDER BY key";
    let mut config = config(&[]);
    config.engine.memory_limit = Some(ByteSize::mib(64));
    config.engine.batch_rows = 8192;
    config.engine.partitions = Some(2);
    config.engine.spill_dir = Some(spill.path().to_owned());
    config.engine.max_spill_bytes = ByteSize::gib(1);
    let engine = open(&config).await;
    let sorted = query(&engine, sql).await.unwrap();
    assert_eq!(sorted.num_rows(), 4_000_000);
    settled(&engine).await;
    // The engine's directory, DataFusion's directory in it, and the files.
    let inside = |path: std::path::PathBuf| fs::read_dir(path).unwrap().map(|entry| entry.unwrap().path());
    let left: Vec<_> = inside(spill.path().to_owned()).flat_map(inside).flat_map(inside).collect();
    assert!(left.is_empty(), "files are left in the spill directory: {left:?}");
    drop(engine);
    let deadline = Instant::now() + Duration::from_secs(10);
    while inside(spill.path().to_owned()).next().is_some() {
        assert!(Instant::now() < deadline, "the engine's directory is left");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }

    for pool in [MemoryPoolKind::Fair, MemoryPoolKind::Greedy] {
        config.engine.memory_pool = pool;
        config.engine.max_spill_bytes = ByteSize(0);
        let engine = open(&config).await;
        let error = query(&engine, sql).await.unwrap_err();
        assert_eq!(error.kind(), EngineErrorKind::ResourcesExhausted, "{error}");
        assert!(error.message().contains("engine.memory_limit"), "{error}");
        settled(&engine).await;
        // The next query is served.
        assert_eq!(count(&engine, "SELECT count(*) FROM generate_series(1, 10)").await, 10);
    }
}

/// A nested loop join executes its first input again if that does not fit in memory.
#[tokio::test]
async fn a_join_whose_first_input_does_not_fit_in_memory_has_all_rows() {
    let directory = directory();
    for part in 0..6 {
        write(directory.path().join(format!("large/{part}.csv")), &rows(part * 100_000..(part + 1) * 100_000));
    }
    let few = write(directory.path().join("few.csv"), &rows(0..5));
    let mut config = config(&[("large", &directory.path().join("large")), ("few", &few)]);
    config.engine.memory_limit = Some(ByteSize::mib(16));
    config.engine.partitions = Some(2);
    config.engine.spill_dir = Some(directory.path().to_owned());
    let engine = open(&config).await;
    for input in ["large", "(SELECT id, name FROM large ORDER BY name)", "(SELECT DISTINCT id, name FROM large)"] {
        let sql = format!("SELECT count(*) FROM {input} AS l JOIN few ON l.id - few.id BETWEEN 0 AND 1");
        assert_eq!(count(&engine, &sql).await, 10, "{input}");
    }
}

#[tokio::test]
async fn a_spill_directory_that_cannot_be_used_is_refused() {
    let directory = directory();
    let file = write(directory.path().join("file.csv"), &rows(0..1));
    for path in [directory.path().join("missing"), file] {
        let mut config = config(&[]);
        config.engine.spill_dir = Some(path.clone());
        let error = DataFusionEngine::open(&config).await.unwrap_err();
        assert!(matches!(error, OpenError::SpillDirectory { .. }));
        assert!(error.to_string().contains(path.to_str().unwrap()), "{error}");
    }
}

#[tokio::test]
async fn an_engine_that_goes_away_ends_its_streams_with_an_error() {
    let engine = open(&config(&[])).await;
    let mut stream = engine.execute(QueryRequest::new(ENDLESS)).await.unwrap().batches;
    assert!(stream.next().await.unwrap().is_ok());
    drop(engine);
    let end = tokio::time::timeout(Duration::from_secs(10), async {
        loop {
            match stream.next().await {
                Some(Ok(_)) => {}
                other => break other,
            }
        }
    });
    assert!(matches!(end.await.unwrap(), Some(Err(EngineError::Internal { .. }))));
}
