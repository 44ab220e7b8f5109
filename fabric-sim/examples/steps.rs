//! Steps per second of the bare network: `cargo run --release -p thallus-fabric-sim --example steps`.

use std::sync::Arc;
use std::time::Instant;

use thallus_fabric::memory::{PoolLimits, SlabPool};
use thallus_fabric::{Fabric, ReadToken};
use thallus_fabric_sim::core::{Core, HostId, Progress};
use thallus_fabric_sim::{SimNetwork, SimOptions};

const READS: u64 = 300_000;
const LEN: usize = 64;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut core = Core::new(1, SimOptions { latency: 0..=40, completion_lag: 0..=10, ..SimOptions::default() });
    let (here, there) = (core.add_host(), core.add_host());
    let (lender, borrower) = (core.add_endpoint(here), core.add_endpoint(there));
    core.connect(lender, borrower)?;
    core.connect(borrower, lender)?;
    let fabric = SimNetwork::new(0, SimOptions::default()).host();
    let pool = SlabPool::new(Arc::clone(&fabric) as Arc<dyn Fabric>, PoolLimits::default());
    let memory = fabric.register(vec![7_u8; LEN].into())?;
    let id = core.new_memory_id();
    core.add_memory(id, HostId(0), &memory);
    let key = core.expose(lender, id, 0..LEN);
    let slab = pool.take(LEN)?;
    let (mut finished, mut steps) = (Vec::new(), 0_u64);
    let started = Instant::now();
    for token in 0..READS {
        let posted = core.post(borrower, ReadToken(token), key, memory.address(), slab.range(0, LEN)?);
        posted.map_err(|_| "the endpoint is down")?;
        while core.step(borrower, &mut finished) == Progress::Waiting {
            steps += 1;
        }
        finished.clear();
    }
    let rate = steps as f64 / started.elapsed().as_secs_f64();
    println!("{steps} steps, {READS} reads: {:.1} million steps a second", rate / 1e6);
    Ok(())
}
