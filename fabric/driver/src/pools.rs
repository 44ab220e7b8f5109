//! Memory that reads land in, shared by all connections over one fabric.

use std::ptr;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use thallus_fabric::Fabric;
use thallus_fabric::memory::{PoolLimits, SlabPool, WeakPool};

/// Memory that reads land in.
#[derive(Clone, Debug)]
pub struct Pools {
    /// For batches.
    pub batches: SlabPool,
    /// For lease words, which would leave holes between batches.
    pub words: SlabPool,
    /// Bytes that are being read into them.
    pub under_way: Arc<AtomicU64>,
}

/// Pools that may be gone, and their fabric.
struct Known {
    fabric: Weak<dyn Fabric>,
    batches: WeakPool,
    words: WeakPool,
    under_way: Weak<AtomicU64>,
}

/// The pools of this process. Connections over one fabric share theirs: memory that one is done with is warm for the
/// next.
///
/// Pools of other fabrics are not even held while one is looked up: the last holder of a pool gives its memory back,
/// and that is to be its own user, not a look-up under this lock.
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
