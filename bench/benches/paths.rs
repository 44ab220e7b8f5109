//! Time of the pieces of a batch's path, and of whole queries through both drivers over a fabric in memory.
//! `cargo bench` runs all, `cargo bench -- layout` those with `layout` in their name.

use std::hint::black_box;
use std::sync::Arc;
use std::time::Duration;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use futures::TryStreamExt;
use thallus_bench::pieces::pieces;
use thallus_bench::serve::MemoryEngine;
use thallus_client::{Client, ConnectOptions, LendFrom, QueryOptions};
use thallus_fabric::Fabric;
use thallus_fabric::memory::RegisteredHeap;
use thallus_fabric_sim::{SimNetwork, SimOptions};
use thallus_server::{Fabrics, Server, Settings};
use tokio::runtime::{Builder, Runtime};

fn parts(criterion: &mut Criterion) {
    // Must come first: otherwise the allocator waits for a heap in a fabric, which only a server has.
    RegisteredHeap::stay_ordinary();
    let fabric = SimNetwork::new(1, SimOptions::default()).host();
    for mut piece in pieces(fabric, |_| true).expect("pieces") {
        let mut group = criterion.benchmark_group("batch");
        group.throughput(Throughput::Elements(piece.batches));
        group.bench_function(&piece.name, |bencher| bencher.iter(&mut piece.run));
        group.finish();
    }
}

/// A client and a server on one thread, over a pipe and a fabric in memory.
fn connected(runtime: &Runtime) -> Client {
    let network = SimNetwork::new(1, SimOptions::default());
    let fabrics = Fabrics { available: vec![network.host() as Arc<dyn Fabric>], ..Fabrics::default() };
    let server = Server::new(Arc::new(MemoryEngine::default()), fabrics, Settings::default());
    runtime.block_on(async {
        let (near, far) = tokio::io::duplex(256 * 1024);
        tokio::spawn(async move { server.handle(near).await });
        let own: Vec<Arc<dyn Fabric>> = vec![network.host()];
        Client::connect_over(far, &own, None, ConnectOptions::new("bench")).await.expect("a connection")
    })
}

fn drivers(criterion: &mut Criterion) {
    let runtime = Builder::new_current_thread().enable_all().build().expect("a runtime");
    let client = connected(&runtime);
    let mut group = criterion.benchmark_group("driver");
    for (what, query) in [("1 row", "num8 rows=1"), ("64 batches of 64 KiB", "num8 rows=65536 batch=1024")] {
        for (way, lend_from) in [("lent", LendFrom::Bytes(0)), ("inline", LendFrom::Never)] {
            let run = || {
                runtime.block_on(async {
                    let options = QueryOptions::new().with_lend_from(lend_from);
                    let mut result = client.query_with(query, options).await.expect("a result");
                    while let Some(batch) = result.try_next().await.expect("a batch") {
                        black_box(batch.num_rows());
                    }
                });
            };
            // The first query generates the table.
            run();
            group.bench_function(format!("{what}/{way}"), |bencher| bencher.iter(run));
        }
    }
    group.finish();
}

criterion_group! {
    name = paths;
    config = Criterion::default().warm_up_time(Duration::from_millis(300)).measurement_time(Duration::from_secs(1));
    targets = parts, drivers
}
criterion_main!(paths);
