//! Tables from files of every format, and errors for missing, changed and corrupt files.

use std::fs;
use std::path::Path;

use arrow::array::{Array, AsArray, RecordBatch};
use thallus_server::catalog::CatalogError;
use thallus_server::config::TableConfig;
use thallus_server::engine::datafusion::{DataFusionEngine, OpenError};
use thallus_server::engine::{Engine, EngineError};

use crate::engine::{count, numbers, open, query};
use crate::files::{config, directory, rows, write};

const EXTENSIONS: [&str; 9] = ["parquet", "csv", "tsv", "json", "ndjson", "jsonl", "arrow", "arrows", "csv.gz"];

#[tokio::test]
async fn every_format_reads_the_same_rows_from_a_file_and_from_a_directory() {
    let directory = directory();
    for extension in EXTENSIONS {
        let stem = extension.replace('.', "_");
        write(directory.path().join(format!("one_{stem}.{extension}")), &rows(0..3000));
        let many = directory.path().join(format!("many_{stem}"));
        for part in 0..3 {
            write(many.join(format!("{part}.{extension}")), &rows(part * 1000..(part + 1) * 1000));
        }
        fs::write(many.join(format!(".hidden.{extension}")), "garbage").unwrap();
        fs::write(many.join("_SUCCESS"), "").unwrap();
    }
    let mut config = config(&[]);
    config.data = vec![directory.path().to_owned()];
    let engine = open(&config).await;
    let tables = engine.tables();
    assert_eq!(tables.len(), 2 * EXTENSIONS.len());
    for table in tables {
        assert_eq!(table.columns, 2, "{table:?}");
        let all = query(&engine, &format!("SELECT id, CAST(name AS TEXT) FROM {} ORDER BY id", table.name)).await;
        let all = all.unwrap_or_else(|e| panic!("{table:?}: {e}"));
        assert_eq!(numbers(&all), (0..3000).collect::<Vec<_>>(), "{table:?}");
        let names = all.column(1).as_string_view();
        assert_eq!((names.len(), names.value(2999)), (3000, "name 2999"), "{table:?}");
        let filtered = format!("SELECT count(*) FROM {} WHERE id >= 500 AND name LIKE '%9'", table.name);
        assert_eq!(count(&engine, &filtered).await, 250, "{table:?}");
    }
}

#[tokio::test]
async fn paths_with_special_characters_are_taken_literally() {
    let directory = directory();
    for name in ["with blank", "100%", "%41", "a#b", "ä€😀", "q?", "[z]", "st*r", "a=b", "a+b&c", "quote'"] {
        let file = write(directory.path().join(format!("{name}.csv")), &rows(0..10));
        let folder = directory.path().join(format!("{name}-folder"));
        write(folder.join(format!("{name}.csv")), &rows(0..20));
        let engine = open(&config(&[("file", &file), ("folder", &folder)])).await;
        assert_eq!(count(&engine, "SELECT count(*) FROM file").await, 10, "{name}");
        assert_eq!(count(&engine, "SELECT count(*) FROM folder").await, 20, "{name}");
    }
}

#[tokio::test]
async fn partitions_become_columns() {
    let directory = directory();
    write(directory.path().join("year=2024/month=1/a.parquet"), &rows(0..10));
    write(directory.path().join("year=2025/month=2/a.parquet"), &rows(10..30));
    let engine = open(&config(&[("t", directory.path())])).await;
    assert_eq!(engine.tables()[0].columns, 4);
    assert_eq!(count(&engine, "SELECT count(*) FROM t WHERE year = '2025' AND month = '2'").await, 20);
    assert_eq!(count(&engine, "SELECT count(*) FROM t").await, 30);
}

#[tokio::test]
async fn csv_options_quotes_and_empty_files() {
    let directory = directory();
    let path = directory.path().join("t.csv");
    let engine_of = async |text: &str, header, delimiter| {
        fs::write(&path, text).unwrap();
        let mut config = config(&[]);
        config.tables.insert("t".to_owned(), TableConfig { header, delimiter, ..TableConfig::at(&path) });
        DataFusionEngine::open(&config).await
    };
    let engine = engine_of("1;x\n2;y\n", false, Some(';')).await.unwrap();
    assert_eq!(count(&engine, "SELECT count(*) FROM t WHERE column_1 = 2 AND column_2 = 'y'").await, 1);
    let engine = engine_of("a,b\n1,\"two\nlines, one field\"\n2,\n", true, None).await.unwrap();
    assert_eq!(count(&engine, "SELECT count(*) FROM t WHERE b LIKE '%lines%' OR a = 2").await, 2);
    let empty = engine_of("", true, None).await.unwrap_err();
    assert!(matches!(empty, OpenError::Catalog(CatalogError::EmptyFile { .. })), "{empty}");
}

/// The start-up error for a table at `path`, which must name both.
async fn refused(path: &Path) -> CatalogError {
    let error = DataFusionEngine::open(&config(&[("t", path)])).await.unwrap_err();
    assert!(error.to_string().contains("`t`") && error.to_string().contains(path.to_str().unwrap()), "{error}");
    match error {
        OpenError::Catalog(error) => error,
        other => panic!("{other}"),
    }
}

#[tokio::test]
async fn a_corrupt_file_is_refused_at_start_up_and_named() {
    let directory = directory();
    for (name, content) in [
        ("a.parquet", "PAR1 this is not what it says PAR1"),
        ("short.parquet", "PAR1"),
        ("a.arrow", "ARROW1\0\0 neither is this"),
        ("a.arrows", "\u{7f}\u{7f}\u{7f}\u{7f} garbage in the stream format"),
        ("a.json", "{\"a\": 1}\n{\"a\": \n"),
        ("a.csv.gz", "this was never compressed"),
        ("a.csv", "a,b\n1,2\n1,2,3\n"),
    ] {
        let path = directory.path().join(name);
        fs::write(&path, content).unwrap();
        let error = refused(&path).await;
        assert!(matches!(error, CatalogError::Corrupt { .. }), "{name}: {error}");
        // An error also names one corrupt file among valid ones.
        let many = directory.path().join(format!("many-{name}"));
        let extension = name.split_once('.').unwrap().1;
        write(many.join(format!("1.{extension}")), &rows(0..10));
        fs::copy(&path, many.join(format!("2.{extension}"))).unwrap();
        let error = DataFusionEngine::open(&config(&[("t", &many)])).await.unwrap_err().to_string();
        assert!(error.contains(&format!("2.{extension}")), "{name}: {error}");
    }
}

#[tokio::test]
async fn files_that_do_not_fit_together_are_refused() {
    let directory = directory();
    write(directory.path().join("1.parquet"), &rows(0..10));
    let other = RecordBatch::try_from_iter([("id", rows(0..10).column(1).clone())]).unwrap();
    write(directory.path().join("2.parquet"), &other);
    assert!(matches!(refused(directory.path()).await, CatalogError::SchemaMismatch { .. }));
}

/// The source error of a query, which must name the table and the file, and not the directories of the server.
async fn source_error(engine: &DataFusionEngine, sql: &str, path: &Path) -> String {
    let error = query(engine, sql).await.expect_err(&format!("{sql} of {}", path.display()));
    assert!(matches!(error, EngineError::Source { .. }), "{sql}: {error:?}");
    let message = error.message();
    let (file, directory) = (path.file_name().unwrap().to_str().unwrap(), path.parent().unwrap().to_str().unwrap());
    assert!(message.contains("'t'") && message.contains(file) && !message.contains(directory), "{message}");
    message
}

#[tokio::test]
async fn plans_name_files_by_their_paths_within_the_table() {
    let directory = directory();
    write(directory.path().join("parts/year=2024/1.parquet"), &rows(0..10));
    write(directory.path().join("parts/year=2025/2.parquet"), &rows(0..10));
    let single = write(directory.path().join("single.csv"), &rows(0..10));
    let engine = open(&config(&[("parts", &directory.path().join("parts")), ("single", &single)])).await;
    for explain in ["EXPLAIN", "EXPLAIN VERBOSE", "EXPLAIN ANALYZE"] {
        let sql = format!("{explain} SELECT * FROM parts, single WHERE parts.id = single.id");
        let plan = query(&engine, &sql).await.unwrap();
        let plan = arrow::util::pretty::pretty_format_batches(&[plan]).unwrap().to_string();
        for file in ["year=2024/1.parquet", "year=2025/2.parquet", "single.csv"] {
            assert!(plan.contains(file), "{sql}: {plan}");
        }
        let without_slash = directory.path().to_str().unwrap().trim_start_matches('/');
        assert!(!plan.contains(without_slash), "{sql}: {plan}");
    }
}

#[tokio::test]
async fn a_file_that_vanishes_is_an_error_not_an_empty_table() {
    for extension in EXTENSIONS {
        let directory = directory();
        let path = write(directory.path().join(format!("t.{extension}")), &rows(0..10));
        let engine = open(&config(&[("t", &path)])).await;
        assert_eq!(count(&engine, "SELECT count(*) FROM t").await, 10);
        fs::remove_file(&path).unwrap();
        for sql in ["SELECT * FROM t", "SELECT count(*) FROM t", "SELECT id FROM t JOIN (SELECT 1 AS x) ON id = x"] {
            assert!(source_error(&engine, sql, &path).await.contains("no such file"), "{extension}");
        }
        // A file that is written again is read again.
        write(&path, &rows(0..7));
        assert_eq!(count(&engine, "SELECT count(*) FROM t").await, 7, "{extension}");
    }
}

#[tokio::test]
async fn a_directory_is_read_as_it_is_now() {
    let directory = directory();
    let path = directory.path().join("t");
    write(path.join("1.parquet"), &rows(0..10));
    let engine = open(&config(&[("t", &path)])).await;
    write(path.join("2.parquet"), &rows(10..30));
    assert_eq!(count(&engine, "SELECT count(*) FROM t").await, 30);
    fs::remove_file(path.join("1.parquet")).unwrap();
    assert_eq!(count(&engine, "SELECT count(*) FROM t").await, 20);
    fs::remove_dir_all(&path).unwrap();
    source_error(&engine, "SELECT count(*) FROM t", &path).await;
}

#[tokio::test]
async fn a_file_that_is_emptied_is_an_error_not_an_empty_table() {
    for extension in ["parquet", "arrow", "arrows", "csv.gz"] {
        let directory = directory();
        let path = write(directory.path().join(format!("t.{extension}")), &rows(0..10));
        let part = write(directory.path().join(format!("parts/1.{extension}")), &rows(0..10));
        write(directory.path().join(format!("parts/2.{extension}")), &rows(10..30));
        let engine = open(&config(&[("t", &path), ("parts", part.parent().unwrap())])).await;
        fs::write(&path, "").unwrap();
        for sql in ["SELECT * FROM t", "SELECT count(*) FROM t"] {
            assert!(source_error(&engine, sql, &path).await.contains("empty"), "{extension}");
        }
        fs::write(&part, "").unwrap();
        let error = query(&engine, "SELECT count(*) FROM parts").await.expect_err(extension);
        assert!(error.message().contains(part.file_name().unwrap().to_str().unwrap()), "{}", error.message());
        // A text file may be empty, and a file with another extension does not belong to the table.
        write(&part, &rows(0..10));
        fs::write(directory.path().join("parts/3.tmp"), "").unwrap();
        assert_eq!(count(&engine, "SELECT count(*) FROM parts").await, 30, "{extension}");
    }
}

#[tokio::test]
async fn a_file_that_becomes_corrupt_is_an_error_that_names_it() {
    for extension in ["parquet", "csv", "json", "arrow", "csv.gz"] {
        let directory = directory();
        let path = write(directory.path().join(format!("t.{extension}")), &rows(0..5000));
        let good = fs::read(&path).unwrap();
        let engine = open(&config(&[("t", &path)])).await;
        let sql = "SELECT sum(id), max(name) FROM t";
        // The second half of the file is overwritten, and then cut off.
        let half = good.len() / 2;
        let mut overwritten = good.clone();
        overwritten[half..].fill(0xff);
        fs::write(&path, &overwritten).unwrap();
        source_error(&engine, sql, &path).await;
        // A text file that is cut off may still be valid.
        if !matches!(extension, "csv" | "json") {
            fs::write(&path, &good[..half]).unwrap();
            source_error(&engine, sql, &path).await;
        }
        fs::write(&path, &good).unwrap();
        assert_eq!(numbers(&query(&engine, sql).await.unwrap()), [4999 * 2500], "{extension}");
    }
}

#[tokio::test]
async fn a_later_row_of_another_type_is_an_error_that_names_the_file() {
    let directory = directory();
    let path = write(directory.path().join("t.csv"), &rows(0..5000));
    let mut text = fs::read_to_string(&path).unwrap();
    text.push_str("not a number,x\n");
    fs::write(&path, text).unwrap();
    let engine = open(&config(&[("t", &path)])).await;
    let message = source_error(&engine, "SELECT sum(id) FROM t", &path).await;
    assert!(message.contains("line 5002") && message.contains("\"id\""), "{message}");
}
