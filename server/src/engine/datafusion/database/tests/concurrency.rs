//! Several writers at a time.

use futures::future::join_all;

use super::*;
use crate::engine::EngineErrorKind as Kind;

async fn upload(fixture: &Fixture, mode: IngestMode, part: i64) -> Result<u64, EngineError> {
    let batches: Vec<RecordBatch> = (0..4).map(|n| rows(part * 100 + n * 10..part * 100 + n * 10 + 10)).collect();
    fixture.ingest("t", mode, &batches).await
}

#[tokio::test]
async fn concurrent_appends_all_succeed() {
    let fixture = Fixture::new().await;
    fixture.ingest("t", IngestMode::Create, &[rows(0..1)]).await.unwrap();
    let results = join_all((1..9).map(|part| upload(&fixture, IngestMode::Append, part))).await;
    assert!(results.iter().all(|result| *result == Ok(40)), "{results:?}");
    let inserts = join_all((0..8).map(|_| fixture.change("INSERT INTO t VALUES (-1, 'x')"))).await;
    assert!(inserts.iter().all(|result| *result == Ok(1)), "{inserts:?}");
    assert_eq!(fixture.numbers("SELECT count(*) FROM t").await, [1 + 8 * 40 + 8]);
    let fixture = fixture.reopened().await;
    assert_eq!(fixture.numbers("SELECT count(DISTINCT id) FROM t WHERE id >= 0").await, [1 + 8 * 40]);
}

#[tokio::test]
async fn of_two_creations_one_fails() {
    let fixture = Fixture::new().await;
    let (a, b) = (IngestRequest::new("t", rows(0..1).schema()), IngestRequest::new("t", rows(0..1).schema()));
    let create = |request| IngestRequest { mode: IngestMode::Create, ..request };
    let mut a = fixture.engine.ingest(create(a)).await.unwrap();
    let mut b = fixture.engine.ingest(create(b)).await.unwrap();
    a.push(rows(0..5)).await.unwrap();
    b.push(rows(5..7)).await.unwrap();
    let (a, b) = (a.finish().await, b.finish().await);
    assert_eq!((a, b.unwrap_err().kind()), (Ok(5), Kind::AlreadyExists));
    assert_eq!((fixture.numbers("SELECT count(*) FROM t").await, fixture.files().len()), (vec![5], 1));

    let results = join_all((0..4).map(|_| fixture.change("CREATE TABLE u AS SELECT 1 AS a"))).await;
    let failed: Vec<_> = results.into_iter().filter_map(Result::err).map(|e| e.kind()).collect();
    assert_eq!(failed, [Kind::AlreadyExists; 3]);
    let results = join_all((0..4).map(|part| {
        let fixture = &fixture;
        async move { fixture.ingest("w", IngestMode::CreateAppend, &[rows(part..part + 1)]).await }
    }));
    assert_eq!(results.await, vec![Ok(1); 4]);
    assert_eq!(fixture.numbers("SELECT id FROM w ORDER BY id").await, [0, 1, 2, 3]);
}

#[tokio::test]
async fn an_upload_to_a_table_that_was_replaced_fails() {
    let fixture = Fixture::new().await;
    fixture.ingest("t", IngestMode::Create, &[rows(0..5)]).await.unwrap();
    for change in ["DROP TABLE t", "CREATE TABLE t AS SELECT 1 AS other"] {
        let request = IngestRequest::new("t", rows(0..1).schema());
        let begun = fixture.engine.ingest(request).await;
        let Ok(mut ingestion) = begun else {
            fixture.change(change).await.unwrap();
            continue;
        };
        ingestion.push(rows(5..6)).await.unwrap();
        fixture.change(change).await.unwrap();
        let error = ingestion.finish().await.unwrap_err();
        assert!(error.message().contains("meanwhile"), "{error}");
    }
    assert!(fixture.files().len() <= 1);
}

#[tokio::test]
async fn changes_of_one_table_do_not_lose_each_other() {
    let fixture = Fixture::new().await;
    fixture.ingest("t", IngestMode::Create, &[rows(0..100)]).await.unwrap();
    let deletes = (0..5).map(|part| format!("DELETE FROM t WHERE id >= {} AND id < {}", part * 10, part * 10 + 10));
    let updates = (0..3).map(|part| format!("UPDATE t SET name = 'u{part}' WHERE id = {}", 90 + part));
    let inserts = (0..4).map(|part| format!("INSERT INTO t VALUES ({}, 'i')", 1000 + part));
    let statements: Vec<String> = deletes.chain(updates).chain(inserts).collect();
    let results = join_all(statements.iter().map(|sql| fixture.change(sql))).await;
    let counts: Vec<u64> = results.into_iter().map(Result::unwrap).collect();
    assert_eq!(counts, [10, 10, 10, 10, 10, 1, 1, 1, 1, 1, 1, 1]);
    assert_eq!(fixture.numbers("SELECT count(*) FROM t").await, [54]);
    assert_eq!(fixture.numbers("SELECT count(*) FROM t WHERE name LIKE 'u_' OR name = 'i'").await, [7]);
    assert_eq!(fixture.numbers("SELECT min(id) FROM t").await, [50]);
}
