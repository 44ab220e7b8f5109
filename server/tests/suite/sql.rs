//! Allowed SQL statements, and the errors for all others.

use std::fs;
use std::time::Instant;

use arrow::util::pretty::pretty_format_batches;
use thallus_server::engine::EngineErrorKind as Kind;

use crate::engine::{count, open, query};
use crate::files::{config, directory, rows, write};

/// Name of a kind of nesting, and a function that makes a query of the given depth.
type Shape = (&'static str, fn(usize) -> String);

#[tokio::test]
async fn every_mistake_has_its_kind_and_a_message() {
    let directory = directory();
    let path = write(directory.path().join("t.parquet"), &rows(0..100));
    let engine = open(&config(&[("t", &path), ("other", &path)])).await;
    for (sql, kind, expected) in [
        ("SELEC 1", Kind::Syntax, "SELEC"),
        ("SELECT 'x", Kind::Syntax, "nterminated"),
        ("SELECT 1; SELECT 2", Kind::Syntax, "one statement"),
        ("", Kind::Syntax, "no statement"),
        ("SELECT * FROM nothing", Kind::UnknownTable, "'nothing' not found; known tables: other, t"),
        ("SELECT * FROM a.b.c", Kind::UnknownTable, "a.b.c"),
        ("SELECT * FROM t JOIN u ON t.id = u.id", Kind::UnknownTable, "'u'"),
        ("SELECT nam FROM t", Kind::Column, "name"),
        ("SELECT id FROM t, other", Kind::Column, "mbiguous"),
        ("SELECT id FROM t GROUP BY name", Kind::Plan, "id"),
        ("SELECT nofunction(id) FROM t", Kind::Plan, "nofunction"),
        ("SELECT id FROM t WHERE id", Kind::Plan, "id"),
        ("SELECT 1 / (id - id) FROM t", Kind::Execution, "zero"),
        ("SELECT CAST(name AS INT) FROM t", Kind::Execution, "name"),
        ("SELECT * FROM t WHERE id = $1", Kind::Parameters, "1 parameters"),
    ] {
        let error = query(&engine, sql).await.unwrap_err();
        assert_eq!(error.kind(), kind, "{sql}: {error:?}");
        assert!(error.message().contains(expected), "{sql}: {error}");
        assert!(!error.message().contains(".rs:"), "{sql}: {error}");
    }
    // The engine still works after these errors.
    assert_eq!(count(&engine, "SELECT count(*) FROM t").await, 100);
}

#[tokio::test]
async fn nothing_is_written_and_no_other_file_is_read() {
    let directory = directory();
    let path = write(directory.path().join("data/t.csv"), &rows(0..100));
    let secret = write(directory.path().join("secret.csv"), &rows(0..1));
    let target = directory.path().join("data/stolen.csv");
    let engine = open(&config(&[("t", path.parent().unwrap())])).await;
    let (target_text, secret_text) = (target.display(), secret.display());
    for sql in [
        format!("COPY t TO '{target_text}'"),
        format!("COPY (SELECT 1) TO '{target_text}' STORED AS CSV"),
        format!("EXPLAIN ANALYZE COPY t TO '{target_text}'"),
        format!("CREATE EXTERNAL TABLE s STORED AS CSV LOCATION '{secret_text}'"),
        "CREATE TABLE x AS SELECT 1".to_owned(),
        "CREATE VIEW x AS SELECT 1".to_owned(),
        "CREATE SCHEMA x".to_owned(),
        "SELECT 1 AS a INTO x".to_owned(),
        "INSERT INTO t VALUES (1, 'x')".to_owned(),
        "EXPLAIN ANALYZE INSERT INTO t VALUES (1, 'x')".to_owned(),
        "UPDATE t SET id = 1".to_owned(),
        "DELETE FROM t".to_owned(),
        "TRUNCATE TABLE t".to_owned(),
        "DROP TABLE t".to_owned(),
        "SET datafusion.execution.target_partitions = 1".to_owned(),
        "PREPARE p AS SELECT 1".to_owned(),
        "EXECUTE p".to_owned(),
        "BEGIN".to_owned(),
    ] {
        let error = query(&engine, &sql).await.unwrap_err();
        assert_eq!(error.kind(), Kind::ReadOnly, "{sql}: {error:?}");
    }
    for sql in [format!("SELECT * FROM '{secret_text}'"), format!("SELECT * FROM \"{secret_text}\"")] {
        assert_eq!(query(&engine, &sql).await.unwrap_err().kind(), Kind::UnknownTable, "{sql}");
    }
    assert!(!target.exists());
    assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 1);
    assert_eq!(count(&engine, "SELECT count(*) FROM t").await, 100);
}

#[tokio::test]
async fn statements_that_describe_tables_are_answered() {
    let directory = directory();
    let path = write(directory.path().join("t.parquet"), &rows(0..100));
    let engine = open(&config(&[("t", &path)])).await;
    for (sql, expected) in [
        ("SELECT table_name FROM information_schema.tables WHERE table_schema = 'public'", "| t "),
        ("SHOW TABLES", "| t "),
        ("SHOW COLUMNS FROM t", "name"),
        ("DESCRIBE t", "name"),
        ("EXPLAIN SELECT * FROM t", "DataSourceExec"),
        ("EXPLAIN ANALYZE SELECT max(id) FROM t WHERE id > 5", "output_rows"),
    ] {
        let answer = query(&engine, sql).await.unwrap_or_else(|e| panic!("{sql}: {e}"));
        let text = pretty_format_batches(&[answer]).unwrap().to_string();
        assert!(text.contains(expected), "{sql}:\n{text}");
    }
}

/// Each of these queries is a tree of expressions or plans as deep as the query is long. The engine must answer each
/// one by a result or an error, and must not crash.
#[tokio::test]
async fn deep_queries_do_not_overflow_the_stack() {
    let directory = directory();
    let path = write(directory.path().join("t.parquet"), &rows(0..10));
    let engine = open(&config(&[("t", &path)])).await;
    let shapes: [Shape; 14] = [
        ("parentheses", |n| format!("SELECT {}1{}", "(".repeat(n), ")".repeat(n))),
        ("literals added", |n| format!("SELECT 1{}", "+1".repeat(n))),
        ("columns added", |n| format!("SELECT id{} FROM t", "+id".repeat(n))),
        ("disjunction", |n| {
            let terms: Vec<_> = (0..n / 2).map(|i| format!("id = {i}")).collect();
            format!("SELECT id FROM t WHERE {}", terms.join(" OR "))
        }),
        ("conjunction", |n| {
            let terms: Vec<_> = (0..n / 2).map(|i| format!("id <> {i}")).collect();
            format!("SELECT id FROM t WHERE {}", terms.join(" AND "))
        }),
        ("concatenation", |n| format!("SELECT name{} FROM t", "||name".repeat(n))),
        ("negation", |n| format!("SELECT {}true", "NOT ".repeat(n))),
        ("signs", |n| format!("SELECT {}1", "- ".repeat(n))),
        ("casts", |n| format!("SELECT id{} FROM t", "::int::bigint".repeat(n / 2))),
        ("subscripts", |n| format!("SELECT id{} FROM t", "[1]".repeat(n))),
        ("cases", |n| format!("SELECT {}1{}", "CASE WHEN true THEN ".repeat(n), " END".repeat(n))),
        ("sub-queries", |n| format!("SELECT * FROM {}t{}", "(SELECT * FROM ".repeat(n), ")".repeat(n))),
        ("functions", |n| format!("SELECT {}id{} FROM t", "abs(".repeat(n), ")".repeat(n))),
        ("brackets", |n| format!("SELECT {}{}", "[".repeat(n), "]".repeat(n))),
    ];
    for (name, shape) in shapes {
        for n in [100, 600, 10_000] {
            let start = Instant::now();
            let answer = query(&engine, &shape(n)).await.map(|rows| rows.num_rows()).map_err(|e| e.kind());
            println!("{name} {n}: {answer:?} in {:?}", start.elapsed());
            if n == 10_000 {
                assert!(matches!(answer, Err(Kind::TooLarge | Kind::Syntax)), "{name}: {answer:?}");
            }
        }
    }
    assert_eq!(count(&engine, "SELECT count(*) FROM t").await, 10);
}

#[tokio::test]
async fn wide_plans_do_not_overflow_the_stack() {
    let directory = directory();
    let path = write(directory.path().join("t.parquet"), &rows(0..10));
    let engine = open(&config(&[("t", &path)])).await;
    let shapes: [Shape; 4] = [
        ("union", |n| format!("SELECT 1{}", " UNION ALL SELECT 1".repeat(n))),
        ("joins", |n| {
            let joins: String = (0..n).map(|i| format!(" JOIN t t{i} ON t.id = t{i}.id")).collect();
            format!("SELECT count(*) FROM t{joins}")
        }),
        ("cross joins", |n| {
            let tables: String = (0..n).map(|i| format!(", (SELECT 1) t{i}")).collect();
            format!("SELECT count(*) FROM t{tables}")
        }),
        ("common table expressions", |n| {
            let tables: String = (1..=n).map(|i| format!(", c{i} AS (SELECT id FROM c{})", i - 1)).collect();
            format!("WITH c0 AS (SELECT id FROM t){tables} SELECT id FROM c{n}")
        }),
    ];
    for (name, shape) in shapes {
        for n in [10, 60] {
            let start = Instant::now();
            let answer = query(&engine, &shape(n)).await.map(|rows| rows.num_rows());
            println!("{name} {n}: {answer:?} in {:?}", start.elapsed());
            assert!(answer.is_ok(), "{name} {n}: {answer:?}");
        }
        let start = Instant::now();
        let answer = query(&engine, &shape(5_000)).await.map(|rows| rows.num_rows()).map_err(|e| e.kind());
        println!("{name} 5000: {answer:?} in {:?}", start.elapsed());
        assert_eq!(answer, Err(Kind::TooLarge), "{name}");
    }
}

#[tokio::test]
async fn long_lists_are_answered_and_longer_texts_refused() {
    let directory = directory();
    let path = write(directory.path().join("t.parquet"), &rows(0..1000));
    let engine = open(&config(&[("t", &path)])).await;
    let list: Vec<_> = (500..100_000).map(|n| n.to_string()).collect();
    let sql = format!("SELECT count(*) FROM t WHERE id IN ({})", list.join(", "));
    assert_eq!(count(&engine, &sql).await, 500);
    let values: Vec<_> = (0..50_000).map(|n| format!("({n})")).collect();
    assert_eq!(count(&engine, &format!("SELECT count(*) FROM (VALUES {})", values.join(","))).await, 50_000);
    let literal = "x".repeat(1_000_000);
    assert_eq!(count(&engine, &format!("SELECT count(*) FROM t WHERE name <> '{literal}'")).await, 1000);
    let error = query(&engine, &format!("SELECT '{literal}{literal}'")).await.unwrap_err();
    assert_eq!(error.kind(), Kind::TooLarge);
}
