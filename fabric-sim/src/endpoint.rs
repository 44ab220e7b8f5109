//! An endpoint of the network as an [`Endpoint`]. Each poll is one step.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::fmt;
use std::ops::Range;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use arrow_buffer::Buffer;
use bytes::Bytes;
use thallus_fabric::memory::{LocalRange, RegisteredMemory, TrustedPeer, buffer_with_guard};
use thallus_fabric::{
    Completion, Endpoint, Fabric, FabricError, FabricKind, Fencing, MapsPeer, PresenceProbe, ReadToken, RegionId,
    RemoteRange, Transport,
};
use tokio::time::{Instant, Sleep};

use crate::blob::{Blob, Kind};
use crate::core::{EndpointId, EndpointState, Finished, KeyId, Mapping, MemoryId, Progress};
use crate::network::{SimNetwork, SimRegistration};

pub(crate) struct SimEndpoint {
    network: SimNetwork,
    id: EndpointId,
    regions: BTreeMap<RegionId, Region>,
    outstanding: BTreeSet<ReadToken>,
    pace: Option<Pace>,
}

/// Makes steps by tokio's clock.
struct Pace {
    epoch: Instant,
    step: Duration,
    sleep: Option<Pin<Box<Sleep>>>,
}

impl Pace {
    fn now(&self) -> u64 {
        let steps = self.epoch.elapsed().as_nanos() / self.step.as_nanos().max(1);
        u64::try_from(steps).unwrap_or(u64::MAX)
    }

    /// Ready when the time of `step` has come.
    fn poll_until(&mut self, step: u64, cx: &mut Context<'_>) -> Poll<()> {
        let nanos = u128::from(step).saturating_mul(self.step.as_nanos());
        let at = self.epoch + Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX / 2));
        let sleep = self.sleep.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(at)));
        if sleep.deadline() != at {
            sleep.as_mut().reset(at);
        }
        sleep.as_mut().poll(cx)
    }
}

struct Region {
    base: u64,
    len: u64,
    key: KeyId,
}

impl SimEndpoint {
    pub(crate) fn new(network: SimNetwork, id: EndpointId) -> Self {
        let step = network.lock().core.options().pace;
        let pace = step.map(|step| Pace { epoch: Instant::now(), step, sleep: None });
        SimEndpoint { network, id, regions: BTreeMap::new(), outstanding: BTreeSet::new(), pace }
    }

    fn blob(&self, kind: Kind, id: u64) -> Bytes {
        let network = self.network.lock().core.seed();
        Bytes::copy_from_slice(&Blob { kind, network, id }.pack())
    }

    /// The id in a blob, if the blob is of this network.
    fn open_blob(&self, kind: Kind, bytes: &[u8]) -> Result<u64, &'static str> {
        let blob = Blob::unpack(kind, bytes)?;
        if blob.network == self.network.lock().core.seed() { Ok(blob.id) } else { Err("it is of another network") }
    }

    fn registered(&self, memory: &RegisteredMemory) -> Option<MemoryId> {
        let id = memory.registration::<SimRegistration>()?.id;
        self.network.lock().core.is_registered_at(id, self.id).then_some(id)
    }

    fn state(&self) -> EndpointState {
        // Only the drop of `self` removes it.
        self.network.lock().core.state(self.id).unwrap_or(EndpointState::Closed)
    }

    fn check_open(&self) -> Result<(), FabricError> {
        match self.state() {
            EndpointState::Closed => Err(down("it is closed")),
            EndpointState::Unconnected | EndpointState::Connected | EndpointState::Down => Ok(()),
        }
    }

    fn check(&self, token: ReadToken, from: RemoteRange, into: &LocalRange) -> Result<KeyId, FabricError> {
        match self.state() {
            EndpointState::Unconnected => return Err(down("it is not connected yet")),
            EndpointState::Closed => return Err(down("it is closed")),
            EndpointState::Down => return Err(down("the peer is gone")),
            EndpointState::Connected => {}
        }
        let (max_read, max_outstanding) = {
            let shared = self.network.lock();
            (shared.core.options().max_read, shared.core.options().max_outstanding_reads)
        };
        if from.len != into.len() as u64 {
            return Err(FabricError::Misuse("a read's two ranges differ in length"));
        }
        if from.len > max_read {
            return Err(FabricError::Misuse("a read is longer than the fabric's longest"));
        }
        let outside = FabricError::OutsideRegion { region: from.region, address: from.address, len: from.len };
        let Some(region) = self.regions.get(&from.region) else { return Err(outside) };
        let within = from.address.checked_sub(region.base).and_then(|offset| offset.checked_add(from.len));
        if within.is_none_or(|end| end > region.len) {
            return Err(outside);
        }
        if self.outstanding.contains(&token) {
            return Err(FabricError::Misuse("a read's token is that of an outstanding read"));
        }
        if self.outstanding.len() >= max_outstanding {
            return Err(FabricError::TooManyReads { limit: max_outstanding });
        }
        if self.registered(into.memory()).is_none() {
            return Err(FabricError::Misuse("a read's target is memory that is not registered with this fabric"));
        }
        Ok(region.key)
    }

    /// Reports completions. The memory of finished reads is dropped here, where no lock is held.
    fn take(&mut self, finished: Vec<Finished>, completions: &mut Vec<Completion>) {
        for Finished { completion, into } in finished {
            drop(into);
            self.outstanding.remove(&completion.token);
            completions.push(completion);
        }
    }
}

fn down(reason: &str) -> FabricError {
    FabricError::EndpointDown { fabric: FabricKind::SIM, reason: reason.to_owned() }
}

impl Endpoint for SimEndpoint {
    fn address(&self) -> Bytes {
        self.blob(Kind::Address, self.id.0)
    }

    fn connect(&mut self, peer: &[u8]) -> Result<(), FabricError> {
        self.check_open()?;
        if self.state() != EndpointState::Unconnected {
            return Err(FabricError::Misuse("the endpoint is connected already"));
        }
        self.open_blob(Kind::Address, peer)
            .and_then(|peer| self.network.lock().core.connect(self.id, EndpointId(peer)))
            .map_err(|reason| FabricError::Connect {
                fabric: FabricKind::SIM,
                reason: format!("cannot use the peer's address: {reason}"),
            })
    }

    fn transport(&self) -> Option<Transport> {
        (self.state() != EndpointState::Unconnected).then(|| Transport { name: "simulated".to_owned(), inferior: None })
    }

    fn expose(&mut self, memory: &Arc<RegisteredMemory>, range: Range<usize>) -> Result<Bytes, FabricError> {
        self.check_open()?;
        if range.is_empty() || range.end > memory.len() {
            return Err(FabricError::Misuse("a range to be exposed is empty, or outside its memory"));
        }
        let id = self.registered(memory);
        let id = id.ok_or(FabricError::Misuse("memory to be exposed was registered by another fabric"))?;
        let key = self.network.lock().core.expose(self.id, id, range);
        Ok(self.blob(Kind::Key, key.0))
    }

    fn revoke(&mut self, key: &Bytes) {
        if let Ok(key) = self.open_blob(Kind::Key, key) {
            self.network.lock().core.revoke(self.id, KeyId(key));
        }
    }

    fn import(&mut self, region: RegionId, base: u64, len: u64, key: &[u8]) -> Result<(), FabricError> {
        let refused =
            |reason: &str| FabricError::RemoteKey { fabric: FabricKind::SIM, region, reason: reason.to_owned() };
        self.check_open()?;
        if self.regions.contains_key(&region) {
            return Err(FabricError::Misuse("the region is imported already"));
        }
        if base.checked_add(len).is_none() {
            return Err(refused("the region reaches past the end of the address space"));
        }
        let key = KeyId(self.open_blob(Kind::Key, key).map_err(refused)?);
        self.regions.insert(region, Region { base, len, key });
        Ok(())
    }

    fn forget(&mut self, region: RegionId) {
        // Outstanding reads of the region have the key already.
        self.regions.remove(&region);
    }

    fn post_read(&mut self, token: ReadToken, from: RemoteRange, into: LocalRange) -> Result<(), FabricError> {
        let key = self.check(token, from, &into)?;
        // Bound to a variable, so that a returned range is dropped after the lock.
        if let Some(pace) = &self.pace {
            self.network.lock().core.set_time(self.id, pace.now());
        }
        let posted = self.network.lock().core.post(self.id, token, key, from.address, into);
        posted.map_err(|_into| down("it went down just now"))?;
        self.outstanding.insert(token);
        let waker = self.network.lock().wakers.remove(&self.id);
        if let Some(waker) = waker {
            waker.wake();
        }
        Ok(())
    }

    fn lends_from(&self) -> Option<Arc<dyn Fabric>> {
        None
    }

    fn peer_presence(&self) -> Option<PresenceProbe> {
        None
    }

    fn mapping(&mut self) -> Option<&mut dyn MapsPeer> {
        let maps = self.network.lock().core.options().fencing == Fencing::LeaseWord;
        if maps { Some(self) } else { None }
    }

    fn poll(&mut self, cx: &mut Context<'_>, completions: &mut Vec<Completion>) -> Poll<Result<(), FabricError>> {
        loop {
            let mut finished = Vec::new();
            let (progress, due) = {
                let mut shared = self.network.lock();
                let progress = match &self.pace {
                    Some(pace) => shared.core.step_to(self.id, pace.now(), &mut finished),
                    None => shared.core.step(self.id, &mut finished),
                };
                // A call on another endpoint may change its state.
                if finished.is_empty() && (progress == Progress::Idle || self.pace.is_some()) {
                    shared.wakers.insert(self.id, cx.waker().clone());
                }
                (progress, shared.core.due(self.id))
            };
            let any = !finished.is_empty();
            self.take(finished, completions);
            match (progress, &mut self.pace, due) {
                (Progress::Down, ..) => {
                    return Poll::Ready(Err(down("the peer is gone")));
                }
                _ if any => return Poll::Ready(Ok(())),
                (Progress::Idle, ..) | (Progress::Waiting, Some(_), None) => return Poll::Pending,
                (Progress::Waiting, Some(pace), Some(due)) => {
                    if pace.poll_until(due.max(pace.now() + 1), cx).is_pending() {
                        return Poll::Pending;
                    }
                }
                (Progress::Waiting, None, _) => {
                    // The next poll is the next step.
                    cx.waker().wake_by_ref();
                    return Poll::Pending;
                }
            }
        }
    }

    fn close(&mut self) {
        let wakers = {
            let mut shared = self.network.lock();
            let peer = shared.core.close(self.id);
            let concerned = [Some(self.id), peer].into_iter().flatten();
            concerned.filter_map(|endpoint| shared.wakers.remove(&endpoint)).collect::<Vec<_>>()
        };
        wakers.into_iter().for_each(std::task::Waker::wake);
    }

    fn is_closed(&self) -> bool {
        self.state() == EndpointState::Closed && self.outstanding.is_empty()
    }
}

impl MapsPeer for SimEndpoint {
    fn map(&mut self, from: RemoteRange, _peer: TrustedPeer) -> Result<Buffer, FabricError> {
        let RemoteRange { region: id, address, len } = from;
        let refused = |reason: String| FabricError::Map { address, len, reason };
        let within = |region: &&Region| {
            let offset = address.checked_sub(region.base);
            offset.and_then(|offset| offset.checked_add(len)).is_some_and(|end| end <= region.len)
        };
        let outside = FabricError::OutsideRegion { region: id, address, len };
        let key = self.regions.get(&id).filter(within).ok_or(outside)?.key;
        let mut shared = self.network.lock();
        if !shared.core.can_map(self.id) {
            return Err(down("the peer is gone"));
        }
        let mapping = shared.core.map(self.id, key, address, len).map_err(|access| refused(format!("{access:?}")))?;
        drop(shared);
        let bytes = Buffer::from_slice_ref(mapping.bytes());
        Ok(buffer_with_guard(bytes, SimMapping { network: self.network.clone(), mapping }))
    }
}

/// Dropped with the last slice of a mapped buffer.
struct SimMapping {
    network: SimNetwork,
    mapping: Mapping,
}

impl Drop for SimMapping {
    fn drop(&mut self) {
        self.network.lock().core.unmap(&self.mapping);
    }
}

impl Drop for SimEndpoint {
    fn drop(&mut self) {
        let (finished, waker) = {
            let mut shared = self.network.lock();
            let (finished, peer) = shared.core.remove(self.id);
            shared.wakers.remove(&self.id);
            (finished, peer.and_then(|peer| shared.wakers.remove(&peer)))
        };
        drop(finished);
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

impl fmt::Debug for SimEndpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SimEndpoint({:?}, {:?})", self.network, self.id)
    }
}
