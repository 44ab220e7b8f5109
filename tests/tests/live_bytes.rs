//! Lent bytes of TPC-H tables in Parquet files: the bytes that the rows use, and not the whole buffers of the arrays.
//!
//! DataFusion's scans yield views into whole decoded pages, which successive batches share. Each batch of a sort has
//! views into the whole input of the sort.

use std::collections::BTreeMap;
use std::path::Path;

use arrow::array::{Array, AsArray, ByteView};
use arrow::datatypes::DataType;
use futures::TryStreamExt;
use thallus_protocol::layout::{Plan, describe_compact};
use thallus_server::config::ServerConfig;
use thallus_server::engine::datafusion::DataFusionEngine;
use thallus_server::engine::{Engine, QueryRequest};
use thallus_tests::tpch::{Format, TABLES, generate};

/// Bytes of a query's result.
#[derive(Clone, Copy, Debug, Default)]
struct Bytes {
    /// Sizes of the buffers that the arrays refer to.
    attached: u64,
    /// Bytes that the rows use; each byte counts once per batch.
    live: u64,
    /// Bytes lent.
    lent: u64,
    /// Lent bytes that were copied first.
    copied: u64,
}

impl Bytes {
    fn ratio(&self) -> f64 {
        self.lent as f64 / self.live as f64
    }
}

impl std::ops::AddAssign for Bytes {
    fn add_assign(&mut self, other: Bytes) {
        self.attached += other.attached;
        self.live += other.live;
        self.lent += other.lent;
        self.copied += other.copied;
    }
}

/// Bytes of an array that its elements use: values, views, bitmap, and the strings that are not inside their views.
fn live(array: &dyn Array) -> u64 {
    let validity = if array.null_count() > 0 { array.len().div_ceil(8) } else { 0 };
    let DataType::Utf8View = array.data_type() else {
        let width = array.data_type().primitive_width().expect("TPC-H has strings, numbers and dates");
        return (validity + width * array.len()) as u64;
    };
    let mut strings: BTreeMap<u32, Vec<(u64, u64)>> = BTreeMap::new();
    for view in array.as_string_view().views().iter().map(|view| ByteView::from(*view)).filter(|v| v.length > 12) {
        let start = u64::from(view.offset);
        strings.entry(view.buffer_index).or_default().push((start, start + u64::from(view.length)));
    }
    let mut sum = (validity + 16 * array.len()) as u64;
    for mut strings in strings.into_values() {
        strings.sort_unstable();
        let mut end = 0;
        for (from, to) in strings {
            sum += to.saturating_sub(from.max(end));
            end = end.max(to);
        }
    }
    sum
}

async fn measure(engine: &DataFusionEngine, sql: &str) -> Bytes {
    let stream = engine.execute(QueryRequest { batch_rows: None, ..QueryRequest::new(sql.to_owned()) }).await.unwrap();
    let mut batches = stream.batches;
    let mut bytes = Bytes::default();
    while let Some(batch) = batches.try_next().await.unwrap() {
        let described = describe_compact(&Plan::new(&batch.schema()).unwrap(), &batch).unwrap();
        assert_eq!(described.descriptor.live_bytes(), described.buffers.iter().map(|b| b.len() as u64).sum::<u64>());
        bytes += Bytes {
            attached: batch.columns().iter().map(|column| column.get_buffer_memory_size() as u64).sum(),
            live: batch.columns().iter().map(|column| live(column)).sum(),
            lent: described.descriptor.live_bytes(),
            copied: described.copied,
        };
    }
    println!("{sql}: {bytes:?}, {:.3}", bytes.ratio());
    bytes
}

async fn engine(data: &Path) -> DataFusionEngine {
    generate(data, 0.05, Format::Parquet).unwrap();
    DataFusionEngine::open(&ServerConfig { data: vec![data.to_owned()], ..ServerConfig::default() }).await.unwrap()
}

#[tokio::test]
async fn a_scan_lends_its_live_bytes_without_a_copy() {
    let data = tempfile::tempdir().unwrap();
    let engine = engine(data.path()).await;
    let mut all = Bytes::default();
    for table in TABLES {
        let bytes = measure(&engine, &format!("SELECT * FROM {table}")).await;
        assert_eq!(bytes.copied, 0, "{table}");
        // A page in plain encoding has a length of four bytes before each string, and also has the strings that fit
        // into a view. In tables of short strings this is more than one byte in twenty.
        let most = if ["lineitem", "orders", "partsupp"].contains(&table) { 1.05 } else { 1.10 };
        assert!(bytes.ratio() <= most, "{table}: {}", bytes.ratio());
        all += bytes;
    }
    assert!(all.ratio() <= 1.05, "{}", all.ratio());
    assert!(all.attached as f64 > 1.05 * all.live as f64, "no buffer holds unused bytes: this test shows nothing");
}

#[tokio::test]
async fn live_bytes_that_lie_scattered_are_lent_too() {
    let data = tempfile::tempdir().unwrap();
    let engine = engine(data.path()).await;
    for sql in [
        "SELECT * FROM lineitem ORDER BY l_extendedprice, l_orderkey, l_linenumber",
        "SELECT * FROM lineitem ORDER BY l_extendedprice, l_orderkey, l_linenumber LIMIT 1000",
        "SELECT * FROM lineitem LIMIT 100 OFFSET 100000",
        "SELECT * FROM orders WHERE o_custkey % 10 = 0",
        "SELECT * FROM lineitem, orders WHERE l_orderkey = o_orderkey AND o_orderpriority = '1-URGENT'",
    ] {
        let bytes = measure(&engine, sql).await;
        // Copied are strings that lie side by side. A string that several rows share is copied several times.
        assert!(bytes.ratio() <= 1.25, "{sql}: {}", bytes.ratio());
        assert!(bytes.attached as f64 > 1.25 * bytes.live as f64, "{sql}: the buffers hold no unused bytes");
    }
}
