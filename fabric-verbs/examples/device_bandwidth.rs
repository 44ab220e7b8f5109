//! Bandwidth of reads between two ends on one port, by size, and the cost of exposing and revoking memory, by method.
//!
//! `THALLUS_VERBS_DEVICE=mlx5_0 cargo run --release -p thallus-fabric-verbs --example device_bandwidth [MEBIBYTES]`

#[path = "../tests/support/mod.rs"]
mod support;

use std::env;
use std::time::Instant;

use support::{Peers, drive, fabric};
use thallus_fabric::memory::LocalRange;
use thallus_fabric::{Endpoint, Fabric, ReadToken, Touch};
use thallus_fabric_verbs::Exposure;
use thallus_protocol::{RegionId, RemoteRange};

/// Bytes of each memory.
const MEMORY: usize = 16 << 20;
/// Number of outstanding reads.
const DEPTH: usize = 32;

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let volume = env::args().nth(1).map_or(64, |text| text.parse::<usize>().expect("a number of mebibytes")) << 20;
    let fabric_of_reads = fabric(Exposure::Auto);
    println!("{}", fabric_of_reads.describe());
    let (from, into) =
        (fabric_of_reads.allocate(MEMORY, Touch::Now).unwrap(), fabric_of_reads.allocate(MEMORY, Touch::Now).unwrap());
    let mut peers = Peers::connect(&fabric_of_reads);
    let key = peers.lender.expose(&from, 0..from.len()).unwrap();
    peers.borrower.import(RegionId(1), from.address(), MEMORY as u64, &key).unwrap();
    println!("{}", peers.borrower.transport().unwrap().name);
    let mut completions = Vec::new();
    for size in [8, 4 << 10, 64 << 10, 1 << 20] {
        let count = (volume / size).min(2000);
        let started = Instant::now();
        let (mut posted, mut ended) = (0, 0);
        while ended < count {
            while posted < count && posted - ended < DEPTH {
                let at = posted * size % MEMORY;
                // SAFETY: no code reads the bytes.
                let range = unsafe { LocalRange::new(into.clone(), at, size, None) };
                let place = RemoteRange { region: RegionId(1), address: from.address() + at as u64, len: size as u64 };
                peers.borrower.post_read(ReadToken(posted as u64), place, range).unwrap();
                posted += 1;
            }
            drive(&mut peers.borrower, &mut completions, |done| !done.is_empty()).await.unwrap();
            ended += completions.len();
            completions.drain(..).for_each(|completion| completion.result.unwrap());
        }
        let seconds = started.elapsed().as_secs_f64();
        println!(
            "{size:>8} bytes: {:>9.1} MB/s, {:>7.1} us per read",
            (size * count) as f64 / seconds / 1e6,
            seconds * 1e6 / count as f64
        );
    }
    peers.close().await;
    for exposure in [Exposure::Windows, Exposure::Registrations, Exposure::Whole] {
        let options = thallus_fabric_verbs::VerbsOptions {
            device: env::var(support::DEVICE).ok(),
            exposure,
            ..Default::default()
        };
        let fabric = match thallus_fabric_verbs::VerbsFabric::new(options) {
            Ok(fabric) => std::sync::Arc::new(fabric),
            Err(error) => {
                println!("{exposure}: {error}");
                continue;
            }
        };
        let memory = fabric.allocate(MEMORY, Touch::Now).unwrap();
        let mut peers = Peers::connect(&fabric);
        for len in [64 << 10, 8 << 20] {
            let started = Instant::now();
            for _ in 0..100 {
                let key = peers.lender.expose(&memory, 0..len).unwrap();
                peers.lender.revoke(&key);
            }
            println!("{exposure}: opening and closing {len} bytes: {:.1} us", started.elapsed().as_secs_f64() * 1e4);
        }
        peers.close().await;
    }
}
