//! The conformance suite, with both kinds of fencing, and over several seeds.

use std::sync::Arc;

use thallus_fabric::conformance::Bench;
use thallus_fabric::{Fabric, Fencing};
use thallus_fabric_sim::{SimNetwork, SimOptions};
use thallus_protocol::RegionId;

fn hosts(seed: u64, options: SimOptions) -> (Arc<dyn Fabric>, Arc<dyn Fabric>) {
    let network = SimNetwork::new(seed, options);
    (network.host(), network.host())
}

mod revocation {
    use super::*;

    thallus_fabric::conformance_suite!(|| hosts(1, SimOptions::default()));
}

mod lease_word {
    use super::*;

    thallus_fabric::conformance_suite!(|| hosts(2, SimOptions { notice: 0..=200, ..SimOptions::shared_memory() }));
}

mod lease_word_and_ranges {
    use super::*;

    thallus_fabric::conformance_suite!(|| hosts(
        3,
        SimOptions { fencing: Fencing::LeaseWord, ..SimOptions::default() }
    ));
}

mod short_reads_of_whole_memory {
    use super::*;

    thallus_fabric::conformance_suite!(|| hosts(
        4,
        SimOptions { exposes_ranges: false, max_read: 256 << 10, max_outstanding_reads: 256, ..SimOptions::default() }
    ));
}

mod one_host_plays_both {
    use super::*;

    thallus_fabric::conformance_suite!(|| -> Arc<dyn Fabric> { SimNetwork::new(3, SimOptions::default()).host() });
}

#[test]
fn every_network_conforms() {
    for seed in 10..12 {
        for fencing in [Fencing::Revocation, Fencing::LeaseWord] {
            for reorder in [false, true] {
                let slow =
                    SimOptions { latency: 0..=40, completion_lag: 0..=10, notice: 0..=3, ..SimOptions::default() };
                thallus_fabric::conformance::run_all(|| {
                    hosts(seed, SimOptions { fencing, reorder, foreign_memory: seed % 2 == 0, ..slow.clone() })
                });
            }
        }
    }
}

/// Endpoints as in a server: many tasks, which the runtime moves between threads.
#[test]
fn many_tasks_share_a_network_under_a_multi_threaded_runtime() {
    let network = SimNetwork::new(4, SimOptions::default());
    let bench = Arc::new(Bench::new("many tasks", network.host(), network.host()));
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(4).enable_all().build().unwrap();
    runtime.block_on(async {
        let tasks: Vec<_> = (0..16_u8)
            .map(|task| {
                let bench = Arc::clone(&bench);
                tokio::spawn(async move {
                    let mut connection = bench.connect();
                    let lent = bench.lend(&vec![task; 10_000]);
                    connection.share(RegionId(1), lent.memory());
                    for _ in 0..10 {
                        let bytes = connection.read(&bench, RegionId(1), lent.address(), 10_000).await.unwrap();
                        assert!(bytes.iter().all(|&byte| byte == task));
                        tokio::task::yield_now().await;
                    }
                    connection.close().await;
                })
            })
            .collect();
        for task in tasks {
            task.await.unwrap();
        }
    });
    assert!(network.violations().is_empty());
    assert_eq!(network.stats().reads, 160);
    assert_eq!(bench.pool.stats().slabs_in_use, 0);
}
