//! Mapped results between real processes, one of which is killed.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::Duration;

use arrow::array::RecordBatch;
use futures::{StreamExt, TryStreamExt};
use tempfile::TempDir;
use thallus_client::{Access, Client, ClientError, LendFrom, QueryOptions, StreamCode};
use thallus_tests::cli::thallus;
use thallus_tests::process::{Signal, until};
use thallus_tests::server::TestServer;
use thallus_tests::tpch::{Format, generate};
use thallus_tests::{PATIENCE, block_on, usage};

/// Environment variable of a holder process: the URL of the server whose result it holds.
const HOLD: &str = "THALLUS_TEST_HOLD";

const ALL: &str = "SELECT * FROM lineitem ORDER BY l_orderkey, l_linenumber";

/// A server of TPC-H at a fiftieth of scale factor 1: 120 000 line items, 16 columns.
fn server(flags: &[&str]) -> (TempDir, TestServer) {
    let data = tempfile::tempdir().unwrap();
    generate(data.path(), 0.02, Format::Parquet).unwrap();
    let server = TestServer::start(["--data", data.path().to_str().unwrap()].iter().chain(flags));
    (data, server)
}

fn mapped() -> QueryOptions {
    QueryOptions::new().with_access(Access::Map).with_batch_rows(Some(8192))
}

async fn connect(server: &TestServer) -> Client {
    Client::connect(&server.url("require_fabric=true")).await.unwrap()
}

async fn copied(client: &Client) -> Vec<RecordBatch> {
    let options = QueryOptions::new().with_lend_from(LendFrom::Bytes(0)).with_batch_rows(Some(8192));
    client.query_with(ALL, options).await.unwrap().try_collect().await.unwrap()
}

#[test]
fn mapped_arrays_do_not_change_while_the_server_reuses_released_memory() {
    let (_data, server) = server(&["--allow-mapped"]);
    block_on(async {
        let client = connect(&server).await;
        let expected = copied(&client).await;
        let before = usage::rss(std::process::id());
        let mut result = client.query_with(ALL, mapped()).await.unwrap();
        let batches: Vec<_> = result.by_ref().try_collect().await.unwrap();
        let report = result.report();
        assert!(batches == expected, "{report}");
        assert!(report.batches_mapped > 10 && report.batches_lent == 0, "{report}");
        println!(
            "{} bytes mapped, resident {before} before, {} after",
            report.bytes_mapped,
            usage::rss(std::process::id())
        );
        // Keep one column of one batch while the server reuses the memory of its neighbours.
        let kept = batches[5].column(15).clone();
        drop((batches, result));
        for _ in 0..20 {
            assert!(copied(&client).await == expected);
        }
        assert!(&kept == expected[5].column(15));
    });
    server.stop();
}

#[test]
fn mapping_is_refused_with_a_hint_and_an_exit_code_unless_the_server_allows_it() {
    let (_data, server) = server(&[]);
    block_on(async {
        let client = connect(&server).await;
        let error = client.query_with(ALL, mapped()).await.map(drop).unwrap_err();
        assert!(matches!(error, ClientError::Query { kind: StreamCode::MappingRefused, .. }), "{error:?}");
    });
    let refused = thallus(["query", &server.url(""), ALL, "--access", "map"]);
    assert_eq!((refused.code, refused.stdout.as_str()), (Some(4), ""), "{}", refused.stderr);
    assert!(refused.stderr.contains("--allow-mapped"), "{}", refused.stderr);
}

#[test]
fn the_command_line_writes_mapped_results() {
    let (_data, server) = server(&["--allow-mapped"]);
    let url = server.url("require_fabric=true");
    let args = |access| ["query", &url, ALL, "--format", "csv", "--stats", "--access", access].map(str::to_owned);
    let (copied, mapped) = (thallus(args("read")), thallus(args("map")));
    assert_eq!(mapped.code, Some(0), "{}", mapped.stderr);
    assert!(mapped.stdout == copied.stdout && mapped.stdout.lines().count() > 100_000);
    assert!(mapped.stderr.lines().any(|line| line.starts_with("mapped ")), "{}", mapped.stderr);
}

#[test]
fn mapped_arrays_stay_readable_after_the_server_is_killed_or_stopped() {
    for signal in [None, Some(Signal::Terminate)] {
        let (_data, mut server) = server(&["--allow-mapped"]);
        block_on(async {
            let client = connect(&server).await;
            let expected = copied(&client).await;
            let batches: Vec<_> = client.query_with(ALL, mapped()).await.unwrap().try_collect().await.unwrap();
            match signal {
                None => server.process().kill(),
                Some(signal) => {
                    server.process().signal(signal);
                    // Held arrays do not delay the end until the drain timeout.
                    let status = server.process().wait(Duration::from_secs(20));
                    assert_eq!(status.code(), Some(0), "{}", server.log());
                }
            }
            assert!(batches == expected, "after {signal:?}");
            until("the client to report the loss", PATIENCE, || {
                let again = futures::FutureExt::now_or_never(client.query(ALL));
                std::thread::sleep(Duration::from_millis(50));
                matches!(again, Some(Err(_))).then_some(())
            });
            assert!(batches == expected, "after {signal:?}, and after the end of the connection");
        });
    }
}

/// Another process that holds the whole result: this program, started as its test `hold`.
struct Holder {
    child: Child,
    stdout: BufReader<ChildStdout>,
    stdin: ChildStdin,
}

impl Holder {
    fn start(url: &str) -> Holder {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["hold", "--exact", "--nocapture", "--include-ignored"]).env(HOLD, url);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let (stdout, stdin) = (BufReader::new(child.stdout.take().unwrap()), child.stdin.take().unwrap());
        let mut holder = Holder { child, stdout, stdin };
        holder.expect("holding");
        holder
    }

    fn expect(&mut self, word: &str) {
        let mut line = String::new();
        while !line.contains(word) {
            line.clear();
            assert!(self.stdout.read_line(&mut line).unwrap() > 0, "the holder ended before it printed {word:?}");
        }
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The program of a [`Holder`], not a test by itself.
#[test]
#[ignore = "runs as a process of other tests"]
fn hold() {
    let Ok(url) = std::env::var(HOLD) else { return };
    let client = thallus_client::blocking::Client::connect(&url).unwrap();
    let batches: Vec<_> = client.query_with(ALL, mapped()).unwrap().map(Result::unwrap).collect();
    let copy: Vec<RecordBatch> = client.query(ALL).unwrap().map(Result::unwrap).collect();
    let rows = |batches: &[RecordBatch]| batches.iter().map(RecordBatch::num_rows).sum::<usize>();
    assert_eq!(rows(&batches), rows(&copy));
    println!("holding");
    let mut line = String::new();
    // Each line on standard input is one step: first the client is dropped, then its arrays.
    std::io::stdin().read_line(&mut line).unwrap();
    drop(client);
    println!("no client");
    std::io::stdin().read_line(&mut line).unwrap();
    drop(batches);
    println!("released");
    std::io::stdin().read_line(&mut line).unwrap();
}

/// Whether the whole result can be mapped, which takes most of the limit of bytes on loan.
fn fits(server: &TestServer) -> bool {
    block_on(async {
        let client = connect(server).await;
        let mut result = client.query_with(ALL, mapped()).await.unwrap();
        let batches: Vec<_> = result.by_ref().try_collect().await.unwrap();
        let fits = result.report().batches_inline == 0;
        // In this order: closing the client releases batches that were dropped before.
        drop((batches, result));
        client.close().await;
        fits
    })
}

#[test]
fn memory_that_a_killed_client_had_mapped_is_freed_within_seconds() {
    let (_data, server) = server(&["--allow-mapped", "--max-bytes-on-loan", "40MiB"]);
    assert!(fits(&server));
    let mut holder = Holder::start(&server.url("require_fabric=true"));
    assert!(!fits(&server), "held memory counts against the limit of bytes on loan");
    holder.child.kill().unwrap();
    // Without waiting for the process: a zombie has no memory.
    until("the server to free the held memory", Duration::from_secs(20), || fits(&server).then_some(()));
    server.logs("a process is gone, and what it had mapped is free again");
}

#[test]
fn the_blocking_client_releases_arrays_that_are_dropped_after_it() {
    let (_data, server) = server(&["--allow-mapped", "--max-bytes-on-loan", "40MiB"]);
    let mut holder = Holder::start(&server.url("require_fabric=true"));
    assert!(!fits(&server));
    writeln!(holder.stdin).unwrap();
    holder.expect("no client");
    assert!(!fits(&server), "the arrays are still held");
    writeln!(holder.stdin).unwrap();
    holder.expect("released");
    until("the loans to be released", PATIENCE, || fits(&server).then_some(()));
    assert!(!server.log().contains("a process is gone"), "the client released the loans itself");
}
