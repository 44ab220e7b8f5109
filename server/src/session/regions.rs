//! Which memory the peer of one connection has been given keys to.

use std::collections::BTreeMap;
use std::sync::Arc;

use thallus_fabric::memory::RegisteredMemory;
use thallus_fabric::{Endpoint, FabricError};
use thallus_protocol::RegionId;
use thallus_protocol::message::Region;

#[derive(Debug)]
struct Announced {
    memory: Arc<RegisteredMemory>,
    /// Parts of loans that lie in it.
    users: usize,
    /// Kept announced while nothing in it is on loan.
    lasting: bool,
}

/// Regions by id, and ids by memory. The region of a registration that was made for one loan is retired with that loan.
#[derive(Debug, Default)]
pub(crate) struct Regions {
    by_id: BTreeMap<RegionId, Announced>,
    /// By the address of the registration itself, which its entry in `by_id` keeps from being reused.
    by_memory: BTreeMap<usize, RegionId>,
    last: u32,
}

fn identity(memory: &Arc<RegisteredMemory>) -> usize {
    Arc::as_ptr(memory).addr()
}

impl Regions {
    /// One more user of `memory`: its region, and the announcement if the peer does not have it yet.
    ///
    /// # Errors
    /// The fabric gives no key.
    pub(crate) fn enter(
        &mut self,
        endpoint: &mut dyn Endpoint,
        memory: &Arc<RegisteredMemory>,
        lasting: bool,
    ) -> Result<(RegionId, Option<Region>), FabricError> {
        if let Some(&id) = self.by_memory.get(&identity(memory)) {
            if let Some(known) = self.by_id.get_mut(&id) {
                known.users += 1;
            }
            return Ok((id, None));
        }
        let key = endpoint.expose(memory)?;
        self.last = self.last.checked_add(1).ok_or(FabricError::Misuse("a connection used up its region ids"))?;
        let id = RegionId(self.last);
        self.by_memory.insert(identity(memory), id);
        self.by_id.insert(id, Announced { memory: Arc::clone(memory), users: 1, lasting });
        Ok((id, Some(Region { id, base: memory.address(), len: memory.len() as u64, key })))
    }

    /// One user of a region less. `true` if the region is to be retired.
    pub(crate) fn leave(&mut self, id: RegionId) -> bool {
        let Some(known) = self.by_id.get_mut(&id) else { return false };
        known.users = known.users.saturating_sub(1);
        if known.users > 0 || known.lasting {
            return false;
        }
        if let Some(gone) = self.by_id.remove(&id) {
            self.by_memory.remove(&identity(&gone.memory));
        }
        true
    }
}
