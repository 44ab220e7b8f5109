//! Results in partitions between real processes: complete and in order, or one error; and the resources of the other
//! end after one end is killed.

use std::fs;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use arrow::array::AsArray;
use arrow::datatypes::Int64Type;
use futures::{StreamExt, TryStreamExt};
use thallus_client::{Client, ClientError, LendFrom, QueryOptions, ResultStream, StreamCode};
use thallus_tests::cli::{Cli, thallus};
use thallus_tests::process::wait_for;
use thallus_tests::server::TestServer;
use thallus_tests::usage::{self, Orphans};
use thallus_tests::{PATIENCE, block_on};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::AbortHandle;

/// Time limit for the other end to notice the loss.
const SECONDS: Duration = Duration::from_secs(5);

/// A union of three series with `rows` rows each.
fn three_series(rows: u64) -> String {
    let series = |from: u64| format!("SELECT value FROM generate_series({from}, {}, 3)", 3 * rows);
    [1, 2, 3].map(series).join(" UNION ALL ")
}

fn endless() -> String {
    three_series(300_000_000_000_000)
}

fn options(lend_from: LendFrom) -> QueryOptions {
    QueryOptions::new().with_partitions(Some(3)).with_lend_from(lend_from)
}

async fn until_failure(result: &mut ResultStream) -> ClientError {
    loop {
        match result.next().await {
            Some(Ok(_)) => {}
            Some(Err(error)) => return error,
            None => panic!("an endless result has ended"),
        }
    }
}

#[test]
fn the_command_line_merges_in_order_or_does_not_if_unordered() {
    let server = TestServer::start(["--partitions", "3"]);
    let rows = 60_000;
    let sql = format!("SELECT value FROM ({}) ORDER BY value DESC", three_series(rows / 3));
    let expected = || (1..=rows).rev();
    for (extra, url) in
        [(&["--partitions", "3"][..], ""), (&[], "partitions=3"), (&["--partitions", "3", "--unordered"], "")]
    {
        let arguments = ["query", &server.url(url), &sql, "--format", "csv", "--stats=json"];
        let finished = thallus(arguments.iter().chain(extra));
        assert_eq!(finished.code, Some(0), "{}", finished.stderr);
        let mut values: Vec<u64> = finished.stdout.lines().skip(1).map(|line| line.parse().unwrap()).collect();
        if extra.contains(&"--unordered") {
            values.sort_unstable_by_key(|value| std::cmp::Reverse(*value));
        }
        assert!(values.into_iter().eq(expected()), "{extra:?} {url}");
        let stats: serde_json::Value = serde_json::from_str(finished.stderr.trim()).unwrap();
        let parts = stats["partitions"].as_array().unwrap();
        assert_eq!((parts.len(), &stats["rows"]), (3, &rows.into()), "{stats}");
        let carried = |part: &serde_json::Value| part["fabric"] == thallus_tests::fabric();
        assert!(parts.iter().all(carried), "{stats}");
    }
    let refused = thallus(["query", &server.url(""), &sql, "--partitions", "65"]);
    assert_eq!(refused.code, Some(4), "{}", refused.stderr);
    assert!(refused.stderr.contains("allows 1 to 64"), "{}", refused.stderr);
    server.wait_until_idle();
    server.stop();
}

#[test]
fn a_killed_server_is_exit_code_5_and_no_partial_file() {
    let orphans = Orphans::now();
    for lend_from in ["0", "never"] {
        let mut server = TestServer::start(["--partitions", "3"]);
        let directory = tempfile::tempdir().unwrap();
        let out = directory.path().join("out.csv");
        let cli = Cli::start([
            "query",
            &server.url("window=16MiB&partitions=3"),
            &endless(),
            "--lend-from",
            lend_from,
            "-o",
            out.to_str().unwrap(),
        ]);
        wait_for("a part of the result", PATIENCE, || {
            let written = fs::read_dir(directory.path()).unwrap().filter_map(|entry| entry.ok()?.metadata().ok());
            (written.map(|file| file.len()).sum::<u64>() > 1 << 20).then_some(())
        });
        server.wait_for_data_planes(3);
        assert_eq!(server.connections(), 3);
        server.process().kill();
        let killed = Instant::now();
        let client = cli.finish(PATIENCE);
        println!("{lend_from}: the client ended after {:.2} s", killed.elapsed().as_secs_f64());
        assert_eq!(client.code, Some(5), "{lend_from}: {}", client.stderr);
        assert!(killed.elapsed() < SECONDS, "{lend_from}: {:?}", killed.elapsed());
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0, "{lend_from}");
    }
    orphans.wait_until_gone();
}

#[test]
fn a_killed_client_leaves_nothing_behind_at_the_server() {
    let _alone = usage::lock_out_orphan_checks();
    let server = TestServer::start(["--partitions", "3"]);
    for round in 0..3 {
        let directory = tempfile::tempdir().unwrap();
        let out = directory.path().join("out.csv");
        let url = server.url("window=16MiB&partitions=3");
        let mut cli = Cli::start(["query", &url, &endless(), "-o", out.to_str().unwrap()]);
        wait_for("the client's connections", PATIENCE, || (server.connections() == 3).then_some(()));
        std::thread::sleep(Duration::from_millis(100 * round));
        cli.process().kill();
        server.wait_until_idle();
    }
    server.stop();
}

/// A proxy to a server that can cut single connections.
struct Proxy {
    address: String,
    connections: Arc<Mutex<Vec<AbortHandle>>>,
}

impl Proxy {
    async fn to(server: &TestServer) -> Proxy {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let (server, connections) = (server.address().to_owned(), Arc::<Mutex<Vec<AbortHandle>>>::default());
        let proxy = Proxy { address, connections: Arc::clone(&connections) };
        tokio::spawn(async move {
            while let Ok((mut near, _)) = listener.accept().await {
                let mut far = TcpStream::connect(&server).await.unwrap();
                let passing = async move { tokio::io::copy_bidirectional(&mut near, &mut far).await };
                connections.lock().unwrap().push(tokio::spawn(passing).abort_handle());
            }
        });
        proxy
    }

    fn cut(&self, number: usize) {
        self.connections.lock().unwrap()[number].abort();
    }
}

#[test]
fn a_lost_connection_is_one_error_and_the_client_goes_on() {
    let server = TestServer::start(["--partitions", "3"]);
    block_on(async {
        let proxy = Proxy::to(&server).await;
        let client = Client::connect(&format!("thallus://{}?window=8MiB", proxy.address)).await.unwrap();
        let level = || (usage::descriptors(server.id()), usage::shared(server.id()));
        let whole = format!("SELECT value FROM ({}) ORDER BY value", three_series(500_000));
        let mut before = None;
        for (round, lend_from) in
            [LendFrom::Bytes(0), LendFrom::Never, LendFrom::Bytes(0), LendFrom::Bytes(0)].into_iter().enumerate()
        {
            let mut result = client.query_with(&endless(), options(lend_from)).await.unwrap();
            for _ in 0..8 {
                result.next().await.unwrap().unwrap();
            }
            // The first connection is the client's own. A later result replaces the connection that is cut here.
            let last = proxy.connections.lock().unwrap().len() - 1;
            proxy.cut(last);
            let cut = Instant::now();
            let error = until_failure(&mut result).await;
            println!("{lend_from:?}: {error}, after {:.3} s", cut.elapsed().as_secs_f64());
            let known = matches!(
                error,
                ClientError::ConnectionLost { .. }
                    | ClientError::Read { .. }
                    | ClientError::ReadTimeout { .. }
                    // The server has noticed the loss first, and has revoked what the client was reading.
                    | ClientError::LeaseExpired { .. }
                    | ClientError::Query { kind: StreamCode::PartitionLost, .. }
            );
            assert!(known && cut.elapsed() < SECONDS, "{error:?}");
            assert!(result.next().await.is_none() && !result.report().complete);
            drop(result);

            // The same client runs another partitioned query once it has noticed the loss.
            let deadline = Instant::now() + PATIENCE;
            let mut result = loop {
                match client.query_with(&whole, options(lend_from)).await {
                    Ok(result) => break result,
                    Err(error) => assert!(Instant::now() < deadline, "{error}"),
                }
            };
            let batches: Vec<_> = result.by_ref().try_collect().await.unwrap();
            let values = batches.iter().flat_map(|batch| batch.column(0).as_primitive::<Int64Type>().values());
            assert!(values.copied().eq(1..=1_500_000), "round {round}");
            assert!(result.report().complete);
            drop((batches, result));
            wait_for("the lost connection to end", PATIENCE, || (server.connections() == 3).then_some(()));
            let now = level();
            // The first round creates everything that exists once per process.
            let before = *before.get_or_insert(now);
            assert!(now.0 <= before.0 + 2, "round {round}: {now:?} descriptors and shared memory, {before:?} before");
            assert!(now.1 <= before.1 + (64 << 20), "round {round}: {now:?}, {before:?} before");
        }
        assert!(!server.log().contains("the limit of bytes on loan is reached"), "loans were leaked");
        client.close().await;
    });
    server.wait_until_idle();
    server.stop();
}
