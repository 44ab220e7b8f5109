//! The table of kept registrations, and the rules of their removal.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use arrow_buffer::Buffer;
use tokio::time::Instant;

use super::super::RegisteredMemory;
use super::policy::CachePolicy;

/// Number of entries that are checked when an entry is added. It is more than one, so that entries without another
/// holder are found faster than they accumulate.
const LOOKED_AT: usize = 4;
/// Number of handles that an entry has of its buffer: its own, and the handle in its registration.
const OWN_HANDLES: usize = 2;

/// A buffer: address and length of its bytes. An entry keeps the buffer alive, so that no other buffer can have the
/// same address.
pub(super) type Place = (usize, usize);

/// A registration, with its buffer.
pub(super) struct Entry {
    memory: Arc<RegisteredMemory>,
    /// Another handle to the buffer that `memory` keeps. It shows whether there are other holders.
    buffer: Buffer,
    /// Ascending in the order of insertion.
    number: u64,
    /// Ascending in the order of the last loans.
    age: u64,
    lent: Instant,
}

impl Entry {
    pub(super) fn len(&self) -> usize {
        self.memory.len()
    }

    /// Whether the registration has holders besides the cache.
    fn is_on_loan(&self) -> bool {
        Arc::strong_count(&self.memory) > 1
    }

    fn allocation(&self) -> usize {
        self.buffer.data_ptr().as_ptr().addr()
    }
}

/// All entries.
#[derive(Default)]
pub(super) struct Entries {
    by_place: HashMap<Place, Entry>,
    /// The entry that has not been lent for the longest time is first.
    by_age: BTreeMap<u64, Place>,
    by_number: BTreeMap<u64, Place>,
    /// Number of entries in each allocation, by the allocation's address.
    allocations: HashMap<usize, usize>,
    bytes: usize,
    hits: u64,
    /// The last age or number that was assigned.
    last: u64,
    /// The number up to which entries were checked.
    looked_at: u64,
}

impl Entries {
    pub(super) fn len(&self) -> usize {
        self.by_place.len()
    }

    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    pub(super) fn idle_bytes(&self) -> usize {
        self.by_place.values().filter(|entry| !entry.is_on_loan()).map(Entry::len).sum()
    }

    pub(super) fn hits(&self) -> u64 {
        self.hits
    }

    /// The registration of a buffer that is about to be lent, if there is one.
    pub(super) fn hit(&mut self, place: Place) -> Option<Arc<RegisteredMemory>> {
        let entry = self.by_place.get_mut(&place)?;
        self.by_age.remove(&entry.age);
        self.last += 1;
        (entry.age, entry.lent) = (self.last, Instant::now());
        self.by_age.insert(self.last, place);
        self.hits += 1;
        Some(Arc::clone(&entry.memory))
    }

    /// Adds an entry, if there is still room and no entry of the same buffer.
    pub(super) fn insert(&mut self, place: Place, memory: Arc<RegisteredMemory>, buffer: Buffer, policy: &CachePolicy) {
        if self.by_place.contains_key(&place) || !self.has_room(place.1, (0, 0), policy) {
            return;
        }
        self.last += 1;
        let entry = Entry { memory, buffer, number: self.last, age: self.last, lent: Instant::now() };
        *self.allocations.entry(entry.allocation()).or_default() += 1;
        self.bytes += entry.len();
        self.by_age.insert(entry.age, place);
        self.by_number.insert(entry.number, place);
        self.by_place.insert(place, entry);
    }

    fn remove(&mut self, place: Place) -> Option<Entry> {
        let entry = self.by_place.remove(&place)?;
        self.by_age.remove(&entry.age);
        self.by_number.remove(&entry.number);
        if let Some(entries) = self.allocations.get_mut(&entry.allocation()) {
            *entries -= 1;
            if *entries == 0 {
                self.allocations.remove(&entry.allocation());
            }
        }
        self.bytes -= entry.len();
        Some(entry)
    }

    fn take(&mut self, places: Vec<Place>) -> Vec<Entry> {
        places.into_iter().filter_map(|place| self.remove(place)).collect()
    }

    /// Whether `len` bytes more fit once `entries` entries with `bytes` bytes are gone.
    fn has_room(&self, len: usize, (gone, gone_bytes): (usize, usize), policy: &CachePolicy) -> bool {
        let bytes = (self.bytes - gone_bytes).checked_add(len);
        self.len() - gone < policy.max_entries && bytes.is_some_and(|bytes| bytes <= policy.max_bytes)
    }

    /// Removes entries until one of `len` bytes has room, those first that have not been lent for the longest time. If
    /// there would be no room even then, removes nothing and returns `false`.
    pub(super) fn make_room(&mut self, len: usize, policy: &CachePolicy) -> (Vec<Entry>, bool) {
        let (mut places, mut bytes) = (Vec::new(), 0);
        let mut idle = self.by_age.values().filter_map(|place| {
            let entry = self.by_place.get(place).filter(|entry| !entry.is_on_loan())?;
            Some((*place, entry.len()))
        });
        while !self.has_room(len, (places.len(), bytes), policy) {
            let Some((place, len)) = idle.next() else { return (Vec::new(), false) };
            places.push(place);
            bytes += len;
        }
        drop(idle);
        (self.take(places), true)
    }

    /// Whether another part of the program holds the buffer, or a part of its allocation: then it may be lent again.
    fn is_shared_with_others(&self, entry: &Entry) -> bool {
        let entries = self.allocations.get(&entry.allocation()).copied().unwrap_or(1);
        entry.buffer.strong_count() > entries * OWN_HANDLES
    }

    /// Checks the next few entries in turn, and removes those without another holder.
    pub(super) fn take_some_unshared(&mut self) -> Vec<Entry> {
        let after = self.by_number.range(self.looked_at + 1..).take(LOOKED_AT);
        let next: Vec<(u64, Place)> = after.map(|(&number, &place)| (number, place)).collect();
        // After the last entry, the checks start again at the first.
        self.looked_at = next.get(LOOKED_AT - 1).map_or(0, |(number, _)| *number);
        let is_lost = |entry: &Entry| !entry.is_on_loan() && !self.is_shared_with_others(entry);
        let lost = next.into_iter().map(|(_, place)| place);
        let lost = lost.filter(|place| self.by_place.get(place).is_some_and(is_lost)).collect();
        self.take(lost)
    }

    /// Removes at most `most` entries: those that were not lent for `idle`, and those without another holder.
    pub(super) fn take_idle(&mut self, idle: Duration, most: usize) -> Vec<Entry> {
        let is_idle =
            |entry: &Entry| !entry.is_on_loan() && (entry.lent.elapsed() >= idle || !self.is_shared_with_others(entry));
        let places = self.by_age.values().copied();
        let places = places.filter(|place| self.by_place.get(place).is_some_and(is_idle)).take(most).collect();
        self.take(places)
    }

    #[cfg(test)]
    pub(super) fn is_consistent(&self) -> bool {
        let counted = self.allocations.values().sum::<usize>();
        let lengths = [self.by_age.len(), self.by_number.len(), counted];
        let bytes: usize = self.by_place.values().map(Entry::len).sum();
        lengths == [self.len(); 3] && bytes == self.bytes
    }
}
