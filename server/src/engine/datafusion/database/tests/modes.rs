//! Uploads in each mode, and what each refuses.

use std::fs;

use arrow_schema::{DataType, Field, Schema};

use super::*;
use crate::engine::EngineErrorKind as Kind;

#[tokio::test]
async fn each_mode_does_what_it_says_and_lasts() {
    let fixture = Fixture::new().await;
    let ids = "SELECT id FROM t ORDER BY id";
    assert_eq!(fixture.ingest("t", IngestMode::Append, &[rows(0..3)]).await.unwrap_err().kind(), Kind::UnknownTable);
    assert_eq!(fixture.ingest("t", IngestMode::Create, &[rows(0..3), rows(3..5)]).await, Ok(5));
    assert_eq!(fixture.numbers(ids).await, [0, 1, 2, 3, 4]);
    assert_eq!(fixture.ingest("t", IngestMode::Create, &[rows(0..3)]).await.unwrap_err().kind(), Kind::AlreadyExists);
    assert_eq!(fixture.ingest("t", IngestMode::Append, &[rows(5..7)]).await, Ok(2));
    assert_eq!(fixture.ingest("t", IngestMode::CreateAppend, &[rows(7..8)]).await, Ok(1));
    assert_eq!(fixture.numbers(ids).await, [0, 1, 2, 3, 4, 5, 6, 7]);
    assert_eq!(fixture.files().len(), 3);

    let fixture = fixture.reopened().await;
    assert_eq!(fixture.numbers(ids).await, [0, 1, 2, 3, 4, 5, 6, 7]);
    assert_eq!(fixture.ingest("t", IngestMode::Replace, &[rows(90..92)]).await, Ok(2));
    assert_eq!(fixture.numbers(ids).await, [90, 91]);
    assert_eq!(fixture.files().len(), 1);
    assert_eq!(fixture.ingest("u", IngestMode::Replace, &[rows(1..2)]).await, Ok(1));
    assert_eq!(fixture.ingest("w", IngestMode::CreateAppend, &[rows(2..3)]).await, Ok(1));
    let fixture = fixture.reopened().await;
    assert_eq!(fixture.numbers("SELECT t.id FROM t, u, w ORDER BY id").await, [90, 91]);
}

#[tokio::test]
async fn a_table_without_rows_has_its_columns_and_no_file() {
    let fixture = Fixture::new().await;
    let schema = rows(0..0).schema();
    assert_eq!(fixture.ingest_as("t", IngestMode::Create, schema.clone(), &[]).await, Ok(0));
    assert_eq!(fixture.ingest("t", IngestMode::Append, &[rows(0..0)]).await, Ok(0));
    assert!(fixture.files().is_empty());
    let fixture = fixture.reopened().await;
    let stream = fixture.engine.execute(QueryRequest::new("SELECT * FROM t")).await.unwrap();
    assert_eq!(stream.schema, schema);
    assert_eq!(fixture.numbers("SELECT count(*) FROM t").await, [0]);
    let none = fixture.ingest_as("u", IngestMode::Create, Arc::new(Schema::empty()), &[]).await.unwrap_err();
    assert_eq!((none.kind(), none.message().as_str()), (Kind::Plan, "a table has at least one column"));
}

#[tokio::test]
async fn dropping_an_upload_discards_it() {
    let fixture = Fixture::new().await;
    let request = IngestRequest { mode: IngestMode::Create, ..IngestRequest::new("t", rows(0..1).schema()) };
    let mut ingestion = fixture.engine.ingest(request).await.unwrap();
    for part in 0..4 {
        ingestion.push(rows(part * 10..part * 10 + 10)).await.unwrap();
    }
    drop(ingestion);
    assert_eq!(fixture.query("SELECT * FROM t").await.unwrap_err().kind(), Kind::UnknownTable);
    // The last batch may still be in the hands of a thread. The restart removes what is left by then.
    let fixture = fixture.reopened().await;
    assert!(fixture.files().is_empty());
}

#[tokio::test]
async fn columns_that_do_not_fit_are_refused_and_nothing_is_written() {
    let fixture = Fixture::new().await;
    fixture.ingest("t", IngestMode::Create, &[rows(0..3)]).await.unwrap();
    let id = |data_type, nullable| Field::new("id", data_type, nullable);
    let name = || Field::new("name", DataType::Utf8, true);
    for (fields, kind, word) in [
        (vec![id(DataType::Int32, false), name()], Kind::Plan, "Int32"),
        (vec![id(DataType::UInt64, false), name()], Kind::Plan, "UInt64"),
        (vec![name()], Kind::Constraint, "lacks it"),
        (vec![id(DataType::Int64, false), name(), Field::new("x", DataType::Int8, true)], Kind::Column, "'x'"),
        (vec![id(DataType::Int64, false), Field::new("Name", DataType::Utf8, true)], Kind::Column, "'Name'"),
        (vec![id(DataType::Int64, false), id(DataType::Int64, false)], Kind::Plan, "two columns"),
    ] {
        let schema = Arc::new(Schema::new(fields));
        let error = fixture.ingest_as("t", IngestMode::Append, schema, &[]).await.unwrap_err();
        assert_eq!(error.kind(), kind, "{error}");
        assert!(error.message().contains(word), "{error}");
    }
    // NULL in a column that takes none.
    let nullable = Arc::new(Schema::new(vec![id(DataType::Int64, true), name()]));
    let ids: ArrayRef = Arc::new(Int64Array::from(vec![Some(7), None]));
    let names: ArrayRef = Arc::new(StringArray::from(vec!["a", "b"]));
    let batch = RecordBatch::try_new(nullable, vec![ids, names]).unwrap();
    let error = fixture.ingest("t", IngestMode::Append, std::slice::from_ref(&batch)).await.unwrap_err();
    assert_eq!(error.kind(), Kind::Constraint, "{error}");
    assert_eq!(fixture.ingest("t", IngestMode::Append, &[batch.slice(0, 1)]).await, Ok(1));
    assert_eq!(fixture.numbers("SELECT id FROM t ORDER BY id").await, [0, 1, 2, 7]);
    assert_eq!(fixture.files().len(), 2);
}

#[tokio::test]
async fn the_layout_of_values_and_the_order_of_columns_may_differ() {
    let fixture = Fixture::new().await;
    fixture.ingest("t", IngestMode::Create, &[rows(0..3)]).await.unwrap();
    let batch = rows(3..6);
    for data_type in [
        DataType::LargeUtf8,
        DataType::Utf8View,
        DataType::Dictionary(DataType::Int8.into(), DataType::Utf8.into()),
        DataType::RunEndEncoded(
            Arc::new(Field::new("run_ends", DataType::Int32, false)),
            Arc::new(Field::new("values", DataType::Utf8, true)),
        ),
    ] {
        let name = arrow_cast::cast(batch.column(1), &data_type).unwrap();
        let columns: [(&str, ArrayRef, bool); 2] = [("name", name, true), ("id", batch.column(0).clone(), false)];
        let batch = RecordBatch::try_from_iter_with_nullable(columns).unwrap();
        assert_eq!(fixture.ingest("t", IngestMode::Append, &[batch]).await, Ok(3), "{data_type}");
    }
    // A column that is left out is NULL.
    let ids = batch.project(&[0]).unwrap();
    assert_eq!(fixture.ingest("t", IngestMode::Append, &[ids]).await, Ok(3));
    assert_eq!(fixture.numbers("SELECT count(*) FROM t WHERE id = 4 AND name = 'name 4'").await, [4]);
    assert_eq!(fixture.numbers("SELECT count(*) FROM t WHERE id = 4 AND name IS NULL").await, [1]);
}

#[tokio::test]
async fn names_are_exact_and_checked() {
    let fixture = Fixture::new().await;
    for bad in ["", "a\"b", " a", "a\nb", &"x".repeat(129)] {
        let error = fixture.ingest(bad, IngestMode::Create, &[rows(0..1)]).await.unwrap_err();
        assert_eq!(error.kind(), Kind::Plan, "{bad:?}: {error}");
    }
    fixture.ingest("Größe 'x'", IngestMode::Create, &[rows(0..1)]).await.unwrap();
    assert_eq!(fixture.numbers("SELECT id FROM \"Größe 'x'\"").await, [0]);
    fixture.ingest("Orders", IngestMode::Create, &[rows(0..2)]).await.unwrap();
    assert_eq!(fixture.numbers("SELECT count(*) FROM orders, ORDERS o, \"Orders\" p").await, [8]);
    for other in ["orders", "ORDERS"] {
        let error = fixture.ingest(other, IngestMode::Create, &[rows(0..1)]).await.unwrap_err();
        assert_eq!(error.kind(), Kind::AlreadyExists, "{error}");
    }
    let defaults = |catalog: &str, schema: &str| crate::engine::Defaults {
        catalog: Some(catalog.to_owned()),
        schema: Some(schema.to_owned()),
    };
    fixture.change("CREATE SCHEMA s").await.unwrap();
    for (defaults, kind) in [
        (defaults("thallus", "s"), None),
        (defaults("other", "s"), Some(Kind::Plan)),
        (defaults("thallus", "nowhere"), Some(Kind::Plan)),
        (defaults("thallus", "server"), Some(Kind::Unsupported)),
        (defaults("thallus", "information_schema"), Some(Kind::Unsupported)),
    ] {
        let mode = IngestMode::Create;
        let request = IngestRequest { mode, defaults, ..IngestRequest::new("t", rows(0..1).schema()) };
        let begun = fixture.engine.ingest(request).await;
        match begun {
            Ok(ingestion) => assert_eq!((ingestion.finish().await, kind), (Ok(0), None)),
            Err(error) => assert_eq!(Some(error.kind()), kind, "{error}"),
        }
    }
    assert_eq!(fixture.numbers("SELECT count(*) FROM s.t").await, [0]);
    let request = IngestRequest { temporary: true, ..IngestRequest::new("t", rows(0..1).schema()) };
    assert_eq!(fixture.engine.ingest(request).await.err().map(|e| e.kind()), Some(Kind::Unsupported));
}

#[tokio::test]
async fn the_operators_tables_are_never_changed() {
    let directory = tempfile::tempdir().unwrap();
    let data = directory.path().join("files");
    fs::create_dir(&data).unwrap();
    fs::write(data.join("Orders.csv"), "id\n1\n2\n").unwrap();
    let mut config = config(&directory.path().join("db"));
    config.data = vec![data.clone()];
    let fixture = Fixture { engine: DataFusionEngine::open(&config).await.unwrap(), directory };
    for (mode, kind) in [
        (IngestMode::Create, Kind::AlreadyExists),
        (IngestMode::Append, Kind::Unsupported),
        (IngestMode::Replace, Kind::Unsupported),
        (IngestMode::CreateAppend, Kind::Unsupported),
    ] {
        for name in ["Orders", "orders"] {
            let error = fixture.ingest(name, mode, &[rows(0..1)]).await.unwrap_err();
            assert_eq!(error.kind(), kind, "{mode:?}: {error}");
        }
    }
    for sql in ["DROP TABLE orders", "INSERT INTO orders VALUES (1)", "DELETE FROM orders", "TRUNCATE TABLE orders"] {
        let error = fixture.change(sql).await.unwrap_err();
        assert_eq!(error.kind(), Kind::Unsupported, "{sql}: {error}");
        assert!(error.message().contains("operator's files"), "{sql}: {error}");
    }
    let error = fixture.change("CREATE TABLE orders (a INT)").await.unwrap_err();
    assert_eq!(error.kind(), Kind::AlreadyExists, "{error}");
    assert_eq!(fixture.change("CREATE TABLE IF NOT EXISTS orders (a INT)").await, Ok(0));
    // A file of a new table is found before a table of its name is created.
    fs::write(data.join("late.csv"), "id\n1\n").unwrap();
    let error = fixture.change("CREATE TABLE late AS SELECT 1 AS a").await.unwrap_err();
    assert_eq!(error.kind(), Kind::AlreadyExists, "{error}");
    assert_eq!(fixture.numbers("SELECT sum(id) FROM orders").await, [3]);
    fixture.change("CREATE TABLE copy AS SELECT id + 1 AS id FROM orders").await.unwrap();
    assert_eq!(fixture.numbers("SELECT sum(copy.id) FROM copy, orders").await, [10]);
}

/// Queries read the table of the exact name. A change must mean the same table, and not the one of another case.
#[tokio::test]
async fn an_exact_name_of_the_operators_tables_is_not_that_of_a_table_in_another_case() {
    let directory = tempfile::tempdir().unwrap();
    let data = directory.path().join("files");
    fs::create_dir(&data).unwrap();
    fs::write(data.join("other.csv"), "id\n1\n").unwrap();
    let mut config = config(&directory.path().join("db"));
    config.data = vec![data.clone()];
    let fixture = Fixture { engine: DataFusionEngine::open(&config).await.unwrap(), directory };
    fixture.change("CREATE TABLE \"Orders\" AS SELECT CAST(7 AS BIGINT) AS id").await.unwrap();
    assert_eq!(fixture.numbers("SELECT id FROM \"orders\"").await, [7]);
    fs::write(data.join("orders.csv"), "id\n1\n2\n").unwrap();
    let error = fixture.ingest("orders", IngestMode::Append, &[rows(0..1)]).await.unwrap_err();
    assert_eq!(error.kind(), Kind::Unsupported, "{error}");
    assert_eq!(fixture.numbers("SELECT sum(id) FROM \"orders\"").await, [3]);
    for sql in ["INSERT INTO \"orders\" VALUES (9)", "DELETE FROM \"orders\"", "DROP TABLE \"orders\""] {
        let error = fixture.change(sql).await.unwrap_err();
        assert_eq!(error.kind(), Kind::Unsupported, "{sql}: {error}");
    }
    assert_eq!(fixture.numbers("SELECT id FROM \"Orders\"").await, [7]);
    fixture.change("INSERT INTO \"Orders\" VALUES (8)").await.unwrap();
    assert_eq!(fixture.numbers("SELECT sum(id) FROM \"Orders\"").await, [15]);
}

#[tokio::test]
async fn a_server_without_a_database_only_reads() {
    let engine = DataFusionEngine::open(&ServerConfig::default()).await.unwrap();
    let error = engine.execute(QueryRequest::new("CREATE TABLE t AS SELECT 1")).await.unwrap_err();
    assert_eq!(error.kind(), Kind::ReadOnly);
    let request = IngestRequest { mode: IngestMode::Create, ..IngestRequest::new("t", rows(0..1).schema()) };
    assert_eq!(engine.ingest(request).await.err().map(|e| e.kind()), Some(Kind::Unsupported));
}

async fn refused(directory: &Path) -> DatabaseError {
    match try_open(directory).await {
        Err(OpenError::Database(error)) => error,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn one_server_at_a_time_and_only_in_a_database() {
    let fixture = Fixture::new().await;
    let database = fixture.directory.path().join("db");
    let error = refused(&database).await;
    let process = std::process::id().to_string();
    assert!(matches!(&error, DatabaseError::Locked { process: Some(id), .. } if *id == process), "{error}");
    // A directory with other files.
    let foreign = fixture.directory.path().join("foreign");
    fs::create_dir_all(foreign.join("data")).unwrap();
    fs::write(foreign.join("data/0123456789abcdef0123456789abcdef.parquet"), "precious").unwrap();
    assert!(matches!(refused(&foreign).await, DatabaseError::Foreign { found, .. } if found == "data"));
    assert_eq!(files_of(&foreign).len(), 1);
    assert!(matches!(refused(&fixture.directory.path().join("a/b")).await, DatabaseError::Io { .. }));
}

#[tokio::test]
async fn a_damaged_catalog_is_refused_and_nothing_is_removed() {
    let fixture = Fixture::new().await;
    fixture.ingest("t", IngestMode::Create, &[rows(0..3)]).await.unwrap();
    let directory = fixture.closed().await;
    let database = directory.path().join("db");
    let catalog = database.join("catalog.json");
    let good = fs::read_to_string(&catalog).unwrap();
    for bad in [
        String::new(),
        "{}".to_owned(),
        good[..good.len() / 2].to_owned(),
        good.replacen("\"t\"", "\"u\"", 1),
        good.replacen("\"rows\": 3", "\"rows\": 4", 1),
    ] {
        fs::write(&catalog, &bad).unwrap();
        let error = refused(&database).await;
        assert!(matches!(error, DatabaseError::Corrupt { .. }), "{bad}: {error}");
        assert_eq!(files_of(&database).len(), 1);
    }
    fs::write(&catalog, good.replacen("\"format\": 1", "\"format\": 2", 1)).unwrap();
    assert!(matches!(refused(&database).await, DatabaseError::Version { found: 2, .. }));
    fs::write(&catalog, &good).unwrap();
    // A data file that is missing is the error of its table alone.
    fs::remove_file(database.join("data").join(&files_of(&database)[0])).unwrap();
    let fixture = Fixture { engine: open(&database).await, directory };
    let error = fixture.query("SELECT * FROM t").await.unwrap_err();
    assert_eq!(error.kind(), Kind::Source, "{error}");
    assert_eq!(fixture.change("DROP TABLE t").await, Ok(0));
}
