//! Queries, changes, parameters, errors.

use std::sync::Arc;

use arrow::array::{ArrayRef, Int64Array, RecordBatch, StringArray};
use futures::StreamExt;
use thallus_server::engine::{Engine, EngineError, EngineErrorKind as Error, QueryRequest, is_change};

use crate::support::{Fixture, Kind, on_every_database};

on_every_database! {
    values_and_nulls_arrive,
    changes_are_counted,
    errors_have_kinds_and_the_databases_words,
    parameters_are_bound,
    several_rows_of_parameters_change_all_or_nothing,
    batches_have_the_requested_rows,
    results_without_rows_have_a_schema,
    a_late_error_ends_the_result,
    statements_are_described,
}

async fn values_and_nulls_arrive(fixture: Fixture) {
    fixture.change("CREATE TABLE t (i INTEGER, b BIGINT, d DOUBLE PRECISION, s VARCHAR(10))").await;
    fixture
        .change("INSERT INTO t VALUES (1, 9007199254740993, 0.5, 'é'), (NULL, NULL, NULL, NULL), (-7, 0, -1e300, '')")
        .await;
    let rows = fixture.rows("SELECT * FROM t ORDER BY b DESC").await;
    let mut expected = vec!["1|9007199254740993|0.5|é", "-7|0|-1e300|", "NULL|NULL|NULL|NULL"];
    if fixture.kind == Kind::Postgresql {
        expected.rotate_right(1);
    }
    assert_eq!(rows, expected);
    let literals: &[(&str, &str)] = match fixture.kind {
        Kind::Sqlite => &[("x'0102'", "0102"), ("1.5", "1.5"), ("'a' || 'b'", "ab")],
        Kind::Duckdb => &[
            ("true", "true"),
            ("DATE '2024-02-29'", "2024-02-29"),
            ("TIMESTAMP '2024-02-29 12:34:56.789'", "2024-02-29T12:34:56.789"),
            ("1.23::DECIMAL(9,2)", "1.23"),
            ("18446744073709551615::UBIGINT", "18446744073709551615"),
            ("[1, NULL, 3]", "[1, , 3]"),
            ("{'a': 1, 'b': 'x'}", "{a: 1, b: x}"),
            ("MAP {'k': 1}", "{k: 1}"),
            ("'b'::ENUM('a', 'b')", "b"),
            ("'\\x01\\x02'::BLOB", "0102"),
            ("INTERVAL 1 MONTH", "1 mons"),
            ("TIME '01:02:03'", "01:02:03"),
        ],
        Kind::Postgresql => &[
            ("true", "true"),
            ("DATE '2024-02-29'", "2024-02-29"),
            ("TIMESTAMP '2024-02-29 12:34:56.789'", "2024-02-29T12:34:56.789"),
            ("1.23::NUMERIC(9,2)", "1.23"),
            ("ARRAY[1, NULL, 3]", "[1, , 3]"),
            ("'\\x0102'::BYTEA", "0102"),
            ("INTERVAL '1 month'", "1 mons"),
            ("TIME '01:02:03'", "01:02:03"),
        ],
    };
    for (literal, expected) in literals {
        assert_eq!(fixture.rows(&format!("SELECT {literal} AS x")).await, [*expected], "{literal}");
    }
}

async fn changes_are_counted(fixture: Fixture) {
    assert_eq!(fixture.change("CREATE TABLE t (a INTEGER PRIMARY KEY, b VARCHAR(10))").await, 0);
    assert_eq!(fixture.change("INSERT INTO t VALUES (1, 'x'), (2, 'y'), (3, 'z')").await, 3);
    assert_eq!(fixture.change("UPDATE t SET b = 'w' WHERE a > 1").await, 2);
    assert_eq!(fixture.change("WITH u AS (SELECT 2 AS a) DELETE FROM t WHERE a IN (SELECT a FROM u)").await, 1);
    assert_eq!(fixture.change("CREATE TABLE u AS SELECT * FROM t").await, 0);
    assert_eq!(fixture.rows("INSERT INTO t VALUES (9, 'q') RETURNING a, b").await, ["9|q"]);
    assert_eq!(fixture.rows("SELECT count(*) FROM t").await, ["3"]);
    let changed = fixture.engine.execute(QueryRequest::new("DELETE FROM t")).await.unwrap();
    assert!(is_change(&changed.schema));
}

async fn errors_have_kinds_and_the_databases_words(fixture: Fixture) {
    fixture.change("CREATE TABLE t (a INTEGER PRIMARY KEY, b VARCHAR(10) NOT NULL)").await;
    fixture.change("INSERT INTO t VALUES (1, 'x')").await;
    for (sql, kind, words) in [
        ("SELEC 1", Error::Syntax, "SELEC"),
        ("SELECT 1 +", Error::Syntax, ""),
        ("SELECT 1; SELECT 2", Error::Syntax, "one statement"),
        ("", Error::Syntax, "no statement"),
        ("SELECT * FROM nope", Error::UnknownTable, "nope"),
        ("DROP TABLE nope", Error::UnknownTable, "nope"),
        ("SELECT nope FROM t", Error::Column, "nope"),
        ("SELECT nofunc(1)", Error::Plan, "nofunc"),
        ("INSERT INTO t VALUES (1, 'y')", Error::Constraint, ""),
        ("INSERT INTO t VALUES (2, NULL)", Error::Constraint, ""),
        ("CREATE TABLE t (a INTEGER)", Error::AlreadyExists, "'t' exists already"),
        ("BEGIN", Error::Unsupported, "transaction"),
    ] {
        let error = fixture.error(sql).await;
        assert_eq!(error.kind(), kind, "{sql}: {error}");
        assert!(error.to_string().contains(words), "{sql}: {error}");
    }
    let of_values: &[&str] = match fixture.kind {
        // SQLite has no error of a division, and converts every text.
        Kind::Sqlite => &["SELECT abs(-9223372036854775807 - 1)"],
        Kind::Duckdb => &["SELECT CAST('x' AS INTEGER)", "SELECT error('by request')"],
        Kind::Postgresql => &["SELECT 1 / 0", "SELECT CAST('x' AS INTEGER)"],
    };
    for sql in of_values {
        assert_eq!(fixture.error(sql).await.kind(), Error::Execution, "{sql}");
    }
    assert_eq!(fixture.rows("SELECT b FROM t").await, ["x"]);
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs drivers: run scripts/engines.sh"]
async fn a_text_that_is_no_utf8_is_an_error() {
    let fixture = Fixture::new(Kind::Sqlite).await;
    let error = fixture.error("SELECT CAST(x'ff41' AS TEXT)").await;
    assert!(error.to_string().contains("the driver's batch is not valid"), "{error}");
}

/// Rows of parameters: a number, and a text.
fn parameters(numbers: Vec<Option<i64>>, texts: Vec<Option<&str>>) -> RecordBatch {
    let columns: Vec<(&str, ArrayRef)> =
        vec![("a", Arc::new(Int64Array::from(numbers))), ("b", Arc::new(StringArray::from(texts)))];
    RecordBatch::try_from_iter_with_nullable(columns.into_iter().map(|(name, values)| (name, values, true))).unwrap()
}

async fn parameters_are_bound(fixture: Fixture) {
    let (first, second) = (fixture.parameter(1), fixture.parameter(2));
    fixture.change("CREATE TABLE t (a BIGINT, b VARCHAR(10))").await;
    let insert = format!("INSERT INTO t VALUES ({first}, {second})");
    let three = parameters(vec![Some(1), Some(2), None], vec![Some("it's"), None, Some("z")]);
    assert_eq!(fixture.with_parameters(&insert, three.clone()).await.unwrap(), ["3"]);
    assert_eq!(fixture.with_parameters(&insert, three.slice(0, 1)).await.unwrap(), ["1"]);
    let select = format!("SELECT b FROM t WHERE a = {first} ORDER BY b");
    let numbers = three.project(&[0]).unwrap();
    assert_eq!(fixture.with_parameters(&select, numbers).await.unwrap(), ["it's", "it's", "NULL"]);
    for wrong in [three.slice(0, 1), three.slice(0, 0)] {
        let error = fixture.with_parameters(&select, wrong).await.unwrap_err();
        assert_eq!(error.kind(), Error::Parameters, "{error}");
    }
    let error = fixture.error(&select).await;
    assert_eq!(error.kind(), Error::Parameters, "{error}");
    if fixture.kind != Kind::Postgresql {
        let named = "SELECT $b || 'x', $a + 1";
        assert_eq!(fixture.with_parameters(named, three.slice(0, 1)).await.unwrap(), ["it'sx|2"]);
        let error = fixture.with_parameters("SELECT $c", three.slice(0, 1)).await.unwrap_err();
        assert!(error.to_string().contains("$c"), "{error}");
    }
}

async fn several_rows_of_parameters_change_all_or_nothing(fixture: Fixture) {
    fixture.change("CREATE TABLE t (a BIGINT PRIMARY KEY, b VARCHAR(10))").await;
    let insert = format!("INSERT INTO t VALUES ({}, {})", fixture.parameter(1), fixture.parameter(2));
    let twice = parameters(vec![Some(1), Some(2), Some(1)], vec![None; 3]);
    let error = fixture.with_parameters(&insert, twice.clone()).await.unwrap_err();
    assert_eq!(error.kind(), Error::Constraint, "{error}");
    assert!(fixture.rows("SELECT * FROM t").await.is_empty());
    assert_eq!(fixture.with_parameters(&insert, twice.slice(0, 2)).await.unwrap(), ["2"]);
    assert_eq!(fixture.rows("SELECT count(*) FROM t").await, ["2"]);
    let returning = format!("{insert} RETURNING a");
    let ended = fixture.with_parameters(&returning, parameters(vec![Some(7), Some(1)], vec![None; 2])).await;
    let error = ended.unwrap_err();
    // An error in mid-stream has no more than a message.
    assert!(matches!(error.kind(), Error::Constraint | Error::Execution), "{error}");
    assert_eq!(fixture.rows("SELECT count(*) FROM t").await, ["2"]);
    let two = parameters(vec![Some(7), Some(8)], vec![None; 2]);
    assert_eq!(fixture.with_parameters(&returning, two).await.unwrap(), ["7", "8"]);
    assert_eq!(fixture.rows("SELECT count(*) FROM t").await, ["4"]);
}

/// A query with the numbers from 1 to `last`.
fn numbers(fixture: &Fixture, last: u64) -> String {
    match fixture.kind {
        Kind::Sqlite => {
            format!("WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {last}) SELECT i FROM n")
        }
        Kind::Duckdb => format!("SELECT i FROM range(1, {last} + 1) AS n(i)"),
        Kind::Postgresql => format!("SELECT i FROM generate_series(1, {last}) AS n(i)"),
    }
}

async fn batches_have_the_requested_rows(fixture: Fixture) {
    let query = QueryRequest { batch_rows: Some(1000), ..QueryRequest::new(numbers(&fixture, 10_500)) };
    let batches = fixture.batches(query).await.unwrap();
    assert!(batches.iter().all(|batch| batch.num_rows() <= 1000));
    assert_eq!(batches.iter().map(RecordBatch::num_rows).sum::<usize>(), 10_500);
    let all = fixture.rows(&numbers(&fixture, 10_500)).await;
    assert!(all.iter().enumerate().all(|(index, value)| *value == (index + 1).to_string()));
}

async fn results_without_rows_have_a_schema(fixture: Fixture) {
    fixture.change("CREATE TABLE t (a BIGINT, b VARCHAR(10))").await;
    let mut empty = fixture.engine.execute(QueryRequest::new("SELECT a, b AS c FROM t")).await.unwrap();
    let names: Vec<_> = empty.schema.fields().iter().map(|field| field.name().as_str()).collect();
    assert_eq!(names, ["a", "c"]);
    assert!(empty.batches.next().await.is_none());
}

/// The rows before an error may arrive, and then the error must.
async fn a_late_error_ends_the_result(fixture: Fixture) {
    let sql = match fixture.kind {
        Kind::Sqlite => format!(
            "SELECT CASE WHEN i < 90000 THEN i ELSE abs(-9223372036854775807 - 1) END FROM ({})",
            numbers(&fixture, 100_000)
        ),
        Kind::Duckdb => "SELECT CASE WHEN i < 900000 THEN i ELSE error('by request') END \
                         FROM range(1000000) AS n(i)"
            .to_owned(),
        Kind::Postgresql => "SELECT 100 / (i - 900000) FROM generate_series(1, 1000000) AS n(i)".to_owned(),
    };
    let ended = match fixture.engine.execute(QueryRequest::new(sql)).await {
        Err(error) => Err(error),
        Ok(mut stream) => loop {
            match stream.batches.next().await {
                None => break Ok(()),
                Some(Err(error)) => {
                    assert!(stream.batches.next().await.is_none(), "rows after an error");
                    break Err(error);
                }
                Some(Ok(_)) => {}
            }
        },
    };
    let error = ended.expect_err("the result seems complete");
    assert_eq!(error.kind(), Error::Execution, "{error}");
}

async fn statements_are_described(fixture: Fixture) {
    fixture.change("CREATE TABLE t (a BIGINT, b VARCHAR(10))").await;
    let parameter = fixture.parameter(1);
    let select = QueryRequest::new(format!("SELECT b, a FROM t WHERE a = {parameter}"));
    let description = fixture.engine.describe(select).await;
    let change = fixture.engine.describe(QueryRequest::new(format!("DELETE FROM t WHERE a = {parameter}"))).await;
    assert!(is_change(&change.unwrap().result));
    if fixture.kind == Kind::Sqlite {
        assert!(matches!(description, Err(EngineError::Unsupported { .. })), "{description:?}");
        return;
    }
    let description = description.unwrap();
    let names: Vec<_> = description.result.fields().iter().map(|field| field.name().as_str()).collect();
    assert_eq!(names, ["b", "a"]);
    assert_eq!(description.parameters.fields().len(), 1);
    assert_eq!(description.parameters.field(0).name(), "$1");
    let unknown = fixture.engine.describe(QueryRequest::new("SELECT * FROM nope")).await.unwrap_err();
    assert_eq!(unknown.kind(), Error::UnknownTable, "{unknown}");
}
