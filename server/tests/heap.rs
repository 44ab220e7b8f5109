//! A server whose heap lies in memory files: its memory goes back to the system while a client stays connected.
//! There is one test, since a process has one heap.
#![allow(missing_docs, clippy::unwrap_used)]
#![cfg(target_os = "linux")]

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::TryStreamExt;
use thallus_client::{Access, Client, ConnectOptions, FabricPreference, QueryOptions};
use thallus_fabric::memory::RegisteredHeap;
use thallus_scripted_engine::{Script, ScriptedEngine, synthetic_batch};
use thallus_server::config::{ByteSize, FabricChoice, ServerConfig};
use thallus_server::{Server, Settings, fabrics, heap};
use tokio::net::TcpListener;

#[global_allocator]
static HEAP: RegisteredHeap = RegisteredHeap::new();

const MIB: usize = 1 << 20;
/// Batches of the large result, and the rows of each: 124 bytes a row.
const BATCHES: u64 = 100;
const ROWS: usize = 40_000;

/// Bytes of this process that lie in memory.
fn resident() -> usize {
    let pages = std::fs::read_to_string("/proc/self/statm").unwrap();
    pages.split(' ').nth(1).unwrap().parse::<usize>().unwrap() * 4096
}

#[test]
fn memory_goes_back_while_a_client_stays_connected() {
    let mut config = ServerConfig::default();
    config.fabric.kind = FabricChoice::Shm;
    config.fabric.allow_mapped = true;
    config.limits.max_bytes_on_loan_per_connection = ByteSize::gib(1);
    let mut opened = fabrics::open(&config.fabric).unwrap();
    heap::grow_in_fabric(&mut opened, &config.fabric);
    let space = Arc::clone(&opened.registered.as_ref().unwrap().space);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        let script = |batches, rows| {
            Script::new(synthetic_batch(0, 1).schema()).generate(batches, move |n| synthetic_batch(n, rows))
        };
        let engine =
            ScriptedEngine::new().with_query("large", script(BATCHES, ROWS)).with_query("small", script(5, 4000));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let server = Server::new(Arc::new(engine), opened, Settings::new(&config));
        tokio::spawn(async move { server.serve(listener).await });

        let connect = ConnectOptions::new("127.0.0.1").with_port(port).with_require_fabric(true);
        let client = Client::connect_with(connect.with_fabric(FabricPreference::Shm)).await.unwrap();
        let query = async |sql: &str| {
            let options = QueryOptions::new().with_access(Access::Map);
            client.query_with(sql, options).await.unwrap().try_collect::<Vec<_>>().await.unwrap()
        };
        drop(query("small").await);
        tokio::time::sleep(Duration::from_secs(1)).await;
        let before = resident();

        let held = query("large").await;
        let most = resident();
        assert!(most > before + 300 * MIB, "{before} bytes before, {most} with the result");
        assert!(held.iter().enumerate().all(|(number, batch)| *batch == synthetic_batch(number as u64, ROWS)));
        drop(held);
        let began = Instant::now();
        // The allocator leaves a little in a few segments, each of which stays as a whole.
        while resident() > before + 150 * MIB {
            let after = resident();
            assert!(began.elapsed() < Duration::from_secs(60), "{before} bytes before, {most} at most, {after} after");
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        println!("{} MiB before, {} at most, back after {:?}; {space:?}", before / MIB, most / MIB, began.elapsed());

        // The connection goes on, with memory that it has to announce again.
        let again = query("large").await;
        assert!(again.iter().enumerate().all(|(number, batch)| *batch == synthetic_batch(number as u64, ROWS)));
        client.close().await;
    });
}
