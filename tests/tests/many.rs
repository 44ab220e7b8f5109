//! A hundred clients at once, and a hundred idle ones.

use std::time::{Duration, Instant};

use arrow::array::{AsArray, RecordBatch};
use arrow::datatypes::Int64Type;
use futures::future::{join_all, try_join_all};
use futures::{StreamExt, TryStreamExt};
use thallus_client::{Carrier, Client, TransferReport};
use thallus_fabric::raise_descriptor_limit;
use thallus_tests::block_on;
use thallus_tests::cli::Cli;
use thallus_tests::server::TestServer;
use thallus_tests::{PATIENCE, usage};

const CLIENTS: usize = 100;
const PROGRAMS: usize = 10;

/// A query that only client `n` makes, and its number of rows: between one small batch and several large ones.
fn query(n: usize) -> (String, usize) {
    let rows = 10 + n * n * 40;
    (format!("SELECT value, value * {n} AS product FROM generate_series(1, {rows})"), rows)
}

/// Checks a result: every value once, with its product.
fn check(n: usize, rows: usize, batches: &[RecordBatch]) {
    let mut seen = vec![false; rows + 1];
    for batch in batches {
        let values = batch.column_by_name("value").unwrap().as_primitive::<Int64Type>().values();
        let products = batch.column_by_name("product").unwrap().as_primitive::<Int64Type>().values();
        for (value, product) in values.iter().zip(products) {
            assert_eq!(*product, value * n as i64, "client {n}");
            let seen = &mut seen[usize::try_from(*value).unwrap()];
            assert!(!std::mem::replace(seen, true), "client {n} got {value} twice");
        }
    }
    assert_eq!(seen.iter().filter(|seen| **seen).count(), rows, "client {n}");
}

async fn run(client: &Client, n: usize) -> TransferReport {
    let (sql, rows) = query(n);
    let mut result = client.query(&sql).await.unwrap();
    let batches: Vec<_> = result.by_ref().try_collect().await.unwrap();
    check(n, rows, &batches);
    result.report()
}

#[test]
fn a_hundred_clients_at_once_get_each_its_own_result_and_idle_ones_cost_nothing() {
    // This process has as many ends of connections as the server, which raises its limit at start.
    raise_descriptor_limit().unwrap();
    let server = TestServer::start::<&str>([]);
    let before = usage::rss(server.id());
    let url = server.url("");
    block_on(async {
        let began = Instant::now();
        let clients = try_join_all((0..CLIENTS).map(|_| Client::connect(&url))).await.unwrap();
        println!("{CLIENTS} clients connected in {:.2} s", began.elapsed().as_secs_f64());
        assert_eq!(server.connections(), CLIENTS);
        let began = Instant::now();
        let reports = join_all(clients.iter().enumerate().map(|(n, client)| run(client, n))).await;
        let bytes: u64 = reports.iter().map(TransferReport::bytes).sum();
        println!("{CLIENTS} results, {} MiB, in {:.2} s", bytes >> 20, began.elapsed().as_secs_f64());
        for (n, report) in reports.iter().enumerate() {
            let one_sided = matches!(report.carrier, Carrier::OneSided { .. });
            assert!(report.complete && one_sided == (report.batches_lent > 0), "client {n}: {report}");
            // Half a megabyte and more is always lent.
            assert!(report.batches_lent > 0 || n < 30, "client {n}: {report}");
        }

        // The queries are over. Idle connections should cost nothing.
        tokio::time::sleep(Duration::from_millis(500)).await;
        let (server_cpu, own_cpu, began) = (usage::cpu(server.id()), usage::cpu(std::process::id()), Instant::now());
        tokio::time::sleep(Duration::from_secs(3)).await;
        let period = began.elapsed().as_secs_f64();
        let share = |cpu: Duration| 100.0 * cpu.as_secs_f64() / period;
        let server_share = share(usage::cpu(server.id()) - server_cpu);
        println!("with {CLIENTS} idle connections the server takes {server_share:.2}% of a core");
        println!("this process, with the other ends, takes {:.2}%", share(usage::cpu(std::process::id()) - own_cpu));
        println!(
            "the server has {} descriptors, {} MiB shared memory, {} MiB resident (before any client: {})",
            usage::descriptors(server.id()),
            usage::shared(server.id()) >> 20,
            usage::rss(server.id()) >> 20,
            before >> 20
        );
        assert!(server_share < 2.0, "an idle server takes {server_share:.2}% of a core");
        assert_eq!(server.connections(), CLIENTS);
        join_all(clients.into_iter().map(Client::close)).await;
    });
    server.wait_until_idle();
    server.stop();
}

#[test]
fn programs_at_once_get_each_its_own_result() {
    let server = TestServer::start::<&str>([]);
    let began = Instant::now();
    let running: Vec<_> = (0..PROGRAMS)
        .map(|n| {
            let sql = query(n * 10).0;
            (n * 10, Cli::start(["query", &server.url(""), &sql, "--format", "csv", "--stats=json"]))
        })
        .collect();
    for (n, cli) in running {
        let finished = cli.finish(PATIENCE);
        assert_eq!(finished.code, Some(0), "{}", finished.stderr);
        let rows = query(n).1;
        let lines = finished.stdout.lines();
        let mut numbers: Vec<(i64, i64)> = lines
            .skip(1)
            .map(|line| {
                let (value, product) = line.split_once(',').unwrap();
                (value.parse().unwrap(), product.parse().unwrap())
            })
            .collect();
        numbers.sort_unstable();
        let expected = (1..=rows as i64).map(|value| (value, value * n as i64));
        assert!(numbers.into_iter().eq(expected), "program {n}");
        let stats: serde_json::Value = serde_json::from_str(finished.stderr.trim()).unwrap();
        // The report names a fabric only if the fabric carried batches.
        let lent = stats["batches_lent"].as_u64().unwrap() > 0;
        let fabric = if lent { thallus_tests::fabric().into() } else { serde_json::Value::Null };
        assert_eq!((&stats["rows"], &stats["fabric"]), (&rows.into(), &fabric), "{stats}");
        assert_eq!(stats["fallback"], serde_json::Value::Null, "{stats}");
    }
    println!("{PROGRAMS} programs at once took {:.2} s", began.elapsed().as_secs_f64());
    server.wait_until_idle();
    server.stop();
}
