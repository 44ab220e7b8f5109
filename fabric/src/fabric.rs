//! The traits of a fabric: the device or library, and one end of a connection over it. Each names the other.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use std::task::{Context, Poll};

use arrow_buffer::Buffer;
use bytes::Bytes;
use thallus_protocol::{FabricKind, RegionId, RemoteRange};

use crate::memory::{FilePiece, LocalRange, RegisteredMemory};
use crate::process::PresenceProbe;
use crate::{Capabilities, Completion, FabricError, ReadToken, Transport};

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

    /// Registers a piece of the process's heap, for lending. The memory keeps the piece, and with it the heap's promise
    /// to leave the piece where it is.
    ///
    /// # Errors
    /// [`FabricError::Unsupported`] where peers do not reach memory by its file.
    fn adopt(&self, piece: FilePiece) -> Result<Arc<RegisteredMemory>, FabricError>;

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

    fn adopt(&self, piece: FilePiece) -> Result<Arc<RegisteredMemory>, FabricError> {
        (**self).adopt(piece)
    }

    fn endpoint(&self) -> Result<Box<dyn Endpoint>, FabricError> {
        (**self).endpoint()
    }
}

/// One end of a connection over a fabric, in both roles: it reads the memory that its peer lends, and exposes memory
/// that this end lends. The [crate's documentation](crate#how-to-write-a-fabric) describes the order of calls and the
/// owner of each memory.
///
/// No method has a default: a wrapper without the method would silently replace the behaviour of the endpoint inside.
pub trait Endpoint: Send + fmt::Debug {
    /// The address blob of this end, for the peer's [`Endpoint::connect`]. 1 byte to 64 KiB, the same at each call.
    fn address(&self) -> Bytes;

    /// Connects to the peer with this address blob. The blob is untrusted. An endpoint is connected once. Both ends
    /// connect, in any order.
    ///
    /// # Errors
    /// [`FabricError::Connect`]: malformed blob, unreachable peer, no transport in common, or connected already.
    /// [`FabricError::EndpointDown`] once it is closed.
    fn connect(&mut self, peer: &[u8]) -> Result<(), FabricError>;

    /// The transport of the reads. `None` before [`Endpoint::connect`].
    fn transport(&self) -> Option<Transport>;

    /// The packed remote key with which the peer can read `range` (byte offsets, not empty) of `memory`, until
    /// [`Endpoint::revoke`] or the end of the endpoint. Allowed before [`Endpoint::connect`]; then the key works once
    /// connected.
    ///
    /// Where [`Capabilities::exposes_ranges`](crate::Capabilities::exposes_ranges), the key opens exactly this range to
    /// exactly this peer. Elsewhere the key opens the whole memory, to every peer that has the key, for as long as the
    /// memory is registered. The peer imports the same: the range, or the whole memory.
    ///
    /// # Errors
    /// [`FabricError::Misuse`]: the range is empty or not within the memory, or another fabric registered the memory.
    /// [`FabricError::Registration`] with the library's message; [`FabricError::EndpointDown`] once closed.
    fn expose(&mut self, memory: &Arc<RegisteredMemory>, range: Range<usize>) -> Result<Bytes, FabricError>;

    /// Revokes a key of [`Endpoint::expose`]. Where
    /// [`Capabilities::exposes_ranges`](crate::Capabilities::exposes_ranges), no read by this key reaches the memory
    /// after this returns. Elsewhere the key stays valid. Unknown keys are ignored.
    fn revoke(&mut self, key: &Bytes);

    /// Imports a region of the peer's memory: `base .. base + len` in its address space, opened by its packed `key`.
    /// All arguments are untrusted. An id is free again after [`Endpoint::forget`].
    ///
    /// # Errors
    /// [`FabricError::RemoteKey`]: the key is malformed, the region wraps around the address space, or no transport
    /// here can use the key. [`FabricError::Misuse`]: the id is taken. [`FabricError::EndpointDown`] once closed.
    fn import(&mut self, region: RegionId, base: u64, len: u64, key: &[u8]) -> Result<(), FabricError>;

    /// Drops a region of [`Endpoint::import`]. Its outstanding reads still complete. Unknown ids are ignored.
    fn forget(&mut self, region: RegionId);

    /// Posts a one-sided read of `from` into `into`. The two lengths are equal, not 0, and at most
    /// [`Capabilities::max_read`](crate::Capabilities::max_read). The endpoint owns `into` until the completion has
    /// been polled: it keeps the value in its table of operations, even if the task that posted the read ends.
    ///
    /// # Errors
    /// [`FabricError::OutsideRegion`]: the range is not within its imported region; such a read never reaches the
    /// device. [`FabricError::TooManyReads`]; [`FabricError::Misuse`] for lengths and for memory of another fabric;
    /// [`FabricError::Post`]; [`FabricError::EndpointDown`]. After an error, nothing was posted, `into` is dropped, and
    /// no completion follows.
    fn post_read(&mut self, token: ReadToken, from: RemoteRange, into: LocalRange) -> Result<(), FabricError>;

    /// The fabric whose memory this end may expose to its peer, if that is not the endpoint's own fabric: a fabric that
    /// knows the peer's user separates the users' results, and lends to each from separate memory. `None`: the
    /// endpoint's own. Known once connected.
    fn lends_from(&self) -> Option<Arc<dyn Fabric>>;

    /// A probe for the presence of the peer's process. By it a lender detects the end of a process that has its memory
    /// mapped, also after the end of the connection. `None` if the fabric has no such probe.
    fn peer_presence(&self) -> Option<PresenceProbe>;

    /// The extension for mapping the peer's memory. `Some` exactly if [`Capabilities::maps`](crate::Capabilities::maps)
    /// is not [`Maps::Nothing`](crate::Maps::Nothing).
    fn mapping(&mut self) -> Option<&mut dyn MapsPeer>;

    /// Makes progress and appends completions to `completions`. `Ready(Ok(()))` if a read completed; `Pending` after
    /// the waker was registered. An idle endpoint uses no CPU. Both roles are polled: some transports need the lender's
    /// progress for wire-up.
    ///
    /// # Errors
    /// `Ready(Err(_))` once the endpoint failed as a whole (the peer died). Outstanding reads have completed with
    /// failures before that, or complete in the same call. No more reads can be posted.
    fn poll(&mut self, cx: &mut Context<'_>, completions: &mut Vec<Completion>) -> Poll<Result<(), FabricError>>;

    /// Begins the orderly teardown: cuts the peer off, as far as the fabric can, and flushes outstanding reads. Their
    /// completions still have to be polled. Idempotent. The teardown is complete once [`Endpoint::is_closed`].
    fn close(&mut self);

    /// Whether the teardown is complete: every completion has been polled, and under
    /// [`Fencing::Revocation`](crate::Fencing::Revocation) the peer cannot read any memory of this end. Only then may
    /// the lender end its leases.
    ///
    /// Dropping an endpoint that is not closed blocks until it is closed, or leaks the memory of outstanding reads. It
    /// never frees memory that the fabric may still write.
    fn is_closed(&self) -> bool;
}

/// An endpoint that can map its peer's memory. The peer is on the same host. The bytes are used in place, without a
/// copy.
pub trait MapsPeer {
    /// The bytes of `from`, in place in the peer's memory.
    ///
    /// The buffer stays valid for reading after the end of the endpoint, of the region, and of the peer's process. But
    /// nothing can fence a mapping: **the peer must neither change nor reuse the memory until every slice of the buffer
    /// has been dropped**, and relies on this end to report that. `peer` is the caller's statement that the peer is
    /// trusted to do so.
    ///
    /// (An `unsafe fn` would express the same. But a fabric or wrapper without unsafe code of its own, such as a
    /// simulated fabric whose mappings are copies, could not implement it.)
    ///
    /// # Errors
    /// [`FabricError::Map`] where the fabric cannot map this memory; [`FabricError::OutsideRegion`];
    /// [`FabricError::EndpointDown`].
    fn map(&mut self, from: RemoteRange, peer: TrustedPeer) -> Result<Buffer, FabricError>;
}

/// States that the process at the other end of a connection is trusted with memory that this process maps.
///
/// A mapped buffer lies in memory of the peer's process, and nothing can prevent that process from changing it. So
/// [`MapsPeer::map`] requires this value, which only [`TrustedPeer::assume`] creates.
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

    /// The bytes of `from`, in place in the memory of the endpoint's peer: see [`MapsPeer::map`].
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
