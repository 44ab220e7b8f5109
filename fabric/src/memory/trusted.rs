//! The statement of trust by which safe code maps a peer's memory.

use arrow_buffer::Buffer;
use thallus_protocol::RemoteRange;

use crate::{Endpoint, FabricError};

/// States that the process at the other end of a connection is trusted with memory that this process maps.
///
/// A mapped buffer lies in memory of the peer's process, and nothing can prevent that process from changing it. So
/// [`MapsPeer::map`](crate::MapsPeer::map) requires this value, which only [`TrustedPeer::assume`] creates.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TrustedPeer(());

impl TrustedPeer {
    /// States that the peer is trusted. The caller promises, on behalf of the peer's process:
    ///
    /// - it does not change lent memory until this process has released it;
    /// - it does not reuse, unmap or truncate that memory before, however the connection ends.
    ///
    /// If the peer breaks the promise, bytes change under arrays that have been validated: a string may stop being
    /// UTF-8, and the behaviour of this process is undefined. A Thallus server that was started with `--allow-mapped`
    /// keeps the promise.
    /// This is a deliberate exception to the rule that safe code cannot cause undefined behaviour. The promise is about
    /// another process: an operator makes it, by a command-line option or in a URL, and no programmer can prove it. Do
    /// not expose the option to users who may name any server.
    #[must_use]
    pub fn assume() -> Self {
        TrustedPeer(())
    }

    /// The bytes of `from`, in place in the memory of the endpoint's peer: see [`MapsPeer::map`](crate::MapsPeer::map).
    ///
    /// # Errors
    /// [`FabricError::Map`] where the fabric maps nothing, or cannot map this memory;
    /// [`FabricError::OutsideRegion`]; [`FabricError::EndpointDown`].
    pub fn map(self, endpoint: &mut dyn Endpoint, from: RemoteRange) -> Result<Buffer, FabricError> {
        let RemoteRange { address, len, .. } = from;
        let refused = || FabricError::Map { address, len, reason: "this fabric maps no memory of a peer".to_owned() };
        endpoint.mapping().ok_or_else(refused)?.map(from, self)
    }
}
