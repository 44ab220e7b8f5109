//! Results over UCX: the carrier of results, as named by report, ping and doctor.
//!
//! The server may use another UCX than the client: the environment variable `THALLUS_TEST_SERVER_UCX` names its
//! library.

use thallus_client::{Access, Client, LendFrom, QueryOptions};
use thallus_tests::cli::thallus;
use thallus_tests::server::TestServer;
use thallus_tests::{PATIENCE, block_on};

const SQL: &str = "SELECT value, value * 3 AS thrice FROM generate_series(1, 3000000)";
const ROWS: i64 = 3_000_000;

/// Runs the query and checks every value. Returns the carrier, and the number of batches lent or mapped.
async fn result(url: &str, options: QueryOptions) -> (String, u64) {
    let client = Client::connect(url).await.unwrap();
    let mut result = client.query_with(SQL, options).await.unwrap();
    // Several threads compute the result, in no order.
    let (mut rows, mut sums) = (0, [0; 2]);
    while let Some(batch) = futures::TryStreamExt::try_next(&mut result).await.unwrap() {
        let column = |index: usize| batch.column(index).as_any().downcast_ref::<arrow::array::Int64Array>().unwrap();
        for (value, thrice) in column(0).values().iter().zip(column(1).values()) {
            assert_eq!(*thrice, 3 * value);
            sums = [sums[0] + value, sums[1] + thrice];
        }
        rows += batch.num_rows() as i64;
    }
    let all = [ROWS * (ROWS + 1) / 2, 3 * (ROWS * (ROWS + 1) / 2)];
    assert_eq!((rows, sums), (ROWS, all));
    let report = result.report();
    client.close().await;
    (report.carrier.to_string(), report.batches_lent + report.batches_mapped)
}

#[test]
fn results_are_read_one_sidedly_through_shared_memory() {
    let server = TestServer::start(["--fabric", "ucx", "--allow-mapped"]);
    let url = server.url("fabric=ucx&require_fabric=true");
    for access in [Access::Read, Access::Map] {
        let options = QueryOptions::new().with_lend_from(LendFrom::Bytes(0)).with_access(access);
        let (carrier, lent) = block_on(result(&url, options));
        println!("{access:?}: {carrier}, {lent} batches lent");
        assert!(carrier.contains("sysv") || carrier.contains("posix"), "{carrier}");
        assert!(lent > 10, "{lent} batches were lent");
    }
    let ping = thallus(["ping", &url]);
    assert!(ping.stdout.contains("one-sided: sysv") || ping.stdout.contains("one-sided: posix"), "{}", ping.stdout);
    assert!(ping.stdout.contains("GB/s of one-sided reads"), "{}", ping.stdout);
    let doctor = thallus(["doctor"]);
    assert!(doctor.stdout.contains("ucx: works: reads are one-sided by "), "{}", doctor.stdout);
    server.stop();
}

#[test]
fn over_tcp_alone_results_travel_inline_and_ping_gives_the_reason() {
    let server = TestServer::start(["--fabric", "ucx"]);
    let url = server.url("ucx_tls=tcp");
    let (carrier, lent) = block_on(result(&url, QueryOptions::new()));
    assert!(carrier.contains("inline") && lent == 0, "{carrier}");
    let ping = thallus(["ping", &url]);
    assert!(ping.stdout.contains("emulated") && ping.stdout.contains("GB/s"), "{}{}", ping.stdout, ping.stderr);
    server.stop();
}

/// As on a host without UCX.
#[test]
fn without_ucx_programs_start_and_say_what_to_install() {
    let without = [("THALLUS_UCX_LIBRARY", "/nowhere/libucp.so.0")];
    let server = TestServer::start_with(["--fabric", "auto"], without);
    assert!(server.log().contains("libucx0"), "{}", server.log());
    let url = server.url("");
    let (carrier, lent) = block_on(result(&url, QueryOptions::new()));
    assert!(carrier.contains("shm") && lent > 0, "{carrier}: shared memory needs no library");
    let doctor = thallus_tests::cli::Cli::start_with(["doctor"], without).finish(PATIENCE);
    assert!(doctor.stdout.contains("ucx: DOES NOT WORK") && doctor.stdout.contains("libucx0"), "{}", doctor.stdout);
    server.stop();
}
