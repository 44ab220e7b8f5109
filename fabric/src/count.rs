//! Registrations, counted, of whatever fabric makes them.

use std::cell::Cell;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use arrow_buffer::Buffer;
use thallus_protocol::FabricKind;

use crate::memory::RegisteredMemory;
use crate::{Capabilities, Endpoint, Fabric, FabricError};

thread_local! {
    static BY_THIS_THREAD: Cell<u64> = const { Cell::new(0) };
}

/// Registrations that this thread has had counted so far, by any [`CountedFabric`]: the difference of two calls is what was made
/// between them, whatever other threads do.
#[must_use]
pub fn thread_registrations() -> u64 {
    BY_THIS_THREAD.get()
}

/// A fabric, with its registrations counted: of memory that it allocated, and of memory of others.
#[derive(Debug)]
pub struct CountedFabric<F = Arc<dyn Fabric>> {
    inner: F,
    registrations: AtomicU64,
    bytes: AtomicU64,
}

impl<F: Fabric> CountedFabric<F> {
    /// Counts from zero.
    #[must_use]
    pub fn new(inner: F) -> Self {
        CountedFabric { inner, registrations: AtomicU64::new(0), bytes: AtomicU64::new(0) }
    }

    /// Registrations made so far. Constant in steady state.
    #[must_use]
    pub fn registrations(&self) -> u64 {
        self.registrations.load(Ordering::Relaxed)
    }

    /// Bytes registered so far, those that are not any more included.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    fn count(
        &self,
        registered: Result<Arc<RegisteredMemory>, FabricError>,
    ) -> Result<Arc<RegisteredMemory>, FabricError> {
        let memory = registered?;
        BY_THIS_THREAD.set(BY_THIS_THREAD.get() + 1);
        self.registrations.fetch_add(1, Ordering::Relaxed);
        self.bytes.fetch_add(memory.len() as u64, Ordering::Relaxed);
        Ok(memory)
    }
}

impl<F: Fabric> Fabric for CountedFabric<F> {
    fn kind(&self) -> FabricKind {
        self.inner.kind()
    }

    fn capabilities(&self) -> Capabilities {
        self.inner.capabilities()
    }

    fn allocate(&self, len: usize) -> Result<Arc<RegisteredMemory>, FabricError> {
        self.count(self.inner.allocate(len))
    }

    fn allocate_untouched(&self, len: usize) -> Result<Arc<RegisteredMemory>, FabricError> {
        self.count(self.inner.allocate_untouched(len))
    }

    fn register(&self, buffer: Buffer) -> Result<Arc<RegisteredMemory>, FabricError> {
        self.count(self.inner.register(buffer))
    }

    fn endpoint(&self) -> Result<Box<dyn Endpoint>, FabricError> {
        self.inner.endpoint()
    }
}
