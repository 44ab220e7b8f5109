//! The network's state and its step.

use std::collections::BTreeMap;
use std::sync::Arc;

use thallus_fabric::memory::{LocalRange, RegisteredMemory};
use thallus_fabric::random::SplitMix64;
use thallus_fabric::{Fencing, ReadFailure, ReadToken};

use super::memory::{Exposure, MemoryTable};
use super::read::Read;
use super::{Access, EndpointId, Finished, HostId, KeyId, MemoryId, Progress, Violation};
use crate::SimOptions;

/// The simulated network.
#[derive(Debug)]
pub struct Core {
    seed: u64,
    options: SimOptions,
    next_id: u64,
    hosts: u32,
    memory: MemoryTable,
    endpoints: BTreeMap<EndpointId, EndpointEntry>,
    violations: Vec<Violation>,
    stats: Stats,
}

/// What the network has carried.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Reads whose bytes were copied.
    pub reads: u64,
    /// Their bytes.
    pub bytes: u64,
}

/// Whether an endpoint is open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EndpointState {
    /// No peer yet.
    Unconnected,
    /// Connected.
    Connected,
    /// It has noticed that its peer is gone.
    Down,
    /// Closed by its owner.
    Closed,
}

#[derive(Debug)]
struct EndpointEntry {
    host: HostId,
    state: EndpointState,
    peer: Option<EndpointId>,
    random: SplitMix64,
    step: u64,
    /// In order of posting.
    reads: Vec<Read>,
    /// The step in which it notices that the peer is gone, once it is.
    notice_at: Option<u64>,
}

impl Core {
    /// An empty network.
    #[must_use]
    pub fn new(seed: u64, options: SimOptions) -> Self {
        Core {
            seed,
            options,
            next_id: 0,
            hosts: 0,
            memory: MemoryTable::default(),
            endpoints: BTreeMap::new(),
            violations: Vec::new(),
            stats: Stats::default(),
        }
    }

    /// The seed it was made with.
    #[must_use]
    pub fn seed(&self) -> u64 {
        self.seed
    }

    /// What it is like.
    #[must_use]
    pub fn options(&self) -> &SimOptions {
        &self.options
    }

    /// What the memory protection refused, in order.
    #[must_use]
    pub fn violations(&self) -> &[Violation] {
        &self.violations
    }

    /// What it has carried.
    #[must_use]
    pub fn stats(&self) -> Stats {
        self.stats
    }

    /// One more host.
    pub fn add_host(&mut self) -> HostId {
        self.hosts += 1;
        HostId(self.hosts - 1)
    }

    /// A name for a registration about to be made. None is ever used twice.
    pub fn new_memory_id(&mut self) -> MemoryId {
        MemoryId(self.new_id())
    }

    /// Makes `memory` known to the network, until it is dropped.
    pub fn add_memory(&mut self, id: MemoryId, host: HostId, memory: &Arc<RegisteredMemory>) {
        self.memory.insert(id, host, memory);
    }

    /// Whether `memory` is registered at the host of `endpoint`.
    #[must_use]
    pub fn is_registered_at(&self, memory: MemoryId, endpoint: EndpointId) -> bool {
        self.endpoints.get(&endpoint).is_some_and(|entry| self.memory.is_registered(memory, entry.host))
    }

    /// One more endpoint at `host`.
    pub fn add_endpoint(&mut self, host: HostId) -> EndpointId {
        let id = EndpointId(self.new_id());
        let entry = EndpointEntry {
            host,
            state: EndpointState::Unconnected,
            peer: None,
            random: SplitMix64::split(self.seed, id.0),
            step: 0,
            reads: Vec::new(),
            notice_at: None,
        };
        self.endpoints.insert(id, entry);
        id
    }

    /// Whether the endpoint is open. `None` if it was removed.
    #[must_use]
    pub fn state(&self, endpoint: EndpointId) -> Option<EndpointState> {
        self.endpoints.get(&endpoint).map(|entry| entry.state)
    }

    /// How many reads the endpoint has outstanding.
    #[must_use]
    pub fn outstanding(&self, endpoint: EndpointId) -> usize {
        self.endpoints.get(&endpoint).map_or(0, |entry| entry.reads.len())
    }

    /// Connects one end; the peer connects the other.
    ///
    /// # Errors
    /// What stands in the way.
    pub fn connect(&mut self, endpoint: EndpointId, peer: EndpointId) -> Result<(), &'static str> {
        if endpoint == peer {
            return Err("it is this endpoint's own address");
        }
        match self.endpoints.get(&peer) {
            Some(entry) if matches!(entry.state, EndpointState::Closed | EndpointState::Down) => {
                return Err("the peer's endpoint is closed");
            }
            Some(entry) if entry.peer.is_some_and(|other| other != endpoint) => {
                return Err("the peer is connected to somebody else");
            }
            Some(_) => {}
            None => return Err("no such endpoint"),
        }
        let entry = self.endpoints.get_mut(&endpoint).ok_or("this endpoint is gone")?;
        if entry.state != EndpointState::Unconnected {
            return Err("this endpoint was connected before");
        }
        entry.state = EndpointState::Connected;
        entry.peer = Some(peer);
        Ok(())
    }

    /// A key with which the peer of `endpoint` can read `memory`. The same for the same.
    pub fn expose(&mut self, endpoint: EndpointId, memory: MemoryId) -> KeyId {
        if let Some(key) = self.memory.key_of(memory, endpoint) {
            return key;
        }
        let key = KeyId(self.new_id());
        self.memory.expose(key, Exposure { memory, by: endpoint });
        key
    }

    /// Posts a read of `into.len()` bytes at `address`. Whether that is allowed is found out when it is carried out.
    ///
    /// # Errors
    /// The range back, if the endpoint is not connected.
    pub fn post(
        &mut self,
        endpoint: EndpointId,
        token: ReadToken,
        key: KeyId,
        address: u64,
        into: LocalRange,
    ) -> Result<(), LocalRange> {
        let options = &self.options;
        let entry = match self.endpoints.get_mut(&endpoint) {
            Some(entry) if entry.state == EndpointState::Connected => entry,
            _ => return Err(into),
        };
        let mut copy_at = entry.step + 1 + u64::from(entry.random.within(&options.latency));
        let mut complete_at = copy_at + u64::from(entry.random.within(&options.completion_lag));
        if !options.reorder
            && let Some(last) = entry.reads.last()
        {
            copy_at = copy_at.max(last.copy_at);
            complete_at = complete_at.max(last.complete_at);
        }
        entry.reads.push(Read { token, key, address, into, copy_at, complete_at, copied: None });
        Ok(())
    }

    /// One step of `endpoint`: copies, completes, notices what is due.
    pub fn step(&mut self, endpoint: EndpointId, finished: &mut Vec<Finished>) -> Progress {
        let Some(entry) = self.endpoints.get_mut(&endpoint) else { return Progress::Idle };
        entry.step += 1;
        let step = entry.step;
        let peer_is_gone = entry.notice_at.is_some_and(|at| at <= step) && entry.state == EndpointState::Connected;
        if peer_is_gone {
            entry.state = EndpointState::Down;
        }
        let mut reads = std::mem::take(&mut entry.reads);
        match entry.state {
            EndpointState::Closed => {
                finished.extend(reads.drain(..).map(|read| read.finish(Err(ReadFailure::Flushed))))
            }
            EndpointState::Down => {
                let gone = || ReadFailure::PeerGone("its endpoint closed".to_owned());
                finished.extend(reads.drain(..).map(|read| read.finish(Err(gone()))));
                return Progress::Down;
            }
            EndpointState::Unconnected | EndpointState::Connected => {
                for read in reads.iter_mut().filter(|read| read.copy_at <= step && read.copied.is_none()) {
                    let copied = self.carry_out(endpoint, read);
                    read.copied = Some(copied);
                }
                let mut left = Vec::with_capacity(reads.len());
                let mut done: Vec<Read> = Vec::new();
                for read in reads.drain(..) {
                    if read.complete_at <= step { done.push(read) } else { left.push(read) }
                }
                done.sort_by_key(|read| read.complete_at);
                for mut read in done {
                    // Copied in this step or before: `copy_at <= complete_at`.
                    let result = read.copied.take().unwrap_or(Err(ReadFailure::Flushed));
                    finished.push(read.finish(result));
                }
                reads = left;
            }
        }
        let Some(entry) = self.endpoints.get_mut(&endpoint) else { return Progress::Idle };
        entry.reads = reads;
        let notices = entry.notice_at.is_some() && entry.state == EndpointState::Connected;
        if entry.reads.is_empty() && !notices { Progress::Idle } else { Progress::Waiting }
    }

    /// Closes the endpoint. Its reads are flushed by its next step; its peer notices in a later one of its own, and under
    /// revocation reads nothing any more from now on. Returns the peer, which has something to wait for now.
    pub fn close(&mut self, endpoint: EndpointId) -> Option<EndpointId> {
        let entry = self.endpoints.get_mut(&endpoint)?;
        if entry.state == EndpointState::Closed {
            return None;
        }
        entry.state = EndpointState::Closed;
        let peer = entry.peer?;
        let notice = self.options.notice.clone();
        let peer_entry = self.endpoints.get_mut(&peer).filter(|entry| entry.peer == Some(endpoint))?;
        peer_entry.notice_at = Some(peer_entry.step + 1 + u64::from(peer_entry.random.within(&notice)));
        Some(peer)
    }

    /// Closes and removes the endpoint. Whatever it still had outstanding comes back, and its peer, if it must be told.
    pub fn remove(&mut self, endpoint: EndpointId) -> (Vec<Finished>, Option<EndpointId>) {
        let peer = self.close(endpoint);
        let reads = self.endpoints.remove(&endpoint).map(|entry| entry.reads).unwrap_or_default();
        (reads.into_iter().map(|read| read.finish(Err(ReadFailure::Flushed))).collect(), peer)
    }

    /// The host stops: every endpoint of it closes, without anybody having asked it to. Returns whom that concerns.
    pub fn crash(&mut self, host: HostId) -> Vec<EndpointId> {
        let dead: Vec<_> = self.endpoints.iter().filter(|(_, entry)| entry.host == host).map(|(&id, _)| id).collect();
        dead.iter().flat_map(|&endpoint| [Some(endpoint), self.close(endpoint)]).flatten().collect()
    }

    /// Copies the bytes of one read, if the memory protection lets it.
    fn carry_out(&mut self, endpoint: EndpointId, read: &mut Read) -> Result<(), ReadFailure> {
        let len = read.into.len() as u64;
        let opened =
            self.protect(endpoint, read.key).and_then(|exposure| self.memory.open(exposure, read.address, len));
        let (memory, offset) = match opened {
            Ok(opened) => opened,
            Err(access) => {
                if access != Access::Revoked && self.peer_stands(endpoint) {
                    let (key, address) = (read.key, read.address);
                    self.violations.push(Violation { reader: endpoint, key, address, len, access });
                }
                return Err(ReadFailure::RemoteAccess);
            }
        };
        if !read.into.fill_from(&memory, offset) {
            return Err(ReadFailure::RemoteAccess);
        }
        self.stats.reads += 1;
        self.stats.bytes += len;
        Ok(())
    }

    /// What `key` exposes to `reader`.
    fn protect(&self, reader: EndpointId, key: KeyId) -> Result<Exposure, Access> {
        let exposure = self.memory.exposure(key).ok_or(Access::UnknownKey)?;
        if self.options.fencing == Fencing::LeaseWord {
            // As with UCX: whoever has the key can read, until the memory is gone.
            return Ok(exposure);
        }
        if self.endpoints.get(&reader).and_then(|entry| entry.peer) != Some(exposure.by) {
            return Err(Access::NotThisPeer);
        }
        match self.state(exposure.by) {
            None | Some(EndpointState::Closed) => Err(Access::Revoked),
            Some(_) => Ok(exposure),
        }
    }

    fn peer_stands(&self, endpoint: EndpointId) -> bool {
        let peer = self.endpoints.get(&endpoint).and_then(|entry| entry.peer);
        peer.and_then(|peer| self.state(peer)).is_some_and(|state| state != EndpointState::Closed)
    }

    fn new_id(&mut self) -> u64 {
        self.next_id += 1;
        self.next_id
    }
}
