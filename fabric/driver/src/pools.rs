//! Memory for reads, shared by all connections over one fabric.

use std::ptr;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use thallus_fabric::Fabric;
use thallus_fabric::memory::{PoolLimits, SlabPool, WeakPool};

/// The pools of memory that reads write to.
#[derive(Clone, Debug)]
pub struct Pools {
    /// For batches.
    pub batches: SlabPool,
    /// For lease words, which would leave gaps between batches.
    pub words: SlabPool,
    /// Bytes in flight into both pools.
    pub under_way: Arc<AtomicU64>,
}

/// Pools that may have been dropped, and their fabric.
struct Known {
    fabric: Weak<dyn Fabric>,
    batches: WeakPool,
    words: WeakPool,
    under_way: Weak<AtomicU64>,
}

/// The pools of this process. Connections over one fabric share theirs, so that memory released by one connection is
/// still in the cache for the next.
///
/// A look-up does not even hold pools of other fabrics for a moment. The last holder of a pool frees its memory, and
/// that must happen in a user of the pool, not in a look-up under this lock.
static POOLS: Mutex<Vec<Known>> = Mutex::new(Vec::new());

impl Pools {
    /// The pools of `fabric` with these limits.
    #[must_use]
    pub fn over(fabric: &Arc<dyn Fabric>, limits: PoolLimits) -> Self {
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
