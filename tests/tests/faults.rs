//! Ends that are killed or terminated in the middle of a result, and the resources of the other end afterwards.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::time::{Duration, Instant};

use arrow::array::RecordBatch;
use futures::{StreamExt, TryStreamExt};
use thallus_client::{Client, ClientError, LendFrom, QueryOptions, ResultStream, StreamCode};
use thallus_tests::cli::{Cli, thallus};
use thallus_tests::process::{Process, Signal, command, wait_for};
use thallus_tests::server::TestServer;
use thallus_tests::usage::{self, Orphans};
use thallus_tests::{ENDLESS, PATIENCE, block_on};

/// Time limit for the other end to notice the loss.
const SECONDS: Duration = Duration::from_secs(5);

/// Names of all entries of a directory, also hidden ones.
fn names(directory: &Path) -> Vec<String> {
    fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

/// Starts `thallus` with an endless result that is written to a file. Returns once the file has some of it.
fn endless_download(server: &TestServer, directory: &Path, lend_from: &str) -> Cli {
    let out = directory.join("out.csv");
    let before = server.data_planes();
    let cli = Cli::start([
        "query",
        &server.url("window=16MiB"),
        ENDLESS,
        "--lend-from",
        lend_from,
        "-o",
        out.to_str().unwrap(),
    ]);
    wait_for("a part of the result", PATIENCE, || {
        let written = fs::read_dir(directory).unwrap().filter_map(|entry| entry.ok()?.metadata().ok());
        (written.map(|file| file.len()).sum::<u64>() > 1 << 20).then_some(())
    });
    server.wait_for_data_planes(before + 1);
    cli
}

async fn until_failure(mut result: ResultStream) -> ClientError {
    loop {
        match result.next().await {
            Some(Ok(_)) => {}
            Some(Err(error)) => return error,
            None => panic!("an endless result has ended"),
        }
    }
}

#[test]
fn a_killed_server_is_exit_code_5_and_no_partial_file() {
    let orphans = Orphans::now();
    for lend_from in ["0", "never"] {
        let mut server = TestServer::start::<&str>([]);
        let directory = tempfile::tempdir().unwrap();
        let cli = endless_download(&server, directory.path(), lend_from);
        server.process().kill();
        let killed = Instant::now();
        let client = cli.finish(PATIENCE);
        println!("{lend_from}: the client ended after {:.2} s", killed.elapsed().as_secs_f64());
        assert_eq!(client.code, Some(5), "{lend_from}: {}", client.stderr);
        assert!(killed.elapsed() < SECONDS, "{lend_from}: {:?}", killed.elapsed());
        assert!(
            client.stderr.starts_with("error: ") && client.stderr.contains("\nhint: "),
            "{lend_from}: {}",
            client.stderr
        );
        assert_eq!(names(directory.path()), [] as [String; 0], "{lend_from}");
    }
    orphans.wait_until_gone();
}

#[test]
fn killed_clients_leave_nothing_behind_at_the_server() {
    let orphans = Orphans::now();
    // Ten times the loans of one client: bytes that are not released soon reach the limit.
    let server = TestServer::start(["--max-bytes-on-loan", "160MiB"]);
    let directory = tempfile::tempdir().unwrap();
    let bystander_url = server.url("require_fabric=true&window=16MiB");
    block_on(async {
        let bystander = Client::connect(&bystander_url).await.unwrap();
        // The first round fills pools and starts threads that remain.
        drop(endless_download(&server, directory.path(), "0"));
        until_alone(&server);
        let level = |server: &TestServer| {
            (usage::descriptors(server.id()), usage::shared(server.id()), usage::rss(server.id()))
        };
        let before = level(&server);
        for round in 0..12 {
            let lend_from = ["0", "never", "0"][round % 3];
            let mut cli = endless_download(&server, directory.path(), lend_from);
            if round % 2 == 0 {
                // Suspend the client first, so that a whole window is on loan when it is killed.
                cli.process().signal(Signal::Stop);
                std::thread::sleep(Duration::from_millis(100));
            }
            cli.process().kill();
            let killed = Instant::now();
            until_alone(&server);
            assert!(killed.elapsed() < 2 * SECONDS, "round {round}: {:?}", killed.elapsed());
            for name in names(directory.path()) {
                fs::remove_file(directory.path().join(name)).unwrap();
            }
        }
        wait_for("queries to be stopped", PATIENCE, || {
            let load = server_load(&server);
            (load < 0.1).then_some(())
        });
        let after = level(&server);
        println!("descriptors, shared memory, resident: before {before:?}, after 12 killed clients {after:?}");
        assert!(after.0 <= before.0, "descriptors were leaked");
        // The heap may have grown by one region of 64 MiB. The loans of the killed clients, 16 MiB each, are more than
        // twice that.
        assert!(after.1 <= before.1 + (80 << 20), "registered memory was leaked");
        assert!(after.2 <= before.2 + (128 << 20), "memory was leaked");

        // The whole limit of bytes on loan is available again, and the other client's connection works as before.
        let sql = "SELECT value, value + 1 AS next FROM generate_series(1, 8000000)";
        let options = QueryOptions::new().with_lend_from(LendFrom::Bytes(0));
        let mut result = bystander.query_with(sql, options).await.unwrap();
        let rows: usize = result.by_ref().map_ok(|b| b.num_rows()).try_collect::<Vec<_>>().await.unwrap().iter().sum();
        let report = result.report();
        assert_eq!((rows, report.batches_inline), (8_000_000, 0), "{report}");
        assert!(!server.log().contains("the limit of bytes on loan is reached"), "loans were leaked");
        bystander.close().await;
    });
    server.wait_until_idle();
    server.stop();
    orphans.wait_until_gone();
}

/// Waits until the bystander's connection is the only one.
fn until_alone(server: &TestServer) {
    wait_for("the killed client to be noticed", PATIENCE, || (server.connections() == 1).then_some(()));
}

fn server_load(server: &TestServer) -> f64 {
    let (before, began) = (usage::cpu(server.id()), Instant::now());
    std::thread::sleep(Duration::from_millis(300));
    (usage::cpu(server.id()) - before).as_secs_f64() / began.elapsed().as_secs_f64()
}

#[test]
fn an_interrupted_client_cancels_at_the_server() {
    for (signal, code) in [(Signal::Interrupt, 130), (Signal::Terminate, 143)] {
        let server = TestServer::start::<&str>([]);
        let directory = tempfile::tempdir().unwrap();
        let mut cli = endless_download(&server, directory.path(), "auto");
        cli.process().signal(signal);
        let sent = Instant::now();
        let client = cli.finish(PATIENCE);
        assert_eq!(client.code, Some(code), "{}", client.stderr);
        assert!(sent.elapsed() < SECONDS, "{:?}", sent.elapsed());
        assert_eq!(names(directory.path()), [] as [String; 0]);
        server.wait_for_log("query stopped");
        server.wait_until_idle();
        server.stop();
    }
}

#[test]
fn a_query_that_runs_is_finished_after_sigterm() {
    let rows = 2_000_000_u64;
    let sql = format!("SELECT value, value + 1 AS next FROM generate_series(1, {rows})");
    for lend_from in [LendFrom::Bytes(0), LendFrom::Never] {
        let mut server = TestServer::start::<&str>([]);
        block_on(async {
            let client = Client::connect(&server.url("window=1MiB")).await.unwrap();
            let mut result = client.query_with(&sql, QueryOptions::new().with_lend_from(lend_from)).await.unwrap();
            // The server is at most one window ahead of the client: the query still runs.
            let first = result.try_next().await.unwrap().unwrap();
            server.process().signal(Signal::Terminate);
            server.wait_for_log("draining");
            let late = Client::connect(&server.url("connect_timeout=5s")).await.unwrap_err();
            assert!(matches!(late, ClientError::Connect { .. } | ClientError::Refused { .. }), "{late:?}");
            let more = client.query("SELECT 1").await.unwrap_err();
            assert!(matches!(more, ClientError::Query { kind: StreamCode::ShuttingDown, .. }), "{more:?}");
            let rest: Vec<RecordBatch> = result.by_ref().try_collect().await.unwrap();
            let all = first.num_rows() + rest.iter().map(RecordBatch::num_rows).sum::<usize>();
            assert_eq!(all as u64, rows, "{lend_from:?}");
            assert!(result.report().complete);
            let status = server.process().wait(PATIENCE);
            assert_eq!(status.code(), Some(0), "{}", server.log());
        });
        assert!(server.log().contains("stopped"));
    }
}

#[test]
fn a_query_that_does_not_end_is_ended_by_the_drain_timeout() {
    let mut server = TestServer::start(["--drain-timeout", "1s"]);
    block_on(async {
        let client = Client::connect(&server.url("")).await.unwrap();
        let result = client.query(ENDLESS).await.unwrap();
        server.process().signal(Signal::Terminate);
        let sent = Instant::now();
        let error = until_failure(result).await;
        assert!(matches!(error, ClientError::Query { kind: StreamCode::ShuttingDown, .. }), "{error:?}");
        assert!((Duration::from_millis(900)..2 * SECONDS).contains(&sent.elapsed()), "{:?}", sent.elapsed());
        assert_eq!(server.process().wait(PATIENCE).code(), Some(0), "{}", server.log());
    });
}

#[test]
fn an_idle_server_ends_at_once_after_sigterm_and_a_second_signal_is_final() {
    let mut server = TestServer::start::<&str>([]);
    block_on(async {
        let client = Client::connect(&server.url("")).await.unwrap();
        server.process().signal(Signal::Terminate);
        let sent = Instant::now();
        assert_eq!(server.process().wait(PATIENCE).code(), Some(0), "{}", server.log());
        println!("an idle server ended after {:.2} s", sent.elapsed().as_secs_f64());
        assert!(sent.elapsed() < SECONDS, "{:?}", sent.elapsed());
        let error = client.query("SELECT 1").await.unwrap_err();
        assert!(matches!(error, ClientError::ConnectionLost { .. } | ClientError::Refused { .. }), "{error:?}");
    });

    let mut server = TestServer::start::<&str>([]);
    block_on(async {
        let client = Client::connect(&server.url("")).await.unwrap();
        let result = client.query(ENDLESS).await.unwrap();
        server.process().signal(Signal::Terminate);
        server.wait_for_log("draining");
        server.process().signal(Signal::Interrupt);
        let sent = Instant::now();
        assert_eq!(server.process().wait(PATIENCE).code(), Some(130));
        assert!(sent.elapsed() < SECONDS, "{:?}", sent.elapsed());
        let error = until_failure(result).await;
        assert!(matches!(error, ClientError::ConnectionLost { .. } | ClientError::Read { .. }), "{error:?}");
    });
}

/// Regression test: a log record written to a closed pipe panicked, so that SIGTERM and connections were lost.
#[test]
fn a_server_whose_log_has_no_reader_serves_and_ends() {
    let (reader, writer) = std::io::pipe().unwrap();
    let mut command = command("thallus-server");
    command.args(["--listen", "127.0.0.1:0"]).stderr(writer);
    let mut server = Process::spawn("thallus-server", &mut command);
    // The command holds another writing end of the pipe.
    drop(command);
    let mut lines = BufReader::new(reader).lines().map_while(Result::ok);
    let address = lines.find_map(|line| Some(line.split_once("listening address=")?.1.trim().to_owned())).unwrap();
    drop(lines);
    for _ in 0..2 {
        let client = thallus(["query", &format!("thallus://{address}"), "SELECT 40 + 2 AS answer", "--format", "csv"]);
        assert_eq!((client.code, client.stdout.as_str()), (Some(0), "answer\n42\n"), "{}", client.stderr);
    }
    server.signal(Signal::Terminate);
    assert_eq!(server.wait(PATIENCE).code(), Some(0));
}

#[test]
fn without_a_fabric_results_travel_inline_with_a_warning() {
    let server = TestServer::start(["--fabric", "none"]);
    let sql = "SELECT sum(value) AS s FROM generate_series(1, 100000)";
    let query = |options: &str| thallus(["query", &server.url(options), sql, "--format", "csv"]);
    let client = query("");
    assert_eq!((client.code, client.stdout.as_str()), (Some(0), "s\n5000050000\n"), "{}", client.stderr);
    assert!(client.stderr.contains("warning: one-sided reads are not available: "), "{}", client.stderr);
    let client = query("fabric=none");
    assert_eq!((client.code, client.stdout.as_str(), client.stderr.as_str()), (Some(0), "s\n5000050000\n", ""));
    let client = query("require_fabric=true");
    assert_eq!((client.code, client.stdout.as_str()), (Some(3), ""), "{}", client.stderr);
    assert!(client.stderr.contains("one-sided reads are not available: "), "{}", client.stderr);
    server.stop();
    let refusal = TestServer::start_error(&["--fabric", "ucx", "--ucx-transports", "no_such_transport"]);
    assert!(refusal.contains("no_such_transport") || refusal.contains("ucp_"), "{refusal}");
}
