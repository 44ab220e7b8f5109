//! Uploads: modes, and all or nothing.

use std::sync::Arc;

use arrow::array::{ArrayRef, Int64Array, RecordBatch, StringArray};
use thallus_server::engine::{Engine, EngineErrorKind as Error, IngestMode, IngestRequest};

use crate::support::{Fixture, Kind, on_every_database};

on_every_database! {
    modes,
    an_upload_that_is_dropped_leaves_the_table_as_it_was,
    an_upload_that_fails_leaves_the_table_as_it_was,
    temporary_tables_are_refused,
    names_with_quotes_are_names,
    other_types_are_uploaded,
}

fn rows(numbers: std::ops::Range<i64>) -> RecordBatch {
    let texts: StringArray = numbers.clone().map(|n| (n % 3 > 0).then(|| format!("text {n}"))).collect();
    let columns: [(&str, ArrayRef); 2] =
        [("a", Arc::new(Int64Array::from_iter_values(numbers))), ("b", Arc::new(texts))];
    RecordBatch::try_from_iter_with_nullable(columns.into_iter().map(|(name, values)| (name, values, true))).unwrap()
}

async fn count(fixture: &Fixture) -> String {
    fixture.rows("SELECT count(*) || ' ' || sum(a) || ' ' || count(b) FROM t").await[0].clone()
}

async fn modes(fixture: Fixture) {
    let append = fixture.upload("t", IngestMode::Append, &[rows(0..3)]).await.unwrap_err();
    assert_eq!(append.kind(), Error::UnknownTable, "{append}");
    assert_eq!(fixture.upload("t", IngestMode::Create, &[rows(0..3), rows(3..10)]).await.unwrap(), 10);
    assert_eq!(count(&fixture).await, "10 45 6");
    let create = fixture.upload("t", IngestMode::Create, &[rows(0..3)]).await.unwrap_err();
    assert_eq!(create.kind(), Error::AlreadyExists, "{create}");
    assert_eq!(fixture.upload("t", IngestMode::Append, &[rows(10..12)]).await.unwrap(), 2);
    assert_eq!(count(&fixture).await, "12 66 8");
    assert_eq!(fixture.upload("t", IngestMode::CreateAppend, &[rows(12..13)]).await.unwrap(), 1);
    assert_eq!(count(&fixture).await, "13 78 8");
    assert_eq!(fixture.upload("t", IngestMode::Replace, &[rows(1..2)]).await.unwrap(), 1);
    assert_eq!(count(&fixture).await, "1 1 1");
    assert_eq!(fixture.upload("u", IngestMode::CreateAppend, &[rows(0..0)]).await.unwrap(), 0);
    assert_eq!(fixture.rows("SELECT count(*) FROM u").await, ["0"]);
    let many: Vec<_> = (0..50).map(|n| rows(n * 1000..(n + 1) * 1000)).collect();
    assert_eq!(fixture.upload("t", IngestMode::Replace, &many).await.unwrap(), 50_000);
    assert_eq!(count(&fixture).await, "50000 1249975000 33333");
}

async fn an_upload_that_is_dropped_leaves_the_table_as_it_was(fixture: Fixture) {
    fixture.upload("t", IngestMode::Create, &[rows(0..3)]).await.unwrap();
    for mode in [IngestMode::Append, IngestMode::Replace, IngestMode::CreateAppend] {
        let mut request = IngestRequest::new("t", rows(0..1).schema());
        request.mode = mode;
        let mut ingestion = fixture.engine.ingest(request).await.unwrap();
        for _ in 0..5 {
            ingestion.push(rows(0..1000)).await.unwrap();
        }
        drop(ingestion);
        // SQLite's writers wait for each other.
        assert_eq!(fixture.upload("other", IngestMode::Replace, &[rows(0..1)]).await.unwrap(), 1);
        assert_eq!(count(&fixture).await, "3 3 2", "{mode:?}");
    }
    let mut request = IngestRequest::new("fresh", rows(0..1).schema());
    request.mode = IngestMode::Create;
    let mut ingestion = fixture.engine.ingest(request).await.unwrap();
    ingestion.push(rows(0..1000)).await.unwrap();
    drop(ingestion);
    fixture.upload("other", IngestMode::Replace, &[rows(0..1)]).await.unwrap();
    assert_eq!(fixture.error("SELECT * FROM fresh").await.kind(), Error::UnknownTable);
}

async fn an_upload_that_fails_leaves_the_table_as_it_was(fixture: Fixture) {
    fixture.change("CREATE TABLE t (a BIGINT PRIMARY KEY, b VARCHAR(20))").await;
    fixture.change("INSERT INTO t VALUES (700, 'here')").await;
    let mut batches = vec![rows(0..600), rows(600..800)];
    let error = fixture.upload("t", IngestMode::Append, &batches).await.unwrap_err();
    assert!(matches!(error.kind(), Error::Constraint | Error::Execution), "{error}");
    assert_eq!(fixture.rows("SELECT * FROM t").await, ["700|here"]);
    fixture.change("CREATE TABLE strict (a BIGINT NOT NULL, b VARCHAR(20) NOT NULL)").await;
    let error = fixture.upload("strict", IngestMode::Append, &batches).await.unwrap_err();
    assert!(matches!(error.kind(), Error::Constraint | Error::Execution), "{error}");
    assert_eq!(fixture.rows("SELECT count(*) FROM strict").await, ["0"]);
    batches.pop();
    assert_eq!(fixture.upload("t", IngestMode::Append, &batches).await.unwrap(), 600);
    let only_a = rows(0..3).project(&[0]).unwrap();
    let wider = RecordBatch::try_from_iter(
        [("a", only_a.column(0)), ("x", only_a.column(0)), ("y", only_a.column(0))]
            .map(|(name, column)| (name, Arc::clone(column))),
    )
    .unwrap();
    fixture.upload("t", IngestMode::Append, &[wider]).await.unwrap_err();
    assert_eq!(fixture.rows("SELECT count(*) FROM t").await, ["601"]);
}

async fn temporary_tables_are_refused(fixture: Fixture) {
    let mut request = IngestRequest::new("t", rows(0..1).schema());
    (request.mode, request.temporary) = (IngestMode::Create, true);
    let error = fixture.engine.ingest(request).await.err().expect("a temporary table");
    assert_eq!(error.kind(), Error::Unsupported);
}

async fn names_with_quotes_are_names(fixture: Fixture) {
    let name = "it's \"quoted\"; DROP TABLE t; --";
    assert_eq!(fixture.upload(name, IngestMode::Create, &[rows(0..3)]).await.unwrap(), 3);
    assert_eq!(fixture.rows("SELECT count(*) FROM \"it's \"\"quoted\"\"; DROP TABLE t; --\"").await, ["3"]);
}

async fn other_types_are_uploaded(fixture: Fixture) {
    use arrow::array::{BooleanArray, Date32Array, Float64Array, LargeStringArray, TimestampMicrosecondArray};
    let mut columns: Vec<(&str, ArrayRef)> = vec![
        ("f", Arc::new(Float64Array::from(vec![Some(0.5), None]))),
        ("l", Arc::new(LargeStringArray::from(vec![Some("x"), None]))),
    ];
    if fixture.kind != Kind::Sqlite {
        columns.extend([
            ("b", Arc::new(BooleanArray::from(vec![Some(true), None])) as ArrayRef),
            ("d", Arc::new(Date32Array::from(vec![Some(19782), None]))),
            ("t", Arc::new(TimestampMicrosecondArray::from(vec![Some(1_000_000), None]))),
        ]);
    }
    let batch = RecordBatch::try_from_iter_with_nullable(columns.into_iter().map(|(n, v)| (n, v, true))).unwrap();
    fixture.upload("t", IngestMode::Create, &[batch]).await.unwrap();
    let expected = match fixture.kind {
        Kind::Sqlite => ["0.5|x", "NULL|NULL"],
        _ => ["0.5|x|true|2024-02-29|1970-01-01T00:00:01", "NULL|NULL|NULL|NULL|NULL"],
    };
    assert_eq!(fixture.rows("SELECT * FROM t").await, expected);
}
