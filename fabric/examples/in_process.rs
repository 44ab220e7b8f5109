//! A complete fabric in safe code, for memory within one process. It shows the requirements of [`Fabric`] and
//! [`Endpoint`].
//!
//! Keys and addresses are numbers in a table of the process. No number from a peer is trusted: a number that is not in
//! the table is refused. A read copies its bytes when it is posted. Its completion waits until the endpoint is polled.
//!
//! `cargo test -p thallus-fabric --example in_process` runs the conformance suite over it.

#![forbid(unsafe_code)]

use std::collections::{HashMap, HashSet};
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::{Context, Poll, Waker};

use thallus_fabric::memory::{FilePiece, LocalRange, RegisteredMemory, Registration, SlabPool};
use thallus_fabric::{
    Buffer, Bytes, Capabilities, Completion, Endpoint, Fabric, FabricError, FabricKind, Fencing, Maps, MapsPeer,
    PresenceProbe, ReadFailure, ReadToken, RegionId, RemoteRange, Touch, Transport,
};

const MAX_READ: u64 = 1 << 20;
const MAX_OUTSTANDING_READS: usize = 64;

/// The fabric, and the table that all endpoints of the process share.
#[derive(Clone, Debug, Default)]
struct InProcess(Arc<Mutex<Table>>);

#[derive(Debug, Default)]
struct Table {
    last_id: u64,
    /// Open endpoints.
    endpoints: HashSet<u64>,
    exposed: HashMap<u64, Exposed>,
}

/// The content of a key: a range of addresses in memory, exposed to the peer of one endpoint.
#[derive(Clone, Debug)]
struct Exposed {
    /// Weak, because a key does not keep memory alive. The owner deregisters the memory by dropping it.
    memory: Weak<RegisteredMemory>,
    range: Range<u64>,
    by: u64,
}

/// The registration. There is no device: the type only distinguishes memory of this fabric from other memory.
#[derive(Debug)]
struct Registered;

#[derive(Debug)]
struct End {
    fabric: InProcess,
    id: u64,
    peer: Option<u64>,
    closed: bool,
    /// Imported regions, with their addresses and keys.
    regions: HashMap<RegionId, (Range<u64>, u64)>,
    /// Reads whose completions have not been polled. Each read owns its range until then.
    done: Vec<(Completion, LocalRange)>,
    waker: Option<Waker>,
}

fn kind() -> FabricKind {
    FabricKind::new("in-process")
}

/// The number in a blob from a peer.
fn number(blob: &[u8]) -> Option<u64> {
    blob.try_into().ok().map(u64::from_le_bytes)
}

impl InProcess {
    fn table(&self) -> MutexGuard<'_, Table> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Table {
    /// Starts at 1, so that a blob of zeroes is never valid.
    fn new_id(&mut self) -> u64 {
        self.last_id += 1;
        self.last_id
    }
}

impl Fabric for InProcess {
    fn kind(&self) -> FabricKind {
        kind()
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities {
            fencing: Fencing::Revocation,
            max_read: MAX_READ,
            max_outstanding_reads: MAX_OUTSTANDING_READS,
            exposes_ranges: true,
            registers_when_exposed: false,
            maps: Maps::Nothing { reason: "the in-process fabric has reads only".into() },
        }
    }

    fn allocate(&self, len: usize, _touch: Touch) -> Result<Arc<RegisteredMemory>, FabricError> {
        let memory = RegisteredMemory::heap(len, |_, _| Ok(Box::new(Registered) as Box<dyn Registration>));
        memory.unwrap_or(Err(FabricError::OutOfMemory { len, available: 0, limit: 0 })).map(Arc::new)
    }

    fn register(&self, buffer: Buffer) -> Result<Arc<RegisteredMemory>, FabricError> {
        if buffer.is_empty() {
            let reason = "the buffer is empty".to_owned();
            return Err(FabricError::Registration { fabric: kind(), len: 0, reason });
        }
        Ok(Arc::new(RegisteredMemory::foreign(buffer, Box::new(Registered))))
    }

    fn adopt(&self, _piece: FilePiece) -> Result<Arc<RegisteredMemory>, FabricError> {
        Err(FabricError::Unsupported { fabric: kind(), what: "lend memory files" })
    }

    fn endpoint(&self) -> Result<Box<dyn Endpoint>, FabricError> {
        let id = self.table().new_id();
        self.table().endpoints.insert(id);
        let (fabric, regions) = (self.clone(), HashMap::new());
        Ok(Box::new(End { fabric, id, peer: None, closed: false, regions, done: Vec::new(), waker: None }))
    }
}

impl End {
    fn check_open(&self) -> Result<(), FabricError> {
        let down = || FabricError::EndpointDown { fabric: kind(), reason: "it is closed".to_owned() };
        if self.closed { Err(down()) } else { Ok(()) }
    }

    /// Copies the bytes of a read, if its key still opens them to this endpoint.
    fn carry_out(&self, key: u64, from: RemoteRange, into: &mut LocalRange) -> Option<()> {
        let exposed = self.fabric.table().exposed.get(&key).cloned().filter(|exposed| Some(exposed.by) == self.peer)?;
        let memory = exposed.memory.upgrade()?;
        let offset = memory.offset_of(from.address, from.len)?;
        into.fill_from(&memory, offset).then_some(())
    }

    fn wake(&mut self) {
        self.waker.take().into_iter().for_each(Waker::wake);
    }
}

impl Endpoint for End {
    fn address(&self) -> Bytes {
        Bytes::copy_from_slice(&self.id.to_le_bytes())
    }

    fn connect(&mut self, peer: &[u8]) -> Result<(), FabricError> {
        self.check_open()?;
        if self.peer.is_some() {
            return Err(FabricError::Misuse("the endpoint is connected already"));
        }
        let known = number(peer).filter(|peer| *peer != self.id && self.fabric.table().endpoints.contains(peer));
        let refused = || FabricError::Connect { fabric: kind(), reason: "no such endpoint in this process".to_owned() };
        self.peer = Some(known.ok_or_else(refused)?);
        Ok(())
    }

    fn transport(&self) -> Option<Transport> {
        self.peer.map(|_| Transport { name: "a copy within the process".to_owned(), inferior: None })
    }

    fn expose(&mut self, memory: &Arc<RegisteredMemory>, range: Range<usize>) -> Result<Bytes, FabricError> {
        self.check_open()?;
        if range.is_empty() || range.end > memory.len() {
            return Err(FabricError::Misuse("a range to be exposed is empty, or outside its memory"));
        }
        if memory.registration::<Registered>().is_none() {
            return Err(FabricError::Misuse("memory to be exposed was registered by another fabric"));
        }
        let range = memory.address() + range.start as u64..memory.address() + range.end as u64;
        let mut table = self.fabric.table();
        let key = table.new_id();
        table.exposed.insert(key, Exposed { memory: Arc::downgrade(memory), range, by: self.id });
        Ok(Bytes::copy_from_slice(&key.to_le_bytes()))
    }

    fn revoke(&mut self, key: &Bytes) {
        let key = number(key);
        self.fabric.table().exposed.retain(|id, exposed| Some(*id) != key || exposed.by != self.id);
    }

    fn import(&mut self, region: RegionId, base: u64, len: u64, key: &[u8]) -> Result<(), FabricError> {
        self.check_open()?;
        if self.regions.contains_key(&region) {
            return Err(FabricError::Misuse("the region is imported already"));
        }
        let refused = |reason: &str| FabricError::RemoteKey { fabric: kind(), region, reason: reason.to_owned() };
        let key = number(key).ok_or_else(|| refused("it is not 8 bytes long"))?;
        let exposed = self.fabric.table().exposed.get(&key).cloned().ok_or_else(|| refused("it opens nothing"))?;
        let end = base.checked_add(len).filter(|&end| base >= exposed.range.start && end <= exposed.range.end);
        let end = end.ok_or_else(|| refused("it does not open that range"))?;
        self.regions.insert(region, (base..end, key));
        Ok(())
    }

    fn forget(&mut self, region: RegionId) {
        self.regions.remove(&region);
    }

    fn post_read(&mut self, token: ReadToken, from: RemoteRange, mut into: LocalRange) -> Result<(), FabricError> {
        self.check_open()?;
        self.peer.ok_or(FabricError::Misuse("the endpoint is not connected"))?;
        let RemoteRange { region, address, len } = from;
        let within =
            |range: &Range<u64>| address >= range.start && address.checked_add(len).is_some_and(|end| end <= range.end);
        let found = self.regions.get(&region).filter(|(range, _)| within(range));
        let (_, key) = found.ok_or(FabricError::OutsideRegion { region, address, len })?;
        if into.len() as u64 != len || len == 0 || len > MAX_READ {
            return Err(FabricError::Misuse("a read is empty, too long, or its two ranges differ in length"));
        }
        if into.memory().registration::<Registered>().is_none() {
            return Err(FabricError::Misuse("a read must land in memory that this fabric allocated"));
        }
        if self.done.len() >= MAX_OUTSTANDING_READS {
            return Err(FabricError::TooManyReads { limit: MAX_OUTSTANDING_READS });
        }
        // The part of a device. A read that it refuses is posted all the same, and completes with the failure.
        let result = self.carry_out(*key, from, &mut into).ok_or(ReadFailure::RemoteAccess);
        self.done.push((Completion { token, result }, into));
        self.wake();
        Ok(())
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

    fn poll(&mut self, cx: &mut Context<'_>, completions: &mut Vec<Completion>) -> Poll<Result<(), FabricError>> {
        if !self.done.is_empty() {
            // The range is dropped with its completion. Then the owner of the memory may access the bytes.
            completions.extend(self.done.drain(..).map(|(completion, _range)| completion));
            return Poll::Ready(Ok(()));
        }
        if let Err(down) = self.check_open() {
            return Poll::Ready(Err(down));
        }
        self.waker = Some(cx.waker().clone());
        Poll::Pending
    }

    fn close(&mut self) {
        self.closed = true;
        let mut table = self.fabric.table();
        table.endpoints.remove(&self.id);
        // From here on the peer cannot read memory of this end.
        table.exposed.retain(|_, exposed| exposed.by != self.id);
        drop(table);
        self.wake();
    }

    fn is_closed(&self) -> bool {
        self.closed && self.done.is_empty()
    }
}

impl Drop for End {
    fn drop(&mut self) {
        self.close();
    }
}

/// Reads memory that another endpoint of this process lends.
fn main() -> Result<(), FabricError> {
    let fabric = InProcess::default();
    let (mut lender, mut borrower) = (fabric.endpoint()?, fabric.endpoint()?);
    lender.connect(&borrower.address())?;
    borrower.connect(&lender.address())?;
    let memory = fabric.register(Buffer::from(b"one-sided".as_slice()))?;
    let key = lender.expose(&memory, 4..9)?;
    borrower.import(RegionId(1), memory.address() + 4, 5, &key)?;
    let slab = SlabPool::new(Arc::new(fabric), Default::default()).take(5)?;
    let from = RemoteRange { region: RegionId(1), address: memory.address() + 4, len: 5 };
    borrower.post_read(ReadToken(1), from, slab.range(0, 5)?)?;
    let mut completions = Vec::new();
    let _ready = borrower.poll(&mut Context::from_waker(Waker::noop()), &mut completions);
    println!("{completions:?}: {:?}", slab.into_buffer().map(|bytes| String::from_utf8_lossy(&bytes).into_owned()));
    Ok(())
}

#[cfg(test)]
mod conformance {
    use super::*;

    thallus_fabric::conformance_suite!(|| -> Arc<dyn Fabric> { Arc::new(InProcess::default()) });
}
