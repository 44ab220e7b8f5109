//! An endpoint: its worker, its peer, its outstanding reads, and its teardown.

use std::collections::HashMap;
use std::fmt;
use std::ops::Range;
use std::pin::Pin;
use std::ptr::NonNull;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use arrow_buffer::Buffer;
use bytes::Bytes;
use thallus_fabric::memory::copying::{self, Copies, CopyPool, End, Reports};
use thallus_fabric::memory::{LocalRange, RegisteredMemory, TrustedPeer};
use thallus_fabric::{Completion, Endpoint, Fabric, FabricError, Maps, MapsPeer, PresenceProbe, ReadToken, Transport};
use thallus_protocol::{FabricKind, RegionId, RemoteRange};
use tokio::io::unix::AsyncFd;
use tokio::time::Sleep;
use ucx_sys::{self as sys, ucs_status_t};

use crate::attachment::{self, Attachment};
use crate::capabilities::{MAX_OUTSTANDING_READS, MAX_READ, maps};
use crate::domains::Domains;
use crate::envelope::{self, Kind};
use crate::memory::{self, UcxRegistration};
use crate::operations::{Operations, Source};
use crate::peer::{Closing, Connection, RemoteKey};
use crate::reports::Shared;
use crate::route::{Path, Route};
use crate::status::{down, failed};
use crate::worker::{EventFd, Progress, Worker};
use crate::{UcxOptions, host};

/// Maximum time for dropping an endpoint that is not closed. After it, the memory that UCX still holds is leaked.
const DROP_BOUND: Duration = Duration::from_secs(2);
/// Maximum time that the first reads wait for the connection. UCX starts the connection with the peer's address and
/// reports no progress: if the peer is gone by then, reads would wait for ever.
const WIREUP_BOUND: Duration = Duration::from_secs(5);
/// Maximum number of times that `arm` may report "busy" before other tasks run.
const ARM_BUDGET: usize = 16;

/// A UCX endpoint. See [`Endpoint`].
pub(crate) struct UcxEndpoint {
    address: Bytes,
    state: State,
    busy_poll: bool,
    emulation: bool,
    /// The domains with which memory of this end is registered.
    domains: Domains,
    /// Whether the endpoint can map memory of a peer.
    maps: bool,
    /// Whether the peer is on this host, in the same namespaces. Known after `connect`.
    peer_is_local: bool,
    shared: Arc<Shared>,
    operations: Operations,
    /// Makes reads of mapped memory.
    copies: Copies,
    /// The ends of the copies.
    reports: Arc<Reports>,
    /// Reads of mapped memory that wait for the connection.
    waiting: Vec<Waiting>,
    regions: HashMap<RegionId, Imported>,
    wireup: Wireup,
    /// A failure other than that of the peer.
    broken: Option<String>,
    /// Whether [`Endpoint::close`] was called.
    closing: bool,
    events: Option<AsyncFd<EventFd>>,
    /// Whether the worker is armed and not called since. Then no call is needed until it has events. Arming takes a
    /// system call or two for each of its transports.
    armed: bool,
    worker: Option<Arc<Worker>>,
}

/// The progress of the connection, as far as it is known.
enum Wireup {
    /// No read was posted yet.
    Unknown,
    /// The first reads wait for the connection.
    Awaited(Pin<Box<Sleep>>),
    /// A read has ended.
    Done,
}

/// A region of the peer's memory: `base .. base + len` in its address space.
struct Imported {
    base: u64,
    len: u64,
    source: Source,
}

impl Imported {
    /// Whether `address .. address + len` lies within it.
    fn covers(&self, address: u64, len: u64) -> bool {
        address.checked_sub(self.base).and_then(|offset| offset.checked_add(len)).is_some_and(|end| end <= self.len)
    }
}

/// A copy that has not started: its operation, source and target.
struct Waiting {
    operation: u64,
    from: NonNull<u8>,
    to: NonNull<u8>,
    len: usize,
}

// SAFETY: pointers to memory that the operation's entry in the table keeps alive.
unsafe impl Send for Waiting {}

/// The state of the connection.
enum State {
    Idle,
    Connected(Connection),
    /// The connection is closing, and its request has not completed. The connection is kept because the error handler
    /// has a pointer to its state.
    Closing(Closing, Connection),
    /// UCX holds no reference to this endpoint any more, except for reads in the table.
    Closed,
}

impl UcxEndpoint {
    pub(crate) fn new(
        worker: Arc<Worker>,
        copy_pool: &Arc<CopyPool>,
        options: &UcxOptions,
        domains: Domains,
    ) -> Result<Self, FabricError> {
        let packed = worker.address().map_err(down)?;
        let (version, about) = (worker.ucx().version(), (worker.context().host(), 0));
        let address = envelope::seal(Kind::WorkerAddress, version, about, &packed).map_err(down)?.into();
        let events = EventFd::register(&worker).map_err(down)?;
        let shared = Arc::default();
        let reports = Arc::default();
        let copies = Copies::new(copy_pool, &reports);
        Ok(UcxEndpoint {
            address,
            state: State::Idle,
            busy_poll: options.busy_poll,
            emulation: options.emulation,
            domains,
            maps: maps(options, domains) == Maps::Allocated,
            peer_is_local: false,
            shared,
            operations: Operations::default(),
            copies,
            reports,
            waiting: Vec::new(),
            regions: HashMap::new(),
            wireup: Wireup::Unknown,
            broken: None,
            closing: false,
            events: Some(events),
            armed: false,
            worker: Some(worker),
        })
    }

    /// The reason why no more reads can be posted, if there is one.
    fn failure(&self) -> Option<String> {
        if let Some(status) = self.shared.failed() {
            return Some(failed("the peer is gone", status));
        }
        self.broken.clone().or_else(|| self.closing.then(|| "closed at this end".to_owned()))
    }

    fn connection(&self) -> Result<&Connection, FabricError> {
        if let Some(reason) = self.failure() {
            return Err(down(reason));
        }
        match &self.state {
            State::Connected(connection) => Ok(connection),
            _ => Err(FabricError::Misuse("the endpoint is not connected")),
        }
    }

    fn path(&self, connection: &Connection) -> Path {
        Path { transports: connection.transports(), own: self.domains, is_local: self.peer_is_local }
    }

    /// The way to read the memory that a key opens. A segment of this host is attached, without UCX; other memory is
    /// read with UCX's remote key.
    fn source(&self, connection: &Connection, base: u64, len: u64, key: &[u8]) -> Result<Source, String> {
        let path = self.path(connection);
        if self.peer_is_local
            && path.may_share()
            && let Some(segment) = attachment::segment(key)
        {
            return Ok(Source::Attachment(Attachment::shared(segment)?));
        }
        let unpacked = RemoteKey::new(connection, base, len, &envelope::to_unpack(key))?;
        if path.route(Domains::of(key), unpacked.is_mapped()) == Route::Emulated && !self.emulation {
            let refused = "UcxOptions::emulation does not allow that";
            return Err(format!("{}; {refused}", path.emulated(&path.transport().name)));
        }
        Ok(Source::Key(Arc::new(unpacked)))
    }

    /// Advances the teardown as far as possible now.
    fn advance_teardown(&mut self) {
        if self.failure().is_none() {
            return;
        }
        self.armed = false;
        self.copies.cancel();
        for waiting in self.waiting.drain(..) {
            self.shared.ended(waiting.operation, ucs_status_t::UCS_ERR_CANCELED);
        }
        self.state = match std::mem::replace(&mut self.state, State::Closed) {
            State::Idle | State::Closed => State::Closed,
            // The connection may not be made yet. A worker that stays open would answer the peer's request as a new
            // endpoint, and then the peer's UCX fails an assertion (`ucp_ep_update_remote_id`). Destroying the worker
            // closes this connection too, in one step.
            State::Connected(connection) if self.operations.is_empty() && !matches!(self.wireup, Wireup::Done) => {
                if self.closing {
                    State::Closed
                } else {
                    State::Connected(connection)
                }
            }
            State::Connected(connection) => State::Closing(connection.close(), connection),
            State::Closing(closing, connection) => match closing.advance() {
                // The connection is dropped when no read is outstanding; then its error handler is not called any more.
                Closing::Done if self.operations.is_empty() => State::Closed,
                closing => State::Closing(closing, connection),
            },
        };
        // After the worker is destroyed, the peer cannot reach this end by emulated reads any more.
        if self.closing && matches!(self.state, State::Closed) && self.operations.is_empty() {
            self.regions.clear();
            self.events = None;
            self.worker = None;
        }
    }

    /// Appends finished reads to `completions`, and starts the reads that waited for the connection.
    fn settle(&mut self, completions: &mut Vec<Completion>) {
        let before = completions.len();
        for (operation, end) in self.reports.take() {
            let status = if end == End::Done { ucs_status_t::UCS_OK } else { ucs_status_t::UCS_ERR_CANCELED };
            self.shared.ended(operation, status);
        }
        let flushed = self.operations.settle(&self.shared, completions);
        if completions.len() > before || flushed == Some(ucs_status_t::UCS_OK) {
            self.wireup = Wireup::Done;
        }
        match flushed {
            None => {}
            Some(ucs_status_t::UCS_OK) => {
                for Waiting { operation, from, to, len } in self.waiting.drain(..) {
                    // SAFETY: as where it was posted: the table holds both ends until the operation was reported.
                    unsafe { self.copies.post(operation, from.as_ptr(), to.as_ptr(), len) };
                }
            }
            Some(status) => {
                self.broken.get_or_insert(failed("the connection was not made: ucp_ep_flush_nbx", status));
            }
        }
    }

    /// Starts a copy of `len` bytes, or queues it until the connection is made. The bytes do not need the connection,
    /// but an endpoint whose peer cannot be reached must report that at its first read.
    fn copy(
        &mut self,
        token: ReadToken,
        into: LocalRange,
        source: Source,
        from: NonNull<u8>,
    ) -> Result<(), FabricError> {
        let (to, len) = (into.start(), into.len());
        if matches!(self.wireup, Wireup::Done) {
            let (copies, shared) = (&self.copies, &self.shared);
            self.operations.enter(token, into, source, |operation, _| {
                if len as u64 >= copying::SHORTEST {
                    // SAFETY: `len` bytes where the source is mapped; `into` is as long, valid, and accessed by no
                    // other code; the table holds both until the operation was reported.
                    unsafe { copies.post(operation, from.as_ptr(), to.as_ptr(), len) };
                } else {
                    // SAFETY: as above.
                    unsafe { copying::copy_at_once(from.as_ptr(), to.as_ptr(), len) };
                    shared.ended(operation, ucs_status_t::UCS_OK);
                }
            });
            return Ok(());
        }
        if self.waiting.is_empty() {
            let connection = self.connection()?;
            let (ucx, handle) = (connection.ucx(), connection.handle());
            self.armed = false;
            self.operations
                // SAFETY: an open endpoint, and parameters whose mask names the fields that are set.
                .begin_flush(ucx, &self.shared, |params| unsafe { ucx.ucp_ep_flush_nbx(handle, &params) })
                .map_err(|status| post_error("ucp_ep_flush_nbx", status))?;
        }
        let waiting = &mut self.waiting;
        self.operations.enter(token, into, source, |operation, _| waiting.push(Waiting { operation, from, to, len }));
        Ok(())
    }

    /// Gives the connection up if it is not made in time.
    fn watch_wireup(&mut self, cx: &mut Context<'_>) {
        if matches!(self.wireup, Wireup::Unknown) && !self.operations.is_empty() {
            self.wireup = Wireup::Awaited(Box::pin(tokio::time::sleep(WIREUP_BOUND)));
        }
        if let Wireup::Awaited(bound) = &mut self.wireup
            && bound.as_mut().poll(cx).is_ready()
        {
            self.wireup = Wireup::Done;
            self.broken
                .get_or_insert(format!("the peer has not answered for {WIREUP_BOUND:?} while it was connected to"));
        }
    }

    fn progress(&mut self) -> Progress {
        self.armed = false;
        self.worker.as_ref().map_or(Progress::Idle, |worker| worker.progress())
    }

    /// Whether the worker is armed and has no events. The task is woken when it has.
    fn is_quiet(&mut self, cx: &mut Context<'_>) -> bool {
        if self.waits_busily() {
            return false;
        }
        let Some(events) = self.events.as_ref().filter(|_| self.armed) else { return false };
        match events.poll_read_ready(cx) {
            Poll::Pending => return true,
            Poll::Ready(Ok(mut guard)) => guard.clear_ready(),
            Poll::Ready(Err(error)) => self.broken = Some(format!("the runtime's reactor is gone: {error}")),
        }
        self.armed = false;
        false
    }

    fn finished(&self) -> bool {
        self.closing && self.worker.is_none()
    }

    fn waits_busily(&self) -> bool {
        self.busy_poll && !self.operations.is_empty()
    }
}

impl Endpoint for UcxEndpoint {
    fn address(&self) -> Bytes {
        self.address.clone()
    }

    fn connect(&mut self, peer: &[u8]) -> Result<(), FabricError> {
        let error = |reason: String| FabricError::Connect { fabric: FabricKind::UCX, reason };
        if let Some(reason) = self.failure() {
            return Err(down(reason));
        }
        let (State::Idle, Some(worker)) = (&self.state, &self.worker) else {
            return Err(FabricError::Misuse("the endpoint is connected already"));
        };
        let address = envelope::open(Kind::WorkerAddress, worker.ucx().version(), peer).map_err(error)?;
        self.armed = false;
        self.peer_is_local = host::is_this(address.about.0);
        self.state = State::Connected(Connection::new(worker, &self.shared, address.payload).map_err(error)?);
        Ok(())
    }

    fn transport(&self) -> Option<Transport> {
        let State::Connected(connection) = &self.state else { return None };
        Some(self.path(connection).transport())
    }

    fn expose(&mut self, memory: &Arc<RegisteredMemory>, range: Range<usize>) -> Result<Bytes, FabricError> {
        let worker = self.worker.as_ref().ok_or_else(|| down("closed at this end"))?;
        if range.is_empty() || range.end > memory.len() {
            return Err(FabricError::Misuse("a range to be exposed is empty, or outside its memory"));
        }
        memory::expose(worker.context(), memory)
    }

    fn revoke(&mut self, _key: &Bytes) {
        // UCX cannot revoke: a key is valid as long as its memory is registered.
    }

    fn import(&mut self, region: RegionId, base: u64, len: u64, key: &[u8]) -> Result<(), FabricError> {
        let error = |reason: String| FabricError::RemoteKey { fabric: FabricKind::UCX, region, reason };
        self.armed = false;
        let connection = self.connection()?;
        if self.regions.contains_key(&region) {
            return Err(FabricError::Misuse("the region is imported already"));
        }
        let opened = envelope::open(Kind::RemoteKey, connection.ucx().version(), key).map_err(error)?;
        let (start, available) = opened.about;
        let inside =
            base.checked_sub(start).and_then(|offset| offset.checked_add(len)).is_some_and(|end| end <= available);
        if !inside || start.checked_add(available).is_none() {
            return Err(error(format!(
                "the key opens {available} bytes at {start:#x}, the region has {len} bytes at {base:#x}"
            )));
        }
        let source = self.source(connection, base, len, opened.payload).map_err(error)?;
        self.regions.insert(region, Imported { base, len, source });
        Ok(())
    }

    fn forget(&mut self, region: RegionId) {
        // Outstanding reads and buffers of mapped memory hold their source.
        self.regions.remove(&region);
    }

    fn post_read(&mut self, token: ReadToken, from: RemoteRange, into: LocalRange) -> Result<(), FabricError> {
        let connection = self.connection()?;
        let (ucx, connection) = (connection.ucx(), connection.handle());
        let worker = self.worker.as_ref().ok_or_else(|| down("closed at this end"))?;
        let outside = FabricError::OutsideRegion { region: from.region, address: from.address, len: from.len };
        let imported = self.regions.get(&from.region).filter(|imported| imported.covers(from.address, from.len));
        let Some(Imported { source, .. }) = imported else { return Err(outside) };
        if into.len() as u64 != from.len {
            return Err(FabricError::Misuse("the two ends of a read differ in length"));
        }
        if from.len > MAX_READ {
            return Err(FabricError::Misuse("a read is longer than max_read"));
        }
        if self.operations.reads() >= MAX_OUTSTANDING_READS {
            return Err(FabricError::TooManyReads { limit: MAX_OUTSTANDING_READS });
        }
        let memh = UcxRegistration::of(into.memory(), worker.context())
            .filter(|_| into.memory().is_writable())
            .ok_or(FabricError::Misuse("a read must land in memory that this fabric allocated"))?
            .handle();
        source.prefault(from.address, from.len);
        if let Some((start, _)) = source.find(from.address, from.len) {
            let source = source.clone();
            return self.copy(token, into, source, start);
        }
        // The segment is shorter than its owner announced.
        let Source::Key(key) = source else { return Err(outside) };
        self.armed = false;
        self.operations
            .begin(&self.shared, token, into, key.clone(), |into, key, mut params| {
                params.op_attr_mask |= sys::UCP_OP_ATTR_FIELD_MEMH;
                params.memh = memh;
                // SAFETY: an open endpoint and a key that was unpacked for it; `into` is valid, registered as `memh`,
                // and accessed by no other code until the table drops it, which is after this read's completion.
                unsafe {
                    let start = into.start().as_ptr().cast();
                    ucx.ucp_get_nbx(connection, start, into.len(), from.address, key.handle(), &params)
                }
            })
            .map_err(|status| post_error("ucp_get_nbx", status))
    }

    fn lends_from(&self) -> Option<Arc<dyn Fabric>> {
        None
    }

    fn peer_presence(&self) -> Option<PresenceProbe> {
        None
    }

    fn mapping(&mut self) -> Option<&mut dyn MapsPeer> {
        if self.maps { Some(self) } else { None }
    }

    fn poll(&mut self, cx: &mut Context<'_>, completions: &mut Vec<Completion>) -> Poll<Result<(), FabricError>> {
        let before = completions.len();
        for _ in 0..ARM_BUDGET {
            let progress = if self.is_quiet(cx) { Progress::Idle } else { self.progress() };
            self.settle(completions);
            self.watch_wireup(cx);
            self.advance_teardown();
            // Reads that a forced close has cancelled may have ended already.
            self.settle(completions);
            if completions.len() == before {
                let _others = self.copies.make_some() || self.copies.wait(cx.waker());
                self.settle(completions);
            }
            if completions.len() > before {
                // The teardown may have waited for these reads.
                self.advance_teardown();
                return Poll::Ready(Ok(()));
            }
            if let Some(reason) = self.failure()
                && self.operations.is_empty()
                && (!self.closing || self.finished())
            {
                return Poll::Ready(Err(down(reason)));
            }
            if progress == Progress::More || self.waits_busily() {
                break;
            }
            if self.armed {
                return Poll::Pending;
            }
            let Some(worker) = &self.worker else { break };
            match worker.arm() {
                Ok(armed) => self.armed = armed,
                Err(reason) => self.broken = Some(reason),
            }
            if self.is_quiet(cx) {
                return Poll::Pending;
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    fn close(&mut self) {
        self.closing = true;
        self.advance_teardown();
    }

    fn is_closed(&self) -> bool {
        self.finished()
    }
}

impl MapsPeer for UcxEndpoint {
    fn map(&mut self, from: RemoteRange, _peer: TrustedPeer) -> Result<Buffer, FabricError> {
        let RemoteRange { region, address, len } = from;
        self.connection()?;
        let outside = FabricError::OutsideRegion { region, address, len };
        let imported = self.regions.get(&region).filter(|imported| imported.covers(address, len)).ok_or(outside)?;
        let error = |reason: String| FabricError::Map { address, len, reason };
        let Source::Attachment(attachment) = &imported.source else {
            let transport = self.transport().map(|transport| transport.name).unwrap_or_default();
            return Err(error(format!(
                "it is not in a segment of shared memory that both ends reach (UCX reads it over {transport}); mapped \
                 delivery is between processes of one host, over UCX's transports sysv or posix"
            )));
        };
        let found = attachment.find(address, len);
        let (start, len) =
            found.ok_or_else(|| error("the segment that its key names is shorter than that".to_owned()))?;
        // SAFETY: within the attachment, which its owner holds, so that it is valid for reads; the kernel has zeroed
        // the bytes that were never written. No part of this process writes there, and that the peer does not is what
        // `_peer` states.
        Ok(unsafe { Buffer::from_custom_allocation(start, len, attachment.clone()) })
    }
}

impl Drop for UcxEndpoint {
    fn drop(&mut self) {
        let mut flushed = Vec::new();
        let deadline = Instant::now() + DROP_BOUND;
        self.close();
        while !self.finished() {
            if let Some(worker) = &self.worker {
                worker.progress();
            }
            self.settle(&mut flushed);
            self.advance_teardown();
            if Instant::now() > deadline {
                break;
            }
            if !self.finished() {
                std::thread::yield_now();
            }
        }
        if !self.finished() {
            // UCX may still write to the memory of these reads. Forgetting a worker keeps UCX's part alive; forgetting
            // the table keeps the memory alive.
            tracing::error!(
                reads = self.operations.reads(),
                "UCX did not close an endpoint within {DROP_BOUND:?}; its memory is leaked"
            );
            self.events = None;
            std::mem::forget(std::mem::take(&mut self.operations));
            std::mem::forget(std::mem::take(&mut self.regions));
            std::mem::forget(std::mem::replace(&mut self.state, State::Closed));
            std::mem::forget(self.worker.take());
        }
    }
}

fn post_error(call: &str, status: ucs_status_t) -> FabricError {
    FabricError::Post { fabric: FabricKind::UCX, reason: failed(call, status) }
}

impl fmt::Debug for UcxEndpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = match &self.state {
            State::Idle => "idle",
            State::Connected(_) => "connected",
            State::Closing(..) => "closing",
            State::Closed => "closed",
        };
        f.debug_struct("UcxEndpoint")
            .field("state", &state)
            .field("operations", &self.operations.reads())
            .field("regions", &self.regions.len())
            .field("worker", &self.worker)
            .finish_non_exhaustive()
    }
}
