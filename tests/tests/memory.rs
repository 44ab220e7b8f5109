//! A result of 10 GB through a server and a client that each stay below 1 GB.

use std::time::{Duration, Instant};

use arrow::array::AsArray;
use arrow::datatypes::Int64Type;
use futures::TryStreamExt;
use thallus_client::{Carrier, Client, LendFrom, QueryOptions};
use thallus_tests::cli::Cli;
use thallus_tests::server::TestServer;
use thallus_tests::{PATIENCE, block_on, usage};

/// Number of columns of 8 bytes.
const COLUMNS: i64 = 32;
const ROWS: i64 = 40_000_000;
const GB: u64 = 1_000_000_000;
const LIMIT: u64 = GB;

/// A query for `value` and `value` plus each of 31 constants.
fn query(rows: i64) -> String {
    let columns: Vec<_> = (1..COLUMNS).map(|n| format!("value + {n} AS c{n}")).collect();
    format!("SELECT value AS c0, {} FROM generate_series(1, {rows})", columns.join(", "))
}

// One test: this process is the client whose memory is measured, and a second test would add to it.
#[test]
fn ten_gigabytes_stream_through_less_than_one_on_either_side() {
    let server = TestServer::start::<&str>([]);
    let began = Instant::now();
    let report = block_on(async {
        let client = Client::connect(&server.url("require_fabric=true")).await.unwrap();
        let options = QueryOptions::new().with_lend_from(LendFrom::Bytes(0));
        let mut result = client.query_with(&query(ROWS), options).await.unwrap();
        let mut sums = [0_i64; COLUMNS as usize];
        while let Some(batch) = result.try_next().await.unwrap() {
            for (sum, column) in sums.iter_mut().zip(batch.columns()) {
                *sum += column.as_primitive::<Int64Type>().values().iter().sum::<i64>();
            }
        }
        // Exact sums: they show a value that is missing, repeated or wrong.
        let expected: Vec<_> = (0..COLUMNS).map(|n| ROWS * (ROWS + 1) / 2 + n * ROWS).collect();
        assert_eq!(sums.as_slice(), expected);
        result.report()
    });
    let took = began.elapsed().as_secs_f64();
    let (server_peak, client_peak) = (usage::peak_rss(server.id()), usage::peak_rss(std::process::id()));
    println!("{report}");
    println!("{:.2} GB in {took:.1} s", report.bytes() as f64 / GB as f64);
    println!("peak resident: server {} MB, client {} MB", server_peak / 1_000_000, client_peak / 1_000_000);
    assert!(
        matches!(&report.carrier, Carrier::OneSided { fabric, .. } if *fabric == thallus_tests::fabric()),
        "{report}"
    );
    assert_eq!((report.rows, report.batches_inline), (ROWS as u64, 0), "{report}");
    assert!(report.bytes_lent >= 10 * GB, "{report}");
    assert!(server_peak < LIMIT, "the server had {server_peak} bytes resident");
    assert!(client_peak < LIMIT, "the client had {client_peak} bytes resident");

    // The command line with a tenth of the rows, as Arrow to /dev/null: its memory depends on the window, not on the
    // result.
    let arguments = ["query", &server.url(""), &query(ROWS / 10), "--format", "arrow", "-o", "/dev/null"];
    let mut cli = Cli::start(arguments);
    let mut peak = 0;
    while cli.process().exit_status().is_none() {
        peak = peak.max(usage::peak_rss(cli.process().id()));
        std::thread::sleep(Duration::from_millis(20));
    }
    let finished = cli.finish(PATIENCE);
    assert_eq!(finished.code, Some(0), "{}", finished.stderr);
    println!("peak resident of the program for 1 GB: {} MB", peak / 1_000_000);
    assert!((1..LIMIT).contains(&peak), "the program had {peak} bytes resident");
    assert!(usage::peak_rss(server.id()) < LIMIT);
    server.stop();
}
