//! Bandwidth of one-sided reads between two devices of this host, or of one device from itself:
//!
//! `cargo run --release -p thallus-fabric-verbs --example read_bandwidth LENDER_DEVICE [BORROWER_DEVICE]`
//!
//! Compare with `ib_read_bw -s SIZE -o 16 --report_gbits` of perftest between the same devices.

use std::env;
use std::sync::Arc;
use std::time::Instant;

use thallus_fabric::Fabric;
use thallus_fabric::conformance::{Bench, drive};
use thallus_fabric_verbs::{VerbsFabric, VerbsOptions};
use thallus_protocol::RegionId;

const REGION: RegionId = RegionId(1);
/// Bytes for each measurement.
const VOLUME: usize = 32 << 20;
/// Number of outstanding reads.
const DEPTH: usize = 16;

fn fabric(device: &str) -> Arc<dyn Fabric> {
    let options = VerbsOptions { device: Some(device.to_owned()), ..VerbsOptions::default() };
    Arc::new(VerbsFabric::new(options).unwrap_or_else(|error| panic!("{error}")))
}

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let lender = env::args().nth(1).expect("usage: read_bandwidth LENDER_DEVICE [BORROWER_DEVICE]");
    let borrower = env::args().nth(2).unwrap_or_else(|| lender.clone());
    let bench = Bench::new("bandwidth", fabric(&lender), fabric(&borrower));
    let mut connection = bench.connect();
    for size in [64 << 10, 256 << 10] {
        let lent = bench.lend(&vec![7; size]);
        connection.share(REGION, lent.memory());
        let slab = bench.slab(DEPTH * size);
        let reads = (VOLUME / size) as u64;
        let (mut posted, mut ended) = (0, 0);
        let started = Instant::now();
        while ended < reads {
            while posted < reads && posted - ended < DEPTH as u64 {
                // The range of a completed read: reads of one queue pair complete in order.
                let into = slab.range(posted as usize % DEPTH * size, size).expect("within the slab");
                connection.post(posted, REGION, lent.address(), into).expect("a read is posted");
                posted += 1;
            }
            let sides = &mut [&mut connection.lender, &mut connection.borrower];
            assert!(drive(sides, |sides| !sides[1].done.is_empty()).await, "reads take too long: {:?}", sides[1]);
            for completion in connection.borrower.done.drain(..) {
                completion.result.expect("a read succeeds");
                ended += 1;
            }
        }
        let rate = VOLUME as f64 / started.elapsed().as_secs_f64() / 1e6;
        println!("{size} {rate:.1} MB/s");
        connection.borrower.endpoint.forget(REGION);
    }
    connection.close().await;
}
