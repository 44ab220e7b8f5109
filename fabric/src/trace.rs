//! A wrapper that records the calls of any fabric and their results.

use std::collections::VecDeque;
use std::fmt;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};

use arrow_buffer::Buffer;
use bytes::Bytes;
use thallus_protocol::{FabricKind, RegionId, RemoteRange};

use crate::memory::{FilePiece, LocalRange, RegisteredMemory, TrustedPeer};
use crate::{
    Capabilities, Completion, Endpoint, Fabric, FabricError, MapsPeer, PresenceProbe, ReadFailure, ReadToken, Touch,
    Transport,
};

/// An endpoint of a traced fabric. Endpoints are numbered from 1 in order of creation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EndpointNumber(pub u64);

/// A call, with its result.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum TraceEvent {
    /// [`Fabric::allocate`]: length in bytes, address.
    Allocated(usize, Touch, Result<u64, FabricError>),
    /// [`Fabric::register`]: length in bytes, address.
    Registered(usize, Result<u64, FabricError>),
    /// [`Fabric::endpoint`].
    Opened(Result<EndpointNumber, FabricError>),
    /// [`Endpoint::connect`].
    Connected(EndpointNumber, Result<(), FabricError>),
    /// [`Endpoint::expose`]: address of the memory, range, length of the key in bytes.
    Exposed(EndpointNumber, u64, Range<usize>, Result<usize, FabricError>),
    /// [`Endpoint::revoke`].
    Revoked(EndpointNumber),
    /// [`Endpoint::import`].
    Imported(EndpointNumber, RegionId, Result<(), FabricError>),
    /// [`Endpoint::forget`].
    Forgot(EndpointNumber, RegionId),
    /// [`Endpoint::post_read`].
    Posted(EndpointNumber, ReadToken, RemoteRange, Result<(), FabricError>),
    /// [`MapsPeer::map`].
    Mapped(EndpointNumber, RemoteRange, Result<(), FabricError>),
    /// A completion was polled.
    Completed(EndpointNumber, ReadToken, Result<(), ReadFailure>),
    /// A poll returned the endpoint's failure.
    Failed(EndpointNumber, FabricError),
    /// [`Endpoint::close`].
    Closing(EndpointNumber),
    /// The endpoint was dropped. The flag says whether it was closed before.
    Dropped(EndpointNumber, bool),
}

/// A fabric that records every call, except polls without a result: in a ring of bounded length, and as `tracing`
/// events at debug level.
///
/// ```
/// use thallus_fabric::{Fabric, Touch};
/// use thallus_fabric::trace::{TraceEvent, Tracer};
/// # use thallus_fabric_sim::{SimNetwork, SimOptions};
/// # let fabric = SimNetwork::new(1, SimOptions::default()).host();
///
/// let traced = Tracer::new(fabric, 1000);
/// let memory = traced.allocate(4096, Touch::Now)?;
/// assert_eq!(traced.events(), [TraceEvent::Allocated(4096, Touch::Now, Ok(memory.address()))]);
/// # Ok::<(), thallus_fabric::FabricError>(())
/// ```
pub struct Tracer<F> {
    inner: F,
    log: Arc<Log>,
    endpoints: AtomicU64,
}

struct Log {
    capacity: usize,
    ring: Mutex<Ring>,
}

#[derive(Default)]
struct Ring {
    events: VecDeque<TraceEvent>,
    lost: u64,
}

impl<F: Fabric> Tracer<F> {
    /// Wraps `inner`. The last `capacity` events are kept. With 0, events go to `tracing` only.
    pub fn new(inner: F, capacity: usize) -> Self {
        let log = Log { capacity, ring: Mutex::default() };
        Tracer { inner, log: Arc::new(log), endpoints: AtomicU64::new(0) }
    }

    /// The wrapped fabric.
    pub fn inner(&self) -> &F {
        &self.inner
    }

    /// The events kept, oldest first.
    #[must_use]
    pub fn events(&self) -> Vec<TraceEvent> {
        self.log.ring().events.iter().cloned().collect()
    }

    /// Number of events that the ring has dropped.
    #[must_use]
    pub fn lost(&self) -> u64 {
        self.log.ring().lost
    }
}

impl Log {
    fn ring(&self) -> MutexGuard<'_, Ring> {
        self.ring.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn record(&self, event: TraceEvent) {
        tracing::debug!(?event, "fabric");
        let mut ring = self.ring();
        if ring.events.len() >= self.capacity {
            ring.lost += 1;
            if ring.events.pop_front().is_none() {
                return;
            }
        }
        ring.events.push_back(event);
    }
}

impl<F: fmt::Debug> fmt::Debug for Tracer<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Tracer({:?})", self.inner)
    }
}

#[deny(clippy::missing_trait_methods)]
impl<F: Fabric> Fabric for Tracer<F> {
    fn kind(&self) -> FabricKind {
        self.inner.kind()
    }

    fn capabilities(&self) -> Capabilities {
        self.inner.capabilities()
    }

    fn allocate(&self, len: usize, touch: Touch) -> Result<Arc<RegisteredMemory>, FabricError> {
        let memory = self.inner.allocate(len, touch);
        let address = memory.as_ref().map(|memory| memory.address()).map_err(Clone::clone);
        self.log.record(TraceEvent::Allocated(len, touch, address));
        memory
    }

    fn register(&self, buffer: Buffer) -> Result<Arc<RegisteredMemory>, FabricError> {
        let len = buffer.len();
        let memory = self.inner.register(buffer);
        let address = memory.as_ref().map(|memory| memory.address()).map_err(Clone::clone);
        self.log.record(TraceEvent::Registered(len, address));
        memory
    }

    fn adopt(&self, piece: FilePiece) -> Result<Arc<RegisteredMemory>, FabricError> {
        self.inner.adopt(piece)
    }

    fn endpoint(&self) -> Result<Box<dyn Endpoint>, FabricError> {
        let inner =
            self.inner.endpoint().inspect_err(|error| self.log.record(TraceEvent::Opened(Err(error.clone()))))?;
        let number = EndpointNumber(self.endpoints.fetch_add(1, Ordering::Relaxed) + 1);
        self.log.record(TraceEvent::Opened(Ok(number)));
        Ok(Box::new(TracedEndpoint { inner, number, log: Arc::clone(&self.log) }))
    }
}

struct TracedEndpoint {
    inner: Box<dyn Endpoint>,
    number: EndpointNumber,
    log: Arc<Log>,
}

impl fmt::Debug for TracedEndpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}: {:?}", self.number, self.inner)
    }
}

#[deny(clippy::missing_trait_methods)]
impl Endpoint for TracedEndpoint {
    fn address(&self) -> Bytes {
        self.inner.address()
    }

    fn connect(&mut self, peer: &[u8]) -> Result<(), FabricError> {
        let result = self.inner.connect(peer);
        self.log.record(TraceEvent::Connected(self.number, result.clone()));
        result
    }

    fn transport(&self) -> Option<Transport> {
        self.inner.transport()
    }

    fn expose(&mut self, memory: &Arc<RegisteredMemory>, range: Range<usize>) -> Result<Bytes, FabricError> {
        let result = self.inner.expose(memory, range.clone());
        let len = result.as_ref().map(Bytes::len).map_err(Clone::clone);
        self.log.record(TraceEvent::Exposed(self.number, memory.address(), range, len));
        result
    }

    fn revoke(&mut self, key: &Bytes) {
        self.inner.revoke(key);
        self.log.record(TraceEvent::Revoked(self.number));
    }

    fn import(&mut self, region: RegionId, base: u64, len: u64, key: &[u8]) -> Result<(), FabricError> {
        let result = self.inner.import(region, base, len, key);
        self.log.record(TraceEvent::Imported(self.number, region, result.clone()));
        result
    }

    fn forget(&mut self, region: RegionId) {
        self.log.record(TraceEvent::Forgot(self.number, region));
        self.inner.forget(region);
    }

    fn post_read(&mut self, token: ReadToken, from: RemoteRange, into: LocalRange) -> Result<(), FabricError> {
        let result = self.inner.post_read(token, from, into);
        self.log.record(TraceEvent::Posted(self.number, token, from, result.clone()));
        result
    }

    fn lends_from(&self) -> Option<Arc<dyn Fabric>> {
        self.inner.lends_from()
    }

    fn peer_presence(&self) -> Option<PresenceProbe> {
        self.inner.peer_presence()
    }

    fn mapping(&mut self) -> Option<&mut dyn MapsPeer> {
        if self.inner.mapping().is_some() { Some(self) } else { None }
    }

    fn poll(&mut self, cx: &mut Context<'_>, completions: &mut Vec<Completion>) -> Poll<Result<(), FabricError>> {
        let before = completions.len();
        let polled = self.inner.poll(cx, completions);
        for Completion { token, result } in completions.iter().skip(before) {
            self.log.record(TraceEvent::Completed(self.number, *token, result.clone()));
        }
        if let Poll::Ready(Err(error)) = &polled {
            self.log.record(TraceEvent::Failed(self.number, error.clone()));
        }
        polled
    }

    fn close(&mut self) {
        self.log.record(TraceEvent::Closing(self.number));
        self.inner.close();
    }

    fn is_closed(&self) -> bool {
        self.inner.is_closed()
    }
}

#[deny(clippy::missing_trait_methods)]
impl MapsPeer for TracedEndpoint {
    fn map(&mut self, from: RemoteRange, peer: TrustedPeer) -> Result<Buffer, FabricError> {
        let result = peer.map(&mut *self.inner, from);
        self.log.record(TraceEvent::Mapped(self.number, from, result.as_ref().map(|_| ()).map_err(Clone::clone)));
        result
    }
}

impl Drop for TracedEndpoint {
    fn drop(&mut self) {
        self.log.record(TraceEvent::Dropped(self.number, self.inner.is_closed()));
    }
}
