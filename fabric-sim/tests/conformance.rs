//! The conformance suite, in both ways of fencing, and over several seeds.

use std::sync::Arc;

use thallus_fabric::{Fabric, Fencing};
use thallus_fabric_sim::{SimNetwork, SimOptions};

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

    thallus_fabric::conformance_suite!(|| hosts(
        2,
        SimOptions { fencing: Fencing::LeaseWord, notice: 0..=200, ..SimOptions::default() }
    ));
}

mod one_host_plays_both {
    use super::*;

    thallus_fabric::conformance_suite!(|| -> Arc<dyn Fabric> { SimNetwork::new(3, SimOptions::default()).host() });
}

#[test]
fn every_network_conforms() {
    for seed in 10..15 {
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
