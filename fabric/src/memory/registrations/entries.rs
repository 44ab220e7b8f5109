//! The registrations that are kept, and which of them go.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use arrow_buffer::Buffer;
use tokio::time::Instant;

use super::super::RegisteredMemory;
use super::CachePolicy;

/// So many are looked at as one more comes in: more than one, so that what nobody else has is found sooner than such
/// can pile up.
const LOOKED_AT: usize = 4;
/// Handles that an entry has of its buffer: its own, and the one in its registration.
const OWN_HANDLES: usize = 2;

/// A buffer: where its bytes begin, and how many they are. An entry keeps the buffer alive, so that nothing else can
/// lie there.
pub(super) type Place = (usize, usize);

/// A registration, and the buffer that it is of.
pub(super) struct Entry {
    memory: Arc<RegisteredMemory>,
    /// Another handle to the buffer that `memory` keeps, to see who else has it.
    buffer: Buffer,
    /// In the order in which they came.
    number: u64,
    /// In the order in which they were last lent.
    age: u64,
    lent: Instant,
}

impl Entry {
    pub(super) fn len(&self) -> usize {
        self.memory.len()
    }

    /// Whether anybody has the registration besides the cache.
    fn is_on_loan(&self) -> bool {
        Arc::strong_count(&self.memory) > 1
    }

    fn allocation(&self) -> usize {
        self.buffer.data_ptr().as_ptr().addr()
    }
}

/// All of them.
#[derive(Default)]
pub(super) struct Entries {
    by_place: HashMap<Place, Entry>,
    /// The one that was not lent for the longest time first.
    by_age: BTreeMap<u64, Place>,
    by_number: BTreeMap<u64, Place>,
    /// Entries in each allocation, by where that begins.
    allocations: HashMap<usize, usize>,
    bytes: usize,
    hits: u64,
    /// The last age, or number, that was given.
    last: u64,
    /// Up to which number they were looked at.
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

    /// The registration of a buffer, if there is one; it is about to be lent.
    pub(super) fn hit(&mut self, place: Place) -> Option<Arc<RegisteredMemory>> {
        let entry = self.by_place.get_mut(&place)?;
        self.by_age.remove(&entry.age);
        self.last += 1;
        (entry.age, entry.lent) = (self.last, Instant::now());
        self.by_age.insert(self.last, place);
        self.hits += 1;
        Some(Arc::clone(&entry.memory))
    }

    /// Takes one more in, if there is still room, and none of the same buffer.
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

    /// Takes out what has to make way for one of `len` bytes: those that were not lent for the longest time. Nothing,
    /// and `false`, if there is no room for it even so.
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

    /// Checks the next few entries in turn, and takes out those without another holder.
    pub(super) fn take_some_unshared(&mut self) -> Vec<Entry> {
        let after = self.by_number.range(self.looked_at + 1..).take(LOOKED_AT);
        let next: Vec<(u64, Place)> = after.map(|(&number, &place)| (number, place)).collect();
        // Then from the first on again.
        self.looked_at = next.get(LOOKED_AT - 1).map_or(0, |(number, _)| *number);
        let is_lost = |entry: &Entry| !entry.is_on_loan() && !self.is_shared_with_others(entry);
        let lost = next.into_iter().map(|(_, place)| place);
        let lost = lost.filter(|place| self.by_place.get(place).is_some_and(is_lost)).collect();
        self.take(lost)
    }

    /// Takes out, `most` at most, the entries that were not lent for `idle`, and those without another holder.
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
