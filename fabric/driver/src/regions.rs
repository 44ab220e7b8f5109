//! The memory that the peer of one connection has keys to.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use thallus_fabric::memory::RegisteredMemory;
use thallus_fabric::{Capabilities, Endpoint, FabricError};
use thallus_protocol::RegionId;
use thallus_protocol::message::Region;

#[derive(Debug)]
struct Announced {
    memory: Arc<RegisteredMemory>,
    /// The part of it that is open to the peer.
    range: Range<usize>,
    key: Bytes,
    /// Parts of loans that lie in it.
    users: usize,
    /// Kept announced while nothing in it is on loan.
    lasting: bool,
}

/// Regions by id, and ids by the range of memory that they open. The region of a buffer that is registered by itself is
/// retired with its loan; so is every region where the fabric can open exactly what is lent.
#[derive(Debug)]
pub(crate) struct Regions {
    /// Whether a key opens exactly the range that was exposed.
    exposes_ranges: bool,
    by_id: BTreeMap<RegionId, Announced>,
    /// By the address of the registration itself, which its entry in `by_id` keeps from being reused, and by range.
    by_place: BTreeMap<(usize, usize, usize), RegionId>,
    last: u32,
}

fn place(memory: &Arc<RegisteredMemory>, range: &Range<usize>) -> (usize, usize, usize) {
    (Arc::as_ptr(memory).addr(), range.start, range.end)
}

impl Regions {
    /// No regions yet, of an endpoint of a fabric with these capabilities.
    pub(crate) fn new(capabilities: &Capabilities) -> Self {
        let exposes_ranges = capabilities.exposes_ranges;
        Regions { exposes_ranges, by_id: BTreeMap::new(), by_place: BTreeMap::new(), last: 0 }
    }

    /// One more user of `range` of `memory`: its region, and the announcement if the peer does not have it yet. Nothing but the
    /// user's loan lies in the range.
    ///
    /// # Errors
    /// The fabric gives no key.
    pub(crate) fn enter(
        &mut self,
        endpoint: &mut dyn Endpoint,
        memory: &Arc<RegisteredMemory>,
        range: Range<usize>,
        lasting: bool,
    ) -> Result<(RegionId, Option<Region>), FabricError> {
        let range = if self.exposes_ranges { range } else { 0..memory.len() };
        let place = place(memory, &range);
        if let Some(&id) = self.by_place.get(&place) {
            if let Some(known) = self.by_id.get_mut(&id) {
                known.users += 1;
            }
            return Ok((id, None));
        }
        self.last = self.last.checked_add(1).ok_or(FabricError::Misuse("a connection used up its region ids"))?;
        let id = RegionId(self.last);
        let key = endpoint.expose(memory, range.clone())?;
        let (base, len) = (memory.address() + range.start as u64, range.len() as u64);
        let announcement = Region { id, base, len, key: key.clone() };
        self.by_place.insert(place, id);
        let lasting = lasting && !self.exposes_ranges;
        self.by_id.insert(id, Announced { memory: Arc::clone(memory), range, key, users: 1, lasting });
        Ok((id, Some(announcement)))
    }

    /// One user of a region less. `true` if the region is to be retired; then the peer cannot read it any more, as far
    /// as the fabric can see to that.
    pub(crate) fn leave(&mut self, endpoint: &mut dyn Endpoint, id: RegionId) -> bool {
        let Some(known) = self.by_id.get_mut(&id) else { return false };
        known.users = known.users.saturating_sub(1);
        if known.users > 0 || known.lasting {
            return false;
        }
        if let Some(gone) = self.by_id.remove(&id) {
            endpoint.revoke(&gone.key);
            self.by_place.remove(&place(&gone.memory, &gone.range));
        }
        true
    }
}
