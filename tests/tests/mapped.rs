//! Mapped results between real processes: what holds when one of them is killed.

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

/// What a process of this program is told to be the holder of.
const HOLD: &str = "THALLUS_TEST_HOLD";

const ALL: &str = "SELECT * FROM lineitem ORDER BY l_orderkey, l_linenumber";

/// Serves TPC-H at a fiftieth of scale factor 1: 120 000 line items, 16 columns.
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
fn what_is_mapped_stays_as_it_is_while_the_server_goes_on_and_is_on_loan_no_longer() {
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
        // One column of one batch is kept while its neighbours' memory is used for other things.
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
fn it_is_refused_in_words_and_with_an_exit_code_unless_the_server_allows_it() {
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
fn the_command_line_writes_what_is_mapped() {
    let (_data, server) = server(&["--allow-mapped"]);
    let url = server.url("require_fabric=true");
    let args = |access| ["query", &url, ALL, "--format", "csv", "--stats", "--access", access].map(str::to_owned);
    let (copied, mapped) = (thallus(args("read")), thallus(args("map")));
    assert_eq!(mapped.code, Some(0), "{}", mapped.stderr);
    assert!(mapped.stdout == copied.stdout && mapped.stdout.lines().count() > 100_000);
    assert!(mapped.stderr.lines().any(|line| line.starts_with("mapped ")), "{}", mapped.stderr);
}

#[test]
fn a_server_that_is_killed_or_stopped_leaves_what_is_mapped() {
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
                    // Held arrays do not hold it up for its drain timeout.
                    let status = server.process().wait(Duration::from_secs(20));
                    assert_eq!(status.code(), Some(0), "{}", server.log());
                }
            }
            assert!(batches == expected, "after {signal:?}");
            until("the client to notice", PATIENCE, || {
                let again = futures::FutureExt::now_or_never(client.query(ALL));
                std::thread::sleep(Duration::from_millis(50));
                matches!(again, Some(Err(_))).then_some(())
            });
            assert!(batches == expected, "after {signal:?}, and after the connection has ended");
        });
    }
}

/// Another process that holds the whole result: this program again, as `hold`.
struct Holder {
    child: Child,
    says: BufReader<ChildStdout>,
    hears: ChildStdin,
}

impl Holder {
    fn start(url: &str) -> Holder {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["hold", "--exact", "--nocapture", "--include-ignored"]).env(HOLD, url);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let (says, hears) = (BufReader::new(child.stdout.take().unwrap()), child.stdin.take().unwrap());
        let mut holder = Holder { child, says, hears };
        holder.expect("holding");
        holder
    }

    fn expect(&mut self, word: &str) {
        let mut line = String::new();
        while !line.contains(word) {
            line.clear();
            assert!(self.says.read_line(&mut line).unwrap() > 0, "the holder ended before it said {word:?}");
        }
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Not a test by itself: what a [`Holder`] does.
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
    // Until told otherwise; then without a client, but with its arrays.
    std::io::stdin().read_line(&mut line).unwrap();
    drop(client);
    println!("no client");
    std::io::stdin().read_line(&mut line).unwrap();
    drop(batches);
    println!("let go");
    std::io::stdin().read_line(&mut line).unwrap();
}

/// What is left of what may be on loan, by whether the whole result can still be mapped: it takes most of it.
fn fits(server: &TestServer) -> bool {
    block_on(async {
        let client = connect(server).await;
        let mut result = client.query_with(ALL, mapped()).await.unwrap();
        let batches: Vec<_> = result.by_ref().try_collect().await.unwrap();
        let fits = result.report().batches_inline == 0;
        // In this order: a client that is closed gives back what was dropped before.
        drop((batches, result));
        client.close().await;
        fits
    })
}

#[test]
fn what_a_killed_client_had_mapped_is_free_again_within_seconds() {
    let (_data, server) = server(&["--allow-mapped", "--max-bytes-on-loan", "40MiB"]);
    assert!(fits(&server));
    let mut holder = Holder::start(&server.url("require_fabric=true"));
    assert!(!fits(&server), "what is held takes up what may be on loan");
    holder.child.kill().unwrap();
    // Not waited for: a zombie has no memory.
    until("the server to free what was held", Duration::from_secs(20), || fits(&server).then_some(()));
    server.logs("a process is gone, and what it had mapped is free again");
}

#[test]
fn the_blocking_client_gives_back_what_is_dropped_after_it() {
    let (_data, server) = server(&["--allow-mapped", "--max-bytes-on-loan", "40MiB"]);
    let mut holder = Holder::start(&server.url("require_fabric=true"));
    assert!(!fits(&server));
    writeln!(holder.hears).unwrap();
    holder.expect("no client");
    assert!(!fits(&server), "its arrays are there");
    writeln!(holder.hears).unwrap();
    holder.expect("let go");
    until("the loans to come back", PATIENCE, || fits(&server).then_some(()));
    assert!(!server.log().contains("a process is gone"), "it gave them back itself");
}
