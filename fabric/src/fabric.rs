//! The trait of a device or library on this host.

use std::fmt;
use std::sync::Arc;

use arrow_buffer::Buffer;
use thallus_protocol::FabricKind;

use crate::memory::RegisteredMemory;
use crate::{Capabilities, Endpoint, FabricError};

/// The time at which the pages of new memory are touched. The first touch is the largest part of the cost of memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Touch {
    /// Before [`Fabric::allocate`] returns. The memory is zeroed.
    Now,
    /// When they are used, unless the fabric pins them anyway. The content is undefined, but initialised. For long
    /// memory that may not be used completely.
    WhenUsed,
}

/// A fabric on this host: one device or library. All connections of the process share it.
///
/// No method has a default: a wrapper without the method would silently replace the behaviour of the fabric inside.
pub trait Fabric: Send + Sync + fmt::Debug + 'static {
    /// The name of the fabric in the negotiation. Two ends use a fabric only if both offer one of the same kind.
    fn kind(&self) -> FabricKind;

    /// The capabilities of the fabric on this host.
    fn capabilities(&self) -> Capabilities;

    /// New memory of `len` bytes, registered for both roles: reads may write to it, and it may be lent. `len` is not 0.
    /// It is rounded up to whole pages, and the memory begins at a page ([`memory::PAGE`](crate::memory::PAGE)). No
    /// other part of the process has the memory: [`RegisteredMemory::claim`] returns true once.
    ///
    /// # Errors
    /// [`FabricError::OutOfMemory`]; [`FabricError::Registration`] with the library's message and the limit to check
    /// (memlock, `/dev/shm`).
    fn allocate(&self, len: usize, touch: Touch) -> Result<Arc<RegisteredMemory>, FabricError>;

    /// Registers a buffer that another part of the process allocated, so that it can be lent in place. The registration
    /// keeps the buffer alive until it is dropped. Implementations create it by [`RegisteredMemory::foreign`]: reads
    /// never write to such memory.
    ///
    /// # Errors
    /// [`FabricError::Registration`], also for an empty buffer; [`FabricError::Unsupported`] where only
    /// [`Fabric::allocate`]d memory can be lent.
    fn register(&self, buffer: Buffer) -> Result<Arc<RegisteredMemory>, FabricError>;

    /// A new endpoint, for one connection. The caller calls this method, and polls the endpoint, within a tokio
    /// runtime.
    ///
    /// # Errors
    /// [`FabricError`] if the fabric has no resources for another endpoint.
    fn endpoint(&self) -> Result<Box<dyn Endpoint>, FabricError>;
}

#[deny(clippy::missing_trait_methods)]
impl<F: Fabric + ?Sized> Fabric for Arc<F> {
    fn kind(&self) -> FabricKind {
        (**self).kind()
    }

    fn capabilities(&self) -> Capabilities {
        (**self).capabilities()
    }

    fn allocate(&self, len: usize, touch: Touch) -> Result<Arc<RegisteredMemory>, FabricError> {
        (**self).allocate(len, touch)
    }

    fn register(&self, buffer: Buffer) -> Result<Arc<RegisteredMemory>, FabricError> {
        (**self).register(buffer)
    }

    fn endpoint(&self) -> Result<Box<dyn Endpoint>, FabricError> {
        (**self).endpoint()
    }
}
