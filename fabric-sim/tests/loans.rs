//! Checks of memory on loan, and networks that are slow, lossy or wrong about completions.

use std::sync::Arc;

use thallus_fabric::memory::{PoolLimits, RegisteredMemory, Slab, SlabPool};
use thallus_fabric::{Fabric, Fencing, ReadFailure, ReadToken};
use thallus_fabric_sim::core::{Access, Core, EndpointId, Finished, HostId, KeyId, Progress};
use thallus_fabric_sim::{SimFabric, SimNetwork, SimOptions};
use thallus_protocol::{LeaseEnd, LeaseId, RegionId, RemoteRange};

struct Fixture {
    core: Core,
    lender: EndpointId,
    borrower: EndpointId,
    fabric: Arc<SimFabric>,
    pool: SlabPool,
    memory: Arc<RegisteredMemory>,
    key: KeyId,
}

impl Fixture {
    /// A lender that has exposed 4096 equal bytes, and lent none.
    fn new(options: SimOptions) -> Self {
        let mut core = Core::new(1, SimOptions { loans: true, ..options });
        let (here, there) = (core.add_host(), core.add_host());
        let (lender, borrower) = (core.add_endpoint(here), core.add_endpoint(there));
        core.connect(lender, borrower).unwrap();
        core.connect(borrower, lender).unwrap();
        let fabric = SimNetwork::new(0, SimOptions::default()).host();
        let pool = SlabPool::new(Arc::clone(&fabric) as Arc<dyn Fabric>, PoolLimits::default());
        let memory = fabric.register(vec![1_u8; 4096].into()).unwrap();
        let id = core.new_memory_id();
        core.add_memory(id, HostId(0), &memory);
        let key = core.expose(lender, id, 0..memory.len());
        Fixture { core, lender, borrower, fabric, pool, memory, key }
    }

    fn place(&self, offset: u64, len: u64) -> RemoteRange {
        RemoteRange { region: RegionId(1), address: self.memory.address() + offset, len }
    }

    fn lend(&mut self, lease: u64, offset: u64, len: u64) {
        let place = self.place(offset, len);
        self.core.lent(self.lender, LeaseId(lease), &[place]);
    }

    fn post(&mut self, offset: u64, len: usize) -> Slab {
        let slab = self.pool.take(len).unwrap();
        let (range, address) = (slab.range(0, len).unwrap(), self.memory.address() + offset);
        self.core.post(self.borrower, ReadToken(1), self.key, address, range).unwrap();
        slab
    }

    /// The result of the one read, and the number of steps until its end.
    fn run(&mut self) -> (Result<(), ReadFailure>, usize) {
        let mut finished: Vec<Finished> = Vec::new();
        for step in 1..2000 {
            self.core.step(self.borrower, &mut finished);
            if let Some(Finished { completion, .. }) = finished.pop() {
                return (completion.result, step);
            }
        }
        panic!("the read never ended");
    }

    fn accesses(&self) -> Vec<Access> {
        self.core.violations().iter().map(|violation| violation.access).collect()
    }
}

#[test]
fn only_memory_on_loan_can_be_read() {
    let mut fixture = Fixture::new(SimOptions::default());
    fixture.lend(1, 0, 100);
    let slab = fixture.post(10, 90);
    assert_eq!(fixture.run().0, Ok(()));
    assert_eq!(slab.into_buffer().ok().unwrap().as_slice(), [1; 90]);
    fixture.post(10, 91);
    assert_eq!(fixture.run().0, Err(ReadFailure::RemoteAccess));
    fixture.core.lease_ended(fixture.lender, LeaseId(1), LeaseEnd::Released);
    fixture.post(10, 90);
    assert_eq!(fixture.run().0, Err(ReadFailure::RemoteAccess));
    assert_eq!(fixture.accesses(), [Access::NotOnLoan, Access::NotOnLoan]);
    assert_eq!(fixture.core.standing_leases(fixture.lender), 0);
}

#[test]
fn a_change_of_memory_on_loan_is_detected() {
    let mut fixture = Fixture::new(SimOptions::default());
    let mut slab = fixture.pool.take(64).unwrap();
    slab.copy_in(0, &[7; 64]).unwrap();
    let id = fixture.core.new_memory_id();
    fixture.memory = Arc::clone(slab_memory(&mut slab, &fixture.pool));
    fixture.core.add_memory(id, HostId(0), &fixture.memory);
    fixture.key = fixture.core.expose(fixture.lender, id, 0..fixture.memory.len());
    fixture.lend(1, 0, 64);
    slab.copy_in(3, &[8]).unwrap();
    fixture.post(0, 64);
    assert_eq!(fixture.run().0, Ok(()));
    assert_eq!(fixture.accesses(), [Access::Reused]);
}

/// The registered memory of a slab. The slab begins at offset 0, since it is the pool's first.
fn slab_memory<'a>(slab: &'a mut Slab, pool: &SlabPool) -> &'a Arc<RegisteredMemory> {
    assert_eq!(pool.stats().slabs_in_use, 1);
    slab.memory()
}

#[test]
fn a_late_reader_gets_other_bytes() {
    let mut fixture = Fixture::new(SimOptions { fencing: Fencing::LeaseWord, ..SimOptions::default() });
    fixture.lend(1, 0, 100);
    fixture.core.lease_ended(fixture.lender, LeaseId(1), LeaseEnd::Revoked);
    let slab = fixture.post(0, 100);
    assert_eq!(fixture.run().0, Ok(()));
    assert_ne!(slab.into_buffer().ok().unwrap().as_slice(), [1; 100]);
    assert_eq!((fixture.accesses(), fixture.core.stats().late), (vec![], 1));
}

#[test]
fn a_lease_that_ends_while_its_peer_can_read_is_a_violation() {
    for (fencing, end) in [
        (Fencing::Revocation, LeaseEnd::Revoked),
        (Fencing::Revocation, LeaseEnd::TornDown),
        (Fencing::LeaseWord, LeaseEnd::TornDown),
    ] {
        for close_first in [false, true] {
            let mut fixture = Fixture::new(SimOptions { fencing, ..SimOptions::default() });
            fixture.lend(1, 0, 100);
            if close_first {
                fixture.core.close(fixture.lender);
            }
            fixture.core.lease_ended(fixture.lender, LeaseId(1), end);
            let expected = if close_first { vec![] } else { vec![Access::EndedUnfenced] };
            assert_eq!(fixture.accesses(), expected, "{fencing:?} {end:?}");
        }
    }
}

#[test]
fn a_lease_begins_and_ends_once() {
    let mut fixture = Fixture::new(SimOptions::default());
    fixture.lend(1, 0, 100);
    fixture.lend(1, 0, 100);
    fixture.core.lease_ended(fixture.lender, LeaseId(1), LeaseEnd::Released);
    fixture.core.lease_ended(fixture.lender, LeaseId(1), LeaseEnd::Released);
    assert_eq!(fixture.accesses(), [Access::Ledger, Access::Ledger]);
    fixture.core.lease_ended(fixture.lender, LeaseId(2), LeaseEnd::Withdrawn);
    assert_eq!(fixture.accesses().len(), 2, "a withdrawn lease was never lent");
}

#[test]
fn a_wire_has_bandwidth_and_stragglers() {
    let slow = SimOptions { latency: 0..=0, completion_lag: 0..=0, bytes_per_step: 10, ..SimOptions::default() };
    let mut fixture = Fixture::new(slow.clone());
    fixture.lend(1, 0, 4096);
    fixture.post(0, 1000);
    assert_eq!(fixture.run(), (Ok(()), 100));
    let mut fixture = Fixture::new(SimOptions { straggler_one_in: 1, straggler: 500..=500, bytes_per_step: 0, ..slow });
    fixture.lend(1, 0, 4096);
    fixture.post(0, 1000);
    assert_eq!(fixture.run(), (Ok(()), 501));
}

#[test]
fn without_a_path_a_read_fails_and_its_endpoint_with_it() {
    for heals in [false, true] {
        let mut fixture = Fixture::new(SimOptions { latency: 0..=0, retry: 50, ..SimOptions::default() });
        fixture.lend(1, 0, 4096);
        fixture.core.set_path(HostId(1), HostId(0), false);
        fixture.post(0, 100);
        let mut finished = Vec::new();
        for _ in 0..40 {
            let _progress = fixture.core.step(fixture.borrower, &mut finished);
        }
        assert!(finished.is_empty());
        if heals {
            fixture.core.set_path(HostId(1), HostId(0), true);
            assert_eq!(fixture.run().0, Ok(()));
        } else {
            assert_eq!(fixture.run().0, Err(ReadFailure::RetryExceeded));
            assert_eq!(fixture.core.step(fixture.borrower, &mut finished), Progress::Down);
        }
    }
}

#[test]
fn a_completion_that_comes_too_early_shows_in_the_slab() {
    let options = SimOptions { completion_lag: 3..=3, early_one_in: 1, ..SimOptions::default() };
    let mut fixture = Fixture::new(options);
    fixture.lend(1, 0, 4096);
    let slab = fixture.post(0, 100);
    assert_eq!(fixture.run().0, Ok(()));
    let slab = slab.into_buffer().unwrap_err();
    let mut finished = Vec::new();
    while fixture.core.step(fixture.borrower, &mut finished) != Progress::Idle {}
    assert_eq!(slab.into_buffer().ok().unwrap().as_slice(), [1; 100]);
    assert_eq!((finished.len(), fixture.core.stats().early), (0, 1));
    assert_eq!(fixture.fabric.registered_bytes() > 0, fixture.pool.stats().bytes_total > 0);
}
