//! The conformance suite sees what is wrong with a fabric: each defect here makes the case fail that is about it.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::task::{Context, Poll};

use arrow_buffer::Buffer;
use bytes::Bytes;
use thallus_fabric::conformance::{Bench, cases, run};
use thallus_fabric::memory::{LocalRange, RangeHold, RegisteredMemory};
use thallus_fabric::{Capabilities, Completion, Endpoint, Fabric, FabricError, ReadToken, Transport};
use thallus_fabric_sim::{SimFabric, SimNetwork, SimOptions};
use thallus_protocol::{FabricKind, RegionId, RemoteRange};

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
}

#[derive(Debug)]
struct Broken(Arc<SimFabric>, Defect);

#[derive(Debug)]
struct BrokenEndpoint {
    inner: Box<dyn Endpoint>,
    defect: Defect,
    closing: bool,
    kept: Vec<RangeHold>,
}

impl Fabric for Broken {
    fn kind(&self) -> FabricKind {
        self.0.kind()
    }

    fn capabilities(&self) -> Capabilities {
        self.0.capabilities()
    }

    fn allocate(&self, len: usize) -> Result<Arc<RegisteredMemory>, FabricError> {
        self.0.allocate(len)
    }

    fn register(&self, buffer: Buffer) -> Result<Arc<RegisteredMemory>, FabricError> {
        self.0.register(buffer)
    }

    fn endpoint(&self) -> Result<Box<dyn Endpoint>, FabricError> {
        let inner = self.0.endpoint()?;
        Ok(Box::new(BrokenEndpoint { inner, defect: self.1, closing: false, kept: Vec::new() }))
    }
}

impl Endpoint for BrokenEndpoint {
    fn address(&self) -> Bytes {
        self.inner.address()
    }

    fn connect(&mut self, peer: &[u8]) -> Result<(), FabricError> {
        let result = self.inner.connect(peer);
        if self.defect == Defect::ConnectsToAnything { Ok(()) } else { result }
    }

    fn transport(&self) -> Option<Transport> {
        self.inner.transport()
    }

    fn expose(&mut self, memory: &RegisteredMemory) -> Result<Bytes, FabricError> {
        self.inner.expose(memory)
    }

    fn import(&mut self, region: RegionId, base: u64, len: u64, key: &[u8]) -> Result<(), FabricError> {
        let result = self.inner.import(region, base, len, key);
        if self.defect == Defect::ImportsAnything { Ok(()) } else { result }
    }

    fn forget(&mut self, region: RegionId) {
        self.inner.forget(region);
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

fn passes(case: fn(&Bench), defect: Defect) -> bool {
    let make = || -> Arc<dyn Fabric> { Arc::new(Broken(SimNetwork::new(1, SimOptions::default()).host(), defect)) };
    catch_unwind(AssertUnwindSafe(|| run("a test of the suite", case, make))).is_ok()
}

#[test]
fn each_defect_fails_the_case_that_is_about_it() {
    type Case = fn(&Bench);
    let pairs: [(Defect, Case); 10] = [
        (Defect::CompletesTwice, cases::many_reads_complete_each_once),
        (Defect::Spins, cases::an_idle_endpoint_does_not_spin),
        (Defect::ImportsAnything, cases::malformed_keys_are_refused),
        (Defect::ConnectsToAnything, cases::malformed_addresses_are_refused),
        (Defect::ClosesTooEarly, cases::closing_ends_each_read_once),
        (Defect::KeepsRanges, cases::a_token_can_be_used_again_once_it_completed),
        (Defect::ReadsOneByteOff, cases::a_read_of_every_size_brings_its_bytes),
        (Defect::SwallowsTheLimit, cases::too_many_reads_are_refused),
        (Defect::NeverCloses, cases::closing_an_idle_endpoint_closes_it),
        (Defect::IgnoresTheClose, cases::a_revoked_lease_is_noticed),
    ];
    for (defect, case) in pairs {
        assert!(passes(case, Defect::None), "{defect:?}: its case fails without it");
        assert!(!passes(case, defect), "{defect:?} went unnoticed");
    }
}
