//! The simulated network itself: memory protection, fencing, reordering, and reproducible runs.

use std::sync::Arc;

use proptest::prelude::*;
use thallus_fabric::memory::{LocalRange, PoolLimits, SlabPool};
use thallus_fabric::{Fabric, Fencing, ReadFailure, ReadToken, Touch};
use thallus_fabric_sim::core::{Access, Core, EndpointId, EndpointState, Finished, KeyId, Progress, Stats};
use thallus_fabric_sim::{SimNetwork, SimOptions};

/// Two connected endpoints on the bare core, and memory for both.
struct Fixture {
    core: Core,
    lender: EndpointId,
    borrower: EndpointId,
    pool: SlabPool,
}

impl Fixture {
    fn new(seed: u64, options: SimOptions) -> Self {
        let mut core = Core::new(seed, options);
        let (here, there) = (core.add_host(), core.add_host());
        let (lender, borrower) = (core.add_endpoint(here), core.add_endpoint(there));
        core.connect(lender, borrower).unwrap();
        core.connect(borrower, lender).unwrap();
        // Targets of reads need a registration, but not with this network: the core does not check it.
        let elsewhere = SimNetwork::new(0, SimOptions::default()).host();
        let pool = SlabPool::new(elsewhere, PoolLimits::default());
        Fixture { core, lender, borrower, pool }
    }

    /// Memory with this content, added to the core, and a key to it.
    fn lend(&mut self, content: &[u8]) -> (Arc<thallus_fabric::memory::RegisteredMemory>, KeyId) {
        let fabric = SimNetwork::new(0, SimOptions::default()).host();
        let memory = fabric.register(content.to_vec().into()).unwrap();
        let id = self.core.new_memory_id();
        self.core.add_memory(id, thallus_fabric_sim::core::HostId(0), &memory);
        let key = self.core.expose(self.lender, id, 0..memory.len());
        (memory, key)
    }

    fn range(&self, len: usize) -> LocalRange {
        self.pool.take(len).unwrap().range(0, len).unwrap()
    }

    fn post(&mut self, token: u64, key: KeyId, address: u64, len: usize) {
        let into = self.range(len);
        self.core.post(self.borrower, ReadToken(token), key, address, into).unwrap();
    }

    /// Steps the borrower until no read is outstanding. Returns the result of each read, and its step.
    fn run(&mut self) -> Vec<(u64, Result<(), ReadFailure>, usize)> {
        let mut ends = Vec::new();
        for step in 0..1000 {
            let mut finished: Vec<Finished> = Vec::new();
            let progress = self.core.step(self.borrower, &mut finished);
            ends.extend(finished.into_iter().map(|end| (end.completion.token.0, end.completion.result, step)));
            if progress != Progress::Waiting {
                return ends;
            }
        }
        panic!("reads are still outstanding after 1000 steps");
    }
}

fn options(fencing: Fencing) -> SimOptions {
    SimOptions { fencing, ..SimOptions::default() }
}

#[test]
fn deregistered_memory_cannot_be_read() {
    for fencing in [Fencing::Revocation, Fencing::LeaseWord] {
        let mut fixture = Fixture::new(1, options(fencing));
        let (memory, key) = fixture.lend(&[1; 100]);
        let address = memory.address();
        fixture.post(1, key, address, 100);
        drop(memory);
        let ends = fixture.run();
        assert_eq!(ends[0].1, Err(ReadFailure::RemoteAccess));
        let violations = fixture.core.violations();
        assert_eq!((violations.len(), violations[0].access), (1, Access::Deregistered));
        assert_eq!((violations[0].reader, violations[0].address), (fixture.borrower, address));
        assert_eq!(fixture.core.stats(), Stats::default());
    }
}

#[test]
fn the_protection_refuses_memory_that_was_not_lent() {
    let mut fixture = Fixture::new(1, options(Fencing::Revocation));
    let (memory, key) = fixture.lend(&[1; 100]);
    let stranger = fixture.core.add_endpoint(thallus_fabric_sim::core::HostId(1));
    let strangers_peer = fixture.core.add_endpoint(thallus_fabric_sim::core::HostId(0));
    fixture.core.connect(stranger, strangers_peer).unwrap();
    let address = memory.address();
    fixture.post(1, key, address + 1, 100);
    fixture.post(2, key, address - 1, 100);
    fixture.post(3, key, u64::MAX, 100);
    fixture.post(4, KeyId(999), address, 100);
    assert!(fixture.run().iter().all(|(_, result, _)| *result == Err(ReadFailure::RemoteAccess)));
    let into = fixture.range(100);
    fixture.core.post(stranger, ReadToken(1), key, address, into).unwrap();
    fixture.borrower = stranger;
    assert_eq!(fixture.run()[0].1, Err(ReadFailure::RemoteAccess));
    let mut accesses: Vec<_> = fixture.core.violations().iter().map(|violation| violation.access).collect();
    accesses.sort_by_key(|access| format!("{access:?}"));
    let outside = Access::OutsideMemory;
    assert_eq!(accesses, [Access::NotThisPeer, outside, outside, outside, Access::UnknownKey]);
}

#[test]
fn revocation_cuts_off_reads_under_way() {
    let mut fixture = Fixture::new(1, SimOptions { notice: 500..=500, ..options(Fencing::Revocation) });
    let (memory, key) = fixture.lend(&[1; 100]);
    fixture.post(1, key, memory.address(), 100);
    assert_eq!(fixture.core.close(fixture.lender), Some(fixture.borrower));
    assert_eq!(fixture.run()[0].1, Err(ReadFailure::RemoteAccess));
    assert!(fixture.core.violations().is_empty(), "late reads do not break the rules");
}

#[test]
fn without_revocation_reads_go_on_until_the_end_is_noticed() {
    let mut fixture = Fixture::new(1, SimOptions { notice: 50..=50, ..options(Fencing::LeaseWord) });
    let (memory, key) = fixture.lend(&[1; 100]);
    fixture.core.close(fixture.lender);
    fixture.post(1, key, memory.address(), 100);
    let ends = fixture.run();
    assert_eq!(ends, [(1, Ok(()), ends[0].2)]);
    assert!(ends[0].2 < 50);
    assert_eq!(fixture.core.state(fixture.borrower), Some(EndpointState::Down));
    let into = fixture.range(1);
    assert!(fixture.core.post(fixture.borrower, ReadToken(2), key, memory.address(), into).is_err());
}

#[test]
fn a_crash_takes_every_endpoint_of_the_host() {
    let mut fixture = Fixture::new(1, SimOptions { latency: 100..=100, notice: 3..=3, ..SimOptions::default() });
    let (memory, key) = fixture.lend(&[1; 100]);
    fixture.post(1, key, memory.address(), 100);
    fixture.core.crash(thallus_fabric_sim::core::HostId(0));
    let ends = fixture.run();
    assert!(matches!(ends[..], [(1, Err(ReadFailure::PeerGone(_)), 0..=4)]), "{ends:?}");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 100, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn reads_end_once_in_time_and_alike_for_a_seed(
        seed: u64,
        reorder: bool,
        latency in 0..20_u32,
        lag in 0..20_u32,
        lens in prop::collection::vec(1..5000_usize, 1..30),
        close_after in prop::option::of(0..30_usize),
    ) {
        let options = SimOptions { reorder, latency: 0..=latency, completion_lag: 0..=lag, ..SimOptions::default() };
        let run = || {
            let mut fixture = Fixture::new(seed, options.clone());
            let (memory, key) = fixture.lend(&vec![9; 5000]);
            let mut ends = Vec::new();
            for (at, &len) in lens.iter().enumerate() {
                if close_after == Some(at) {
                    fixture.core.close(fixture.lender);
                    ends.extend(fixture.run());
                    break;
                }
                fixture.post(at as u64, key, memory.address(), len);
            }
            ends.extend(fixture.run());
            assert!(fixture.core.violations().is_empty());
            assert_eq!(fixture.core.outstanding(fixture.borrower), 0);
            assert_eq!(fixture.pool.stats().slabs_in_use, 0);
            ends
        };
        let ends = run();
        prop_assert_eq!(&ends, &run(), "two runs of a seed differ");
        let mut tokens: Vec<u64> = ends.iter().map(|end| end.0).collect();
        if !reorder {
            prop_assert!(tokens.is_sorted(), "{:?}", tokens);
        }
        tokens.sort_unstable();
        let posted = close_after.map_or(lens.len(), |at| at.min(lens.len())) as u64;
        prop_assert_eq!(tokens, (0..posted).collect::<Vec<_>>());
        prop_assert!(ends.iter().all(|end| end.2 <= (latency + lag + 1) as usize));
    }
}

#[test]
fn reads_do_overtake_each_other() {
    let overtaken = (0..20).any(|seed| {
        let mut fixture = Fixture::new(seed, SimOptions::default());
        let (memory, key) = fixture.lend(&[1; 100]);
        (0..8).for_each(|token| fixture.post(token, key, memory.address(), 100));
        !fixture.run().iter().map(|end| end.0).is_sorted()
    });
    assert!(overtaken);
}

#[test]
fn registration_has_a_limit_and_dropping_gives_it_back() {
    let host = SimNetwork::new(1, SimOptions { max_registered: 8192, ..SimOptions::default() }).host();
    let memory = host.allocate(8192, Touch::Now).unwrap();
    assert!(matches!(host.allocate(1, Touch::Now), Err(thallus_fabric::FabricError::OutOfMemory { available: 0, .. })));
    drop(memory);
    assert_eq!(host.registered_bytes(), 0);
    host.allocate(8192, Touch::Now).unwrap();
}
