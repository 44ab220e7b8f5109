//! The memory for which the peer of one connection has remote keys.

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
    /// The part of the memory that is exposed to the peer.
    range: Range<usize>,
    key: Bytes,
    /// Number of parts of loans in the region.
    users: usize,
    /// Whether the region stays announced while nothing in it is on loan.
    lasting: bool,
}

/// Regions by id, and ids by the memory range that they open. The region of a buffer that is registered by itself is
/// retired with its loan. So is every region where the fabric can expose exactly the lent range.
#[derive(Debug)]
pub(crate) struct Regions {
    /// Whether a key opens exactly the range that was exposed.
    exposes_ranges: bool,
    by_id: BTreeMap<RegionId, Announced>,
    /// By the address of the registration and by range. The entry in `by_id` keeps the registration alive, so that its
    /// address is not reused.
    by_place: BTreeMap<(usize, usize, usize), RegionId>,
    last: u32,
}

fn place(memory: &Arc<RegisteredMemory>, range: &Range<usize>) -> (usize, usize, usize) {
    (Arc::as_ptr(memory).addr(), range.start, range.end)
}

impl Regions {
    /// An empty table, for an endpoint of a fabric with these capabilities.
    pub(crate) fn new(capabilities: &Capabilities) -> Self {
        let exposes_ranges = capabilities.exposes_ranges;
        Regions { exposes_ranges, by_id: BTreeMap::new(), by_place: BTreeMap::new(), last: 0 }
    }

    /// Adds a user of `range` of `memory`. Returns the region, and its announcement if the peer does not have it yet.
    /// Only the user's loan lies in the range.
    ///
    /// # Errors
    /// The fabric cannot expose the range.
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

    /// Removes a user of a region. Returns `true` if the region is to be retired; then the peer can no longer read it,
    /// as far as the fabric can prevent that.
    pub(crate) fn leave(&mut self, endpoint: &mut dyn Endpoint, id: RegionId) -> bool {
        let Some(known) = self.by_id.get_mut(&id) else { return false };
        known.users = known.users.saturating_sub(1);
        if known.users > 0 || known.lasting {
            return false;
        }
        self.remove(endpoint, id);
        true
    }

    /// Removes the regions without a user whose memory its owner wants back. Returns them; they are to be retired.
    pub(crate) fn let_go(&mut self, endpoint: &mut dyn Endpoint) -> Vec<RegionId> {
        let unused = self.by_id.iter().filter(|(_, known)| known.users == 0 && known.memory.is_wanted_back());
        let ids: Vec<_> = unused.map(|(id, _)| *id).collect();
        ids.iter().for_each(|id| self.remove(endpoint, *id));
        ids
    }

    fn remove(&mut self, endpoint: &mut dyn Endpoint, id: RegionId) {
        if let Some(gone) = self.by_id.remove(&id) {
            endpoint.revoke(&gone.key);
            self.by_place.remove(&place(&gone.memory, &gone.range));
        }
    }
}
