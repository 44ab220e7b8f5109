//! The trait of one connection's end.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use std::task::{Context, Poll};

use arrow_buffer::Buffer;
use bytes::Bytes;
use thallus_protocol::{RegionId, RemoteRange};

use crate::memory::{LocalRange, RegisteredMemory, TrustedPeer};
use crate::{FabricError, ReadFailure};

/// The transport of an endpoint's reads, known once it is connected.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Transport {
    /// The transports and devices that were chosen, in the fabric's own words (`posix/memory cma/memory`). Not empty.
    pub name: String,
    /// Why this path is no better than bytes sent inline over the control connection, if it is not: the fabric emulates
    /// one-sided reads in software over TCP, say. The negotiation then prefers inline, and reports this reason.
    pub inferior: Option<String>,
}

/// Names a posted read until its completion has been polled. The caller chooses it, unique among its outstanding reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ReadToken(pub u64);

/// The end of one posted read. Each posted read ends in exactly one completion, closing the endpoint included.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Completion {
    /// The read that ended.
    pub token: ReadToken,
    /// Whether every byte is in place.
    pub result: Result<(), ReadFailure>,
}

/// One connection's end of a fabric, for both roles: it reads the memory that its peer lends, and exposes memory that
/// it lends itself. The [crate's documentation](crate#how-to-write-a-fabric) gives the order of calls and who owns
/// which memory until when.
///
/// No method has a default: a wrapper that forgot one would silently replace the behaviour of the endpoint that it
/// wraps.
pub trait Endpoint: Send + fmt::Debug {
    /// This end's address blob, for the peer's [`Endpoint::connect`]. 1 byte to 64 KiB, the same at each call.
    fn address(&self) -> Bytes;

    /// Connects to the peer whose address blob this is. The blob is untrusted. An endpoint is connected once; both ends
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
    /// exactly this peer. Elsewhere it opens the whole memory, to whoever has the key, for as long as the memory is
    /// registered. The peer imports what the key opens: the range, or the whole memory.
    ///
    /// # Errors
    /// [`FabricError::Misuse`]: the range is empty or not within the memory, or another fabric registered the memory.
    /// [`FabricError::Registration`] with the library's message; [`FabricError::EndpointDown`] once closed.
    fn expose(&mut self, memory: &Arc<RegisteredMemory>, range: Range<usize>) -> Result<Bytes, FabricError>;

    /// Withdraws a key of [`Endpoint::expose`]. Where
    /// [`Capabilities::exposes_ranges`](crate::Capabilities::exposes_ranges), no read by this key reaches the memory
    /// once this returns. Elsewhere the key stands. Unknown keys are ignored.
    fn revoke(&mut self, key: &Bytes);

    /// Takes in a region of the peer's memory: `base .. base + len` in its address space, opened by its packed `key`.
    /// All of it is untrusted. An id is free again after [`Endpoint::forget`].
    ///
    /// # Errors
    /// [`FabricError::RemoteKey`]: the key is malformed, the region wraps around the address space, or no transport
    /// here can use the key. [`FabricError::Misuse`]: the id is taken. [`FabricError::EndpointDown`] once closed.
    fn import(&mut self, region: RegionId, base: u64, len: u64, key: &[u8]) -> Result<(), FabricError>;

    /// Drops a region taken in by [`Endpoint::import`]. Its outstanding reads still complete. Unknown ids are ignored.
    fn forget(&mut self, region: RegionId);

    /// Posts a one-sided read of `from` into `into`, whose lengths are equal, not 0, and at most
    /// [`Capabilities::max_read`](crate::Capabilities::max_read). The endpoint owns `into` until the completion has
    /// been polled: it keeps the value in its table of operations, whatever becomes of the task that posted the read.
    ///
    /// # Errors
    /// [`FabricError::OutsideRegion`]: the range is not within its imported region; such a read never reaches the
    /// device. [`FabricError::TooManyReads`]; [`FabricError::Misuse`] for lengths and for memory of another fabric;
    /// [`FabricError::Post`]; [`FabricError::EndpointDown`]. Then nothing was posted, `into` is dropped, and no
    /// completion comes.
    fn post_read(&mut self, token: ReadToken, from: RemoteRange, into: LocalRange) -> Result<(), FabricError>;

    /// The extension by which the peer's memory is mapped. `Some` exactly if
    /// [`Capabilities::maps`](crate::Capabilities::maps) is not [`Maps::Nothing`](crate::Maps::Nothing).
    fn mapping(&mut self) -> Option<&mut dyn MapsPeer>;

    /// Makes progress and appends what completed to `completions`. `Ready(Ok(()))` if anything completed; `Pending`
    /// after having registered the waker. An idle endpoint costs no CPU. Both roles are polled: some transports need
    /// the lender's progress for wire-up.
    ///
    /// # Errors
    /// `Ready(Err(_))` once the endpoint failed as a whole (the peer died): outstanding reads have completed with
    /// failures by then or do so in the same call, and nothing more can be posted.
    fn poll(&mut self, cx: &mut Context<'_>, completions: &mut Vec<Completion>) -> Poll<Result<(), FabricError>>;

    /// Begins the ordered teardown: cuts the peer off, as far as the fabric can, and flushes outstanding reads, whose
    /// completions are still to be polled. Idempotent. The endpoint is done once [`Endpoint::is_closed`].
    fn close(&mut self);

    /// Whether the teardown is complete: every completion has been polled, and under
    /// [`Fencing::Revocation`](crate::Fencing::Revocation) the peer cannot read anything any more. Only then do the
    /// lender's leases end.
    ///
    /// Dropping an endpoint that is not closed blocks until it is, or leaks the memory still under a read: it never
    /// frees memory that the fabric may yet write.
    fn is_closed(&self) -> bool;
}

/// An endpoint that can map its peer's memory, which is on the same host: the bytes are used where they lie, without a
/// copy.
pub trait MapsPeer {
    /// The bytes of `from` where they lie in the peer's memory.
    ///
    /// The buffer stays valid for reading whatever becomes of the endpoint, of the region, and of the peer's process.
    /// But nothing can fence a mapping: **the peer must neither change nor reuse the memory until every slice of the
    /// buffer has been dropped**, and relies on this end to tell it so. `peer` is the caller's statement that it trusts
    /// the peer with that.
    ///
    /// (An `unsafe fn` would say the same. Then a fabric or a wrapper without any unsafe code of its own, such as a
    /// simulated one whose mappings are copies, could not implement this.)
    ///
    /// # Errors
    /// [`FabricError::Map`] where the fabric does not reach this memory; [`FabricError::OutsideRegion`];
    /// [`FabricError::EndpointDown`].
    fn map(&mut self, from: RemoteRange, peer: TrustedPeer) -> Result<Buffer, FabricError>;
}
