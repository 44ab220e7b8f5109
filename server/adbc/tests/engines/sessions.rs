//! Connections: their number, their state, and cancellation.

use std::time::{Duration, Instant};

use futures::StreamExt;
use thallus_adbc_engine::{AdbcConfig, AdbcEngine, OpenError};
use thallus_server::config::Span;
use thallus_server::engine::{Defaults, Engine, EngineErrorKind as Error, QueryRequest};

use crate::support::{Fixture, Kind, on_every_database};

/// Longest time until a cancelled statement has ended.
const PATIENCE: Duration = Duration::from_secs(20);

on_every_database! {
    queries_run_at_a_time,
    state_does_not_reach_the_next_statement,
    explains_and_settings_return_rows,
}

async fn queries_run_at_a_time(fixture: Fixture) {
    fixture.change("CREATE TABLE t (a BIGINT)").await;
    fixture.change("INSERT INTO t VALUES (1), (2), (3)").await;
    let query = |n: u32| {
        let fixture = &fixture;
        async move { fixture.rows(&format!("SELECT sum(a) * {n} FROM t")).await[0].parse::<f64>().unwrap() }
    };
    let sums = futures::future::join_all((0..40).map(query)).await;
    assert!(sums.iter().enumerate().all(|(n, sum)| *sum == 6.0 * n as f64), "{sums:?}");
}

async fn state_does_not_reach_the_next_statement(fixture: Fixture) {
    let (set, get) = match fixture.kind {
        Kind::Duckdb => ("SET errors_as_json = true", "SELECT current_setting('errors_as_json')"),
        Kind::Sqlite => ("PRAGMA cache_size = 4321", "PRAGMA cache_size"),
        Kind::Postgresql => ("SELECT set_config('search_path', 'elsewhere', false)", "SHOW search_path"),
    };
    let before = fixture.rows(get).await;
    fixture.rows_of(QueryRequest::new(set)).await.unwrap();
    for _ in 0..3 {
        assert_eq!(fixture.rows(get).await, before);
    }
    let temporary = fixture.error("CREATE TEMPORARY TABLE x (a INTEGER)").await;
    assert_eq!(temporary.kind(), Error::Unsupported);
}

async fn explains_and_settings_return_rows(fixture: Fixture) {
    assert!(!fixture.rows("EXPLAIN SELECT 1").await.is_empty());
    match fixture.kind {
        Kind::Duckdb => assert!(fixture.rows("SHOW TABLES").await.is_empty()),
        Kind::Sqlite => assert!(!fixture.rows("PRAGMA database_list").await.is_empty()),
        Kind::Postgresql => assert!(!fixture.rows("SHOW TimeZone").await.is_empty()),
    }
    assert_eq!(fixture.rows("VALUES (1), (2)").await, ["1", "2"]);
}

/// A query that computes for many minutes.
fn endless(kind: Kind) -> &'static str {
    match kind {
        Kind::Duckdb => "SELECT sum(a.i * b.i % 7) FROM range(10000000) a(i), range(10000000) b(i)",
        Kind::Sqlite => unreachable!("SQLite's driver cannot cancel"),
        Kind::Postgresql => "SELECT pg_sleep(100000)",
    }
}

/// A query with more rows than anything could hold.
fn long(kind: Kind) -> &'static str {
    match kind {
        Kind::Duckdb => "SELECT a.i FROM range(10000000) a(i), range(10000000) b(i)",
        Kind::Sqlite => {
            "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 1000000000000) SELECT i FROM n"
        }
        Kind::Postgresql => "SELECT a.i FROM generate_series(1, 10000000) a(i), generate_series(1, 10000000) b(i)",
    }
}

/// With one connection, the next statement runs only after the thread of a dropped one has ended.
async fn a_dropped_statement_ends(kind: Kind) {
    let fixture = Fixture::with(kind, |config| {
        config.max_connections = 1;
        config.connection_wait = Span(PATIENCE);
    })
    .await;
    let began = Instant::now();
    // SQLite's driver cannot cancel: its statements end with the next batch of rows.
    if kind != Kind::Sqlite {
        let running = fixture.engine.execute(QueryRequest::new(endless(kind)));
        assert!(tokio::time::timeout(Duration::from_millis(500), running).await.is_err(), "the query is too short");
        assert_eq!(fixture.rows("SELECT 1").await, ["1"]);
    }
    let mut rows = fixture.engine.execute(QueryRequest::new(long(kind))).await.unwrap();
    assert!(rows.batches.next().await.unwrap().unwrap().num_rows() > 0);
    drop(rows);
    assert_eq!(fixture.rows("SELECT 1").await, ["1"]);
    assert!(began.elapsed() < PATIENCE);
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs drivers: run scripts/engines.sh"]
async fn a_dropped_statement_of_duckdb_ends() {
    a_dropped_statement_ends(Kind::Duckdb).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs drivers: run scripts/engines.sh"]
async fn a_dropped_statement_of_postgresql_ends() {
    a_dropped_statement_ends(Kind::Postgresql).await;
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs drivers: run scripts/engines.sh"]
async fn a_dropped_statement_of_sqlite_ends() {
    a_dropped_statement_ends(Kind::Sqlite).await;
}

/// A sequence counts the rows that the database has made.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs drivers: run scripts/engines.sh"]
async fn a_slow_reader_stops_the_database() {
    let fixture = Fixture::new(Kind::Duckdb).await;
    fixture.change("CREATE SEQUENCE made").await;
    let sql = "SELECT nextval('made') FROM range(100000) a, range(100000) b";
    let mut rows = fixture.engine.execute(QueryRequest::new(sql)).await.unwrap();
    assert!(rows.batches.next().await.unwrap().unwrap().num_rows() > 0);
    let made = async || fixture.rows("SELECT nextval('made')").await[0].parse::<u64>().unwrap();
    let began = Instant::now();
    let mut before = made().await;
    loop {
        tokio::time::sleep(Duration::from_millis(200)).await;
        let now = made().await;
        if now == before + 1 {
            break;
        }
        assert!(began.elapsed() < PATIENCE, "the database goes on: {now} rows");
        before = now;
    }
    assert!(before < 2_000_000, "{before} rows");
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs drivers: run scripts/engines.sh"]
async fn waiting_for_a_connection_ends_with_an_error_that_names_the_limit() {
    let fixture = Fixture::with(Kind::Duckdb, |config| {
        config.max_connections = 2;
        config.connection_wait = Span(Duration::from_millis(100));
    })
    .await;
    let first = fixture.engine.execute(QueryRequest::new(long(Kind::Duckdb))).await.unwrap();
    let _second = fixture.engine.execute(QueryRequest::new(long(Kind::Duckdb))).await.unwrap();
    let error = fixture.error("SELECT 1").await;
    assert_eq!(error.kind(), Error::ResourcesExhausted);
    assert!(error.to_string().contains("all 2 connections"), "{error}");
    drop(first);
    while fixture.rows_of(QueryRequest::new("SELECT 1")).await.is_err() {}
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs drivers: run scripts/engines.sh"]
async fn the_current_schema_travels_with_the_request() {
    for kind in [Kind::Duckdb, Kind::Postgresql] {
        let fixture = Fixture::new(kind).await;
        fixture.change("CREATE SCHEMA s").await;
        fixture.change("CREATE TABLE s.t (a INTEGER)").await;
        for _ in 0..3 {
            let query = QueryRequest {
                defaults: Defaults { catalog: None, schema: Some("s".to_owned()) },
                ..QueryRequest::new("SELECT * FROM t")
            };
            assert!(fixture.rows_of(query).await.unwrap().is_empty());
            assert_eq!(fixture.error("SELECT * FROM t").await.kind(), Error::UnknownTable);
        }
    }
}

#[test]
fn a_driver_that_cannot_be_loaded_is_named() {
    let open = |driver: &str| AdbcEngine::open(&AdbcConfig::new(driver)).unwrap_err();
    let missing = open("/no/such/libdriver.so");
    assert!(matches!(missing, OpenError::Driver { .. }) && missing.to_string().contains("/no/such/libdriver.so"));
    assert!(matches!(open(""), OpenError::NoDriver));
    // A library without a driver.
    let other = open("libc.so.6");
    assert!(matches!(other, OpenError::Driver { .. }) && other.to_string().contains("--adbc-entrypoint"), "{other}");
}
