//! A wrapper that counts the registrations of any fabric.

use std::cell::Cell;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use arrow_buffer::Buffer;
use thallus_protocol::FabricKind;

use crate::memory::{FilePiece, RegisteredMemory};
use crate::{Capabilities, Endpoint, Fabric, FabricError, Touch};

thread_local! {
    static BY_THIS_THREAD: Cell<u64> = const { Cell::new(0) };
}

/// Number of registrations that this thread has made through any [`CountedFabric`]. The difference between two calls is
/// the number of registrations between them, independent of other threads.
#[must_use]
pub fn thread_registrations() -> u64 {
    BY_THIS_THREAD.get()
}

/// A fabric that counts its registrations, of its own memory and of foreign buffers.
#[derive(Debug)]
pub struct CountedFabric<F = Arc<dyn Fabric>> {
    inner: F,
    registrations: AtomicU64,
    bytes: AtomicU64,
}

impl<F: Fabric> CountedFabric<F> {
    /// Wraps `inner`, with a count of zero.
    #[must_use]
    pub fn new(inner: F) -> Self {
        CountedFabric { inner, registrations: AtomicU64::new(0), bytes: AtomicU64::new(0) }
    }

    /// Number of registrations so far. Constant in steady state.
    #[must_use]
    pub fn registrations(&self) -> u64 {
        self.registrations.load(Ordering::Relaxed)
    }

    /// Bytes registered so far, including those that have been deregistered.
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

#[deny(clippy::missing_trait_methods)]
impl<F: Fabric> Fabric for CountedFabric<F> {
    fn kind(&self) -> FabricKind {
        self.inner.kind()
    }

    fn capabilities(&self) -> Capabilities {
        self.inner.capabilities()
    }

    fn allocate(&self, len: usize, touch: Touch) -> Result<Arc<RegisteredMemory>, FabricError> {
        self.count(self.inner.allocate(len, touch))
    }

    fn register(&self, buffer: Buffer) -> Result<Arc<RegisteredMemory>, FabricError> {
        self.count(self.inner.register(buffer))
    }

    fn adopt(&self, piece: FilePiece) -> Result<Arc<RegisteredMemory>, FabricError> {
        self.count(self.inner.adopt(piece))
    }

    fn endpoint(&self) -> Result<Box<dyn Endpoint>, FabricError> {
        self.inner.endpoint()
    }
}
