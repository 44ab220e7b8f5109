//! What every fabric is to Thallus: one-sided reads of memory that a peer has lent.
//!
//! A [`Fabric`] is this host's device or library, one per process. An [`Endpoint`] is one connection's end of it. Both
//! are driven, not awaited: reads are posted, completions are polled, and an operation's table owns the memory that an
//! operation writes until that operation's completion has been polled, whatever became of whoever asked for it.
//!
//! Around the trait: [`memory`] is what both roles read and write through fabrics; [`fault::FaultInjector`],
//! [`trace::Tracer`] and [`count::CountedFabric`] wrap any fabric; [`diagnosis`] is how a fabric says whether it can work;
//! [`process`] tells whether a process that has memory mapped is still there; `conformance`, a feature, is the suite that every
//! fabric passes.

#![warn(missing_docs)]

#[cfg(feature = "conformance")]
pub mod conformance;
pub mod count;
pub mod diagnosis;
pub mod driver;
mod error;
pub mod fault;
pub mod memory;
pub mod process;

pub mod trace;

use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use std::task::{Context, Poll};

use arrow_buffer::Buffer;
use bytes::Bytes;
use thallus_protocol::{FabricKind, LeaseEnd, LeaseId, RegionId, RemoteRange};

pub use thallus_protocol::random;
pub use error::{FabricError, ReadFailure, WorkFailure};
use memory::{LocalRange, RegisteredMemory};

/// How a lender keeps a late one-sided read from being taken for a good one, once a lease has ended without a release.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fencing {
    /// The hardware refuses reads after the lender revoked the key or closed the endpoint.
    Revocation,
    /// A peer cannot be cut off. The borrower proves, after its reads completed and before it delivers, that the lease
    /// still stood, by reading the lease word last (as FaRM does: Dragojevic et al., NSDI 2014, section 4).
    LeaseWord,
}

/// What a fabric can do on this host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Capabilities {
    /// How lent memory is fenced.
    pub fencing: Fencing,
    /// Longest single read, in bytes. Longer ranges are posted in pieces.
    pub max_read: u64,
    /// Most reads that one endpoint may have outstanding; more is [`FabricError::TooManyReads`].
    pub max_outstanding_reads: usize,
    /// Whether memory that it [allocates](Fabric::allocate) can be mapped by a peer on the same host, see [`Endpoint::map`].
    pub maps: bool,
}

/// What carries an endpoint's reads, known once it is connected.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Transport {
    /// The transports and devices that were chosen, in the fabric's own words (`posix/memory cma/memory`).
    pub name: String,
    /// Why this path is no better than bytes sent inline over the control connection, if it is not: the fabric emulates
    /// one-sided reads in software over TCP, say. The negotiation then prefers inline, and reports this reason.
    pub inferior: Option<String>,
}

/// The lease of what is on loan for as long as a connection lasts, and written meanwhile: its lease words.
pub const STANDING_LEASE: LeaseId = LeaseId(0);

/// Names a posted read until its completion has been polled. Chosen by the caller, unique among the outstanding.
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

/// A fabric on this host.
pub trait Fabric: Send + Sync + fmt::Debug + 'static {
    /// Its name in the negotiation.
    fn kind(&self) -> FabricKind;

    /// What it can do here.
    fn capabilities(&self) -> Capabilities;

    /// New memory of `len` bytes (rounded up to whole pages, beginning at one), zeroed, touched and registered for both
    /// roles: reads may land in it, and it may be lent. Never memory that somebody else has.
    ///
    /// # Errors
    /// [`FabricError::OutOfMemory`], or [`FabricError::Registration`] with what the library said (memlock limit, say).
    fn allocate(&self, len: usize) -> Result<Arc<RegisteredMemory>, FabricError>;

    /// As [`Fabric::allocate`], but of any content, and its pages may be left to be touched when they are used, where the fabric
    /// does not pin them: for long memory of which perhaps not all is used.
    ///
    /// # Errors
    /// As [`Fabric::allocate`].
    fn allocate_untouched(&self, len: usize) -> Result<Arc<RegisteredMemory>, FabricError> {
        self.allocate(len)
    }

    /// Registers memory that somebody else allocated, to be lent from where it lies. The registration keeps the buffer
    /// alive until it is dropped.
    ///
    /// # Errors
    /// [`FabricError::Registration`]; [`FabricError::Unsupported`] where only [`Fabric::allocate`]d memory can be lent.
    fn register(&self, buffer: Buffer) -> Result<Arc<RegisteredMemory>, FabricError>;

    /// A new endpoint, for one connection. Must be called, and the endpoint polled, within a tokio runtime.
    ///
    /// # Errors
    /// [`FabricError`] if the fabric has no resources for one more.
    fn endpoint(&self) -> Result<Box<dyn Endpoint>, FabricError>;
}

impl<F: Fabric + ?Sized> Fabric for Arc<F> {
    fn kind(&self) -> FabricKind {
        (**self).kind()
    }

    fn capabilities(&self) -> Capabilities {
        (**self).capabilities()
    }

    fn allocate(&self, len: usize) -> Result<Arc<RegisteredMemory>, FabricError> {
        (**self).allocate(len)
    }

    fn allocate_untouched(&self, len: usize) -> Result<Arc<RegisteredMemory>, FabricError> {
        (**self).allocate_untouched(len)
    }

    fn register(&self, buffer: Buffer) -> Result<Arc<RegisteredMemory>, FabricError> {
        (**self).register(buffer)
    }

    fn endpoint(&self) -> Result<Box<dyn Endpoint>, FabricError> {
        (**self).endpoint()
    }
}

/// One connection's end of a fabric. Either role: it reads what its peer lends, and exposes what it lends itself.
pub trait Endpoint: Send + fmt::Debug {
    /// This end's address blob, for the peer's [`Endpoint::connect`]. At most 64 KiB.
    fn address(&self) -> Bytes;

    /// Connects to the peer whose address blob this is. The blob is untrusted.
    ///
    /// # Errors
    /// [`FabricError::Connect`]: malformed blob, unreachable peer, no transport in common.
    fn connect(&mut self, peer: &[u8]) -> Result<(), FabricError>;

    /// What carries the reads. `None` before [`Endpoint::connect`].
    fn transport(&self) -> Option<Transport>;

    /// The packed remote key with which the peer of this endpoint, and where the fabric can enforce it nobody else, can
    /// read `memory`.
    ///
    /// # Errors
    /// [`FabricError::Registration`].
    fn expose(&mut self, memory: &RegisteredMemory) -> Result<Bytes, FabricError>;

    /// Whether [`Endpoint::expose_range`] opens exactly the range that it is given. If not, it opens the whole memory.
    fn exposes_ranges(&self) -> bool {
        false
    }

    /// The packed remote key with which the peer of this endpoint can read `range` (offsets) of `memory`, until
    /// [`Endpoint::revoke`] or the end of the endpoint. Where [`Endpoint::exposes_ranges`], the key opens nothing else, and to
    /// nobody else.
    ///
    /// # Errors
    /// [`FabricError::Registration`]; [`FabricError::EndpointDown`].
    fn expose_range(&mut self, memory: &Arc<RegisteredMemory>, range: Range<usize>) -> Result<Bytes, FabricError> {
        let _whole = range;
        self.expose(memory)
    }

    /// Withdraws a key of [`Endpoint::expose_range`]: once this returns, no read by it can reach the memory any more, where
    /// [`Endpoint::exposes_ranges`]; otherwise keys stand as long as their memory is registered. Unknown keys are ignored.
    fn revoke(&mut self, key: &Bytes) {
        let _stands = key;
    }

    /// Tells that ranges of exposed memory are on loan to the peer from now on. Fabrics that protect memory lease by lease, or
    /// that check its use, go by this; others need not care.
    fn lent(&mut self, _lease: LeaseId, _ranges: &[RemoteRange]) {}

    /// Tells that a lease told of by [`Endpoint::lent`] is over: its memory is about to be reused.
    fn lease_ended(&mut self, _lease: LeaseId, _end: LeaseEnd) {}

    /// Takes in a region of the peer's memory: `base .. base + len` in its address space, opened by its packed `key`.
    /// All untrusted. The caller never imports an id twice without [`Endpoint::forget`] between.
    ///
    /// # Errors
    /// [`FabricError::RemoteKey`]: the key is malformed, or no transport here can use it.
    fn import(&mut self, region: RegionId, base: u64, len: u64, key: &[u8]) -> Result<(), FabricError>;

    /// Drops a region taken in by [`Endpoint::import`]. Reads of it that are still outstanding complete first.
    fn forget(&mut self, region: RegionId);

    /// Posts a one-sided read of `from` into `into`, whose lengths are equal and at most
    /// [`Capabilities::max_read`]. The endpoint owns `into` until the completion has been polled.
    ///
    /// A range outside its imported region is refused here and never reaches the device. Nobody posts empty reads: there is
    /// nothing to fetch, and devices differ in what they make of them.
    ///
    /// # Errors
    /// [`FabricError`]; then nothing was posted, and no completion will come.
    fn post_read(&mut self, token: ReadToken, from: RemoteRange, into: LocalRange) -> Result<(), FabricError>;

    /// The bytes of `from` where they lie in the peer's memory, which is on this host: nothing is copied. For ends that trust each
    /// other, since nothing can fence it: the peer must neither change nor reuse the memory until every slice of the buffer has
    /// been dropped, and relies on this end to tell it so.
    ///
    /// The buffer is good for reading whatever becomes of the endpoint, of the region, and of the peer's process.
    ///
    /// # Errors
    /// [`FabricError::Map`] where the fabric does not do that, or does not reach this memory; [`FabricError::OutsideRegion`];
    /// [`FabricError::EndpointDown`].
    fn map(&mut self, from: RemoteRange) -> Result<Buffer, FabricError> {
        let reason = "this fabric does not map memory of a peer".to_owned();
        Err(FabricError::Map { address: from.address, len: from.len, reason })
    }

    /// Makes progress and appends what completed to `completions`. `Ready(Ok(()))` if anything completed; `Pending`
    /// after having registered the waker. An idle endpoint costs no CPU. Both roles must be polled: some transports need
    /// the lender's progress for wire-up.
    ///
    /// # Errors
    /// `Ready(Err(_))` once the endpoint failed as a whole (the peer died): outstanding reads have completed with
    /// failures by then or do so in the same call, and nothing more can be posted.
    fn poll(&mut self, cx: &mut Context<'_>, completions: &mut Vec<Completion>) -> Poll<Result<(), FabricError>>;

    /// Begins the ordered teardown: cuts the peer off, as far as the fabric can, and flushes outstanding reads, whose
    /// completions are still to be polled. Idempotent. The endpoint is done once [`Endpoint::is_closed`].
    fn close(&mut self);

    /// Whether the teardown is complete: every completion polled, and the peer, where [`Fencing::Revocation`] is
    /// offered, unable to read anything any more. Only then do the lender's leases end.
    ///
    /// Dropping an endpoint that is not closed blocks until it is, or leaks the memory still under a read: it never
    /// frees memory that the fabric may yet write.
    fn is_closed(&self) -> bool;
}
