//! Bandwidth of one-sided reads from another process on this host, by size and by kind of memory.
//!
//! `cargo run --release -p thallus-fabric-ucx --example bandwidth ["[transports][ emulated]"]`

#[path = "../tests/support/mod.rs"]
mod support;

use std::env;
use std::time::Instant;

use support::{LENDER, Lender, REGION, Reader};
use thallus_fabric::{Fabric, Touch};

/// Bytes per measurement.
const VOLUME: usize = 512 << 20;

#[tokio::main(flavor = "current_thread")]
async fn main() {
    if env::var_os(LENDER).is_some() {
        return support::lend().await;
    }
    let transports = env::args().nth(1).unwrap_or_default();
    let mut lender = Lender::start(&transports, &[]);
    let mut reader = Reader::connect(&mut lender, &transports).await;
    println!("transport: {:?}", reader.end.transport().unwrap());
    let most = reader.fabric.capabilities().max_read as usize;
    let into = reader.fabric.allocate(REGION, Touch::Now).unwrap();
    println!("     bytes, allocated, registered (with emulation or RDMA), longest post in us");
    for size in [64 << 10, 256 << 10, 1 << 20, 4 << 20, 8 << 20] {
        let mut rates = Vec::new();
        let mut longest = Vec::new();
        for region in reader.regions() {
            let started = Instant::now();
            let mut slowest = 0;
            for round in 0..VOLUME / size {
                let offset = round * size % REGION;
                let mut posted = 0;
                for at in (offset..offset + size).step_by(most) {
                    let before = Instant::now();
                    let len = most.min(offset + size - at);
                    reader.post(at as u64, region, at, &into, at, len).unwrap();
                    slowest = slowest.max(before.elapsed().as_micros());
                    posted += 1;
                }
                for completion in reader.completed(posted).await.unwrap() {
                    completion.result.unwrap();
                }
            }
            rates.push(VOLUME as f64 / started.elapsed().as_secs_f64() / 1e9);
            longest.push(slowest);
        }
        let rates: String = rates.iter().map(|rate| format!(" {rate:>7.2} GB/s")).collect();
        println!("{size:>10}{rates} {longest:>22?}");
    }
}
