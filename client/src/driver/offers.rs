//! The endpoints that a client offers, until the server has chosen one.

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

/// The pools of this process. Connections over one fabric share theirs: what one has done with is warm for the next.
static POOLS: Mutex<Vec<(WeakPool, WeakPool, Weak<AtomicU64>)>> = Mutex::new(Vec::new());

impl Pools {
    /// The pools of `fabric` with these limits.
    pub(crate) fn over(fabric: &Arc<dyn Fabric>, limits: PoolLimits) -> Self {
        const WORDS: usize = 64 << 10;
        let mut pools = POOLS.lock().unwrap_or_else(PoisonError::into_inner);
        pools.retain(|(batches, ..)| batches.upgrade().is_some());
        let known = pools.iter().find_map(|(batches, words, under_way)| {
            let (batches, words, under_way) = (batches.upgrade()?, words.upgrade()?, under_way.upgrade()?);
            let pools = Pools { batches, words, under_way };
            (pools.batches.is_over(fabric) && pools.batches.limits() == limits).then_some(pools)
        });
        known.unwrap_or_else(|| {
            let small = PoolLimits { first_chunk_bytes: WORDS, chunk_bytes: WORDS, ..limits };
            let made = Pools {
                batches: SlabPool::new(Arc::clone(fabric), limits),
                words: SlabPool::new(Arc::clone(fabric), small),
                under_way: Arc::default(),
            };
            pools.push((made.batches.downgrade(), made.words.downgrade(), Arc::downgrade(&made.under_way)));
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
