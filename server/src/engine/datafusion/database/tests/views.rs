//! Views.

use super::*;
use crate::engine::EngineErrorKind as Kind;

#[tokio::test]
async fn views_are_queries_with_a_name() {
    let fixture = Fixture::new().await;
    fixture.change("CREATE TABLE t AS SELECT value AS id FROM generate_series(1, 10)").await.unwrap();
    fixture.change("CREATE VIEW Even AS SELECT id FROM t WHERE id % 2 = 0").await.unwrap();
    fixture.change("CREATE VIEW named (a, b) AS SELECT id, id * 2 FROM even").await.unwrap();
    assert_eq!(fixture.numbers("SELECT a FROM named WHERE b > 10 ORDER BY a").await, [6, 8, 10]);
    fixture.change("INSERT INTO t VALUES (12)").await.unwrap();
    let fixture = fixture.reopened().await;
    assert_eq!(fixture.numbers("SELECT max(b) FROM named").await, [24]);
    assert_eq!(fixture.change("CREATE VIEW even AS SELECT 1 AS x").await.unwrap_err().kind(), Kind::AlreadyExists);
    assert_eq!(fixture.change("CREATE TABLE even (a INT)").await.unwrap_err().kind(), Kind::AlreadyExists);
    fixture.change("CREATE OR REPLACE VIEW even AS SELECT id FROM t WHERE id % 2 = 0 AND id < 6").await.unwrap();
    assert_eq!(fixture.numbers("SELECT b FROM named ORDER BY b").await, [4, 8]);
    for sql in ["INSERT INTO even VALUES (1)", "DELETE FROM even", "UPDATE even SET id = 1"] {
        assert_eq!(fixture.change(sql).await.unwrap_err().kind(), Kind::Unsupported, "{sql}");
    }
    let error = fixture.ingest("even", IngestMode::Append, &[rows(0..1)]).await.unwrap_err();
    assert_eq!(error.kind(), Kind::Unsupported, "{error}");
    for sql in [
        "DROP TABLE even",
        "DROP VIEW t",
        "CREATE OR REPLACE VIEW t AS SELECT 1 AS x",
        "CREATE OR REPLACE TABLE even (a INT)",
    ] {
        assert!(matches!(fixture.change(sql).await.unwrap_err().kind(), Kind::Plan | Kind::Unsupported), "{sql}");
    }
    fixture.change("DROP VIEW even").await.unwrap();
    assert_eq!(fixture.change("DROP VIEW IF EXISTS even").await, Ok(0));
    // A view whose tables are gone has its columns, and an error with the reason.
    let error = fixture.query("SELECT a FROM named").await.unwrap_err();
    assert!(error.message().contains("'named'") && error.message().contains("even"), "{error}");
    let columns = "SELECT count(*) FROM information_schema.columns WHERE table_name = 'named'";
    assert_eq!(fixture.numbers(columns).await, [2]);
    fixture.change("DROP VIEW named").await.unwrap();
}

#[tokio::test]
async fn names_in_a_view_are_those_of_its_creation() {
    let fixture = Fixture::new().await;
    fixture.change("CREATE SCHEMA s").await.unwrap();
    fixture.change("CREATE TABLE s.t AS SELECT 1 AS x").await.unwrap();
    fixture.change("CREATE TABLE t AS SELECT 2 AS x").await.unwrap();
    let defaults = crate::engine::Defaults { catalog: None, schema: Some("s".to_owned()) };
    let create = QueryRequest { defaults, ..QueryRequest::new("CREATE VIEW v AS SELECT x FROM t") };
    fixture.engine.execute(create).await.unwrap();
    let fixture = fixture.reopened().await;
    assert_eq!(fixture.numbers("SELECT x FROM s.v").await, [1]);
}

#[tokio::test]
async fn a_view_never_reads_itself_and_is_never_too_large() {
    let fixture = Fixture::new().await;
    fixture.change("CREATE TABLE t AS SELECT 1 AS x").await.unwrap();
    fixture.change("CREATE VIEW a AS SELECT x FROM t").await.unwrap();
    fixture.change("CREATE VIEW b AS SELECT x FROM a").await.unwrap();
    for sql in [
        "CREATE OR REPLACE VIEW a AS SELECT x FROM b",
        "CREATE OR REPLACE VIEW a AS SELECT x FROM a",
        "CREATE OR REPLACE VIEW a AS WITH q AS (SELECT * FROM t) SELECT x FROM q WHERE x IN (SELECT x FROM b)",
    ] {
        let error = fixture.change(sql).await.unwrap_err();
        assert!(error.message().contains("read itself"), "{sql}: {error}");
    }
    // Under the name of a table that is gone.
    fixture.change("DROP TABLE t").await.unwrap();
    let error = fixture.change("CREATE VIEW t AS SELECT x FROM b").await.unwrap_err();
    assert_eq!(error.kind(), Kind::Plan, "{error}");
    // Twice as many tables with each.
    fixture.change("CREATE VIEW v0 AS SELECT 1 AS x").await.unwrap();
    let mut refused = None;
    for n in 1..20 {
        let sql = format!("CREATE VIEW v{n} AS SELECT a.x FROM v{m} a JOIN v{m} b ON a.x = b.x", m = n - 1);
        if let Err(error) = fixture.change(&sql).await {
            refused = Some((n, error));
            break;
        }
    }
    let (n, error) = refused.unwrap();
    assert!(n == 9 && error.message().contains("1022 tables"), "{n}: {error}");
    assert_eq!(fixture.numbers("SELECT x FROM v8").await, [1]);
    // A chain that is too deep.
    let terms = "+1".repeat(300);
    fixture.change(&format!("CREATE VIEW d0 AS SELECT 1{terms} AS x")).await.unwrap();
    let error = fixture.change(&format!("CREATE VIEW d1 AS SELECT x{terms} AS x FROM d0")).await.unwrap_err();
    assert!(error.message().contains("nested"), "{error}");
}
