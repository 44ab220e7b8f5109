//! Many kills at random moments, for a long run:
//! `cargo test --release --workspace --test kills -- --ignored --nocapture`.
//!
//! `THALLUS_TEST_SEED` sets the moments. `thallus doctor` must name everything that a kill leaves in `/dev/shm`.

use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use futures::{StreamExt, TryStreamExt};
use thallus_client::{Access, Client, ClientError, LendFrom, QueryOptions};
use thallus_protocol::random::SplitMix64;
use thallus_tests::cli::{Cli, thallus};
use thallus_tests::server::TestServer;
use thallus_tests::usage::Orphans;
use thallus_tests::{ENDLESS, fabric};

/// Kills of clients, unless `THALLUS_TEST_KILLS` sets another number.
const CLIENTS: u64 = 200;
const SERVERS: u64 = 20;
/// Longest time from the start of a client's result to the kill of its server.
const RESULT: Duration = Duration::from_millis(60);

fn seed() -> u64 {
    let seed =
        std::env::var("THALLUS_TEST_SEED").map_or(1, |seed| seed.parse().expect("THALLUS_TEST_SEED is a number"));
    println!("THALLUS_TEST_SEED={seed}");
    seed
}

fn clients_to_kill() -> u64 {
    std::env::var("THALLUS_TEST_KILLS").map_or(CLIENTS, |kills| kills.parse().expect("THALLUS_TEST_KILLS is a number"))
}

/// A time below `most` that depends on the seed and the round alone.
fn moment(seed: u64, round: u64, most: Duration) -> Duration {
    most.mul_f64((SplitMix64::nth(seed, round) >> 11) as f64 / (1_u64 << 53) as f64)
}

/// UCX segments in `/dev/shm`. A segment has a name only while UCX creates it.
fn named_segments() -> Vec<PathBuf> {
    let entries = fs::read_dir("/dev/shm").unwrap().filter_map(|entry| Some(entry.ok()?.path()));
    entries.filter(|path| path.to_string_lossy().contains("ucx")).collect()
}

/// Checks that the doctor names each segment, then removes the segments.
fn doctor_names(left: &[PathBuf]) {
    if left.is_empty() {
        return;
    }
    println!("left: {left:?}");
    // The doctor does not name younger segments: they may be in use.
    std::thread::sleep(Duration::from_secs(61));
    let doctor = thallus(["doctor", "--json"]).stdout;
    for path in left {
        assert!(doctor.contains(path.to_str().unwrap()), "{} is not named by the doctor: {doctor}", path.display());
        fs::remove_file(path).unwrap();
    }
}

async fn works(client: &Client) {
    const ROWS: i64 = 1_000_000;
    let sql = format!("SELECT value, value * 3 AS thrice FROM generate_series(1, {ROWS})");
    let options = QueryOptions::new().with_lend_from(LendFrom::Bytes(0));
    let batches: Vec<_> = client.query_with(&sql, options).await.unwrap().try_collect().await.unwrap();
    let sum: i64 = batches
        .iter()
        .map(|batch| batch.column(1).as_any().downcast_ref::<arrow::array::Int64Array>().unwrap())
        .map(|column| column.values().iter().sum::<i64>())
        .sum();
    assert_eq!(sum, 3 * (ROWS * (ROWS + 1) / 2));
}

// One test: shared memory belongs to the machine, and its table does not tell which test left it.
#[test]
#[ignore = "takes minutes; scripts/ucx-matrix.sh --long runs it"]
fn kills_at_random_moments() {
    let (seed, before) = (seed(), named_segments());
    clients(seed);
    servers(seed);
    let left: Vec<_> = named_segments().into_iter().filter(|path| !before.contains(path)).collect();
    println!("{} clients and {SERVERS} servers killed, {} segments left", clients_to_kill(), left.len());
    doctor_names(&left);
    // System V and POSIX segments that no process has mapped.
    Orphans::now().wait_until_gone();
}

/// The server and another client's connection survive every kill of a client.
fn clients(seed: u64) {
    let server = TestServer::start(["--fabric", &fabric(), "--allow-mapped"]);
    block_on_long(async {
        let bystander = Client::connect(&server.url("require_fabric=true")).await.unwrap();
        // Half of the kills happen while a client connects, which takes half a second with some versions of UCX.
        let connecting = thallus(["ping", &server.url("require_fabric=true"), "--count", "1"]).elapsed;
        println!("connecting takes {connecting:?}");
        for round in 0..clients_to_kill() {
            let access = ["read", "map"][(round % 2) as usize];
            let mut cli = Cli::start([
                "query",
                &server.url(""),
                ENDLESS,
                "--access",
                access,
                "-o",
                "/dev/null",
                "--format",
                "csv",
            ]);
            tokio::time::sleep(moment(seed, round, 2 * connecting)).await;
            cli.process().kill();
            if round % 20 == 19 {
                works(&bystander).await;
            }
        }
        bystander.close().await;
    });
    server.wait_until_idle();
    server.stop();
}

/// A client's process survives every kill of a server, with a typed error for each.
fn servers(seed: u64) {
    block_on_long(async {
        for round in 0..SERVERS {
            let mut server = TestServer::start(["--fabric", &fabric(), "--allow-mapped"]);
            let client = Client::connect(&server.url("require_fabric=true&window=16MiB")).await.unwrap();
            let access = if round % 2 == 0 { Access::Read } else { Access::Map };
            let mut result = client.query_with(ENDLESS, QueryOptions::new().with_access(access)).await.unwrap();
            let until = Instant::now() + moment(seed, clients_to_kill() + round, RESULT);
            let mut kept = Vec::new();
            while Instant::now() < until {
                let batch = result.next().await.unwrap().unwrap();
                kept.truncate(3);
                kept.push((batch.column(0).to_data().buffers()[0].as_slice().to_vec(), batch));
            }
            server.process().kill();
            let error = loop {
                match result.next().await {
                    Some(Ok(_)) => {}
                    Some(Err(error)) => break error,
                    None => panic!("round {round}: an endless result has ended"),
                }
            };
            assert!(
                matches!(error, ClientError::ConnectionLost { .. } | ClientError::Read { .. }),
                "round {round}: {error:?}"
            );
            // Delivered batches do not change.
            for (bytes, batch) in &kept {
                assert_eq!(batch.column(0).to_data().buffers()[0].as_slice(), bytes, "round {round}");
            }
        }
    });
}

fn block_on_long(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime
        .block_on(async { tokio::time::timeout(Duration::from_secs(600), test).await.expect("the test ends in time") });
}
