//! The 22 TPC-H queries through a real server and client: lent, by the client's choice, inline, mapped, and in
//! partitions. Each result is compared, value for value, with DataFusion run in this process over the same files.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use arrow::array::RecordBatch;
use arrow::compute::concat_batches;
use arrow::datatypes::SchemaRef;
use arrow::row::{RowConverter, SortField};
use arrow::util::pretty::pretty_format_batches;
use datafusion::prelude::{ParquetReadOptions, SessionConfig, SessionContext};
use futures::{StreamExt, TryStreamExt};
use thallus_client::{Access, Carrier, Client, LendFrom, QueryOptions, TransferReport};
use thallus_tests::server::TestServer;
use thallus_tests::tpch::{Format, TABLES, generate, queries};
use thallus_tests::{block_on, fabric};

const SCALE: f64 = 0.05;
const PARTITIONS: usize = 2;
const BATCH_ROWS: usize = 65_536;

/// The ways of a result: the sizes that are lent, and the access.
const WAYS: [(LendFrom, Access); 4] = [
    (LendFrom::Bytes(0), Access::Read),
    (LendFrom::Auto, Access::Read),
    (LendFrom::Never, Access::Read),
    (LendFrom::Auto, Access::Map),
];

/// DataFusion in this process, configured as in the server.
async fn reference(data: &Path) -> SessionContext {
    let config = SessionConfig::new().with_target_partitions(PARTITIONS).with_batch_size(BATCH_ROWS);
    let context = SessionContext::new_with_config(config);
    for table in TABLES {
        let path = data.join(format!("{table}.parquet"));
        context.register_parquet(table, path.to_str().unwrap(), ParquetReadOptions::default()).await.unwrap();
    }
    context
}

async fn expected(context: &SessionContext, sql: &str) -> RecordBatch {
    let stream = context.sql(sql).await.unwrap().execute_stream().await.unwrap();
    let schema = stream.schema();
    let batches: Vec<_> = stream.try_collect().await.unwrap();
    concat_batches(&schema, &batches).unwrap()
}

async fn received(client: &Client, sql: &str, options: QueryOptions) -> (SchemaRef, RecordBatch, TransferReport) {
    let mut result = client.query_with(sql, options).await.unwrap();
    let schema = result.schema();
    let batches: Vec<_> = result.by_ref().try_collect().await.unwrap();
    (schema.clone(), concat_batches(&schema, &batches).unwrap(), result.report())
}

/// Columns of a query's last ORDER BY. Rows that are equal in these columns may come in any order.
fn ordered_by(sql: &str) -> Vec<String> {
    let sql = sql.to_lowercase();
    let Some((_, keys)) = sql.rsplit_once("order by") else { return Vec::new() };
    let keys = keys.split("limit").next().unwrap_or_default().trim().trim_end_matches(';');
    let column = |key: &str| key.split_whitespace().next().unwrap().rsplit('.').next().unwrap().to_owned();
    keys.split(',').map(column).collect()
}

/// Rows in an encoding that preserves equality, sorted.
fn sorted_rows(batch: &RecordBatch) -> Vec<Vec<u8>> {
    let fields = batch.schema().fields().iter().map(|field| SortField::new(field.data_type().clone())).collect();
    let converter = RowConverter::new(fields).unwrap();
    let rows = converter.convert_columns(batch.columns()).unwrap();
    let mut rows: Vec<_> = rows.iter().map(|row| row.as_ref().to_vec()).collect();
    rows.sort_unstable();
    rows
}

fn assert_same(what: &str, sql: &str, got: &RecordBatch, expected: &RecordBatch) {
    let show = |batch: &RecordBatch| {
        let head = batch.slice(0, batch.num_rows().min(20));
        pretty_format_batches(&[head]).unwrap().to_string()
    };
    let both = || format!("{what}\ngot:\n{}\nexpected:\n{}", show(got), show(expected));
    assert_eq!(got.num_rows(), expected.num_rows(), "{}", both());
    if got == expected {
        return;
    }
    for key in ordered_by(sql) {
        let (got_keys, expected_keys) = (got.column_by_name(&key), expected.column_by_name(&key));
        let same = got_keys.expect("ordered by an output column").as_ref() == expected_keys.unwrap().as_ref();
        assert!(same, "the order by {key} differs: {}", both());
    }
    assert!(sorted_rows(got) == sorted_rows(expected), "{}", both());
}

/// Larger batches are always lent with `Auto`, whatever threshold the client measures: 256 KiB of values, and the
/// overhead of Arrow IPC.
const ALWAYS_LENT: u64 = 288 << 10;

/// Checks that a report agrees with the requested way.
fn assert_travelled(what: &str, way: (LendFrom, Access), report: &TransferReport) {
    assert!(report.complete, "{what}: {report}");
    let one_sided = matches!(&report.carrier, Carrier::OneSided { fabric, .. } if *fabric == thallus_tests::fabric());
    match way {
        (LendFrom::Bytes(_), Access::Read) => {
            assert!(one_sided || report.rows == 0, "{what}: {report}");
            assert_eq!(report.batches_inline, 0, "{what}: {report}");
            assert!(report.batches_lent > 0 || report.rows == 0, "{what}: {report}");
            assert!(report.bytes_lent > 0 || report.rows == 0, "{what}: {report}");
        }
        (LendFrom::Auto, Access::Read) => {
            assert!(one_sided || report.batches_lent == 0, "{what}: {report}");
            assert!(report.bytes_inline < ALWAYS_LENT * report.batches_inline.max(1), "{what}: {report}");
        }
        (_, Access::Map) => {
            assert!(one_sided || report.batches_mapped == 0, "{what}: {report}");
            assert_eq!(report.batches_lent, 0, "{what}: {report}");
            assert!(report.bytes_inline < ALWAYS_LENT * report.batches_inline.max(1), "{what}: {report}");
        }
        (LendFrom::Never, Access::Read) => assert_eq!((report.batches_lent, one_sided), (0, false), "{what}: {report}"),
    }
}

#[test]
fn all_queries_equal_datafusion_in_process_by_every_way() {
    let made;
    // Existing tables of any scale, for machines that are slow at generating them.
    let data = match std::env::var_os("THALLUS_TPCH_DATA") {
        Some(path) => PathBuf::from(path),
        None => {
            made = tempfile::tempdir().unwrap();
            generate(made.path(), SCALE, Format::Parquet).unwrap();
            made.path().to_owned()
        }
    };
    let (partitions, rows) = (PARTITIONS.to_string(), BATCH_ROWS.to_string());
    let directory = data.to_str().unwrap();
    let fabric = fabric();
    let server = TestServer::start([
        "--fabric",
        &fabric,
        "--data",
        directory,
        "--partitions",
        &partitions,
        "--batch-rows",
        &rows,
        "--allow-mapped",
    ]);
    // Whole tables too, since the results of the queries are small.
    let mut all: Vec<(&str, &str)> = queries().to_vec();
    all.push(("lineitem", "SELECT * FROM lineitem"));
    all.push(("orders", "SELECT o_orderkey, o_comment, o_orderdate FROM orders WHERE o_orderkey % 3 = 0"));
    let mut time = [Duration::ZERO; WAYS.len()];
    block_on(async {
        let context = reference(&data).await;
        let client = Client::connect(&server.url(&format!("fabric={fabric}&require_fabric=true"))).await.unwrap();
        let shares_memory =
            ["sysv/", "posix/"].iter().any(|name| client.connection().carrier.to_string().contains(name));
        let (mut filled, mut divided) = (0, 0);
        for (name, sql) in &all {
            let expected = expected(&context, sql).await;
            filled += usize::from(expected.num_rows() > 0);
            for (way, time) in WAYS.into_iter().zip(&mut time) {
                // Two ends that share no memory cannot map.
                if way.1 == Access::Map && !shares_memory {
                    continue;
                }
                let what = format!("{name} {way:?}");
                let began = Instant::now();
                let options = QueryOptions::new().with_lend_from(way.0).with_access(way.1);
                let (schema, got, report) = received(&client, sql, options).await;
                *time += began.elapsed();
                assert_eq!(schema, expected.schema(), "{what}");
                assert_same(&what, sql, &got, &expected);
                assert_travelled(&what, way, &report);
                if way.0 == LendFrom::Bytes(0) {
                    println!(
                        "{name}: {} rows, {} batches lent, {} bytes, by {}",
                        report.rows, report.batches_lent, report.bytes_lent, report.carrier
                    );
                }
            }
            for unordered in [false, true] {
                let options = QueryOptions::new().with_partitions(Some(3)).with_unordered(unordered);
                let what = format!("{name} in partitions, unordered: {unordered}");
                let (schema, got, report) = received(&client, sql, options).await;
                assert_eq!(schema, expected.schema(), "{what}");
                assert_same(&what, if unordered { "" } else { sql }, &got, &expected);
                assert!(report.complete && report.partitions.len() == 3, "{what}: {report}");
                let with_rows = report.partitions.iter().filter(|part| part.rows > 0).count();
                println!("{what}: {} rows in {with_rows} partitions", report.rows);
                divided += usize::from(with_rows > 1 && !unordered);
            }
        }
        assert!(divided >= 5, "{divided} of {} results came in several partitions: that tests nothing", all.len());
        assert!(filled >= 20, "{filled} of {} results have rows at this scale: that compares nothing", all.len());
        client.close().await;
    });
    for (way, time) in WAYS.iter().zip(time) {
        println!("all queries, {way:?}: {:.2} s", time.as_secs_f64());
    }
    server.stop();
}

#[test]
fn the_comparison_sees_differences() {
    use arrow::array::{ArrayRef, Float64Array, Int64Array};
    use std::sync::Arc;
    let batch = |keys: [i64; 3], values: [f64; 3]| {
        let keys = Arc::new(Int64Array::from(keys.to_vec())) as ArrayRef;
        RecordBatch::try_from_iter([("k", keys), ("v", Arc::new(Float64Array::from(values.to_vec())) as ArrayRef)])
            .unwrap()
    };
    let expected = batch([1, 2, 2], [0.5, 0.1, 0.2]);
    let by_k = "SELECT k, v FROM t ORDER BY t.k DESC, k\nLIMIT 3;";
    assert_eq!(ordered_by(by_k), ["k", "k"]);
    assert_same("a tie", by_k, &batch([1, 2, 2], [0.5, 0.2, 0.1]), &expected);
    assert_same("no order", "SELECT k, v FROM t", &batch([2, 1, 2], [0.1, 0.5, 0.2]), &expected);
    for (sql, other) in [
        (by_k, batch([2, 1, 2], [0.1, 0.5, 0.2])),
        (by_k, batch([1, 2, 2], [0.5, 0.1, 0.2_f64.next_up()])),
        ("SELECT k, v FROM t", batch([1, 2, 2], [0.1, 0.5, 0.2])),
    ] {
        let compare = std::panic::AssertUnwindSafe(|| assert_same("different", sql, &other, &expected));
        let compared = std::panic::catch_unwind(compare);
        assert!(compared.is_err(), "{other:?}");
    }
}
