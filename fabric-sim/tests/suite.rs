//! The conformance suite finds faults: each defect here makes its case fail.

use std::convert::Infallible;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};

use thallus_fabric::conformance::{Bench, cases, run};
use thallus_fabric::memory::{FilePiece, LocalRange, RangeHold, RegisteredMemory, Registration};
use thallus_fabric::{
    Buffer, Bytes, Capabilities, Completion, Endpoint, Fabric, FabricError, FabricKind, MapsPeer, PresenceProbe,
    ReadToken, RegionId, RemoteRange, Touch, Transport,
};
use thallus_fabric_sim::{SimFabric, SimNetwork, SimOptions};

#[derive(Clone, Copy, Debug, PartialEq)]
enum Defect {
    None,
    CompletesTwice,
    Spins,
    ImportsAnything,
    ConnectsToAnything,
    ClosesTooEarly,
    KeepsRanges,
    ReadsOneByteOff,
    SwallowsTheLimit,
    NeverCloses,
    IgnoresTheClose,
    ForgetsNothing,
    ExposesTheWhole,
    ExposesAnything,
    IgnoresRevoke,
    /// Announces that it exposes ranges, and opens whole memory to every peer.
    PromisesRanges,
    HasATransportTooEarly,
    HasAnotherAddressEachTime,
    SaysThatReadsAreShort,
    AllocatesTheSameTwice,
    ForgetsToRegisterWhatIsTouchedLater,
    RegistersWritableMemory,
    HidesTheMapping,
}

#[derive(Debug)]
struct Broken {
    inner: Arc<SimFabric>,
    defect: Defect,
    allocated: Mutex<Option<Arc<RegisteredMemory>>>,
}

#[derive(Debug)]
struct BrokenEndpoint {
    inner: Box<dyn Endpoint>,
    defect: Defect,
    closing: bool,
    kept: Vec<RangeHold>,
}

#[derive(Debug)]
struct OfNobody;

impl Fabric for Broken {
    fn kind(&self) -> FabricKind {
        self.inner.kind()
    }

    fn capabilities(&self) -> Capabilities {
        let capabilities = self.inner.capabilities();
        match self.defect {
            Defect::PromisesRanges => Capabilities { exposes_ranges: true, ..capabilities },
            Defect::SaysThatReadsAreShort => Capabilities { max_read: 4096, ..capabilities },
            _ => capabilities,
        }
    }

    fn allocate(&self, len: usize, touch: Touch) -> Result<Arc<RegisteredMemory>, FabricError> {
        if self.defect == Defect::ForgetsToRegisterWhatIsTouchedLater && touch == Touch::WhenUsed {
            let register = |_, _| Ok::<Box<dyn Registration>, Infallible>(Box::new(OfNobody));
            let memory = RegisteredMemory::heap(len, register).expect("there is memory");
            return Ok(Arc::new(memory.unwrap_or_else(|never| match never {})));
        }
        let memory = self.inner.allocate(len, touch)?;
        if self.defect == Defect::AllocatesTheSameTwice {
            return Ok(Arc::clone(self.allocated.lock().unwrap().get_or_insert(memory)));
        }
        Ok(memory)
    }

    fn register(&self, buffer: Buffer) -> Result<Arc<RegisteredMemory>, FabricError> {
        if self.defect == Defect::RegistersWritableMemory && !buffer.is_empty() {
            return self.inner.allocate(buffer.len(), Touch::Now);
        }
        self.inner.register(buffer)
    }

    fn adopt(&self, piece: FilePiece) -> Result<Arc<RegisteredMemory>, FabricError> {
        self.inner.adopt(piece)
    }

    fn endpoint(&self) -> Result<Box<dyn Endpoint>, FabricError> {
        let inner = self.inner.endpoint()?;
        Ok(Box::new(BrokenEndpoint { inner, defect: self.defect, closing: false, kept: Vec::new() }))
    }
}

impl Endpoint for BrokenEndpoint {
    fn address(&self) -> Bytes {
        let address = self.inner.address();
        if self.defect == Defect::HasAnotherAddressEachTime {
            static CALLS: AtomicUsize = AtomicUsize::new(0);
            let other = CALLS.fetch_add(1, Ordering::Relaxed).to_le_bytes();
            return [&address[..], &other[..]].concat().into();
        }
        address
    }

    fn connect(&mut self, peer: &[u8]) -> Result<(), FabricError> {
        if self.defect == Defect::HasAnotherAddressEachTime {
            return self.inner.connect(&peer[..peer.len() - size_of::<usize>()]);
        }
        let result = self.inner.connect(peer);
        if self.defect == Defect::ConnectsToAnything { Ok(()) } else { result }
    }

    fn transport(&self) -> Option<Transport> {
        if self.defect == Defect::HasATransportTooEarly {
            return Some(Transport { name: "too early".to_owned(), inferior: None });
        }
        self.inner.transport()
    }

    fn expose(&mut self, memory: &Arc<RegisteredMemory>, range: Range<usize>) -> Result<Bytes, FabricError> {
        match self.defect {
            Defect::ExposesTheWhole if range.end <= memory.len() => self.inner.expose(memory, 0..memory.len()),
            Defect::ExposesAnything => self.inner.expose(memory, range).or_else(|_| Ok(Bytes::from_static(b"a key"))),
            _ => self.inner.expose(memory, range),
        }
    }

    fn revoke(&mut self, key: &Bytes) {
        if self.defect != Defect::IgnoresRevoke {
            self.inner.revoke(key);
        }
    }

    fn import(&mut self, region: RegionId, base: u64, len: u64, key: &[u8]) -> Result<(), FabricError> {
        let result = self.inner.import(region, base, len, key);
        if self.defect == Defect::ImportsAnything { Ok(()) } else { result }
    }

    fn forget(&mut self, region: RegionId) {
        if self.defect != Defect::ForgetsNothing {
            self.inner.forget(region);
        }
    }

    fn post_read(&mut self, token: ReadToken, mut from: RemoteRange, mut into: LocalRange) -> Result<(), FabricError> {
        match self.defect {
            Defect::KeepsRanges => self.kept.push(into.hold()),
            Defect::ReadsOneByteOff => from.address += 1,
            Defect::SwallowsTheLimit => {
                return match self.inner.post_read(token, from, into) {
                    Err(FabricError::TooManyReads { .. }) => Ok(()),
                    other => other,
                };
            }
            _ => {}
        }
        self.inner.post_read(token, from, into)
    }

    fn lends_from(&self) -> Option<Arc<dyn Fabric>> {
        self.inner.lends_from()
    }

    fn peer_presence(&self) -> Option<PresenceProbe> {
        self.inner.peer_presence()
    }

    fn mapping(&mut self) -> Option<&mut dyn MapsPeer> {
        if self.defect == Defect::HidesTheMapping { None } else { self.inner.mapping() }
    }

    fn poll(&mut self, cx: &mut Context<'_>, completions: &mut Vec<Completion>) -> Poll<Result<(), FabricError>> {
        let before = completions.len();
        let polled = self.inner.poll(cx, completions);
        if self.defect == Defect::CompletesTwice
            && let Some(completion) = completions.get(before).cloned()
        {
            completions.push(completion);
        }
        if self.defect == Defect::Spins {
            cx.waker().wake_by_ref();
        }
        polled
    }

    fn close(&mut self) {
        self.closing = true;
        if self.defect != Defect::IgnoresTheClose {
            self.inner.close();
        }
    }

    fn is_closed(&self) -> bool {
        match self.defect {
            Defect::ClosesTooEarly | Defect::IgnoresTheClose => self.closing,
            Defect::NeverCloses => false,
            _ => self.inner.is_closed(),
        }
    }
}

fn options(defect: Defect) -> SimOptions {
    match defect {
        Defect::PromisesRanges | Defect::HidesTheMapping => SimOptions::shared_memory(),
        _ => SimOptions::default(),
    }
}

/// Whether `case` passes on a fabric with this defect, on a network that suits `about`.
fn passes(case: fn(&Bench), defect: Defect, about: Defect) -> bool {
    let make = || -> Arc<dyn Fabric> {
        let inner = SimNetwork::new(1, options(about)).host();
        Arc::new(Broken { inner, defect, allocated: Mutex::default() })
    };
    catch_unwind(AssertUnwindSafe(|| run("a test of the suite", case, make))).is_ok()
}

#[test]
fn each_defect_fails_the_case_that_is_about_it() {
    type Case = fn(&Bench);
    let pairs: [(Defect, Case); 30] = [
        (Defect::CompletesTwice, cases::many_reads_complete_each_once),
        (Defect::Spins, cases::an_idle_endpoint_does_not_spin),
        (Defect::ImportsAnything, cases::malformed_keys_are_refused),
        (Defect::ImportsAnything, cases::a_region_id_is_imported_once),
        (Defect::ConnectsToAnything, cases::malformed_addresses_are_refused),
        (Defect::ConnectsToAnything, cases::an_endpoint_connects_once),
        (Defect::ClosesTooEarly, cases::closing_ends_each_read_once),
        (Defect::KeepsRanges, cases::a_token_can_be_used_again_once_it_completed),
        (Defect::ReadsOneByteOff, cases::a_read_of_every_size_brings_its_bytes),
        (Defect::SwallowsTheLimit, cases::too_many_reads_are_refused),
        (Defect::NeverCloses, cases::closing_an_idle_endpoint_closes_it),
        (Defect::IgnoresTheClose, cases::a_revoked_lease_is_noticed),
        (Defect::IgnoresTheClose, cases::a_closed_endpoint_opens_and_takes_in_nothing),
        (Defect::ForgetsNothing, cases::a_region_can_be_forgotten_and_imported_again),
        (Defect::ExposesTheWhole, cases::an_exposed_range_opens_no_more_than_it_may),
        (Defect::ExposesAnything, cases::an_empty_or_outside_range_is_not_exposed),
        (Defect::ExposesAnything, cases::memory_of_another_fabric_is_not_exposed),
        (Defect::ExposesAnything, cases::a_closed_endpoint_opens_and_takes_in_nothing),
        (Defect::IgnoresRevoke, cases::a_revoked_key_reads_nothing),
        (Defect::PromisesRanges, cases::an_exposed_range_opens_no_more_than_it_may),
        (Defect::PromisesRanges, cases::a_revoked_key_reads_nothing),
        (Defect::PromisesRanges, cases::a_key_opens_its_memory_to_its_peer_only),
        (Defect::HasATransportTooEarly, cases::addresses_are_exchanged),
        (Defect::HasAnotherAddressEachTime, cases::addresses_are_exchanged),
        (Defect::SaysThatReadsAreShort, cases::a_read_longer_than_the_longest_is_refused),
        (Defect::AllocatesTheSameTwice, cases::allocated_memory_is_whole_pages_of_its_own),
        (Defect::ForgetsToRegisterWhatIsTouchedLater, cases::memory_touched_when_used_is_lent_and_read_into),
        (Defect::RegistersWritableMemory, cases::registered_memory_is_neither_writable_nor_claimable),
        (Defect::RegistersWritableMemory, cases::foreign_memory_is_read_in_place),
        (Defect::HidesTheMapping, cases::mapped_bytes_are_those_of_the_lender),
    ];
    for (defect, case) in pairs {
        assert!(passes(case, Defect::None, defect), "{defect:?}: its case fails without it");
        assert!(!passes(case, defect, defect), "{defect:?} went unnoticed");
    }
}
