//! The simulated network with tokio's clock. This workspace has this test, because only its clock can be advanced.

use std::time::Duration;

use thallus_fabric::memory::{PoolLimits, SlabPool};
use thallus_fabric::{Completion, Fabric, ReadToken};
use thallus_fabric_sim::{SimNetwork, SimOptions};
use thallus_protocol::{RegionId, RemoteRange};

#[tokio::test(start_paused = true)]
async fn steps_by_the_clock_take_time() {
    let pace = Some(Duration::from_millis(1));
    let network =
        SimNetwork::new(1, SimOptions { latency: 40..=40, completion_lag: 0..=0, pace, ..SimOptions::default() });
    let (here, there) = (network.host(), network.host());
    let (mut lender, mut borrower) = (here.endpoint().unwrap(), there.endpoint().unwrap());
    lender.connect(&borrower.address()).unwrap();
    borrower.connect(&lender.address()).unwrap();
    let memory = here.register(vec![5_u8; 100].into()).unwrap();
    let key = lender.expose(&memory, 0..memory.len()).unwrap();
    borrower.import(RegionId(1), memory.address(), 100, &key).unwrap();
    let pool = SlabPool::new(there, PoolLimits::default());
    let slab = pool.take(100).unwrap();
    let from = RemoteRange { region: RegionId(1), address: memory.address(), len: 100 };
    borrower.post_read(ReadToken(1), from, slab.range(0, 100).unwrap()).unwrap();
    let started = tokio::time::Instant::now();
    let mut completions = Vec::new();
    std::future::poll_fn(|cx| borrower.poll(cx, &mut completions)).await.unwrap();
    assert_eq!(completions, [Completion { token: ReadToken(1), result: Ok(()) }]);
    assert!((40..45).contains(&started.elapsed().as_millis()), "{:?}", started.elapsed());
}
