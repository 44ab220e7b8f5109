//! The network's state and its step.

mod leases;
mod map;

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::Arc;

use thallus_fabric::memory::{LocalRange, RegisteredMemory};
use thallus_fabric::random::SplitMix64;
use thallus_fabric::{Completion, Fencing, ReadFailure, ReadToken};

use super::loans::{Loans, Standing};
use super::memory::{Exposure, MemoryTable};
use super::read::Read;
pub use map::Mapping;

use super::{Access, EndpointId, Event, Finished, HostId, KeyId, MemoryId, Progress, Violation, What};
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
    loans: Loans,
    /// Pairs of reader and lender without a path between them.
    blocked: BTreeSet<(HostId, HostId)>,
    /// Hosts that have crashed.
    crashed: BTreeSet<HostId>,
    violations: Vec<Violation>,
    stats: Stats,
    events: Vec<Event>,
}

/// The registration of invented memory.
#[derive(Debug)]
struct Junk;

fn one_in(times: u32, random: &mut SplitMix64) -> bool {
    times > 0 && random.within(&(1..=times)) == 1
}

/// Figures of the network.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Number of reads whose bytes were copied.
    pub reads: u64,
    /// Bytes of these reads.
    pub bytes: u64,
    /// Number of ranges that were mapped.
    pub maps: u64,
    /// Number of reads and maps of memory that the lender had revoked.
    pub late: u64,
    /// Number of stragglers.
    pub stragglers: u64,
    /// Number of reads that completed before their bytes were in place.
    pub early: u64,
    /// Number of endpoints that failed for want of a path.
    pub retry_exceeded: u64,
}

/// The state of an endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EndpointState {
    /// Not connected yet.
    Unconnected,
    /// Connected.
    Connected,
    /// The endpoint has noticed that its peer has closed.
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
    /// The peer has closed. This endpoint notices it this many steps after its next step.
    notice_in: Option<u64>,
    /// The step in which the endpoint notices that its peer has closed, once it has.
    notice_at: Option<u64>,
    /// The step in which the last read's bytes have been transferred.
    wire_free_at: u64,
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
            loans: Loans::default(),
            blocked: BTreeSet::new(),
            crashed: BTreeSet::new(),
            violations: Vec::new(),
            stats: Stats::default(),
            events: Vec::new(),
        }
    }

    /// The seed of the network.
    #[must_use]
    pub fn seed(&self) -> u64 {
        self.seed
    }

    /// The network's options.
    #[must_use]
    pub fn options(&self) -> &SimOptions {
        &self.options
    }

    /// The network's options, for changes during a run.
    pub fn options_mut(&mut self) -> &mut SimOptions {
        &mut self.options
    }

    /// The violations, in order.
    #[must_use]
    pub fn violations(&self) -> &[Violation] {
        &self.violations
    }

    /// Current figures.
    #[must_use]
    pub fn stats(&self) -> Stats {
        self.stats
    }

    /// Adds a host.
    pub fn add_host(&mut self) -> HostId {
        self.hosts += 1;
        HostId(self.hosts - 1)
    }

    /// An id for a new registration. Ids are not reused.
    pub fn new_memory_id(&mut self) -> MemoryId {
        MemoryId(self.new_id())
    }

    /// Adds `memory` to the network, until it is dropped.
    pub fn add_memory(&mut self, id: MemoryId, host: HostId, memory: &Arc<RegisteredMemory>) {
        self.memory.insert(id, host, memory);
    }

    /// Whether `memory` is registered at the host of `endpoint`.
    #[must_use]
    pub fn is_registered_at(&self, memory: MemoryId, endpoint: EndpointId) -> bool {
        self.endpoints.get(&endpoint).is_some_and(|entry| self.memory.is_registered(memory, entry.host))
    }

    /// Adds an endpoint at `host`.
    pub fn add_endpoint(&mut self, host: HostId) -> EndpointId {
        let id = EndpointId(self.new_id());
        let entry = EndpointEntry {
            host,
            state: EndpointState::Unconnected,
            peer: None,
            random: SplitMix64::split(self.seed, id.0),
            step: 0,
            reads: Vec::new(),
            notice_in: None,
            notice_at: None,
            wire_free_at: 0,
        };
        self.endpoints.insert(id, entry);
        id
    }

    /// The state of the endpoint. `None` if it was removed.
    #[must_use]
    pub fn state(&self, endpoint: EndpointId) -> Option<EndpointState> {
        self.endpoints.get(&endpoint).map(|entry| entry.state)
    }

    /// Number of outstanding reads of the endpoint.
    #[must_use]
    pub fn outstanding(&self, endpoint: EndpointId) -> usize {
        self.endpoints.get(&endpoint).map_or(0, |entry| entry.reads.len())
    }

    /// Connects one end. The peer connects the other end.
    ///
    /// # Errors
    /// The obstacle.
    pub fn connect(&mut self, endpoint: EndpointId, peer: EndpointId) -> Result<(), &'static str> {
        if endpoint == peer {
            return Err("the address is this endpoint's own");
        }
        match self.endpoints.get(&peer) {
            Some(entry) if matches!(entry.state, EndpointState::Closed | EndpointState::Down) => {
                return Err("the peer's endpoint is closed");
            }
            Some(entry) if entry.peer.is_some_and(|other| other != endpoint) => {
                return Err("the peer is connected to another endpoint");
            }
            Some(_) => {}
            None => return Err("no such endpoint"),
        }
        let entry = self.endpoints.get_mut(&endpoint).ok_or("this endpoint was removed")?;
        if entry.state != EndpointState::Unconnected {
            return Err("this endpoint was connected before");
        }
        entry.state = EndpointState::Connected;
        entry.peer = Some(peer);
        Ok(())
    }

    /// A key with which the peer of `endpoint` can read `range` of `memory`. Under [`SimOptions::exposes_ranges`] it
    /// opens nothing else. Otherwise it opens all of `memory`, and is the same each time.
    pub fn expose(&mut self, endpoint: EndpointId, memory: MemoryId, range: Range<usize>) -> KeyId {
        let range = self.options.exposes_ranges.then_some((range.start, range.len()));
        if range.is_none()
            && let Some(key) = self.memory.key_of(memory, endpoint)
        {
            return key;
        }
        let key = KeyId(self.new_id());
        self.memory.expose(key, Exposure { memory, by: endpoint, range });
        key
    }

    /// Revokes a key that `endpoint` gave, under [`SimOptions::exposes_ranges`]. Otherwise the key stays valid.
    pub fn revoke(&mut self, endpoint: EndpointId, key: KeyId) {
        if self.options.exposes_ranges {
            self.memory.revoke(key, endpoint);
        }
    }

    /// Posts a read of `into.len()` bytes at `address`. The memory protection is checked when the read is carried out.
    ///
    /// # Errors Returns the range, if the endpoint is not connected.
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
        let len = into.len() as u64;
        let mut copy_at = entry.step + 1 + u64::from(entry.random.within(&options.latency));
        if one_in(options.straggler_one_in, &mut entry.random) {
            copy_at += u64::from(entry.random.within(&options.straggler));
            self.stats.stragglers += 1;
        }
        if let Some(steps) = len.checked_div(options.bytes_per_step) {
            // The wire transfers one read after the other.
            entry.wire_free_at = entry.wire_free_at.max(entry.step) + steps;
            copy_at = copy_at.max(entry.wire_free_at);
        }
        let lag = u64::from(entry.random.within(&options.completion_lag));
        let mut complete_at = copy_at + lag;
        if !options.reorder
            && let Some(last) = entry.reads.last()
        {
            copy_at = copy_at.max(last.copy_at);
            complete_at = complete_at.max(last.complete_at);
        }
        let early = one_in(options.early_one_in, &mut entry.random);
        let held_until = complete_at + if early { lag + 1 } else { 0 };
        let give_up_at = copy_at + u64::from(options.retry);
        entry.reads.push(Read {
            token,
            key,
            address,
            into,
            copy_at,
            complete_at,
            held_until,
            give_up_at,
            copied: None,
            announced: false,
        });
        self.note(endpoint, What::Posted(token.0, len));
        Ok(())
    }

    /// Makes one step of `endpoint`: carries out the copies, completions and notices that are due.
    pub fn step(&mut self, endpoint: EndpointId, finished: &mut Vec<Finished>) -> Progress {
        let next = self.endpoints.get(&endpoint).map_or(0, |entry| entry.step + 1);
        self.step_to(endpoint, next, finished)
    }

    /// Sets the time of `endpoint` to `step`, if it is not later already. No event happens yet.
    pub fn set_time(&mut self, endpoint: EndpointId, step: u64) {
        if let Some(entry) = self.endpoints.get_mut(&endpoint) {
            entry.step = entry.step.max(step);
        }
    }

    /// Makes all steps of `endpoint` up to and including `step` at once.
    pub fn step_to(&mut self, endpoint: EndpointId, step: u64, finished: &mut Vec<Finished>) -> Progress {
        self.set_time(endpoint, step);
        let Some(entry) = self.endpoints.get_mut(&endpoint) else { return Progress::Idle };
        let step = entry.step;
        if let Some(wait) = entry.notice_in.take() {
            entry.notice_at = Some(step + wait);
        }
        if entry.notice_at.is_some_and(|at| at <= step) && entry.state == EndpointState::Connected {
            entry.state = EndpointState::Down;
            self.note(endpoint, What::PeerGone);
        }
        self.fail_without_path(endpoint, step, finished);
        let Some(entry) = self.endpoints.get_mut(&endpoint) else { return Progress::Idle };
        let reads = std::mem::take(&mut entry.reads);
        let failure = match entry.state {
            EndpointState::Closed => Some(ReadFailure::Flushed),
            EndpointState::Down => Some(ReadFailure::PeerGone("its endpoint closed".to_owned())),
            EndpointState::Unconnected | EndpointState::Connected => None,
        };
        let is_down = entry.state == EndpointState::Down;
        if let Some(failure) = failure {
            let unannounced = reads.into_iter().filter(|read| !read.announced);
            finished.extend(unannounced.map(|read| read.finish(Err(failure.clone()))));
            return if is_down { Progress::Down } else { Progress::Idle };
        }
        let left = self.progress(endpoint, step, reads, finished);
        let Some(entry) = self.endpoints.get_mut(&endpoint) else { return Progress::Idle };
        entry.reads = left;
        let notices = entry.notice_at.is_some() && entry.state == EndpointState::Connected;
        if entry.reads.is_empty() && !notices { Progress::Idle } else { Progress::Waiting }
    }

    /// The next step of `endpoint` with an event, as far as it is known now.
    #[must_use]
    pub fn due(&self, endpoint: EndpointId) -> Option<u64> {
        let entry = self.endpoints.get(&endpoint)?;
        let blocked = self.has_no_path(endpoint);
        let reads = entry.reads.iter().map(|read| match read.copied {
            _ if read.announced => read.held_until,
            Some(_) => read.complete_at,
            None if blocked => read.give_up_at,
            None => read.copy_at,
        });
        let notice = entry.notice_at.filter(|_| entry.state == EndpointState::Connected);
        reads.chain(notice).chain(entry.notice_in.map(|_| entry.step)).min()
    }

    /// Carries out the reads that are due, and returns those that have not completed.
    fn progress(
        &mut self,
        endpoint: EndpointId,
        step: u64,
        mut reads: Vec<Read>,
        finished: &mut Vec<Finished>,
    ) -> Vec<Read> {
        let blocked = self.has_no_path(endpoint);
        let mut order: Vec<usize> = (0..reads.len()).collect();
        order.sort_by_key(|&at| reads[at].copy_at);
        for at in order {
            let read = &mut reads[at];
            if read.copy_at <= step && read.copied.is_none() && !read.announced && !blocked {
                let copied = self.carry_out(endpoint, read);
                read.copied = Some(copied);
            }
        }
        reads.sort_by_key(|read| read.complete_at);
        let mut left = Vec::with_capacity(reads.len());
        for mut read in reads {
            let held = read.held_until > step;
            match read.copied.take() {
                None if read.announced => {
                    if held {
                        left.push(read);
                    }
                }
                Some(Ok(())) if read.complete_at <= step && held => {
                    self.stats.early += 1;
                    self.note(endpoint, What::CompletedEarly(read.token.0));
                    finished
                        .push(Finished { completion: Completion { token: read.token, result: Ok(()) }, into: None });
                    left.push(Read { announced: true, ..read });
                }
                Some(result) if read.complete_at <= step => {
                    self.note(endpoint, What::Completed(read.token.0, result.is_ok()));
                    finished.push(read.finish(result));
                }
                copied => left.push(Read { copied, ..read }),
            }
        }
        left
    }

    /// Without a path a read fails after some time, and its endpoint with it, as a reliable connection's queue pair
    /// does.
    fn fail_without_path(&mut self, endpoint: EndpointId, step: u64, finished: &mut Vec<Finished>) {
        if !self.has_no_path(endpoint) {
            return;
        }
        let Some(entry) = self.endpoints.get_mut(&endpoint) else { return };
        let Some(at) =
            entry.reads.iter().position(|read| read.copied.is_none() && !read.announced && read.give_up_at <= step)
        else {
            return;
        };
        let read = entry.reads.remove(at);
        entry.state = EndpointState::Down;
        finished.push(read.finish(Err(ReadFailure::RetryExceeded)));
        self.stats.retry_exceeded += 1;
        self.note(endpoint, What::RetryExceeded);
    }

    fn has_no_path(&self, endpoint: EndpointId) -> bool {
        let Some(entry) = self.endpoints.get(&endpoint) else { return false };
        let peer = entry.peer.and_then(|peer| self.endpoints.get(&peer));
        peer.is_some_and(|peer| self.blocked.contains(&(entry.host, peer.host)))
    }

    /// Removes or restores the path by which `reader` reads from `lender`. Returns the affected endpoints.
    pub fn set_path(&mut self, reader: HostId, lender: HostId, open: bool) -> Vec<EndpointId> {
        if open {
            self.blocked.remove(&(reader, lender));
        } else {
            self.blocked.insert((reader, lender));
        }
        self.endpoints.iter().filter(|(_, entry)| entry.host == reader).map(|(&id, _)| id).collect()
    }

    /// The events since the last call, if [`SimOptions::record`] is set.
    pub fn take_events(&mut self) -> Vec<Event> {
        std::mem::take(&mut self.events)
    }

    fn note(&mut self, endpoint: EndpointId, what: What) {
        if self.options.record {
            let entry = self.endpoints.get(&endpoint);
            let (host, step) = (entry.map(|entry| entry.host), entry.map_or(0, |entry| entry.step));
            self.events.push(Event { endpoint, host, step, what });
        }
    }

    fn violated(&mut self, reader: EndpointId, access: Access) {
        self.violations.push(Violation { reader, key: KeyId(0), address: 0, len: 0, access });
    }

    /// Closes the endpoint. Its next step flushes its reads. Its peer notices in a later step of its own, and under
    /// revocation can read nothing from now on. Returns the peer, which has an event to wait for now.
    pub fn close(&mut self, endpoint: EndpointId) -> Option<EndpointId> {
        let entry = self.endpoints.get_mut(&endpoint)?;
        if entry.state == EndpointState::Closed {
            return None;
        }
        entry.state = EndpointState::Closed;
        let peer = entry.peer;
        self.note(endpoint, What::Closed);
        let peer = peer?;
        let notice = self.options.notice.clone();
        let peer_entry = self.endpoints.get_mut(&peer).filter(|entry| entry.peer == Some(endpoint))?;
        peer_entry.notice_in = Some(u64::from(peer_entry.random.within(&notice)));
        Some(peer)
    }

    /// Closes and removes the endpoint. Returns its outstanding reads, and its peer, if the peer has to be woken.
    pub fn remove(&mut self, endpoint: EndpointId) -> (Vec<Finished>, Option<EndpointId>) {
        let peer = self.close(endpoint);
        let reads = self.endpoints.remove(&endpoint).map(|entry| entry.reads).unwrap_or_default();
        (reads.into_iter().map(|read| read.finish(Err(ReadFailure::Flushed))).collect(), peer)
    }

    /// Crashes a host: all its endpoints close, without a call of their owners. Returns the affected endpoints.
    pub fn crash(&mut self, host: HostId) -> Vec<EndpointId> {
        self.crashed.insert(host);
        let dead: Vec<_> = self.endpoints.iter().filter(|(_, entry)| entry.host == host).map(|(&id, _)| id).collect();
        dead.iter().flat_map(|&endpoint| [Some(endpoint), self.close(endpoint)]).flatten().collect()
    }

    /// Copies the bytes of one read, if the memory protection allows it.
    fn carry_out(&mut self, endpoint: EndpointId, read: &mut Read) -> Result<(), ReadFailure> {
        let (len, token) = (read.into.len() as u64, read.token.0);
        let opened = self.protect(endpoint, read.key).map(|exposure| {
            let standing = if self.options.loans {
                self.loans.judge(exposure.by, read.address, len)
            } else {
                Standing::OnLoan(None, false)
            };
            (standing, self.memory.open(exposure, read.address, len))
        });
        let access = match opened {
            Ok((Standing::Late, _)) => {
                // The lender may have written new data since; the bytes are not those of the batch.
                self.stats.late += 1;
                self.note(endpoint, What::Late(token));
                let junk = RegisteredMemory::foreign(vec![0xA5_u8; read.into.len()].into(), Box::new(Junk));
                let filled = read.into.fill_from(&junk, 0);
                return if filled { Ok(()) } else { Err(ReadFailure::RemoteAccess) };
            }
            Ok((Standing::Not, Ok(_))) => Access::NotOnLoan,
            Ok((Standing::OnLoan(lent, _), Ok((memory, offset)))) => {
                let reused = lent.is_some_and(|lent| memory.copy_out(offset, lent.len()).as_deref() != Some(lent));
                if !read.into.fill_from(&memory, offset) {
                    return Err(ReadFailure::RemoteAccess);
                }
                if reused && self.peer_stands(endpoint) {
                    let (key, address) = (read.key, read.address);
                    self.violations.push(Violation { reader: endpoint, key, address, len, access: Access::Reused });
                }
                self.stats.reads += 1;
                self.stats.bytes += len;
                self.note(endpoint, What::Landed(token));
                return Ok(());
            }
            Ok((Standing::OnLoan(_, true), Err(access))) => {
                self.note(endpoint, What::Refused(token, access));
                return Err(ReadFailure::RemoteAccess);
            }
            Ok((_, Err(access))) | Err(access) => access,
        };
        if access != Access::Revoked && self.peer_stands(endpoint) {
            let (key, address) = (read.key, read.address);
            self.violations.push(Violation { reader: endpoint, key, address, len, access });
        }
        self.note(endpoint, What::Refused(token, access));
        Err(ReadFailure::RemoteAccess)
    }

    /// The memory that `key` exposes to `reader`.
    fn protect(&self, reader: EndpointId, key: KeyId) -> Result<Exposure, Access> {
        let exposure = self.memory.exposure(key)?;
        let (revokes, exposes_ranges) = (self.options.fencing == Fencing::Revocation, self.options.exposes_ranges);
        // Without either, as with UCX, a key is valid for every endpoint until the memory is deregistered.
        let is_peer = self.endpoints.get(&reader).and_then(|entry| entry.peer) == Some(exposure.by);
        if (revokes || exposes_ranges) && !is_peer {
            return Err(Access::NotThisPeer);
        }
        match self.state(exposure.by) {
            None | Some(EndpointState::Closed) if revokes => Err(Access::Revoked),
            _ => Ok(exposure),
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
