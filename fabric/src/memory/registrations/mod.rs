//! Registrations of foreign buffers, kept for as long as they may be lent again.

mod costs;
mod entries;
mod policy;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use arrow_buffer::Buffer;

use super::{RegisteredMemory, StagingArena, buffer_with_guard};
use crate::{Fabric, FabricError};
use costs::Costs;
use entries::{Entries, Entry, Place};
pub use policy::CachePolicy;

/// Maximum number of buffers whose copies are counted. Above it, all counts are dropped.
const MAX_COPIED: usize = 4096;
/// Maximum number of registrations that one [`RegistrationCache::trim`] drops: a device needs some time for each.
const MOST_TRIMMED: usize = 512;

/// Figures of a [`RegistrationCache`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CacheStats {
    /// Bytes that are kept registered, on loan or not.
    pub bytes: usize,
    /// Of these, bytes that are not on loan.
    pub idle_bytes: usize,
    /// Number of registrations of these bytes.
    pub entries: usize,
    /// Number of buffers that were registered already.
    pub hits: u64,
    /// Number of buffers that were newly registered.
    pub misses: u64,
    /// Number of buffers for which a copy was cheaper.
    pub copies: u64,
}

/// Registers buffers that lie outside of registered memory, and keeps the registrations: tables in another allocator's
/// memory, or in a mapped file, are lent repeatedly.
///
/// A registration is worth keeping while another part of the program holds the buffer. A buffer that only the cache
/// holds will never be lent again. Its entry is dropped when others are added, so that computed results do not
/// accumulate. Registered buffers are kept alive, and arrow does not write to a buffer that has another holder: a
/// borrower that has the key of a lent buffer finds the same bytes there for as long as the buffer is registered. (In a
/// mapped file, it finds the bytes that are written to the file.) Where the fabric exposes ranges of memory only, no
/// memory is exposed to any peer between loans. Memory that a fabric registers loan by loan is not kept.
///
/// A buffer is registered at once if that costs no more than a copy. Otherwise it is copied until the copies have cost
/// as much as a registration, and is registered then (as one rents skis before one buys them; Karlin et al.,
/// Algorithmica 3, 1988). Both costs are measured, because devices and page tables differ. A buffer that is lent seldom
/// is copied each time: copies are forgotten after two [trims](RegistrationCache::trim).
pub struct RegistrationCache {
    fabric: Arc<dyn Fabric>,
    staging: StagingArena,
    policy: CachePolicy,
    /// Whether the fabric supports registering foreign memory.
    registers: AtomicBool,
    costs: OnceLock<Costs>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    entries: Entries,
    /// Number of copies of each unregistered buffer: since the last trim, and between that trim and the one before.
    copied: [HashMap<Place, u32>; 2],
    misses: u64,
    copies: u64,
}

impl RegistrationCache {
    /// A cache of registrations by `fabric`. `staging` receives the copies that are the alternative.
    #[must_use]
    pub fn new(fabric: Arc<dyn Fabric>, staging: StagingArena, policy: CachePolicy) -> Self {
        RegistrationCache {
            fabric,
            staging,
            policy,
            registers: AtomicBool::new(true),
            costs: OnceLock::new(),
            state: Mutex::default(),
        }
    }

    /// The registration of exactly these bytes, kept or new. `None`: the bytes are to be copied, because that is
    /// cheaper or because the fabric registers no foreign memory.
    ///
    /// Two callers may register the same buffer at once; one of the two registrations is kept.
    ///
    /// # Errors
    /// As [`Fabric::register`], but not [`FabricError::Unsupported`].
    pub fn register(&self, buffer: &Buffer) -> Result<Option<Arc<RegisteredMemory>>, FabricError> {
        if !self.registers.load(Ordering::Relaxed) {
            return Ok(None);
        }
        let place = (buffer.as_ptr().addr(), buffer.len());
        if let Some(memory) = self.lock().entries.hit(place) {
            return Ok(Some(memory));
        }
        let costs = self.policy.clock.map(|clock| {
            // A few ms, once.
            *self.costs.get_or_init(|| Costs::measure(&*self.fabric, &self.staging, clock).unwrap_or_default())
        });
        let is_kept = {
            let mut state = self.lock();
            if costs.is_some_and(|costs| state.is_to_be_copied(place, costs)) {
                return Ok(None);
            }
            let mut gone = state.entries.take_some_unshared();
            let (makes_room, is_kept) = state.entries.make_room(place.1, &self.policy);
            gone.extend(makes_room);
            // Deregistering may take long.
            drop(state);
            drop(gone);
            is_kept
        };
        // A fabric may clone the buffer: its clones are handles of the guarded buffer, and do not count as other
        // holders.
        let memory =
            match self.retry_after_dropping_idle(|| self.fabric.register(buffer_with_guard(buffer.clone(), ()))) {
                Ok(memory) => memory,
                Err(FabricError::Unsupported { .. }) => {
                    self.registers.store(false, Ordering::Relaxed);
                    return Ok(None);
                }
                Err(error) => return Err(error),
            };
        let mut state = self.lock();
        state.misses += 1;
        for copied in &mut state.copied {
            copied.remove(&place);
        }
        if is_kept && !self.fabric.capabilities().registers_when_exposed {
            state.entries.insert(place, Arc::clone(&memory), buffer.clone(), &self.policy);
        }
        Ok(Some(memory))
    }

    /// Takes memory of the fabric by `take`. If that fails for want of memory, drops all registrations that are not on
    /// loan and tries once more.
    ///
    /// # Errors
    /// The error of `take`.
    pub fn retry_after_dropping_idle<T>(&self, take: impl Fn() -> Result<T, FabricError>) -> Result<T, FabricError> {
        match take() {
            Err(FabricError::Registration { .. } | FabricError::OutOfMemory { .. }) if self.clear() > 0 => take(),
            result => result,
        }
    }

    /// Drops registrations that were not lent for `idle`, and those without another holder of the buffer; at most some
    /// hundred registrations. Returns the number of their bytes.
    pub fn trim(&self, idle: Duration) -> usize {
        let gone = {
            let mut state = self.lock();
            state.copied.swap(0, 1);
            state.copied[0].clear();
            state.entries.take_idle(idle, MOST_TRIMMED)
        };
        bytes(&gone)
    }

    /// Drops all registrations that are not on loan. Returns the number of their bytes.
    pub fn clear(&self) -> usize {
        let gone = self.lock().entries.take_idle(Duration::ZERO, usize::MAX);
        bytes(&gone)
    }

    /// Current figures.
    #[must_use]
    pub fn stats(&self) -> CacheStats {
        let state = self.lock();
        let entries = &state.entries;
        CacheStats {
            bytes: entries.bytes(),
            idle_bytes: entries.idle_bytes(),
            entries: entries.len(),
            hits: entries.hits(),
            misses: state.misses,
            copies: state.copies,
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // No code panics half way through a change.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn bytes(entries: &[Entry]) -> usize {
    entries.iter().map(Entry::len).sum()
}

impl State {
    /// Whether one more copy is better than a registration. If so, the copy is counted.
    fn is_to_be_copied(&mut self, place: Place, costs: Costs) -> bool {
        let copies: u32 = self.copied.iter().filter_map(|copied| copied.get(&place)).sum();
        if costs.is_registration_worth(place.1, copies.saturating_add(1)) {
            return false;
        }
        let latest = &mut self.copied[0];
        if latest.len() >= MAX_COPIED {
            latest.clear();
        }
        *latest.entry(place).or_default() += 1;
        self.copies += 1;
        true
    }
}

impl fmt::Debug for RegistrationCache {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RegistrationCache({:?})", self.stats())
    }
}
