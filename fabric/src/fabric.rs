//! The trait of a device or library on this host.

use std::fmt;
use std::sync::Arc;

use arrow_buffer::Buffer;
use thallus_protocol::FabricKind;

use crate::memory::RegisteredMemory;
use crate::{Capabilities, Endpoint, FabricError};

/// When the pages of new memory are touched. The first touch of a page is the largest part of what memory costs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Touch {
    /// Before [`Fabric::allocate`] returns. The memory is zeroed.
    Now,
    /// When they are used, if the fabric does not pin them anyway. The content is undefined, but initialised. For long
    /// memory of which perhaps not all is used.
    WhenUsed,
}

/// A fabric on this host: one device or library. It is shared by all connections of the process.
///
/// No method has a default: a wrapper that forgot one would silently replace the behaviour of the fabric that it wraps.
pub trait Fabric: Send + Sync + fmt::Debug + 'static {
    /// Its name in the negotiation. Two ends use a fabric only if both offer one of the same kind.
    fn kind(&self) -> FabricKind;

    /// What it can do here.
    fn capabilities(&self) -> Capabilities;

    /// New memory of `len` bytes, registered for both roles: reads may land in it, and it may be lent. `len` is not 0;
    /// it is rounded up to whole pages, and the memory begins at a page ([`memory::PAGE`](crate::memory::PAGE)). No
    /// other part of the process has the memory: [`RegisteredMemory::claim`] returns true once.
    ///
    /// # Errors
    /// [`FabricError::OutOfMemory`]; [`FabricError::Registration`] with the library's message and the limit to look at
    /// (memlock, `/dev/shm`).
    fn allocate(&self, len: usize, touch: Touch) -> Result<Arc<RegisteredMemory>, FabricError>;

    /// Registers a buffer that another part of the process allocated, so that it can be lent from where it lies. The
    /// registration keeps the buffer alive until it is dropped. Make it by [`RegisteredMemory::foreign`]: reads never
    /// land in it.
    ///
    /// # Errors
    /// [`FabricError::Registration`], also for an empty buffer; [`FabricError::Unsupported`] where only
    /// [`Fabric::allocate`]d memory can be lent.
    fn register(&self, buffer: Buffer) -> Result<Arc<RegisteredMemory>, FabricError>;

    /// A new endpoint, for one connection. The caller calls this, and polls the endpoint, within a tokio runtime.
    ///
    /// # Errors
    /// [`FabricError`] if the fabric has no resources for one more.
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
