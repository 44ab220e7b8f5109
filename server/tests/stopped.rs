//! A client's process that is stopped by a signal for longer than all its timeouts, in the middle of a result, and then
//! continues. Its server waits longer, so the result arrives whole.
#![allow(missing_docs, clippy::unwrap_used)]
#![cfg(target_os = "linux")]

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use thallus_client::{Client, ConnectOptions, FabricPreference, LendFrom, QueryOptions};
use thallus_scripted_engine::{Script, ScriptedEngine, synthetic_batch};
use thallus_server::config::{FabricChoice, ServerConfig};
use thallus_server::{Server, Settings, fabrics};
use tokio::net::TcpListener;

/// Port of the server, for the process that is the client.
const PORT: &str = "THALLUS_TEST_STOPPED_PORT";
/// True if that client lets batches be lent.
const LENT: &str = "THALLUS_TEST_STOPPED_LENT";
const BATCHES: u64 = 300;
const ROWS: usize = 2000;
/// All timeouts of the client.
const TIMEOUT: Duration = Duration::from_millis(900);
/// Time for which it is stopped.
const STOP: Duration = Duration::from_millis(2500);
/// Stops during one result.
const STOPS: u32 = 3;
const PATIENCE: Duration = Duration::from_secs(120);

/// The client. Not a test of its own: the other test starts this process again for it.
#[test]
fn client_process() {
    let Ok(port) = std::env::var(PORT) else { return };
    let lent = std::env::var_os(LENT).is_some();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        let options = ConnectOptions::new("127.0.0.1")
            .with_port(port.parse().unwrap())
            .with_keepalive(TIMEOUT / 3)
            .with_idle_timeout(TIMEOUT)
            .with_read_timeout(TIMEOUT)
            .with_require_fabric(lent)
            .with_fabric(if lent { FabricPreference::Shm } else { FabricPreference::None });
        let client = Client::connect_with(options).await.unwrap();
        let lend_from = if lent { LendFrom::Bytes(0) } else { LendFrom::Never };
        // The window is large, so that the sockets fill while this process is stopped.
        let query = QueryOptions::new().with_lend_from(lend_from).with_window(Some(64 << 20));
        let mut result = client.query_with("q", query).await.unwrap();
        let mut got = 0;
        while let Some(batch) = result.next().await {
            assert_eq!(batch.unwrap(), synthetic_batch(got, ROWS));
            got += 1;
            if got == 1 {
                println!("begun");
            }
            // The result is still on its way at the last stop.
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let report = result.report();
        assert_eq!(if lent { report.batches_lent } else { report.batches_inline }, BATCHES, "{report}");
        println!("{got} batches");
    });
}

fn signal(child: &Child, signal: &str) {
    let sent = Command::new("kill").args([signal, &child.id().to_string()]).status().unwrap();
    assert!(sent.success(), "{sent}");
}

/// Runs a client, stops it several times, and returns its last line.
fn stopped_client(port: u16, lent: bool) -> String {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "client_process", "--nocapture"]).env(PORT, port.to_string()).stdout(Stdio::piped());
    if lent {
        command.env(LENT, "");
    }
    let mut child = command.spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map(Result::unwrap);
    assert!(lines.any(|line| line.ends_with("begun")), "the result has not begun");
    for _ in 0..STOPS {
        std::thread::sleep(Duration::from_millis(150));
        signal(&child, "-STOP");
        std::thread::sleep(STOP);
        signal(&child, "-CONT");
    }
    let last = lines.find(|line| line.ends_with("batches"));
    assert!(child.wait().unwrap().success(), "the client failed");
    last.unwrap()
}

#[test]
fn a_client_that_is_stopped_in_the_middle_of_a_result_receives_it_whole() {
    let mut config = ServerConfig::default();
    config.fabric.kind = FabricChoice::Shm;
    let opened = fabrics::open(&config.fabric).unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        // A batch every few milliseconds, so that the engine's part takes longer than one stop.
        let mut script = Script::new(synthetic_batch(0, 1).schema());
        for number in 0..BATCHES {
            script = script.sleep(Duration::from_millis(4)).batch(synthetic_batch(number, ROWS));
        }
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let engine = ScriptedEngine::new().with_query("q", script);
        let server = Server::new(Arc::new(engine), opened, Settings::new(&config));
        tokio::spawn(async move { server.serve(listener).await });
        let clients = [false, true].map(|lent| tokio::task::spawn_blocking(move || stopped_client(port, lent)));
        for client in clients {
            let last = tokio::time::timeout(PATIENCE, client).await.expect("a client hangs").unwrap();
            assert_eq!(last, format!("{BATCHES} batches"));
        }
    });
}
