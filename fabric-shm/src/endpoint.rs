//! One connection's end: its sockets, the regions of its peer, and the reads under way.

use std::collections::HashMap;
use std::ops::Range;
use std::pin::Pin;
use std::ptr::NonNull;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};
use std::time::Duration;

use arrow_buffer::Buffer;
use bytes::Bytes;
use thallus_fabric::memory::copying::{self, Copies, End, Reports};
use thallus_fabric::memory::{LocalRange, RegisteredMemory, TrustedPeer, process_id};
use thallus_fabric::process::Presence;
use thallus_fabric::{
    Completion, Endpoint, Fabric, FabricError, FabricKind, MapsPeer, PresenceProbe, ReadFailure, ReadToken, RegionId,
    RemoteRange, Transport,
};
use tokio::time::Sleep;

use crate::address::Address;
use crate::attachment::Attachment;
use crate::key::Key;
use crate::links::{Links, Socket};
use crate::region::ShmRegistration;
use crate::status::{down, refused};
use crate::{Audience, MAX_OUTSTANDING_READS, MAX_READ, ShmFabric};

/// The longest that reads wait for the peer's socket, or for the descriptor of their region.
const ARRIVAL_BOUND: Duration = Duration::from_secs(5);

/// Turns of one poll before other tasks get theirs.
const TURNS: usize = 8;

/// The sockets get their turn after this number of polls, if each of these found reads that had ended.
const POLLS_PER_WATCH: u32 = 64;

/// An endpoint. See [`Endpoint`].
#[derive(Debug)]
pub(crate) struct ShmEndpoint {
    fabric: ShmFabric,
    /// The fabric for memory that this peer alone may see, if it has no user id here.
    private: OnceLock<Arc<ShmFabric>>,
    /// The process that made the endpoint: a child of it that was forked must not use the endpoint.
    process: u32,
    links: Links,
    regions: HashMap<RegionId, Imported>,
    last_number: u64,
    reads: HashMap<u64, Read>,
    last_operation: u64,
    reports: Arc<Reports>,
    copies: Copies,
    /// Reads of regions that have not arrived.
    waiting: Vec<Waiting>,
    /// Runs while reads wait.
    arrival: Option<Pin<Box<Sleep>>>,
    /// Why nothing more can be posted, if the peer or its socket failed.
    broken: Option<String>,
    closing: bool,
    /// Polls since the sockets were watched.
    polls: u32,
}

/// A region of the peer's memory: `base .. base + len` in its address space.
#[derive(Debug)]
struct Imported {
    base: u64,
    len: u64,
    key: Key,
    /// Once it has arrived. It stays even if the lender withdraws it.
    attachment: Option<Arc<Attachment>>,
    /// The owner of all mapped buffers of the region, once there is one.
    mapped: Option<Arc<Mapped>>,
}

impl Imported {
    fn covers(&self, address: u64, len: u64) -> bool {
        address.checked_sub(self.base).and_then(|offset| offset.checked_add(len)).is_some_and(|end| end <= self.len)
    }
}

/// A read under way. It owns its target until its completion has been polled.
#[derive(Debug)]
struct Read {
    token: ReadToken,
    into: LocalRange,
    from: Option<Arc<Attachment>>,
}

/// A read whose region has not arrived.
#[derive(Debug)]
struct Waiting {
    operation: u64,
    number: u64,
    offset: u64,
}

/// The owner of mapped buffers: the mapping, and a socket whose end tells the lender that this process is gone.
#[derive(Debug)]
struct Mapped {
    _attachment: Arc<Attachment>,
    _sockets: Vec<Socket>,
}

impl ShmEndpoint {
    pub(crate) fn new(fabric: &ShmFabric) -> Result<Self, FabricError> {
        let shared = &fabric.shared;
        let address = Address::new(shared.options.directory.as_deref())?;
        let links = Links::new(address, Arc::clone(&shared.attachments));
        let links = links.map_err(|error| down(format!("a socket to listen on: {error}")))?;
        let reports = Arc::default();
        Ok(ShmEndpoint {
            fabric: fabric.clone(),
            private: OnceLock::new(),
            process: process_id(),
            links,
            regions: HashMap::new(),
            last_number: 0,
            reads: HashMap::new(),
            last_operation: 0,
            copies: Copies::new(&shared.copy_pool, &reports),
            reports,
            waiting: Vec::new(),
            arrival: None,
            broken: None,
            closing: false,
            polls: 0,
        })
    }

    /// Does what can be done without waiting.
    fn progress(&mut self) {
        if self.is_forked() {
            self.broken.get_or_insert_with(|| "the connection belongs to the parent of this process".to_owned());
        }
        if !self.closing
            && self.broken.is_none()
            && let Err(reason) = self.links.progress()
        {
            self.broken = Some(reason);
        }
    }

    /// The same, after a look at every socket.
    fn look(&mut self) {
        self.links.look();
        self.progress();
    }

    /// Whether this process is a child of the one that made the endpoint.
    fn is_forked(&self) -> bool {
        process_id() != self.process
    }

    fn check_open(&self) -> Result<(), FabricError> {
        if self.closing {
            return Err(down("it is closed"));
        }
        self.broken.as_ref().map_or(Ok(()), |reason| Err(down(reason.as_str())))
    }

    /// The region that a range lies in, with its attachment if that has arrived.
    fn imported(&mut self, from: RemoteRange) -> Result<&mut Imported, FabricError> {
        let RemoteRange { region, address, len } = from;
        let found = self.regions.get_mut(&region).filter(|imported| imported.covers(address, len));
        let found = found.ok_or(FabricError::OutsideRegion { region, address, len })?;
        if found.attachment.is_none()
            && let Some(Ok(arrived)) = self.links.arrived(found.key.number)
        {
            found.attachment = Some(Arc::clone(arrived));
        }
        Ok(found)
    }

    /// Begins a read whose region is there: copies it at once, or leaves it to the threads that copy.
    fn copy(&mut self, operation: u64, attachment: &Arc<Attachment>, offset: u64) {
        let Some(read) = self.reads.get_mut(&operation) else { return };
        let Some(from) = attachment.find(offset, read.into.len() as u64) else {
            // The lender's key says more than its region has; `import` compared the two if the region was there.
            return self.reports.ended(operation, End::Refused);
        };
        read.from = Some(Arc::clone(attachment));
        attachment.prefault(offset, read.into.len() as u64);
        let (from, to, len): (NonNull<u8>, NonNull<u8>, usize) = (from, read.into.start(), read.into.len());
        if len as u64 >= copying::SHORTEST {
            // SAFETY: `len` mapped bytes at `from`; `into` is as long, valid for writes, and no other code accesses it.
            // The table keeps both until the operation was reported.
            unsafe { self.copies.post(operation, from.as_ptr(), to.as_ptr(), len) };
        } else {
            // SAFETY: as above.
            unsafe { copying::copy_at_once(from.as_ptr(), to.as_ptr(), len) };
            self.reports.ended(operation, End::Done);
        }
    }

    /// Begins the waiting reads whose regions have arrived, and gives up those whose regions will not.
    fn begin_waiting(&mut self) {
        for Waiting { operation, number, offset } in std::mem::take(&mut self.waiting) {
            match self.links.arrived(number) {
                Some(Ok(attachment)) => {
                    let attachment = Arc::clone(attachment);
                    self.copy(operation, &attachment, offset);
                }
                Some(Err(reason)) => {
                    tracing::warn!(reason, "a region of the peer cannot be mapped");
                    self.reports.ended(operation, End::Refused);
                }
                None => self.waiting.push(Waiting { operation, number, offset }),
            }
        }
        if self.waiting.is_empty() {
            self.arrival = None;
        }
    }

    /// Bounds the time that reads wait for their regions.
    fn watch_arrival(&mut self, cx: &mut Context<'_>) {
        if self.waiting.is_empty() {
            return;
        }
        let arrival = self.arrival.get_or_insert_with(|| Box::pin(tokio::time::sleep(ARRIVAL_BOUND)));
        if arrival.as_mut().poll(cx).is_ready() {
            self.arrival = None;
            if !self.links.is_up() {
                self.broken.get_or_insert(format!("the peer has not connected for {ARRIVAL_BOUND:?}"));
            }
            for waiting in self.waiting.drain(..) {
                self.reports.ended(waiting.operation, End::Refused);
            }
        }
    }

    /// Cancels what has not begun, once nothing more can be posted.
    fn flush(&mut self) {
        if self.closing || self.broken.is_some() {
            self.copies.cancel();
            for waiting in self.waiting.drain(..) {
                self.reports.ended(waiting.operation, End::Cancelled);
            }
        }
    }

    /// Hands over the reads that have ended, and with them their memory.
    fn settle(&mut self, completions: &mut Vec<Completion>) {
        for (operation, end) in self.reports.take() {
            let Some(Read { token, into, from }) = self.reads.remove(&operation) else { continue };
            drop((into, from));
            let result = match (end, &self.broken) {
                (End::Done, _) => Ok(()),
                (End::Refused, None) => Err(ReadFailure::RemoteAccess),
                (End::Cancelled, None) => Err(ReadFailure::Flushed),
                (_, Some(reason)) => Err(ReadFailure::PeerGone(reason.clone())),
            };
            completions.push(Completion { token, result });
        }
    }
}

impl Endpoint for ShmEndpoint {
    fn address(&self) -> Bytes {
        self.links.own().to_bytes()
    }

    fn connect(&mut self, peer: &[u8]) -> Result<(), FabricError> {
        self.check_open()?;
        if self.links.peer().is_some() {
            return Err(FabricError::Misuse("the endpoint is connected already"));
        }
        let peer = Address::parse(peer).map_err(refused)?;
        if peer.name == self.links.own().name {
            return Err(refused("the address is this endpoint's own"));
        }
        self.links.connect(peer).map_err(refused)
    }

    fn transport(&self) -> Option<Transport> {
        self.links.peer().map(|_| Transport { name: "memfd".to_owned(), inferior: None })
    }

    fn expose(&mut self, memory: &Arc<RegisteredMemory>, range: Range<usize>) -> Result<Bytes, FabricError> {
        self.check_open()?;
        if range.is_empty() || range.end > memory.len() {
            return Err(FabricError::Misuse("a range to be exposed is empty, or outside its memory"));
        }
        if memory.registration::<ShmRegistration>().is_none() {
            return Err(FabricError::Misuse("memory to be exposed was registered by another fabric"));
        }
        self.last_number += 1;
        self.links.offer(self.last_number, Arc::clone(memory));
        self.look();
        self.check_open()?;
        let (lender, number) = (self.links.own().name, self.last_number);
        Ok(Key { lender, number, base: memory.address(), len: memory.len() as u64 }.to_bytes())
    }

    fn revoke(&mut self, key: &Bytes) {
        // A peer that has mapped the region keeps it for as long as it likes; an honest one lets go of it.
        if let Some(key) = Key::parse(key).filter(|key| key.lender == self.links.own().name) {
            self.links.withdraw(key.number);
            self.progress();
        }
    }

    fn import(&mut self, region: RegionId, base: u64, len: u64, key: &[u8]) -> Result<(), FabricError> {
        // The region's descriptor was sent before its key.
        self.look();
        self.check_open()?;
        if self.regions.contains_key(&region) {
            return Err(FabricError::Misuse("the region is imported already"));
        }
        let error =
            |reason: &str| FabricError::RemoteKey { fabric: FabricKind::SHM, region, reason: reason.to_owned() };
        let key = Key::parse(key).ok_or_else(|| error("it is no key of this fabric"))?;
        if self.links.peer().is_none_or(|peer| peer.name != key.lender) {
            return Err(error("it is not a key of this connection's peer"));
        }
        let end = base.checked_add(len).filter(|_| base >= key.base);
        if end.is_none_or(|end| end - key.base > key.len) {
            return Err(error("it does not open that range"));
        }
        if let Some(Err(reason)) = self.links.arrived(key.number) {
            return Err(error(reason));
        }
        self.regions.insert(region, Imported { base, len, key, attachment: None, mapped: None });
        Ok(())
    }

    fn forget(&mut self, region: RegionId) {
        // The lender withdraws its descriptor; reads that have begun hold the mapping themselves.
        self.regions.remove(&region);
    }

    fn post_read(&mut self, token: ReadToken, from: RemoteRange, into: LocalRange) -> Result<(), FabricError> {
        self.check_open()?;
        if self.links.peer().is_none() {
            return Err(FabricError::Misuse("the endpoint is not connected"));
        }
        let imported = self.imported(from)?;
        let (number, offset) = (imported.key.number, from.address - imported.key.base);
        let attachment = imported.attachment.clone();
        if into.len() as u64 != from.len || into.is_empty() || from.len > MAX_READ {
            return Err(FabricError::Misuse("a read is empty, too long, or its two ranges differ in length"));
        }
        if self.reads.len() >= MAX_OUTSTANDING_READS {
            return Err(FabricError::TooManyReads { limit: MAX_OUTSTANDING_READS });
        }
        let memory = into.memory();
        if memory.registration::<ShmRegistration>().is_none() || !memory.is_writable() {
            return Err(FabricError::Misuse("a read must land in memory that this fabric allocated"));
        }
        self.last_operation += 1;
        let operation = self.last_operation;
        self.reads.insert(operation, Read { token, into, from: None });
        match attachment {
            Some(attachment) => self.copy(operation, &attachment, offset),
            None => self.waiting.push(Waiting { operation, number, offset }),
        }
        Ok(())
    }

    fn lends_from(&self) -> Option<Arc<dyn Fabric>> {
        let options = &self.fabric.shared.options;
        match self.links.user() {
            Some(user) if options.audience.admits(user) => None,
            Some(user) if Audience::User(user).admits(user) => Some(self.fabric.for_user(user)),
            // The peer has no user id in this namespace, or has not connected yet. The memory is sent over this
            // endpoint's own socket only, whose other end has shown the secret.
            _ => {
                let private = self.private.get_or_init(|| Arc::new(self.fabric.with_audience(Audience::Everyone)));
                Some(Arc::clone(private) as Arc<dyn Fabric>)
            }
        }
    }

    fn peer_presence(&self) -> Option<PresenceProbe> {
        let sockets = self.links.sockets();
        if sockets.is_empty() {
            return None;
        }
        // The peer keeps one of its ends open for as long as it has memory mapped.
        Some(Arc::new(move || {
            let all: Vec<_> = sockets.iter().map(Socket::presence).collect();
            let ended = all.iter().all(|presence| *presence == Presence::Ended);
            if ended {
                Presence::Ended
            } else {
                all.into_iter().find(|presence| *presence != Presence::Ended).unwrap_or(Presence::Unknown)
            }
        }))
    }

    fn mapping(&mut self) -> Option<&mut dyn MapsPeer> {
        Some(self)
    }

    fn poll(&mut self, cx: &mut Context<'_>, completions: &mut Vec<Completion>) -> Poll<Result<(), FabricError>> {
        let before = completions.len();
        self.polls += 1;
        if self.polls >= POLLS_PER_WATCH && !self.is_forked() {
            self.polls = 0;
            self.links.watch(cx);
        }
        // Until the peer has come, and while a region is missing, reads wait for the sockets alone.
        if !self.links.is_up() || !self.waiting.is_empty() {
            self.links.look();
        }
        for _ in 0..TURNS {
            self.progress();
            self.begin_waiting();
            self.watch_arrival(cx);
            self.flush();
            self.settle(completions);
            if completions.len() == before {
                let _others = self.copies.make_some() || self.copies.wait(cx.waker());
                self.settle(completions);
            }
            if completions.len() > before {
                return Poll::Ready(Ok(()));
            }
            if self.reads.is_empty()
                && let Err(failed) = self.check_open()
            {
                return Poll::Ready(Err(failed));
            }
            self.polls = 0;
            if !self.links.watch(cx) {
                return Poll::Pending;
            }
        }
        // Other tasks get their turn.
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    fn close(&mut self) {
        if !self.closing {
            self.closing = true;
            self.links.close(self.is_forked());
            self.regions.clear();
        }
        if !self.is_forked() {
            self.flush();
        }
    }

    fn is_closed(&self) -> bool {
        self.closing && self.reads.is_empty()
    }
}

impl MapsPeer for ShmEndpoint {
    fn map(&mut self, from: RemoteRange, _peer: TrustedPeer) -> Result<Buffer, FabricError> {
        self.progress();
        self.check_open()?;
        let RemoteRange { region, address, len } = from;
        let error = |reason: &str| FabricError::Map { address, len, reason: reason.to_owned() };
        let Imported { key, attachment, mapped, .. } = self.imported(from)?;
        let key = *key;
        let Some(attachment) = attachment.clone() else {
            let refused = self.links.arrived(key.number).and_then(|arrived| arrived.as_ref().err().cloned());
            return Err(error(refused.as_deref().unwrap_or("the peer has not sent the descriptor of its memory")));
        };
        let start = attachment.find(address - key.base, len);
        let start = start.ok_or_else(|| error("its memory is shorter than its key says"))?;
        let owner = match mapped {
            Some(mapped) => Arc::clone(mapped),
            None => {
                let new = Arc::new(Mapped { _attachment: attachment, _sockets: self.links.sockets() });
                if let Some(imported) = self.regions.get_mut(&region) {
                    imported.mapped = Some(Arc::clone(&new));
                }
                new
            }
        };
        let len = usize::try_from(len).map_err(|_| error("it is longer than this address space"))?;
        // SAFETY: `len` mapped bytes, which the owner keeps mapped, and which the kernel has initialised. No part of
        // this process writes there: the mapping is for reading. `_peer` states that the peer does not write either.
        Ok(unsafe { Buffer::from_custom_allocation(start, len, owner) })
    }
}

impl Drop for ShmEndpoint {
    fn drop(&mut self) {
        self.close();
        if self.is_forked() {
            // The threads that copy are the parent's.
            std::mem::forget(std::mem::take(&mut self.reads));
            return;
        }
        let mut flushed = Vec::new();
        // Threads that copy for this endpoint finish the pieces that they have begun.
        loop {
            self.settle(&mut flushed);
            if self.reads.is_empty() {
                return;
            }
            std::thread::yield_now();
        }
    }
}
