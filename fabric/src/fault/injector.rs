//! The fabric that wraps a fabric.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use arrow_buffer::Buffer;
use thallus_protocol::FabricKind;

use super::endpoint::FaultyEndpoint;
use super::plan::{CallFaults, REASON, fails};
use super::{Call, FaultPlan, InjectedFault};
use crate::memory::{FilePiece, RegisteredMemory};
use crate::{Capabilities, Endpoint, Fabric, FabricError, Touch};

/// A fabric that fails according to a [`FaultPlan`], and otherwise behaves as the wrapped fabric.
pub struct FaultInjector<F> {
    inner: F,
    faults: Arc<Mutex<CallFaults>>,
}

impl<F: Fabric> FaultInjector<F> {
    /// Wraps `inner`.
    pub fn new(inner: F, plan: FaultPlan) -> Self {
        FaultInjector { inner, faults: Arc::new(Mutex::new(CallFaults::new(plan))) }
    }

    /// The wrapped fabric.
    pub fn inner(&self) -> &F {
        &self.inner
    }

    /// The number of times that each fault has happened.
    #[must_use]
    pub fn injected(&self) -> BTreeMap<InjectedFault, u64> {
        self.lock().injected().clone()
    }

    /// Ends the plan: no new faults happen. Reads that hang stay so until their endpoint is closed.
    pub fn stop(&self) {
        self.lock().stop();
    }

    fn lock(&self) -> MutexGuard<'_, CallFaults> {
        self.faults.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn registration(&self, len: usize) -> FabricError {
        FabricError::Registration { fabric: self.kind(), len, reason: REASON.to_owned() }
    }
}

impl<F: fmt::Debug> fmt::Debug for FaultInjector<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "FaultInjector({:?})", self.inner)
    }
}

#[deny(clippy::missing_trait_methods)]
impl<F: Fabric> Fabric for FaultInjector<F> {
    fn kind(&self) -> FabricKind {
        self.inner.kind()
    }

    fn capabilities(&self) -> Capabilities {
        self.inner.capabilities()
    }

    fn allocate(&self, len: usize, touch: Touch) -> Result<Arc<RegisteredMemory>, FabricError> {
        if fails(&self.faults, Call::Allocate) {
            return Err(FabricError::OutOfMemory { len, available: 0, limit: 0 });
        }
        self.inner.allocate(len, touch)
    }

    fn register(&self, buffer: Buffer) -> Result<Arc<RegisteredMemory>, FabricError> {
        if fails(&self.faults, Call::Register) {
            return Err(self.registration(buffer.len()));
        }
        self.inner.register(buffer)
    }

    fn adopt(&self, piece: FilePiece) -> Result<Arc<RegisteredMemory>, FabricError> {
        self.inner.adopt(piece)
    }

    fn endpoint(&self) -> Result<Box<dyn Endpoint>, FabricError> {
        if fails(&self.faults, Call::Endpoint) {
            return Err(FabricError::Unavailable { fabric: self.kind(), reason: REASON.to_owned() });
        }
        let reads = self.lock().for_endpoint();
        let limit = self.capabilities().max_outstanding_reads;
        let inner = self.inner.endpoint()?;
        Ok(Box::new(FaultyEndpoint::new(inner, self.kind(), limit, Arc::clone(&self.faults), reads)))
    }
}
