//! The endpoints that a client offers, until the server has chosen one.

use std::ptr;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use bytes::Bytes;
use thallus_fabric::memory::{PoolLimits, SlabPool, WeakPool};
use thallus_fabric::{Capabilities, Endpoint, Fabric, FabricError};
use thallus_protocol::FabricKind;
use thallus_protocol::message::FabricOffer;

/// Memory that reads land in.
#[derive(Clone, Debug)]
pub(crate) struct Pools {
    pub(crate) batches: SlabPool,
    pub(crate) words: SlabPool,
    /// Bytes that are being read into them.
    pub(crate) under_way: Arc<AtomicU64>,
}

/// Pools that may be gone, and of which fabric they are.
struct Known {
    fabric: Weak<dyn Fabric>,
    batches: WeakPool,
    words: WeakPool,
    under_way: Weak<AtomicU64>,
}

/// The pools of this process. Connections over one fabric share theirs: what one has done with is warm for the next.
///
/// Those of other fabrics are not so much as held while one is looked for: whoever lets go of a pool last gives its memory back,
/// and that is to be its own user, not who looks, under this lock.
static POOLS: Mutex<Vec<Known>> = Mutex::new(Vec::new());

impl Pools {
    /// The pools of `fabric` with these limits.
    pub(crate) fn over(fabric: &Arc<dyn Fabric>, limits: PoolLimits) -> Self {
        const WORDS: usize = 64 << 10;
        let mut pools = POOLS.lock().unwrap_or_else(PoisonError::into_inner);
        pools.retain(|known| !known.batches.is_gone());
        let same = pools.iter().filter(|known| ptr::addr_eq(known.fabric.as_ptr(), Arc::as_ptr(fabric)));
        let mut same = same.filter_map(|Known { batches, words, under_way, .. }| {
            let (batches, words, under_way) = (batches.upgrade()?, words.upgrade()?, under_way.upgrade()?);
            Some(Pools { batches, words, under_way })
        });
        let known = same.find(|pools| pools.batches.limits() == limits);
        known.unwrap_or_else(|| {
            let small = PoolLimits { first_chunk_bytes: WORDS, chunk_bytes: WORDS, ..limits };
            let made = Pools {
                batches: SlabPool::new(Arc::clone(fabric), limits),
                words: SlabPool::new(Arc::clone(fabric), small),
                under_way: Arc::default(),
            };
            let (batches, words) = (made.batches.downgrade(), made.words.downgrade());
            let under_way = Arc::downgrade(&made.under_way);
            pools.push(Known { fabric: Arc::downgrade(fabric), batches, words, under_way });
            made
        })
    }
}

/// An open endpoint, and the memory that its reads land in.
#[derive(Debug)]
pub(crate) struct Offer {
    pub(crate) kind: FabricKind,
    pub(crate) address: Bytes,
    pub(crate) endpoint: Box<dyn Endpoint>,
    pub(crate) pools: Pools,
    pub(crate) capabilities: Capabilities,
}

/// In order of preference.
#[derive(Debug, Default)]
pub(crate) struct Offers(Vec<Offer>);

impl Offers {
    /// Opens an endpoint of `fabric`.
    pub(crate) fn add(&mut self, fabric: &Arc<dyn Fabric>, pool: PoolLimits) -> Result<(), FabricError> {
        let endpoint = fabric.endpoint()?;
        self.0.push(Offer {
            kind: fabric.kind(),
            address: endpoint.address(),
            endpoint,
            pools: Pools::over(fabric, pool),
            capabilities: fabric.capabilities(),
        });
        Ok(())
    }

    /// As they stand in the hello.
    pub(crate) fn on_the_wire(&self) -> Vec<FabricOffer> {
        self.0.iter().map(|offer| FabricOffer { kind: offer.kind.clone(), address: offer.address.clone() }).collect()
    }

    /// The one that was chosen. The others are closed: nothing was ever posted on them.
    pub(crate) fn choose(self, kind: &FabricKind) -> Option<Offer> {
        self.0.into_iter().find(|offer| offer.kind == *kind)
    }
}
