//! The network's memory protection: registrations, keys, and the memory that a read may reach.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Weak};

use thallus_fabric::memory::RegisteredMemory;

use super::{EndpointId, HostId, KeyId, MemoryId};

/// The reason why the protection refused a read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// The key does not exist.
    UnknownKey,
    /// The key was given to the peer of another endpoint.
    NotThisPeer,
    /// The range is not within the memory, or the part of it, that the key opens.
    OutsideMemory,
    /// The key was revoked. Only under [`SimOptions::exposes_ranges`](crate::SimOptions::exposes_ranges).
    KeyRevoked,
    /// The memory is not registered any more.
    Deregistered,
    /// The range lies in exposed memory that is not on loan to this peer. This and the following ones exist only under
    /// [`SimOptions::loans`](crate::SimOptions::loans).
    NotOnLoan,
    /// The range is on loan, and its content has changed: the lender used the memory for other data.
    Reused,
    /// The lender ended a lease although the endpoint was open: the peer could still read, and take other bytes for the
    /// batch.
    EndedUnfenced,
    /// The lender ended a lease that did not stand, or opened a lease twice.
    Ledger,
    /// The endpoint that exposed it has closed. Only under
    /// [`Fencing::Revocation`](thallus_fabric::Fencing::Revocation).
    Revoked,
}

/// A read that the memory protection refused while its connection was open. One end broke the rules of lending. (After
/// the lender closed, late reads are legal, and are refused without a record.)
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Violation {
    /// The endpoint that read, or the endpoint of the lease.
    pub reader: EndpointId,
    /// The key of the read.
    pub key: KeyId,
    /// Address of the first byte.
    pub address: u64,
    /// Length in bytes.
    pub len: u64,
    /// The broken rule.
    pub access: Access,
}

/// The registrations and keys of all hosts.
#[derive(Debug, Default)]
pub(super) struct MemoryTable {
    memories: BTreeMap<MemoryId, Registered>,
    exposures: BTreeMap<KeyId, Exposure>,
    revoked: BTreeSet<KeyId>,
}

#[derive(Debug)]
struct Registered {
    host: HostId,
    /// Weak: dropping the memory deregisters it, and then reads must fail.
    memory: Weak<RegisteredMemory>,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Exposure {
    pub(super) memory: MemoryId,
    pub(super) by: EndpointId,
    /// Offset and length of the exposed range; `None` if the whole memory is exposed.
    pub(super) range: Option<(usize, usize)>,
}

impl MemoryTable {
    pub(super) fn insert(&mut self, id: MemoryId, host: HostId, memory: &Arc<RegisteredMemory>) {
        self.memories.retain(|_, registered| registered.memory.strong_count() > 0);
        self.memories.insert(id, Registered { host, memory: Arc::downgrade(memory) });
    }

    /// Whether `memory` is registered at `host`.
    pub(super) fn is_registered(&self, id: MemoryId, host: HostId) -> bool {
        self.memories.get(&id).is_some_and(|registered| registered.host == host && registered.memory.strong_count() > 0)
    }

    /// The key with which `by` has already exposed all of `memory`.
    pub(super) fn key_of(&self, memory: MemoryId, by: EndpointId) -> Option<KeyId> {
        self.exposures.iter().find(|(_, exposure)| exposure.memory == memory && exposure.by == by).map(|(&key, _)| key)
    }

    pub(super) fn expose(&mut self, key: KeyId, exposure: Exposure) {
        self.exposures.insert(key, exposure);
    }

    /// The memory exposed by `by` that contains this range, and the offset.
    pub(super) fn exposed_at(&self, by: EndpointId, address: u64, len: u64) -> Option<(Arc<RegisteredMemory>, usize)> {
        let mut exposures = self.exposures.values().filter(|exposure| exposure.by == by);
        exposures.find_map(|&exposure| self.open(exposure, address, len).ok())
    }

    /// Revokes a key, if `by` gave it.
    pub(super) fn revoke(&mut self, key: KeyId, by: EndpointId) {
        if self.exposures.get(&key).is_some_and(|exposure| exposure.by == by) {
            self.exposures.remove(&key);
            self.revoked.insert(key);
        }
    }

    /// The exposure of `key`.
    pub(super) fn exposure(&self, key: KeyId) -> Result<Exposure, Access> {
        let refused = if self.revoked.contains(&key) { Access::KeyRevoked } else { Access::UnknownKey };
        self.exposures.get(&key).copied().ok_or(refused)
    }

    /// The memory that `exposure` opens, and the offset in it of the range at `address`.
    pub(super) fn open(
        &self,
        exposure: Exposure,
        address: u64,
        len: u64,
    ) -> Result<(Arc<RegisteredMemory>, usize), Access> {
        let registered = self.memories.get(&exposure.memory).ok_or(Access::Deregistered)?;
        let memory = registered.memory.upgrade().ok_or(Access::Deregistered)?;
        // Not the last handle, unless the owner drops its handle on another thread at this time. Then the registration,
        // which takes no lock, is dropped here.
        let offset = memory.offset_of(address, len).ok_or(Access::OutsideMemory)?;
        let (start, open) = exposure.range.unwrap_or((0, memory.len()));
        // `offset_of` has checked that `offset + len` is within the memory.
        let is_open = offset >= start && (offset - start) as u64 + len <= open as u64;
        if is_open { Ok((memory, offset)) } else { Err(Access::OutsideMemory) }
    }
}
