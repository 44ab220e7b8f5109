//! An endpoint: its two queue pairs, the memory exposed to the peer, its outstanding reads, and its teardown.
//!
//! Each role has a queue pair: the *reading* queue pair sends this end's reads, the *lending* one serves the peer's
//! reads. Each is connected to the peer's queue pair of the other role. So a refused read of this end does not cut off
//! the peer, the lending queue pair can have a protection domain of its own, and requests that expose or revoke memory
//! are never queued behind reads.

mod lending;

use std::collections::HashMap;
use std::fmt;
use std::future::Future;
use std::hash::{BuildHasher, RandomState};
use std::ops::Range;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use ibverbs_sys as sys;
use thallus_fabric::memory::{LocalRange, RegisteredMemory};
use thallus_fabric::{Completion, Endpoint, Fabric, FabricError, MapsPeer, PresenceProbe, ReadToken, Transport};
use thallus_protocol::{FabricKind, RegionId, RemoteRange};
use tokio::io::unix::AsyncFd;
use tokio::time::Sleep;

use crate::address::{Address, Key, Side};
use crate::device::{Device, same_kind};
use crate::exposure::{Exposures, How, Scope};
use crate::memory;
use crate::queue::{ChannelFd, CompletionQueue, Domain, Path, QueuePair};
use crate::reads::{Read, Reads};
use crate::status::{down, work_failure};
use crate::{MAX_OUTSTANDING_READS, VerbsFabric};

/// Maximum number of work requests of the lending queue pair: one that exposes or revokes, and the drain's.
const LENDING_REQUESTS: u32 = 4;
/// Maximum time of the flush before the queue pairs are destroyed anyway.
const DRAIN_BOUND: Duration = Duration::from_secs(3);
/// Maximum number of times that completions may arrive between arming and waiting before other tasks run.
const ARM_BUDGET: usize = 16;

/// Ids of work requests that are not reads.
const DRAIN_READING: u64 = u64::MAX;
const DRAIN_LENDING: u64 = u64::MAX - 1;
const CONTROL: u64 = 1 << 63;

/// A verbs endpoint. See [`Endpoint`].
pub struct VerbsEndpoint {
    device: Arc<Device>,
    /// The domain of the fabric's memory. The domain of the lending queue pair is the same, or the endpoint's own.
    memory_domain: Arc<Domain>,
    lending_domain: Arc<Domain>,
    scope: Scope,
    busy_poll: bool,
    max_read: u64,
    ours: Address,
    address: Bytes,
    state: State,
    regions: HashMap<RegionId, Key>,
    reads: Reads,
    exposures: Exposures,
    done: Vec<Completion>,
    /// The first failure.
    failure: Option<String>,
    /// The device was removed: there will be no more completions.
    lost: bool,
    closing: bool,
    /// The last work request of the lending queue pair, and its result.
    control: u64,
    control_ended: Option<(u64, Option<(u32, u32)>)>,
    armed: bool,
    events: Option<AsyncFd<ChannelFd>>,
    pairs: Option<Pairs>,
    completions: Option<Arc<CompletionQueue>>,
}

#[derive(Debug)]
struct Pairs {
    reading: QueuePair,
    lending: QueuePair,
}

enum State {
    Idle,
    Connected(Transport),
    /// In the error state. The flags tell which of the two queue pairs still has to be flushed.
    Draining {
        reading: bool,
        lending: bool,
        bound: Option<Pin<Box<Sleep>>>,
    },
    Closed,
}

impl VerbsEndpoint {
    pub(crate) fn new(fabric: &VerbsFabric) -> Result<Self, String> {
        let device = Arc::clone(&fabric.device);
        let lending_domain = match fabric.scope {
            Scope::Registrations => Domain::new(&device)?,
            Scope::Windows | Scope::Whole => Arc::clone(&fabric.domain),
        };
        let reads = u32::try_from(fabric.max_outstanding).unwrap_or(u32::MAX);
        let completions = CompletionQueue::new(&device, reads + LENDING_REQUESTS + 2)?;
        let pairs = Pairs {
            reading: QueuePair::new(&fabric.domain, &completions, reads + 1)?,
            lending: QueuePair::new(&lending_domain, &completions, LENDING_REQUESTS)?,
        };
        let events = ChannelFd::register(&completions)?;
        let [reading, lending] =
            [&pairs.reading, &pairs.lending].map(|pair| Side { number: pair.number(), packet_number: packet_number() });
        let limits = device.limits;
        let ours = Address::new(&device.port, (limits.max_reads_in_flight, limits.reads_served), reading, lending);
        Ok(VerbsEndpoint {
            device,
            memory_domain: Arc::clone(&fabric.domain),
            lending_domain,
            scope: fabric.scope,
            busy_poll: fabric.options.busy_poll,
            max_read: fabric.max_read,
            address: ours.pack().into(),
            ours,
            state: State::Idle,
            regions: HashMap::new(),
            reads: Reads::default(),
            exposures: Exposures::default(),
            done: Vec::new(),
            failure: None,
            lost: false,
            closing: false,
            control: CONTROL,
            control_ended: None,
            armed: false,
            events: Some(events),
            pairs: Some(pairs),
            completions: Some(completions),
        })
    }

    /// Moves both queue pairs to the error state, as a failing device does. For tests of failures.
    #[doc(hidden)]
    pub fn force_error(&mut self) -> Result<(), String> {
        let pairs = self.pairs.as_ref().ok_or("closed")?;
        pairs.reading.fail()?;
        pairs.lending.fail()
    }

    /// The reason why no more reads can be posted, if there is one.
    fn refusal(&self) -> Option<FabricError> {
        match &self.failure {
            Some(reason) => Some(down(reason.clone())),
            None => self.closing.then(|| down("closed at this end")),
        }
    }

    fn fail(&mut self, reason: impl Into<String>) {
        if self.failure.is_none() {
            self.failure = Some(reason.into());
        }
    }

    /// Takes the completions of the device.
    fn harvest(&mut self) {
        let Some(completions) = self.completions.clone() else { return };
        let mut batch = [sys::ibv_wc::default(); 16];
        loop {
            let count = match completions.poll(&mut batch) {
                Ok(count) => count,
                Err(reason) => {
                    self.lost = true;
                    return self.fail(reason);
                }
            };
            for work in &batch[..count] {
                self.take(work.wr_id(), work.error());
            }
            if count < batch.len() {
                return;
            }
        }
    }

    fn take(&mut self, id: u64, error: Option<(u32, u32)>) {
        match id {
            DRAIN_READING => {
                self.reads.flush(&mut self.done);
                if let State::Draining { reading, .. } = &mut self.state {
                    *reading = false;
                }
            }
            DRAIN_LENDING => {
                if let State::Draining { lending, .. } = &mut self.state {
                    *lending = false;
                }
            }
            control if control & CONTROL != 0 => self.control_ended = Some((control, error)),
            read => {
                self.reads.completed(read, error, &mut self.done);
                if let Some((status, vendor)) = error {
                    // The queue pair is in the error state now, and flushes the other reads.
                    self.fail(work_failure("RDMA READ", status, vendor).to_string());
                }
            }
        }
    }

    /// Advances the teardown as far as possible now.
    fn advance_teardown(&mut self, cx: Option<&mut Context<'_>>) {
        if self.lost || self.failure.is_some() || self.closing {
            self.reads.flush_queued(&mut self.done);
        }
        if self.closing {
            self.begin_drain();
        }
        if let State::Draining { reading, lending, bound } = &mut self.state {
            let late = match cx {
                Some(cx) if *reading || *lending => {
                    let bound = bound.get_or_insert_with(|| Box::pin(tokio::time::sleep(DRAIN_BOUND)));
                    bound.as_mut().poll(cx).is_ready()
                }
                _ => false,
            };
            if self.lost || late || !(*reading || *lending) {
                self.destroy();
            }
        } else if self.lost && !self.reads.is_empty() {
            // The kernel has removed the device, and so the device does not write to this process's memory any more.
            self.reads.flush(&mut self.done);
        }
    }

    fn begin_drain(&mut self) {
        let connected = match self.state {
            State::Idle => false,
            State::Connected(_) => true,
            State::Draining { .. } | State::Closed => return,
        };
        let mut pending = [false, false];
        if let (true, Some(pairs)) = (connected, &self.pairs) {
            let both = [(&pairs.reading, DRAIN_READING), (&pairs.lending, DRAIN_LENDING)];
            for ((pair, id), pending) in both.into_iter().zip(&mut pending) {
                let mut last = sys::ibv_send_wr {
                    wr_id: id,
                    opcode: sys::ibv_wr_opcode::IBV_WR_SEND,
                    send_flags: sys::ibv_send_flags::IBV_SEND_SIGNALED.0,
                    ..Default::default()
                };
                // SAFETY: one request, which names no memory. It is flushed after all requests that were posted before.
                let posted = pair.fail().and_then(|()| unsafe { pair.post(&mut last) });
                match posted {
                    Ok(()) => *pending = true,
                    Err(reason) => tracing::debug!(reason, "a queue pair cannot be drained; it is destroyed"),
                }
            }
        }
        self.state = State::Draining { reading: pending[0], lending: pending[1], bound: None };
    }

    /// Ends the teardown: after this the peer can read nothing, and the device writes nothing.
    fn destroy(&mut self) {
        // Windows are freed first: they are bound to the queue pair. It is in the error state already.
        self.exposures.clear();
        if let Some(Pairs { reading, lending }) = self.pairs.take() {
            match reading.destroy() {
                Ok(()) => self.reads.flush(&mut self.done),
                Err((pair, reason)) => {
                    // The device may still write to the memory of these reads.
                    tracing::error!(
                        reason,
                        reads = self.reads.len(),
                        "a queue pair and the memory of its reads are leaked"
                    );
                    std::mem::forget(pair);
                    std::mem::forget(std::mem::take(&mut self.reads));
                }
            }
            if let Err((pair, reason)) = lending.destroy() {
                tracing::error!(reason, "a queue pair is leaked");
                std::mem::forget(pair);
            }
        }
        self.regions.clear();
        self.events = None;
        self.completions = None;
        self.state = State::Closed;
    }

    fn finished(&self) -> bool {
        matches!(self.state, State::Closed) && self.done.is_empty()
    }
}

/// The first packet number, of 24 bits. It is random, so that packets of an earlier connection are not accepted.
fn packet_number() -> u32 {
    (RandomState::new().hash_one(0) & 0x00FF_FFFF) as u32
}

impl Endpoint for VerbsEndpoint {
    fn address(&self) -> Bytes {
        self.address.clone()
    }

    fn connect(&mut self, peer: &[u8]) -> Result<(), FabricError> {
        let error = |reason: String| FabricError::Connect { fabric: FabricKind::VERBS, reason };
        if let Some(refusal) = self.refusal() {
            return Err(refusal);
        }
        let (State::Idle, Some(pairs)) = (&self.state, &self.pairs) else {
            return Err(FabricError::Misuse("the endpoint is connected already"));
        };
        let theirs = Address::unpack(peer).map_err(error)?;
        let port = &self.device.port;
        same_kind(port, theirs.ethernet, theirs.gid_kind).map_err(error)?;
        let path = Path {
            lid: theirs.lid,
            gid: theirs.gid,
            mtu: theirs.mtu.min(self.ours.mtu),
            max_reads_in_flight: self.ours.max_reads_in_flight.min(theirs.reads_served),
            reads_served: self.ours.reads_served.min(theirs.max_reads_in_flight),
        };
        if path.max_reads_in_flight == 0 {
            return Err(error("one of the two devices does no reads (max_qp_rd_atom is 0)".to_owned()));
        }
        let connected = pairs
            .reading
            .connect(&path, self.ours.reading, theirs.lending)
            .and_then(|()| pairs.lending.connect(&path, self.ours.lending, theirs.reading));
        if let Err(reason) = connected {
            let reason = format!("{reason}; device {} port {}, {}", self.device.name, port.number, port.gid);
            self.fail(reason.clone());
            return Err(error(reason));
        }
        let kind = if port.ethernet { port.gid.kind.to_string() } else { "InfiniBand".to_owned() };
        let name =
            format!("verbs {}:{} {kind}, {} reads at once", self.device.name, port.number, path.max_reads_in_flight);
        self.state = State::Connected(Transport { name, inferior: None });
        for key in self.exposures.unbound() {
            let Some(mut open) = self.exposures.remove(&key) else { continue };
            if let How::Window { window, .. } = std::mem::replace(&mut open.how, How::Whole) {
                let rkey = window.next_key();
                match self.bind(window, &open) {
                    Ok(window) => open.how = How::Window { window, bound: true },
                    Err(reason) => {
                        self.fail(reason.clone());
                        return Err(error(reason));
                    }
                }
                self.exposures.insert(rkey, open);
            }
        }
        Ok(())
    }

    fn transport(&self) -> Option<Transport> {
        match &self.state {
            State::Connected(transport) => Some(transport.clone()),
            _ => None,
        }
    }

    fn expose(&mut self, memory: &Arc<RegisteredMemory>, range: Range<usize>) -> Result<Bytes, FabricError> {
        if let Some(refusal) = self.refusal() {
            return Err(refusal);
        }
        if range.is_empty() || range.end > memory.len() {
            return Err(FabricError::Misuse("a range to be exposed is empty, or outside its memory"));
        }
        self.open(memory, if self.scope == Scope::Whole { 0..memory.len() } else { range })
    }

    fn revoke(&mut self, key: &Bytes) {
        self.close_key(key);
    }

    fn lends_from(&self) -> Option<Arc<dyn Fabric>> {
        None
    }

    fn peer_presence(&self) -> Option<PresenceProbe> {
        None
    }

    fn mapping(&mut self) -> Option<&mut dyn MapsPeer> {
        None
    }

    fn import(&mut self, region: RegionId, base: u64, len: u64, key: &[u8]) -> Result<(), FabricError> {
        let error = |reason: String| FabricError::RemoteKey { fabric: FabricKind::VERBS, region, reason };
        if let Some(refusal) = self.refusal() {
            return Err(refusal);
        }
        if self.regions.contains_key(&region) {
            return Err(FabricError::Misuse("the region is imported already"));
        }
        let key = Key::unpack(key).map_err(error)?;
        if !key.opens(base, len) {
            return Err(error(format!(
                "the key opens {} bytes at {:#x}, the region has {len} bytes at {base:#x}",
                key.len, key.base
            )));
        }
        self.regions.insert(region, Key { base, len, ..key });
        Ok(())
    }

    fn forget(&mut self, region: RegionId) {
        // Outstanding reads do not need the region any more.
        self.regions.remove(&region);
    }

    fn post_read(&mut self, token: ReadToken, from: RemoteRange, into: LocalRange) -> Result<(), FabricError> {
        if let Some(refusal) = self.refusal() {
            return Err(refusal);
        }
        if !matches!(self.state, State::Connected(_)) {
            return Err(FabricError::Misuse("the endpoint is not connected"));
        }
        let outside = FabricError::OutsideRegion { region: from.region, address: from.address, len: from.len };
        let key = self.regions.get(&from.region).filter(|key| key.opens(from.address, from.len)).ok_or(outside)?;
        if into.len() as u64 != from.len {
            return Err(FabricError::Misuse("the two ends of a read differ in length"));
        }
        if from.len == 0 || from.len > self.max_read {
            return Err(FabricError::Misuse("a read is empty, or longer than max_read"));
        }
        if self.reads.len() >= MAX_OUTSTANDING_READS {
            return Err(FabricError::TooManyReads { limit: MAX_OUTSTANDING_READS });
        }
        if self.reads.contains(token) {
            return Err(FabricError::Misuse("a read's token is that of an outstanding read"));
        }
        let local_key = memory::pinned(into.memory())
            .filter(|pinned| pinned.is_writable())
            .and_then(|pinned| pinned.region())
            .filter(|region| Arc::ptr_eq(region.domain(), &self.memory_domain))
            .ok_or(FabricError::Misuse("a read must land in memory that this fabric allocated"))?
            .local_key();
        self.reads.queue(Read { token, local_key, remote_address: from.address, remote_key: key.rkey, into });
        Ok(())
    }

    fn poll(&mut self, cx: &mut Context<'_>, completions: &mut Vec<Completion>) -> Poll<Result<(), FabricError>> {
        for _ in 0..ARM_BUDGET {
            if self.refusal().is_none()
                && let (State::Connected(_), Some(pairs)) = (&self.state, &self.pairs)
                && let Err(reason) = self.reads.post(&pairs.reading)
            {
                // The reads that were posted before the error are flushed with the queue pair.
                let _ = pairs.reading.fail();
                self.fail(reason);
                self.closing = true;
            }
            self.harvest();
            self.advance_teardown(Some(cx));
            if !self.done.is_empty() {
                completions.append(&mut self.done);
                return Poll::Ready(Ok(()));
            }
            if let Some(refusal) = self.refusal()
                && self.reads.is_empty()
                && (!self.closing || self.finished())
            {
                return Poll::Ready(Err(refusal));
            }
            if self.busy_poll && !self.reads.is_empty() {
                break;
            }
            let (Some(queue), Some(events)) = (&self.completions, &self.events) else { break };
            let waited = if self.armed {
                match events.poll_read_ready(cx) {
                    Poll::Pending => return Poll::Pending,
                    Poll::Ready(Ok(mut guard)) => queue.take_event().map(|taken| {
                        if taken {
                            self.armed = false;
                        } else {
                            guard.clear_ready();
                        }
                    }),
                    Poll::Ready(Err(error)) => Err(format!("the runtime's reactor is gone: {error}")),
                }
            } else {
                // Completions from before the arming cause no event, so the queue is polled again.
                self.armed = true;
                queue.arm()
            };
            if let Err(reason) = waited {
                self.lost = true;
                self.fail(reason);
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    fn close(&mut self) {
        self.closing = true;
        self.advance_teardown(None);
    }

    fn is_closed(&self) -> bool {
        self.closing && self.finished()
    }
}

impl Drop for VerbsEndpoint {
    fn drop(&mut self) {
        // Destroying a queue pair waits for the device, so no flush is needed before.
        if !matches!(self.state, State::Closed) {
            if let Some(pairs) = &self.pairs
                && matches!(self.state, State::Connected(_))
            {
                let _ = (pairs.reading.fail(), pairs.lending.fail());
            }
            self.destroy();
        }
    }
}

impl fmt::Debug for VerbsEndpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = match &self.state {
            State::Idle => "idle",
            State::Connected(_) => "connected",
            State::Draining { .. } => "draining",
            State::Closed => "closed",
        };
        f.debug_struct("VerbsEndpoint")
            .field("device", &self.device)
            .field("state", &state)
            .field("reads", &self.reads.len())
            .field("regions", &self.regions.len())
            .field("exposed", &self.exposures.len())
            .field("failure", &self.failure)
            .finish_non_exhaustive()
    }
}
