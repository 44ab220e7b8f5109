//! Whole queries over RDMA, and failures of a device, a link or a peer in the middle of one. The other ends must get a
//! typed error within a bounded time, serve others, and keep no queue pair and no region of the lost peer.
//!
//! Runs in the guest of `scripts/soft-roce.sh`, once over each fabric that has RDMA.

use std::path::Path;
use std::time::{Duration, Instant};

use futures::{StreamExt, TryStreamExt};
use thallus_client::{Carrier, Client, ClientError, LendFrom, QueryOptions, ResultStream};
use thallus_tests::cli::Cli;
use thallus_tests::process::wait_for;
use thallus_tests::rdma::{LinkDown, Resources, SpareDevice, resources};
use thallus_tests::server::TestServer;
use thallus_tests::{ENDLESS, PATIENCE, block_on, fabric};

/// Time limit for the other end to notice a loss: a few of the device's retries, on an emulated processor.
const BOUND: Duration = Duration::from_secs(30);

fn server(args: &[&str]) -> TestServer {
    TestServer::start([&["--fabric", &fabric()], args].concat())
}

/// URL of a client that requires the fabric. A device that was pulled may never complete a read; then the client's
/// `read_timeout` ends the wait.
fn url(server: &TestServer) -> String {
    server.url(&format!("fabric={}&require_fabric=true&window=4MiB&read_timeout=10s", fabric()))
}

/// The server's flags and the client's option that select the spare device.
fn on_the_spare() -> ([&'static str; 2], &'static str) {
    match fabric().as_str() {
        "ucx" => (["--ucx-net-devices", "spare:1"], "ucx_net_devices=spare:1"),
        _ => (["--verbs-device", "spare"], "device=spare"),
    }
}

fn on_the_spare_url(server: &TestServer) -> String {
    format!("{}&{}", url(server), on_the_spare().1)
}

/// Runs a query over one-sided reads, and checks the result.
async fn works(client: &Client) {
    const ROWS: i64 = 100_000;
    let sql = format!("SELECT value, value * 3 AS product FROM generate_series(1, {ROWS})");
    let mut result = client.query_with(&sql, QueryOptions::new().with_lend_from(LendFrom::Bytes(0))).await.unwrap();
    let mut sums = [0_i64; 2];
    while let Some(batch) = result.try_next().await.unwrap() {
        for (sum, column) in sums.iter_mut().zip(batch.columns()) {
            let column: &arrow::array::Int64Array = column.as_any().downcast_ref().unwrap();
            *sum += column.values().iter().sum::<i64>();
        }
    }
    let report = result.report();
    assert_eq!(sums, [ROWS * (ROWS + 1) / 2, 3 * (ROWS * (ROWS + 1) / 2)], "{report}");
    assert_eq!((report.batches_inline, report.rows), (0, ROWS as u64), "{report}");
    match &report.carrier {
        Carrier::OneSided { fabric: name, transport } if *name == fabric() => {
            // UCX 1.13 does not report its transports.
            let by_device = transport.contains("rc_verbs") || transport.contains("InfiniBand or RoCE");
            assert!(name != "ucx" || by_device, "{report}");
        }
        other => panic!("no RDMA: {other}"),
    }
}

/// An endless result of which some batches have been read.
async fn endless(client: &Client) -> ResultStream {
    let options = QueryOptions::new().with_lend_from(LendFrom::Bytes(0));
    let mut result = client.query_with(ENDLESS, options).await.unwrap();
    for _ in 0..3 {
        result.try_next().await.unwrap().unwrap();
    }
    result
}

/// Reads the result until its error, which must come within [`BOUND`].
async fn failure(mut result: ResultStream, since: Instant) -> ClientError {
    let error = tokio::time::timeout(BOUND, async {
        loop {
            match result.next().await {
                Some(Ok(_)) => {}
                Some(Err(error)) => return error,
                None => panic!("an endless result has ended"),
            }
        }
    });
    let error = error.await.unwrap_or_else(|_| panic!("no error within {BOUND:?}"));
    assert!(result.next().await.is_none(), "the result continued after its error");
    assert!(!result.report().complete);
    println!("after {:.2} s: {error}", since.elapsed().as_secs_f64());
    error
}

/// Waits until no count of `resources` exceeds `before`.
fn until_no_more_than(before: Resources) {
    let began = Instant::now();
    loop {
        let now = resources();
        if now.contexts <= before.contexts && now.queue_pairs <= before.queue_pairs && now.regions <= before.regions {
            return;
        }
        assert!(began.elapsed() < BOUND, "leaked: {before:?} before, {now:?} now");
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
#[ignore = "needs an RDMA device: scripts/soft-roce.sh"]
fn results_travel_by_rdma_and_nothing_is_left_of_a_client_that_leaves() {
    assert_eq!(resources(), Resources::default(), "objects of other processes");
    let server = server(&[]);
    block_on(async {
        // The first client leaves objects that the server keeps for later clients.
        let first = Client::connect(&url(&server)).await.unwrap();
        works(&first).await;
        let busy = resources();
        first.close().await;
        server.wait_until_idle();
        let level = resources();
        println!("with a client {busy:?}, without {level:?}");
        assert!(level.queue_pairs < busy.queue_pairs && level.regions < busy.regions);
        for _ in 0..3 {
            let client = Client::connect(&url(&server)).await.unwrap();
            works(&client).await;
            client.close().await;
        }
        server.wait_until_idle();
        until_no_more_than(level);
    });
    server.stop();
    until_no_more_than(Resources::default());
}

#[test]
#[ignore = "needs an RDMA device: scripts/soft-roce.sh"]
fn a_client_killed_in_mid_read_leaves_nothing_at_the_server() {
    let server = server(&[]);
    let directory = tempfile::tempdir().unwrap();
    block_on(async {
        let bystander = Client::connect(&url(&server)).await.unwrap();
        works(&bystander).await;
        let mut level = None;
        for round in 0..3 {
            let mut cli = endless_download(&server, directory.path());
            assert!(level.is_none_or(|level: Resources| resources().queue_pairs > level.queue_pairs));
            cli.process().kill();
            let killed = Instant::now();
            wait_for("the killed client to be noticed", BOUND, || (server.connections() == 1).then_some(()));
            println!("round {round}: noticed after {:.2} s", killed.elapsed().as_secs_f64());
            // After the first round, the server has all objects that it keeps for this number of clients.
            until_no_more_than(*level.get_or_insert_with(resources));
            for file in std::fs::read_dir(directory.path()).unwrap() {
                std::fs::remove_file(file.unwrap().path()).unwrap();
            }
        }
        println!("with the other client: {level:?}");
        works(&bystander).await;
        bystander.close().await;
    });
    server.wait_until_idle();
    server.stop();
    until_no_more_than(Resources::default());
}

/// A client with an endless result, of which some has been written.
fn endless_download(server: &TestServer, directory: &Path) -> Cli {
    let out = directory.join("out.csv");
    let cli = Cli::start(["query", &url(server), ENDLESS, "--lend-from", "0", "-o", out.to_str().unwrap()]);
    wait_for("a part of the result", PATIENCE, || {
        let written = std::fs::read_dir(directory).unwrap().filter_map(|entry| entry.ok()?.metadata().ok());
        (written.map(|file| file.len()).sum::<u64>() > 1 << 18).then_some(())
    });
    cli
}

#[test]
#[ignore = "needs an RDMA device: scripts/soft-roce.sh"]
fn a_server_killed_in_mid_read_is_an_error_and_leaves_nothing_at_the_client() {
    let other = server(&[]);
    block_on(async {
        let bystander = Client::connect(&url(&other)).await.unwrap();
        works(&bystander).await;
        let before = resources();
        let mut victim = server(&[]);
        // With a pool of its own, which ends with the client. A pool shared with the bystander would remain.
        let client = Client::connect(&format!("{}&pool=1MiB", url(&victim))).await.unwrap();
        let result = endless(&client).await;
        assert!(resources().queue_pairs > before.queue_pairs);
        victim.process().kill();
        let error = failure(result, Instant::now()).await;
        assert!(matches!(error, ClientError::ConnectionLost { .. } | ClientError::Read { .. }), "{error:?}");
        let error = client.query("SELECT 1").await.unwrap_err();
        assert!(matches!(error, ClientError::ConnectionLost { .. }), "{error:?}");
        drop(client);
        until_no_more_than(before);
        works(&bystander).await;
        bystander.close().await;
    });
    other.stop();
    until_no_more_than(Resources::default());
}

#[test]
#[ignore = "needs an RDMA device: scripts/soft-roce.sh"]
fn a_link_that_goes_down_ends_the_stream_and_is_used_again_when_it_is_up() {
    let device = SpareDevice::new();
    let server = server(&on_the_spare().0);
    block_on(async {
        let bystander = Client::connect(&server.url("fabric=none")).await.unwrap();
        let client = Client::connect(&on_the_spare_url(&server)).await.unwrap();
        works(&client).await;
        client.close().await;
        server.wait_for_log("connection ended");
        let level = resources();

        let client = Client::connect(&on_the_spare_url(&server)).await.unwrap();
        let result = endless(&client).await;
        let link = LinkDown::new(device.interface);
        let error = failure(result, Instant::now()).await;
        assert!(
            matches!(error, ClientError::Read { .. } | ClientError::ReadTimeout { .. } | ClientError::Query { .. }),
            "{error:?}"
        );
        inline_works(&bystander).await;
        drop(client);
        until_no_more_than(level);
        drop(link);
        // UCX was given the index of an address, which changes when the link goes down.
        if fabric() != "ucx" {
            let client = until_connected(&on_the_spare_url(&server)).await;
            works(&client).await;
            client.close().await;
        }
        bystander.close().await;
    });
    server.wait_until_idle();
    server.stop();
    until_no_more_than(Resources::default());
}

/// Connects, and tries again until the link carries packets, which takes a moment after it is up.
async fn until_connected(url: &str) -> Client {
    let began = Instant::now();
    loop {
        match Client::connect(url).await {
            Ok(client) => return client,
            Err(error) => assert!(began.elapsed() < BOUND, "cannot connect although the link is up: {error}"),
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

async fn inline_works(client: &Client) {
    let batches: Vec<_> = client.query("SELECT 42 AS answer").await.unwrap().try_collect().await.unwrap();
    assert_eq!(batches.iter().map(arrow::array::RecordBatch::num_rows).sum::<usize>(), 1);
}

#[test]
#[ignore = "needs an RDMA device: scripts/soft-roce.sh"]
fn a_pulled_device_ends_the_stream_and_the_server_serves_on() {
    let mut device = SpareDevice::new();
    let server = server(&on_the_spare().0);
    block_on(async {
        let bystander = Client::connect(&server.url("fabric=none")).await.unwrap();
        let client = Client::connect(&on_the_spare_url(&server)).await.unwrap();
        let result = endless(&client).await;
        device.pull();
        let error = failure(result, Instant::now()).await;
        assert!(
            matches!(error, ClientError::Read { .. } | ClientError::ReadTimeout { .. } | ClientError::Query { .. }),
            "{error:?}"
        );
        inline_works(&bystander).await;
        drop(client);
        // A client that requires the fabric gets the reason. Another client gets its result inline.
        let refused = Client::connect(&on_the_spare_url(&server)).await.unwrap_err();
        assert!(matches!(refused, ClientError::Fabric { .. }), "{refused:?}");
        let late = Client::connect(&server.url(&format!("fabric={}&{}", fabric(), on_the_spare().1))).await.unwrap();
        inline_works(&late).await;
        late.close().await;
        bystander.close().await;
    });
    server.wait_until_idle();
    server.stop();
    device.until_gone();
    until_no_more_than(Resources::default());
}

/// Runs alone, started with a limit of 64 KiB and without the right to exceed it (`tests/soft-roce/guest.sh`).
#[test]
#[ignore = "needs an RDMA device: scripts/soft-roce.sh"]
fn memory_that_must_not_be_locked_gives_a_hint_and_results_travel_inline() {
    let limits = std::fs::read_to_string("/proc/self/limits").unwrap();
    let limit = limits.lines().find_map(|line| line.strip_prefix("Max locked memory")).unwrap();
    assert!(limit.split_whitespace().all(|word| word == "65536" || word == "bytes"), "limit of locked memory: {limit}");
    // A server that may choose its fabric continues without one. A server or client that names the fabric gets an error
    // with a remedy, at start or when connecting.
    let server = TestServer::start::<&str>([]);
    block_on(async {
        let client = Client::connect(&server.url(&format!("fabric={}", fabric()))).await.unwrap();
        let mut result = client.query("SELECT 42 AS answer").await.unwrap();
        while result.try_next().await.unwrap().is_some() {}
        let report = result.report();
        let messages = format!("{} {}", report.carrier.fallback().unwrap_or_default(), server.log());
        println!("{report}");
        assert!(report.carrier.fallback().is_some(), "{report}");
        assert!(messages.contains("ulimit -l"), "no remedy: {messages}");
        client.close().await;
    });
    server.stop();
    until_no_more_than(Resources::default());
}
