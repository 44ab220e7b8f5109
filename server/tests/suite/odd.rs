//! Directories and files as they lie on disks: other orders of columns, drifting types, things that are no data.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, Float64Array, Int32Array, Int64Array, LargeListArray, ListArray, MapArray, RecordBatch,
    StringArray, StructArray, TimestampMicrosecondArray,
};
use arrow::buffer::OffsetBuffer;
use arrow::datatypes::{DataType, Field, Int32Type, Int64Type};
use thallus_server::config::{ByteSize, ServerConfig, TableConfig};
use thallus_server::engine::datafusion::DataFusionEngine;
use thallus_server::engine::{EngineError, EngineErrorKind};

use crate::engine::{count, open, query, settled};
use crate::files::{config, directory, rows, write};

fn column(name: &str, values: impl Array + 'static) -> (String, ArrayRef) {
    (name.to_owned(), Arc::new(values))
}

fn batch(columns: impl IntoIterator<Item = (String, ArrayRef)>) -> RecordBatch {
    RecordBatch::try_from_iter(columns).unwrap()
}

/// The server's tables in a data directory.
fn data(path: &Path) -> ServerConfig {
    let mut config = config(&[]);
    config.data = vec![path.to_owned()];
    config
}

/// Rows as lines of text, NULL as `~`.
async fn lines(engine: &DataFusionEngine, sql: &str) -> Vec<String> {
    let rows = query(engine, sql).await.unwrap_or_else(|e| panic!("{sql}: {e}"));
    let options = arrow::util::display::FormatOptions::default().with_null("~");
    let columns: Vec<_> = rows
        .columns()
        .iter()
        .map(|column| arrow::util::display::ArrayFormatter::try_new(column, &options).unwrap())
        .collect();
    (0..rows.num_rows())
        .map(|row| columns.iter().map(|column| column.value(row).to_string()).collect::<Vec<_>>().join(","))
        .collect()
}

#[tokio::test]
async fn columns_go_by_name_in_every_format() {
    let directory = directory();
    for extension in ["parquet", "csv", "tsv", "json", "arrow", "arrows", "csv.gz"] {
        let table = directory.path().join(format!("t_{}", extension.replace('.', "_")));
        let at = |file: &str| table.join(format!("{file}.{extension}"));
        let (a, b) =
            (|v: i64| column("a", Int64Array::from(vec![v])), |v: &str| column("b", StringArray::from(vec![v])));
        write(at("1"), &batch([a(1), b("x")]));
        write(at("2"), &batch([b("y"), a(2)]));
        write(at("3"), &batch([b("z")]));
        write(at("4"), &batch([column("c", Int64Array::from(vec![7])), a(4)]));
    }
    let engine = open(&data(directory.path())).await;
    for table in engine_tables(&engine) {
        let all = lines(&engine, &format!("SELECT a, b, c FROM {table} ORDER BY a NULLS LAST")).await;
        assert_eq!(all, ["1,x,~", "2,y,~", "4,~,7", "~,z,~"], "{table}");
        assert_eq!(lines(&engine, &format!("SELECT sum(a), count(*) FROM {table}")).await, ["7,4"], "{table}");
    }
}

fn engine_tables(engine: &DataFusionEngine) -> Vec<String> {
    use thallus_server::engine::Engine;
    engine.tables().into_iter().map(|table| table.name).collect()
}

#[tokio::test]
async fn types_widen_if_nothing_is_lost_and_otherwise_both_files_are_named() {
    let directory = directory();
    for extension in ["parquet", "arrow"] {
        let table = directory.path().join(extension);
        write(table.join(format!("1.{extension}")), &batch([column("a", Int32Array::from(vec![1]))]));
        write(table.join(format!("2.{extension}")), &batch([column("a", Int64Array::from(vec![1 << 40]))]));
        write(table.join(format!("3.{extension}")), &batch([column("a", Float64Array::from(vec![0.5]))]));
        let config = config(&[("t", &table)]);
        let engine = open(&config).await;
        let all = lines(&engine, "SELECT a FROM t ORDER BY a").await;
        assert_eq!(all, ["0.5", "1.0", "1099511627776.0"], "{extension}");
        write(table.join(format!("4.{extension}")), &batch([column("a", StringArray::from(vec!["x"]))]));
        let error = DataFusionEngine::open(&config).await.unwrap_err().to_string();
        assert!(error.contains("4.") && error.contains("Utf8") && error.contains("`a`"), "{error}");
    }
}

#[tokio::test]
async fn an_integer_that_no_float_holds_is_an_error_and_no_other_number() {
    const LAST: i64 = 1 << 53;
    let directory = directory();
    let integers = |values: &[i64]| Int64Array::from(values.to_vec());
    let floats = || Float64Array::from(vec![0.5]);
    let part = |values: ArrayRef| {
        let field = Arc::new(Field::new("x", values.data_type().clone(), true));
        StructArray::from(vec![(field, values)])
    };
    for extension in ["parquet", "arrow"] {
        let path = directory.path().join(extension);
        let [table, parts] = ["t", "s"].map(|name| path.join(name));
        let at = |table: &Path, file: &str| table.join(format!("{file}.{extension}"));
        write(at(&table, "1"), &batch([column("a", integers(&[-LAST, LAST]))]));
        write(at(&table, "2"), &batch([column("a", floats())]));
        write(at(&parts, "1"), &batch([column("p", part(Arc::new(integers(&[LAST]))))]));
        write(at(&parts, "2"), &batch([column("p", part(Arc::new(floats())))]));
        let engine = open(&config(&[("t", &table), ("s", &parts)])).await;
        let all = lines(&engine, "SELECT a FROM t ORDER BY a").await;
        assert_eq!(all, ["-9007199254740992.0", "0.5", "9007199254740992.0"], "{extension}");
        let all = lines(&engine, "SELECT p['x'] FROM s ORDER BY 1").await;
        assert_eq!(all, ["0.5", "9007199254740992.0"], "{extension}");
        write(at(&table, "3"), &batch([column("a", integers(&[LAST + 1]))]));
        write(at(&parts, "3"), &batch([column("p", part(Arc::new(integers(&[LAST + 1]))))]));
        for sql in ["SELECT a FROM t", "SELECT a FROM t WHERE a > 1", "SELECT max(a) FROM t", "SELECT p['x'] FROM s"] {
            let error = query(&engine, sql).await.expect_err(sql).to_string();
            assert!(
                error.contains("Float64 does not hold the integer 9007199254740993"),
                "{extension}: {sql}: {error}"
            );
        }
        assert_eq!(count(&engine, "SELECT count(*) FROM t").await, 4);
    }
}

#[tokio::test]
async fn parts_of_maps_and_layouts_of_lists_widen_in_every_format_that_has_them() {
    let directory = directory();
    for extension in ["parquet", "arrow"] {
        let table = directory.path().join(extension);
        let at = |file: &str| table.join(format!("{file}.{extension}"));
        let list = ListArray::from_iter_primitive::<Int32Type, _, _>([Some([Some(1)])]);
        let large = LargeListArray::from_iter_primitive::<Int64Type, _, _>([Some([Some(1 << 40), None])]);
        write(at("1"), &batch([column("l", list), column("m", map(Arc::new(Int32Array::from(vec![7]))))]));
        write(at("2"), &batch([column("l", large), column("m", map(Arc::new(Int64Array::from(vec![1 << 41]))))]));
        let engine = open(&config(&[("t", &table)])).await;
        let all = lines(&engine, "SELECT l, m FROM t ORDER BY l[1]").await;
        assert_eq!(all, ["[1],{k: {x: 7}}", "[1099511627776, ~],{k: {x: 2199023255552}}"], "{extension}");
    }
}

/// One row: a map from `k` to a struct of these values.
fn map(values: ArrayRef) -> MapArray {
    let inner = StructArray::from(vec![(Arc::new(Field::new("x", values.data_type().clone(), true)), values)]);
    let key = Arc::new(Field::new("key", DataType::Utf8, false));
    let value = Arc::new(Field::new("value", inner.data_type().clone(), true));
    let keys: ArrayRef = Arc::new(StringArray::from(vec!["k"]));
    let entries = StructArray::from(vec![(key, keys), (value, Arc::new(inner) as ArrayRef)]);
    let field = Arc::new(Field::new("key_value", entries.data_type().clone(), false));
    MapArray::new(field, OffsetBuffer::from_lengths([1]), entries, None, false)
}

#[tokio::test]
async fn a_data_directory_serves_what_is_good_and_strict_refuses() {
    let directory = directory();
    let path = directory.path();
    write(path.join("t/1.parquet"), &rows(0..10));
    for (name, content) in [
        ("t/README.md", "text"),
        ("t/1.parquet.crc", "x"),
        ("t/dataset_info.json", "{}"),
        ("t/2.parquet", ""),
        ("t/3.parquet", "garbage"),
        ("t/archive/4.parquet", "garbage"),
        ("bad.parquet", "garbage"),
        ("new.csv", ""),
    ] {
        fs::create_dir_all(path.join(name).parent().unwrap()).unwrap();
        fs::write(path.join(name), content).unwrap();
    }
    fs::create_dir(path.join("empty")).unwrap();
    std::os::unix::fs::symlink("/nowhere", path.join("gone.parquet")).unwrap();
    let engine = open(&data(path)).await;
    assert_eq!(count(&engine, "SELECT count(*) FROM t").await, 10);
    assert_eq!(engine_tables(&engine), ["t"]);
    let served = lines(&engine, "SELECT name, format, columns, files FROM server.tables").await;
    assert_eq!(served, ["t,parquet,2,1"]);
    let skipped = lines(&engine, "SELECT \"table\", file, reason FROM server.skipped ORDER BY file").await;
    for of in ["bad,bad.parquet,", "t,2.parquet,", "t,3.parquet,", "new,new.csv,"] {
        assert!(skipped.iter().any(|line| line.starts_with(of) && line.len() > of.len()), "{of}: {skipped:?}");
    }
    assert!(!skipped.iter().any(|line| line.contains(path.to_str().unwrap())), "{skipped:?}");
    // A query of a table that was skipped says why.
    for (sql, reason) in [("SELECT * FROM bad", "bad.parquet"), ("SELECT * FROM t, new", "new.csv")] {
        let error = query(&engine, sql).await.expect_err(sql);
        assert!(matches!(error, EngineError::Source { .. }) && error.message().contains(reason), "{sql}: {error}");
    }
    // A file that becomes good is served without a restart.
    write(path.join("t/2.parquet"), &rows(10..15));
    write(path.join("new.csv"), &rows(0..3));
    assert_eq!(count(&engine, "SELECT count(*) FROM t").await, 15);
    assert_eq!(count(&engine, "SELECT count(*) FROM new").await, 3);
    let strict = ServerConfig { strict: true, ..data(path) };
    assert!(DataFusionEngine::open(&strict).await.is_err());
}

#[tokio::test]
async fn partitions_that_do_not_exist_have_no_rows() {
    let directory = directory();
    let path = directory.path();
    for name in ["year=2023/a.csv", "year=2024/a.csv", "year=__HIVE_DEFAULT_PARTITION__/a.csv", "year=a%2Fb/a.csv"] {
        write(path.join(name), &rows(0..1));
    }
    let mut config = config(&[("t", path)]);
    let engine = open(&config).await;
    for year in ["1999", "", "../..", "a%2Fb"] {
        assert_eq!(count(&engine, &format!("SELECT count(*) FROM t WHERE year = '{year}'")).await, 0, "{year}");
    }
    assert_eq!(count(&engine, "SELECT count(*) FROM t WHERE year = 'a/b'").await, 1);
    assert_eq!(count(&engine, "SELECT count(*) FROM t WHERE year IS NULL").await, 1);
    assert_eq!(count(&engine, "SELECT count(*) FROM t WHERE year > '2023' AND year < '3'").await, 1);
    fs::remove_dir_all(path.join("year=a%2Fb")).unwrap();
    let typed = TableConfig { types: [("year".to_owned(), "int".parse().unwrap())].into(), ..TableConfig::at(path) };
    config.tables.insert("t".to_owned(), typed);
    assert_eq!(lines(&open(&config).await, "SELECT sum(year) FROM t").await, ["4047"]);
}

#[tokio::test]
async fn text_is_read_exactly_or_refused_with_its_line() {
    let directory = directory();
    let path = directory.path().join("t.csv");
    let served = async |text: &str| {
        fs::write(&path, text).unwrap();
        DataFusionEngine::open(&config(&[("t", &path)])).await
    };
    let mut open_quote = "id,name\n".to_owned() + &"1,n\n".repeat(3000) + "2,\"5 inch\n" + &"3,n\n".repeat(3000);
    let error = query(&served(&open_quote).await.unwrap(), "SELECT count(*) FROM t").await.unwrap_err().message();
    assert!(error.contains("line 3002"), "{error}");
    open_quote.truncate(8);
    let ids = served("zip,n\n01234,00000000000000000007\n").await.unwrap();
    assert_eq!(lines(&ids, "SELECT * FROM t").await, ["01234,00000000000000000007"]);
    let late = served(&format!("a,b\n{}text,1\n", ",1\n".repeat(3000))).await.unwrap();
    assert_eq!(lines(&late, "SELECT count(a), max(a) FROM t").await, ["1,text"]);
    assert!(served("a,a\n1,2\n").await.unwrap_err().to_string().contains("`a`"));
}

#[tokio::test]
async fn a_file_that_changes_under_a_query_ends_it_in_an_error() {
    use futures::StreamExt;
    use thallus_server::engine::{Engine, QueryRequest};
    let directory = directory();
    for extension in ["csv", "json", "arrows", "parquet"] {
        let path = write(directory.path().join(format!("t.{extension}")), &rows(0..50_000));
        let engine = open(&config(&[("t", &path)])).await;
        let request = QueryRequest { batch_rows: Some(100), ..QueryRequest::new("SELECT id FROM t") };
        let mut stream = engine.execute(request).await.unwrap();
        stream.batches.next().await.unwrap().unwrap();
        write(&path, &rows(0..40_000));
        let mut last = None;
        while let Some(item) = stream.batches.next().await {
            last = Some(item);
        }
        assert!(last.unwrap().is_err(), "{extension}");
        assert_eq!(count(&engine, "SELECT count(*) FROM t").await, 40_000, "{extension}");
    }
}

#[tokio::test]
async fn a_query_that_yields_nothing_ends_when_it_is_dropped() {
    use thallus_server::engine::{Engine, QueryRequest};
    let engine = open(&config(&[])).await;
    let series = "generate_series(1, 300000)";
    for sql in [
        format!("SELECT count(*) FROM {series} a JOIN {series} b ON a.value * b.value % 1000003 = -1"),
        format!(
            "SELECT count(*) FROM {series} a JOIN {series} b ON a.value % 2 = b.value % 2 WHERE a.value + b.value < 0"
        ),
        format!("SELECT sum(a.value * b.value) FROM {series} a CROSS JOIN {series} b"),
    ] {
        let stream = engine.execute(QueryRequest::new(sql.clone())).await.unwrap();
        // The joins occupy every thread of the engine; another query is answered all the same.
        assert_eq!(count(&engine, "SELECT 1").await, 1);
        drop(stream);
        settled(&engine).await;
    }
}

#[tokio::test]
async fn known_wrong_answers_of_the_engine_are_right_or_errors() {
    let directory = directory();
    let floats = batch([column("x", Float64Array::from(vec![1.0, f64::NAN, 3.0]))]);
    write(directory.path().join("f.parquet"), &floats);
    write(directory.path().join("s.parquet"), &batch([column("a", StringArray::from(vec!["1", "100", "2"]))]));
    let engine = open(&data(directory.path())).await;
    assert_eq!(count(&engine, "SELECT count(*) FROM f WHERE x > 100").await, 1);
    assert_eq!(lines(&engine, "SELECT max(x) FROM f").await, ["NaN"]);
    assert_eq!(lines(&engine, "SELECT min(CAST(a AS INT)), max(CAST(a AS INT)) FROM s").await, ["1,100"]);
    let repeated = "WITH s(x) AS (VALUES (0), (1), (2) ORDER BY 1 LIMIT 3), t AS (SELECT * FROM s UNION ALL SELECT * \
                    FROM s UNION ALL SELECT * FROM s) SELECT DISTINCT x FROM t ORDER BY x LIMIT 3";
    assert_eq!(lines(&engine, repeated).await, ["0", "1", "2"]);
    let windowed = "SELECT DISTINCT a, count(*) OVER (PARTITION BY a) AS n FROM s ORDER BY a LIMIT 30";
    assert_eq!(lines(&engine, windowed).await, ["1,1", "100,1", "2,1"]);
    for sql in [
        "SELECT 9223372036854775807 + 1",
        "SELECT x - 9223372036854775807 FROM (VALUES (-9223372036854775807)) t(x)",
        "SELECT value * 10000000000 FROM generate_series(1, 10000000000, 1000000000)",
        "SELECT CAST(32767 AS SMALLINT) + CAST(2 AS SMALLINT)",
    ] {
        let error = query(&engine, sql).await.expect_err(sql).message();
        assert!(error.to_lowercase().contains("overflow"), "{sql}: {error}");
    }
    assert_eq!(lines(&engine, "SELECT 1 + 2 * 3 - 4, 'a' || 1 || NULL IS NULL, 'a' || 1").await, ["3,true,a1"]);
}

#[tokio::test]
async fn a_sum_is_exact_or_refused() {
    let engine = open(&config(&[])).await;
    let most = "9223372036854775807";
    let rows = |values: &str| format!("(SELECT * FROM (VALUES {values}) v(x, g))");
    // In each of these the order of the additions could go beyond the type, the sum does not.
    let fits = rows(&format!("({most}, 1), (1, 1), (-1, 1), (NULL, 2)"));
    let sums = format!("SELECT sum(x), sum(DISTINCT x) FROM {fits}");
    assert_eq!(lines(&engine, &sums).await, [format!("{most},{most}")]);
    let halves =
        "SELECT sum(x), sum(arrow_cast(-x, 'UInt64') + 1) FROM (VALUES (-1), (-4294967296), (-4294967297)) v(x)";
    assert_eq!(lines(&engine, halves).await, ["-8589934594,8589934597"]);
    let grouped = format!("SELECT g, sum(x), sum(x) FILTER (WHERE x > 1) FROM {fits} GROUP BY g ORDER BY g");
    assert_eq!(lines(&engine, &grouped).await, [format!("1,{most},{most}"), "2,~,~".to_owned()]);
    let window = "SELECT sum(x) OVER (ORDER BY x ROWS BETWEEN 1 PRECEDING AND CURRENT ROW) FROM (VALUES (1), (2), \
                  (4)) v(x) ORDER BY 1";
    assert_eq!(lines(&engine, window).await, ["1", "3", "6"]);
    let distinct = window.replace("sum(x)", "sum(DISTINCT x)").replace("(4)", "(2)");
    assert_eq!(lines(&engine, &distinct).await, ["1", "2", "3"]);
    let decimals = |value: &str, to: &str| format!("SELECT sum(CAST({value} AS {to})) FROM generate_series(1, 20)");
    assert_eq!(lines(&engine, &decimals("1.25", "DECIMAL(38, 2)")).await, ["25.00"]);
    assert_eq!(lines(&engine, &decimals("-1.5", "DECIMAL(60, 2)")).await, ["-30.00"]);
    assert_eq!(lines(&engine, "SELECT sum(x) FROM (VALUES (1)) v(x) WHERE x > 1").await, ["~"]);
    let wide = "90000000000000000000000000000000000000";
    for sql in [
        format!("SELECT sum(x) FROM (VALUES ({most}), (1)) v(x)"),
        format!("SELECT sum(DISTINCT x) FROM (VALUES ({most}), (1)) v(x)"),
        format!("SELECT g, sum(x) FROM (VALUES ({most}, 1), (1, 1)) v(x, g) GROUP BY g"),
        format!("SELECT sum(x) OVER (ORDER BY x) FROM (VALUES ({most}), (1)) v(x)"),
        "SELECT sum(arrow_cast(value, 'UInt64') + 18446744073709551610) FROM generate_series(1, 2)".to_owned(),
        "SELECT sum(arrow_cast(9223372036854775807, 'Duration(Second)')) FROM generate_series(1, 2)".to_owned(),
        "SELECT sum(arrow_cast(arrow_cast(999999999, 'Decimal128(9, 0)'), 'Decimal32(9, 0)')) FROM \
         generate_series(1, 5)"
            .to_owned(),
        decimals(wide, "DECIMAL(38, 0)"),
    ] {
        let error = query(&engine, &sql).await.expect_err(&sql).message();
        assert!(error.contains("beyond its type"), "{sql}: {error}");
    }
    settled(&engine).await;
}

#[tokio::test]
async fn a_function_refuses_a_result_beyond_the_bound() {
    let engine = open(&config(&[])).await;
    for sql in [
        "SELECT length(rpad('a', 2000000000, 'b'))",
        "SELECT length(repeat('a', 2147483647) || repeat('a', 2147483647))",
        "SELECT length(replace(repeat('a', 1000000), 'a', repeat('b', 5000)))",
        "SELECT length(concat_ws(repeat('x', 200000000), 'a', 'b', 'c', 'd', 'e'))",
        "SELECT array_length(array_repeat('x', 2000000000))",
        "SELECT array_length(array_resize([1], 2000000000, 0))",
        "SELECT array_length(generate_series(1, 2000000000))",
        "SELECT max(octet_length(concat(repeat('x', 100000), value::text))) FROM generate_series(1, 30000)",
    ] {
        let error = query(&engine, sql).await.expect_err(sql);
        assert_eq!(error.kind(), EngineErrorKind::ResourcesExhausted, "{sql}: {error}");
    }
    assert_eq!(lines(&engine, "SELECT length(repeat('ab', 1000)), concat('a', NULL, 1)").await, ["2000,a1"]);
}

#[tokio::test]
async fn a_table_has_the_capitals_of_its_file_and_is_found_in_any_case() {
    let directory = directory();
    write(directory.path().join("Orders.csv"), &rows(0..3));
    write(directory.path().join("items.parquet"), &rows(0..5));
    let engine = open(&data(directory.path())).await;
    assert_eq!(engine_tables(&engine), ["Orders", "items"]);
    for name in ["Orders", "orders", "ORDERS", "\"Orders\"", "public.Orders"] {
        assert_eq!(count(&engine, &format!("SELECT count(*) FROM {name}")).await, 3, "{name}");
    }
    assert_eq!(count(&engine, "SELECT max(Orders.id) + max(orders.id) FROM Orders").await, 4);
    for statement in ["DESCRIBE Orders", "SHOW COLUMNS FROM Orders", "SHOW COLUMNS FROM \"Orders\""] {
        assert_eq!(query(&engine, statement).await.unwrap().num_rows(), 2, "{statement}");
    }
    let missing = query(&engine, "SELECT * FROM \"ORDERS\"").await.unwrap_err();
    assert!(missing.message().contains("known tables: Orders, items"), "{missing}");

    // A second table that differs in case, which appears while the engine runs, and is known from its first query on.
    write(directory.path().join("orders.json"), &rows(0..7));
    assert_eq!(count(&engine, "SELECT count(*) FROM \"Orders\"").await, 3);
    assert_eq!(count(&engine, "SELECT count(*) FROM \"orders\"").await, 7);
    for sql in ["SELECT * FROM Orders", "SELECT * FROM orders", "SHOW COLUMNS FROM orders"] {
        let ambiguous = query(&engine, sql).await.unwrap_err();
        assert!(ambiguous.message().contains("\"Orders\" and \"orders\""), "{sql}: {ambiguous}");
    }
    assert_eq!(query(&engine, "SHOW COLUMNS FROM \"orders\"").await.unwrap().num_rows(), 2);
}

/// Arrow's functions do not know the zone of ISO 8601.
#[tokio::test]
async fn the_time_zone_z_is_utc() {
    let directory = directory();
    for extension in ["parquet", "arrow", "arrows"] {
        let times = TimestampMicrosecondArray::from(vec![0, 1_700_000_000_000_000]).with_timezone("Z");
        write(directory.path().join(format!("t_{extension}.{extension}")), &batch([column("at", times)]));
    }
    let engine = open(&data(directory.path())).await;
    for table in engine_tables(&engine) {
        let sql = format!("SELECT at + INTERVAL '1 day', date_part('hour', at) FROM {table} ORDER BY at");
        assert_eq!(lines(&engine, &sql).await, ["1970-01-02T00:00:00Z,0", "2023-11-15T22:13:20Z,22"], "{table}");
    }
}

/// The output of a projection is in no memory pool of DataFusion.
#[tokio::test]
async fn large_values_are_counted() {
    let mut config = config(&[]);
    config.engine.memory_limit = Some(ByteSize::mib(64));
    let engine = open(&config).await;
    for sql in [
        "SELECT value, repeat('x', 20000000) FROM generate_series(1, 60)",
        "SELECT value, repeat('x', 900000) FROM generate_series(1, 300)",
        "SELECT CASE WHEN value > 3 THEN repeat('x', 20000000) ELSE 'y' END FROM generate_series(1, 60)",
        "SELECT repeat('xy', 100000000)",
        "SELECT range(0, 1000) FROM generate_series(1, 20000)",
    ] {
        let error = query(&engine, sql).await.expect_err(sql);
        assert_eq!(error.kind(), EngineErrorKind::ResourcesExhausted, "{sql}: {error}");
        assert!(error.message().contains("engine.memory_limit"), "{sql}: {error}");
    }
    // A result that fits holds no memory once its query has ended.
    for _ in 0..20 {
        let rows = query(&engine, "SELECT repeat('xy', 5000000) AS r FROM generate_series(1, 2)").await.unwrap();
        assert_eq!(rows.num_rows(), 2);
    }
}
