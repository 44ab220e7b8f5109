//! Statements that change tables and schemas.

use arrow_schema::DataType;

use super::*;
use crate::engine::EngineErrorKind as Kind;

#[tokio::test]
async fn tables_are_created_filled_and_dropped() {
    let fixture = Fixture::new().await;
    assert_eq!(fixture.change("CREATE TABLE a (id BIGINT NOT NULL, name TEXT, day DATE)").await, Ok(0));
    let schema = fixture.engine.execute(QueryRequest::new("SELECT * FROM a")).await.unwrap().schema;
    let fields: Vec<_> =
        schema.fields().iter().map(|f| (f.name().as_str(), f.data_type().clone(), f.is_nullable())).collect();
    let expected =
        [("id", DataType::Int64, false), ("name", DataType::Utf8View, true), ("day", DataType::Date32, true)];
    assert_eq!(fields, expected);
    assert_eq!(fixture.change("INSERT INTO a VALUES (1, 'x', '2024-02-29'), (2, NULL, NULL)").await, Ok(2));
    assert_eq!(
        fixture.change("INSERT INTO a (name, id) SELECT 'n' || value, value FROM generate_series(3, 5)").await,
        Ok(3)
    );
    assert_eq!(
        fixture.numbers("SELECT id FROM a WHERE day = '2024-02-29' OR name IN ('n4')  ORDER BY id").await,
        [1, 4]
    );
    let error = fixture.change("INSERT INTO a (name) VALUES ('y')").await.unwrap_err();
    assert_eq!(error.kind(), Kind::Constraint, "{error}");
    assert_eq!(fixture.change("CREATE TABLE b AS SELECT id * 2 AS twice FROM a").await, Ok(5));
    // The columns of a query take NULL.
    assert_eq!(fixture.change("INSERT INTO b VALUES (NULL)").await, Ok(1));
    assert_eq!(
        fixture.change("CREATE TABLE c (x SMALLINT NOT NULL) AS SELECT twice FROM b WHERE twice < 5").await,
        Ok(2)
    );
    let error = fixture.change("INSERT INTO c VALUES (NULL)").await.unwrap_err();
    assert_eq!(error.kind(), Kind::Constraint, "{error}");

    let fixture = fixture.reopened().await;
    assert_eq!(fixture.numbers("SELECT sum(twice) FROM b").await, [30]);
    assert_eq!(fixture.change("CREATE TABLE a AS SELECT 1 AS x").await.unwrap_err().kind(), Kind::AlreadyExists);
    assert_eq!(fixture.change("CREATE TABLE IF NOT EXISTS a AS SELECT 1 AS x").await, Ok(0));
    assert_eq!(fixture.change("CREATE OR REPLACE TABLE a AS SELECT 7 AS x").await, Ok(1));
    assert_eq!(fixture.numbers("SELECT x FROM a").await, [7]);
    assert_eq!(fixture.change("DROP TABLE a").await, Ok(0));
    assert_eq!(fixture.change("DROP TABLE a").await.unwrap_err().kind(), Kind::UnknownTable);
    assert_eq!(fixture.change("DROP TABLE IF EXISTS a").await, Ok(0));
    assert_eq!(fixture.change("DROP TABLE b").await, Ok(0));
    assert_eq!(fixture.files().len(), 1);
}

#[tokio::test]
async fn a_statement_reads_the_table_that_it_changes() {
    let fixture = Fixture::new().await;
    fixture.change("CREATE TABLE t AS SELECT value AS id FROM generate_series(1, 3)").await.unwrap();
    assert_eq!(fixture.change("INSERT INTO t SELECT id + 10 FROM t").await, Ok(3));
    assert_eq!(fixture.change("CREATE OR REPLACE TABLE t AS SELECT id FROM t WHERE id > 2").await, Ok(4));
    assert_eq!(fixture.numbers("SELECT id FROM t ORDER BY id").await, [3, 11, 12, 13]);
    assert_eq!(fixture.files().len(), 1);
}

#[tokio::test]
async fn rows_are_deleted_and_updated() {
    let fixture = Fixture::new().await;
    fixture.change("CREATE TABLE t AS SELECT value AS id, value % 3 AS r FROM generate_series(1, 10)").await.unwrap();
    fixture.change("INSERT INTO t VALUES (NULL, 7)").await.unwrap();
    assert_eq!(fixture.change("DELETE FROM t WHERE id > 100").await, Ok(0));
    // A condition that is NULL removes nothing.
    assert_eq!(fixture.change("DELETE FROM t WHERE id > 8").await, Ok(2));
    assert_eq!(fixture.numbers("SELECT count(*) FROM t").await, [9]);
    assert_eq!(fixture.change("DELETE FROM t WHERE r IN (SELECT r FROM t WHERE id = 3)").await, Ok(2));
    assert_eq!(fixture.numbers("SELECT id FROM t WHERE id IS NOT NULL ORDER BY id").await, [1, 2, 4, 5, 7, 8]);
    assert_eq!(fixture.change("UPDATE t SET r = id * 10, id = r WHERE id >= 5").await, Ok(3));
    assert_eq!(fixture.numbers("SELECT r FROM t ORDER BY r").await, [1, 1, 2, 7, 50, 70, 80]);
    assert_eq!(fixture.change("UPDATE t SET r = 0").await, Ok(7));
    assert_eq!(fixture.change("UPDATE t AS x SET r = 1 WHERE x.id IS NULL").await, Ok(1));
    assert_eq!(fixture.numbers("SELECT sum(r) FROM t").await, [1]);
    // Only rows that fit the condition are computed.
    assert_eq!(fixture.change("UPDATE t SET r = 10 / r WHERE r <> 0").await, Ok(1));
    assert_eq!(fixture.change("UPDATE t SET r = 1 / 0").await.unwrap_err().kind(), Kind::Execution);
    let fixture = fixture.reopened().await;
    assert_eq!(fixture.change("TRUNCATE TABLE t").await, Ok(7));
    assert_eq!(fixture.change("INSERT INTO t VALUES (1, 2)").await, Ok(1));
    assert_eq!(fixture.change("DELETE FROM t").await, Ok(1));
    assert_eq!((fixture.numbers("SELECT count(*) FROM t").await, fixture.files().len()), (vec![0], 0));
}

#[tokio::test]
async fn a_column_that_takes_no_null_gets_none() {
    let fixture = Fixture::new().await;
    fixture.change("CREATE TABLE t (id BIGINT NOT NULL, n BIGINT)").await.unwrap();
    fixture.change("INSERT INTO t VALUES (1, NULL), (2, 3)").await.unwrap();
    let files = fixture.files();
    for sql in ["UPDATE t SET id = n", "INSERT INTO t SELECT n, id FROM t", "INSERT INTO t (n) VALUES (1)"] {
        let error = fixture.change(sql).await.unwrap_err();
        assert_eq!(error.kind(), Kind::Constraint, "{sql}: {error}");
        assert!(error.message().contains("'id'"), "{sql}: {error}");
    }
    assert_eq!(fixture.change("UPDATE t SET id = n WHERE n IS NOT NULL").await, Ok(1));
    assert_ne!(fixture.files(), files);
    assert_eq!(fixture.numbers("SELECT id FROM t ORDER BY id").await, [1, 3]);
}

#[tokio::test]
async fn schemas() {
    let fixture = Fixture::new().await;
    fixture.change("CREATE SCHEMA s").await.unwrap();
    assert_eq!(fixture.change("CREATE SCHEMA s").await.unwrap_err().kind(), Kind::AlreadyExists);
    assert_eq!(fixture.change("CREATE SCHEMA IF NOT EXISTS thallus.s").await, Ok(0));
    for sql in ["CREATE SCHEMA public", "CREATE SCHEMA server", "CREATE SCHEMA information_schema"] {
        assert_eq!(fixture.change(sql).await.unwrap_err().kind(), Kind::AlreadyExists, "{sql}");
    }
    fixture.change("CREATE TABLE s.t AS SELECT 1 AS x").await.unwrap();
    fixture.change("CREATE TABLE t AS SELECT 2 AS x").await.unwrap();
    assert_eq!(fixture.numbers("SELECT s.t.x + p.x FROM thallus.s.t, public.t p").await, [3]);
    let defaults = crate::engine::Defaults { catalog: None, schema: Some("s".to_owned()) };
    let query = QueryRequest { defaults, ..QueryRequest::new("SELECT x FROM t") };
    let rows: Vec<RecordBatch> = fixture.engine.execute(query).await.unwrap().batches.try_collect().await.unwrap();
    assert_eq!(column(&rows[0], 0), [1]);
    let fixture = fixture.reopened().await;
    assert_eq!(fixture.change("DROP SCHEMA s").await.unwrap_err().kind(), Kind::Plan);
    assert_eq!(fixture.change("DROP SCHEMA public CASCADE").await.unwrap_err().kind(), Kind::Unsupported);
    assert_eq!(fixture.change("DROP SCHEMA server").await.unwrap_err().kind(), Kind::Unsupported);
    assert_eq!(fixture.change("DROP SCHEMA s CASCADE").await, Ok(0));
    assert_eq!(fixture.change("DROP SCHEMA IF EXISTS s").await, Ok(0));
    assert_eq!(fixture.change("DROP SCHEMA s").await.unwrap_err().kind(), Kind::Plan);
    assert_eq!(fixture.files().len(), 1);
    let error = fixture.change("CREATE TABLE s.t AS SELECT 1 AS x").await.unwrap_err();
    assert_eq!((error.kind(), error.message().contains("no schema 's'")), (Kind::Plan, true), "{error}");
}

#[tokio::test]
async fn the_information_schema_lists_the_database() {
    let fixture = Fixture::new().await;
    fixture.change("CREATE SCHEMA s").await.unwrap();
    fixture.change("CREATE TABLE s.t AS SELECT 1 AS x, 'y' AS y").await.unwrap();
    fixture.change("CREATE VIEW v AS SELECT x FROM s.t").await.unwrap();
    let count = async |sql: &str| fixture.numbers(sql).await;
    let tables = "SELECT count(*) FROM information_schema.tables WHERE";
    assert_eq!(count(&format!("{tables} table_schema = 's' AND table_type = 'BASE TABLE'")).await, [1]);
    assert_eq!(count(&format!("{tables} table_name = 'v' AND table_type = 'VIEW'")).await, [1]);
    assert_eq!(count("SELECT count(*) FROM information_schema.columns WHERE table_name IN ('t', 'v')").await, [3]);
    assert_eq!(count("SELECT count(*) FROM information_schema.schemata WHERE schema_name = 's'").await, [1]);
    assert_eq!(count("SELECT count(*) FROM server.tables WHERE name = 's.t' AND files = 1").await, [1]);
    assert_eq!(fixture.query("SHOW TABLES").await.unwrap().iter().map(RecordBatch::num_rows).sum::<usize>(), 11);
    assert_eq!(fixture.query("SHOW COLUMNS FROM s.t").await.unwrap()[0].num_rows(), 2);
    let tables: Vec<_> = fixture.engine.tables().into_iter().map(|table| table.name).collect();
    assert!(tables.is_empty(), "those of the start");
    let fixture = fixture.reopened().await;
    assert_eq!(fixture.engine.tables()[0].name, "s.t");
}

#[tokio::test]
async fn what_is_not_implemented_says_so() {
    let fixture = Fixture::new().await;
    fixture.change("CREATE TABLE t (id BIGINT)").await.unwrap();
    for sql in [
        "CREATE TEMPORARY TABLE x (a INT)",
        "CREATE TABLE x (a INT PRIMARY KEY)",
        "CREATE TABLE x (a INT DEFAULT 3)",
        "INSERT OVERWRITE TABLE t SELECT 1",
        "UPDATE t SET id = u.id FROM (SELECT 1 AS id) u",
        "CREATE DATABASE d",
        "EXPLAIN INSERT INTO t VALUES (1)",
        "DELETE FROM t WHERE id NOT IN (SELECT id FROM t)",
        "UPDATE t SET id = 1 WHERE random() < 0.5",
        "CREATE VIEW v AS SELECT id FROM t WHERE id = $1",
        "CREATE TABLE x (a INT GENERATED ALWAYS AS IDENTITY)",
        "CREATE TABLE x (a INT GENERATED ALWAYS AS (1 + 1))",
        "SET datafusion.execution.batch_size = 1",
        "DROP TABLE server.tables",
    ] {
        let error = fixture.change(sql).await.unwrap_err();
        assert!(matches!(error.kind(), Kind::Unsupported | Kind::UnknownTable), "{sql}: {error}");
    }
    for sql in
        ["CREATE TABLE x AS SELECT 1 AS a, 2 AS a", "CREATE TABLE \"a\"\"b\" (a INT)", "INSERT INTO t VALUES (1, 2)"]
    {
        let error = fixture.change(sql).await.unwrap_err();
        assert!(matches!(error.kind(), Kind::Plan), "{sql}: {error}");
    }
    let error = fixture.change("INSERT INTO nowhere VALUES (1)").await.unwrap_err();
    assert!(matches!(error, EngineError::UnknownTable { ref known, .. } if *known == ["t"]), "{error}");
    let error = fixture.change("INSERT INTO t VALUES ('x')").await.unwrap_err();
    assert_eq!(error.kind(), Kind::Execution, "{error}");
    assert_eq!(fixture.numbers("SELECT count(*) FROM t").await, [0]);
    // A change in partitions would be done although one of them is lost.
    let partitioned = fixture.engine.execute_partitioned(QueryRequest::new("INSERT INTO t VALUES (1)"), 3).await;
    assert_eq!(partitioned.unwrap_err().kind(), Kind::Unsupported);
    assert_eq!(fixture.numbers("SELECT count(*) FROM t").await, [0]);
}
