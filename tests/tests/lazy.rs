//! `thallus query --lazy` against a real server, over shared memory and inline.

use std::collections::BTreeMap;

use tempfile::TempDir;
use thallus_tests::cli::{Finished, thallus};
use thallus_tests::server::TestServer;
use thallus_tests::tpch::{Format, generate};

/// A server of TPC-H at a fiftieth of scale factor 1: 120 000 line items, 16 columns.
fn server() -> (TempDir, TestServer) {
    let data = tempfile::tempdir().unwrap();
    generate(data.path(), 0.02, Format::Parquet).unwrap();
    let server = TestServer::start(["--data", data.path().to_str().unwrap()]);
    (data, server)
}

const ALL: &str = "SELECT * FROM lineitem ORDER BY l_orderkey, l_linenumber";

fn query(url: &str, args: &[&str]) -> Finished {
    thallus(["query", url, ALL, "--batch-rows", "8192", "--stats=json"].iter().chain(args))
}

fn well(url: &str, args: &[&str]) -> (String, BTreeMap<String, serde_json::Value>) {
    let Finished { code, stdout, stderr, .. } = query(url, args);
    assert_eq!(code, Some(0), "{args:?}: {stderr}");
    let stats = stderr.lines().find(|line| line.starts_with('{')).unwrap_or_else(|| panic!("no figures: {stderr}"));
    (stdout, serde_json::from_str(stats).unwrap())
}

fn number(stats: &BTreeMap<String, serde_json::Value>, name: &str) -> u64 {
    stats[name].as_u64().unwrap_or_else(|| panic!("{name} in {stats:?}"))
}

#[test]
fn some_columns_of_a_result_are_the_same_whether_read_lazily_or_chosen_in_the_query() {
    let (_data, server) = server();
    for (options, lent) in [("require_fabric=true", true), ("fabric=none", false)] {
        let url = server.url(options);
        let sql = "SELECT l_shipmode, l_orderkey FROM lineitem ORDER BY l_orderkey, l_linenumber";
        let chosen = thallus(["query", &url, sql, "--format", "csv"]);
        let (lazy, stats) = well(&url, &["--lazy", "--columns", "l_shipmode,l_orderkey", "--format", "csv"]);
        assert!(lazy == chosen.stdout, "{} bytes against {}", lazy.len(), chosen.stdout.len());
        assert_eq!(stats["complete"], true);
        if lent {
            // Two columns of sixteen, without the long comments.
            let (offered, read) = (number(&stats, "bytes_offered"), number(&stats, "bytes_lent"));
            assert!(read * 5 < offered, "{read} of {offered}");
        } else {
            assert_eq!((number(&stats, "bytes_offered"), number(&stats, "batches_lent")), (0, 0));
        }
    }
}

#[test]
fn some_rows_are_those_of_the_whole_and_the_query_stops_after_the_last() {
    let (_data, server) = server();
    let url = server.url("require_fabric=true");
    let (whole, _) = well(&url, &["--format", "csv"]);
    let whole: Vec<_> = whole.lines().collect();
    assert!(whole.len() > 100_000);
    for (range, from, to) in [("5", 0, 5), ("8000..8400", 8000, 8400), ("100000..", 100_000, whole.len() - 1)] {
        let (some, stats) = well(&url, &["--lazy", "--rows", range, "--format", "csv"]);
        let some: Vec<_> = some.lines().collect();
        assert_eq!(some[0], whole[0]);
        assert!(some[1..] == whole[1 + from..1 + to], "{range}: {} rows", some.len() - 1);
        assert!(number(&stats, "bytes_lent") < number(&stats, "bytes_offered"), "{stats:?}");
    }
    let (_, stats) = well(&url, &["--lazy", "--rows", "5", "--columns", "l_orderkey", "--format", "csv"]);
    assert_eq!(number(&stats, "bytes_lent"), 5 * 8, "{stats:?}");
}

#[test]
fn only_the_shown_rows_of_a_table_are_read() {
    let (_data, server) = server();
    let url = server.url("require_fabric=true");
    let (eager, _) = well(&url, &["--max-rows", "20"]);
    let (lazy, stats) = well(&url, &["--lazy", "--max-rows", "20"]);
    assert_eq!(lazy, eager, "both show the same table, with the same count of omitted rows");
    assert!(lazy.contains("20 rows shown, 120,") || lazy.contains("20 rows shown, 11"), "{lazy}");
    let (offered, read) = (number(&stats, "bytes_offered"), number(&stats, "bytes_lent"));
    assert!(read < 20_000 && offered > 5_000_000, "{read} of {offered}");
}

#[test]
fn the_saving_is_reported() {
    let (_data, server) = server();
    let url = server.url("require_fabric=true");
    let finished = thallus(["query", &url, ALL, "--lazy", "--stats", "--max-rows", "3"]);
    let line = finished.stderr.lines().find(|line| line.starts_with("lazy ")).unwrap_or_default();
    assert!(line.contains("on offer") && line.contains("99.") || line.contains("100.0% saved"), "{}", finished.stderr);
}

#[test]
fn columns_that_are_not_there_are_named_with_those_that_are() {
    let (_data, server) = server();
    let finished = query(&server.url(""), &["--lazy", "--columns", "l_orderkey,l_price"]);
    assert_eq!((finished.code, finished.stdout.as_str()), (Some(2), ""));
    assert!(finished.stderr.contains("error: the result has no column \"l_price\""), "{}", finished.stderr);
    assert!(finished.stderr.contains("l_extendedprice"), "{}", finished.stderr);
}
