//! Once memory is warm, lending a batch needs no copy, no registration, no new key and no page fault.

use futures::TryStreamExt;
use thallus_client::{Client, LendFrom, QueryOptions, TransferReport};
use thallus_tests::block_on;
use thallus_tests::server::TestServer;
use thallus_tests::tpch::{Format, generate};

/// Number of successive results that must cost nothing but the reads.
const IN_A_ROW: usize = 5;
/// Most results before that. The heap grows, threads start, and regions are announced meanwhile.
const WARMING: usize = 60;

async fn run(client: &Client, sql: &str) -> TransferReport {
    let options = QueryOptions::new().with_lend_from(LendFrom::Bytes(0));
    let mut result = client.query_with(sql, options).await.unwrap();
    while result.try_next().await.unwrap().is_some() {}
    result.report()
}

#[test]
fn in_steady_state_lending_costs_nothing() {
    for format in [Format::Parquet, Format::Arrow] {
        steady(format);
    }
}

fn steady(format: Format) {
    let tables = tempfile::tempdir().unwrap();
    generate(tables.path(), 0.05, format).unwrap();
    let server = TestServer::start(["--data".as_ref(), tables.path().as_os_str()]);
    block_on(async {
        let client = Client::connect(&server.url("require_fabric=true")).await.unwrap();
        for sql in [
            // Batches of a scan: decimals, dates, strings as views of decoded pages. Then a computed column.
            "SELECT * FROM lineitem",
            "SELECT l_orderkey, l_extendedprice * (1 - l_discount) AS price, l_comment FROM lineitem",
        ] {
            let mut in_a_row = 0;
            for round in 0.. {
                let report = run(&client, sql).await;
                assert!(report.batches_lent > 0 && report.batches_inline == 0, "{report}");
                let server = report.server.unwrap();
                let spent = [server.bytes_copied, server.registrations, server.regions, server.page_faults];
                let spent = (spent, report.registrations);
                in_a_row = if spent == ([0; 4], 0) { in_a_row + 1 } else { 0 };
                if in_a_row == IN_A_ROW {
                    println!("{format:?}: {sql}: steady after {} results", round + 1 - IN_A_ROW);
                    break;
                }
                assert!(
                    round < WARMING,
                    "{format:?}: {sql}: the last of {WARMING} results still cost (bytes copied, registrations, \
                     regions, page faults at the server; registrations at the client) {spent:?}\n{report}"
                );
            }
        }
    });
    server.stop();
}
