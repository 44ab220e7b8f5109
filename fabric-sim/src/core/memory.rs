//! The network's memory protection: registrations, keys, and the memory that a read may reach.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Weak};

use thallus_fabric::memory::RegisteredMemory;

use super::{EndpointId, HostId, KeyId, MemoryId};

/// Why the protection refused a read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// No such key was ever given out.
    UnknownKey,
    /// The key was given to the peer of another endpoint.
    NotThisPeer,
    /// The range reaches outside the memory, or the range of it, that the key opens.
    OutsideMemory,
    /// The key was revoked. Only under [`SimOptions::exposes_ranges`](crate::SimOptions::exposes_ranges).
    KeyRevoked,
    /// The memory is not registered any more.
    Deregistered,
    /// It lies in exposed memory, and is not on loan to this peer. Only under
    /// [`SimOptions::loans`](crate::SimOptions::loans), as all that follow.
    NotOnLoan,
    /// It is on loan, and changed meanwhile: the lender used it for something else.
    Reused,
    /// The lender ended a lease, while the peer could still read and take other bytes for the batch: the endpoint
    /// was open.
    EndedUnfenced,
    /// The lender ended a lease that did not stand, or lent one twice.
    Ledger,
    /// The endpoint that exposed it has closed. Only under
    /// [`Fencing::Revocation`](thallus_fabric::Fencing::Revocation).
    Revoked,
}

/// A read that the memory protection refused while its connection was open: one end broke the rules of lending. (After
/// the lender closed, late reads are legal, and refused without a record.)
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Violation {
    /// The endpoint that read, or whose lease it is.
    pub reader: EndpointId,
    /// The key it was made with.
    pub key: KeyId,
    /// Its first byte.
    pub address: u64,
    /// Its length.
    pub len: u64,
    /// The broken rule.
    pub access: Access,
}

/// All hosts' registrations and keys.
#[derive(Debug, Default)]
pub(super) struct MemoryTable {
    memories: BTreeMap<MemoryId, Registered>,
    exposures: BTreeMap<KeyId, Exposure>,
    revoked: BTreeSet<KeyId>,
}

#[derive(Debug)]
struct Registered {
    host: HostId,
    /// Weak: memory is deregistered by dropping it, and reads must then find it gone.
    memory: Weak<RegisteredMemory>,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Exposure {
    pub(super) memory: MemoryId,
    pub(super) by: EndpointId,
    /// First byte (offset) and length of the range that is open, if not the whole memory is.
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

    /// The key under which `by` has exposed all of `memory` before.
    pub(super) fn key_of(&self, memory: MemoryId, by: EndpointId) -> Option<KeyId> {
        self.exposures.iter().find(|(_, exposure)| exposure.memory == memory && exposure.by == by).map(|(&key, _)| key)
    }

    pub(super) fn expose(&mut self, key: KeyId, exposure: Exposure) {
        self.exposures.insert(key, exposure);
    }

    /// The memory that `by` has exposed and that this range lies in.
    pub(super) fn exposed_at(&self, by: EndpointId, address: u64, len: u64) -> Option<(Arc<RegisteredMemory>, usize)> {
        let mut exposures = self.exposures.values().filter(|exposure| exposure.by == by);
        exposures.find_map(|&exposure| self.open(exposure, address, len).ok())
    }

    /// Withdraws a key, if `by` gave it.
    pub(super) fn revoke(&mut self, key: KeyId, by: EndpointId) {
        if self.exposures.get(&key).is_some_and(|exposure| exposure.by == by) {
            self.exposures.remove(&key);
            self.revoked.insert(key);
        }
    }

    /// What `key` opens.
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
        // Never the last handle, unless the owner lets go just now on another thread; then its registration, which
        // takes no lock, is dropped here.
        let offset = memory.offset_of(address, len).ok_or(Access::OutsideMemory)?;
        let (start, open) = exposure.range.unwrap_or((0, memory.len()));
        // `offset_of` has checked that `offset + len` is within the memory.
        let is_open = offset >= start && (offset - start) as u64 + len <= open as u64;
        if is_open { Ok((memory, offset)) } else { Err(Access::OutsideMemory) }
    }
}
