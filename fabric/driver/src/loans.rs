//! Makes a batch's buffers readable by peers: in place, if their memory is registered or can be registered, otherwise
//! by a copy. All lenders over one fabric share a pool, and all pools of a server share a budget of bytes on loan.

use std::collections::HashMap;
use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use arrow_buffer::Buffer;
use thallus_fabric::memory::{
    CachePolicy, PoolLimits, RegisteredMemory, RegisteredSpace, RegistrationCache, StagedRange, StagingArena, Trimmed,
};
use thallus_fabric::observe::LoanObserver;
use thallus_fabric::{Fabric, FabricError};
use thallus_protocol::layout::BatchDescriptor;
use tracing::{info, warn};

use crate::budget::{LoanBudget, Spent};

/// Buffers shorter than this are copied side by side into registered memory. Exposing each one costs more than the
/// copy: a registration or a memory window, and a remote key that the borrower has to import.
const STAGE_BELOW: usize = 32 * 1024;

/// Makes batches readable over one fabric. All connections that lend over the fabric share it.
pub struct LoanPool {
    fabric: Arc<dyn Fabric>,
    /// Memory that is already registered, such as the heap that the engine allocates from.
    space: Option<Arc<dyn RegisteredSpace>>,
    staging: StagingArena,
    /// Registrations of buffers outside of `space`.
    registrations: RegistrationCache,
    budget: LoanBudget,
    /// Whether a log line has reported that buffers lie outside of `space`.
    unregistered_logged: AtomicBool,
    observer: Option<Arc<dyn LoanObserver>>,
}

/// A non-empty buffer of a loan.
#[derive(Debug)]
pub struct Part {
    pub(crate) memory: Arc<RegisteredMemory>,
    /// Address of the first byte, in the lender's address space.
    pub(crate) address: u64,
    /// Length in bytes.
    pub(crate) len: u64,
    /// The range that may be exposed to the borrower: the part, and the memory around it that belongs to the same loan.
    pub(crate) scope: Range<usize>,
    /// Whether the memory stays registered permanently, so that its region may stay announced.
    pub(crate) lasting: bool,
}

/// Keeps the memory of a loan alive and counted in the budget. Dropped when the lease has ended.
#[derive(Debug)]
pub struct LoanBuffers {
    /// Buffers that are lent in place. While this holds them, their memory is not freed, and arrow does not write to a
    /// shared buffer.
    _buffers: Vec<Buffer>,
    _staged: Vec<StagedRange>,
    _spent: Spent,
}

/// The registrations of one batch's buffers, by address and length.
type Seen = HashMap<(usize, usize), Option<Arc<RegisteredMemory>>>;

/// The place from which a buffer is lent.
enum Place {
    InPlace { memory: Arc<RegisteredMemory>, scope: Range<usize>, lasting: bool },
    Copy,
}

/// A batch that can be lent.
#[derive(Debug)]
pub struct PreparedLoan {
    /// The shape of the batch.
    pub descriptor: BatchDescriptor,
    pub(crate) parts: Vec<Part>,
    /// Number of copied bytes.
    pub staged: u64,
    pub(crate) held: LoanBuffers,
}

impl LoanPool {
    /// A pool that lends over `fabric` within `budget`. It lends buffers in `space`, which `fabric` has registered, in
    /// place. Of other memory, at most as many bytes as the whole budget stay registered. `clock`: see
    /// [`CachePolicy::clock`].
    #[must_use]
    pub fn new(
        fabric: Arc<dyn Fabric>,
        space: Option<Arc<dyn RegisteredSpace>>,
        budget: LoanBudget,
        clock: Option<fn() -> Duration>,
    ) -> Self {
        let max_bytes = usize::try_from(budget.bytes()).unwrap_or(usize::MAX);
        let limits = PoolLimits { max_bytes, ..PoolLimits::default() };
        let staging = StagingArena::new(Arc::clone(&fabric), limits);
        let policy = CachePolicy { max_bytes, clock, ..CachePolicy::default() };
        LoanPool {
            registrations: RegistrationCache::new(Arc::clone(&fabric), staging.clone(), policy),
            staging,
            fabric,
            space,
            budget,
            unregistered_logged: AtomicBool::new(false),
            observer: None,
        }
    }

    /// A pool over another fabric, with the budget of this pool. It copies what it lends.
    #[must_use]
    pub fn over(&self, fabric: Arc<dyn Fabric>) -> Self {
        LoanPool::new(fabric, None, self.budget.clone(), None).with_observer(self.observer.clone())
    }

    /// Reports the pool's leases to an observer.
    #[must_use]
    pub fn with_observer(mut self, observer: Option<Arc<dyn LoanObserver>>) -> Self {
        self.observer = observer;
        self
    }

    pub(crate) fn observer(&self) -> Option<&Arc<dyn LoanObserver>> {
        self.observer.as_ref()
    }

    /// The fabric over which the pool lends.
    #[must_use]
    pub fn fabric(&self) -> &Arc<dyn Fabric> {
        &self.fabric
    }

    /// Bytes that stay registered for later loans: in the staging arena, and in other buffers that are not on loan.
    #[must_use]
    pub fn kept_bytes(&self) -> usize {
        self.staging.stats().pool.bytes_total + self.registrations.stats().idle_bytes
    }

    /// The registrations of buffers outside of registered memory.
    #[must_use]
    pub fn registrations(&self) -> &RegistrationCache {
        &self.registrations
    }

    /// Whether the pool has met buffers outside of registered memory that are long enough for a registration.
    #[must_use]
    pub fn has_unregistered_buffers(&self) -> bool {
        let stats = self.registrations.stats();
        stats.misses + stats.copies > 0
    }

    /// Frees staging memory that was idle for this time, and drops registrations of buffers that were not lent for this
    /// time. Returns whether connections have to [let go](crate::Connection::let_go) of memory before it can be freed.
    pub fn trim(&self, idle: Duration) -> bool {
        self.registrations.trim(idle);
        self.staging.trim(idle).held
    }

    /// Whether the pool lends buffers of registered space in place.
    #[must_use]
    pub fn has_space(&self) -> bool {
        self.space.is_some()
    }

    /// Gives back memory of registered space in which nothing has lain for this time.
    pub fn trim_space(&self, idle: Duration) -> Trimmed {
        self.space.as_ref().map(|space| space.trim(idle)).unwrap_or_default()
    }

    /// Makes the buffers of a batch readable, or mappable by a client. `Ok(None)`: the budget does not allow it now.
    ///
    /// # Errors
    /// The fabric cannot register the memory, or there is no memory to copy to.
    pub fn prepare(
        &self,
        descriptor: BatchDescriptor,
        buffers: &[Buffer],
        mapped: bool,
    ) -> Result<Option<PreparedLoan>, FabricError> {
        let Some(spent) = self.budget.spend(descriptor.slab_bytes()) else { return Ok(None) };

        let filled: Vec<&Buffer> = buffers.iter().filter(|buffer| !buffer.is_empty()).collect();
        let mut seen = HashMap::new();
        let places: Vec<Place> =
            filled.iter().map(|buffer| self.place(buffer, mapped, &mut seen)).collect::<Result<_, _>>()?;
        let to_stage: Vec<&[u8]> = filled
            .iter()
            .zip(&places)
            .filter(|(_, place)| matches!(place, Place::Copy))
            .map(|(buffer, _)| buffer.as_slice())
            .collect();
        let copied = if to_stage.is_empty() {
            Vec::new()
        } else {
            self.registrations.retry_after_dropping_idle(|| self.staging.stage(&to_stage))?
        };
        let staged = to_stage.iter().map(|bytes| bytes.len() as u64).sum();

        // The copies of a loan lie side by side, in a slab of their own.
        let staged_scope =
            copied.first().zip(copied.last()).map(|(first, last)| first.offset()..last.offset() + last.len());
        let mut copies = copied.iter();
        let mut parts = Vec::with_capacity(filled.len());
        let mut lent = Vec::with_capacity(filled.len());
        for (buffer, place) in filled.into_iter().zip(places) {
            let (address, len) = (buffer.as_ptr() as u64, buffer.len() as u64);
            parts.push(match place {
                Place::InPlace { memory, scope, lasting } => {
                    lent.push(buffer.clone());
                    Part { memory, address, len, scope, lasting }
                }
                Place::Copy => {
                    let copy = copies.next().ok_or(FabricError::Misuse("fewer copies than requested"))?;
                    let scope = staged_scope.clone().unwrap_or_default();
                    Part { memory: Arc::clone(copy.memory()), address: copy.address(), len, scope, lasting: true }
                }
            });
        }
        let held = LoanBuffers { _buffers: lent, _staged: copied, _spent: spent };
        Ok(Some(PreparedLoan { descriptor, parts, staged, held }))
    }

    /// The place from which a buffer is to be lent.
    fn place(&self, buffer: &Buffer, mapped: bool, seen: &mut Seen) -> Result<Place, FabricError> {
        // Where a key opens the whole memory, one more range of it costs nothing.
        if self.fabric.capabilities().exposes_ranges && buffer.len() < STAGE_BELOW {
            return Ok(Place::Copy);
        }
        if let Some(space) = &self.space {
            if let Some((memory, offset)) = space.find(buffer) {
                let scope = offset..offset + buffer.len();
                return Ok(Place::InPlace { memory, scope, lasting: true });
            }
            if !self.unregistered_logged.swap(true, Ordering::Relaxed) {
                info!(?space, "a buffer lies outside of registered memory; it is registered or copied when it is lent");
            }
        }
        // Only memory that the fabric allocated can be mapped: see `Maps::Allocated`.
        if buffer.len() < STAGE_BELOW || mapped {
            return Ok(Place::Copy);
        }
        Ok(match self.register(buffer, seen)? {
            Some(memory) => Place::InPlace { scope: 0..memory.len(), memory, lasting: false },
            None => Place::Copy,
        })
    }

    /// The registration of a buffer in place. Columns that share a buffer share its registration. `None`: the buffer is
    /// to be copied.
    fn register(&self, buffer: &Buffer, seen: &mut Seen) -> Result<Option<Arc<RegisteredMemory>>, FabricError> {
        let place = (buffer.as_ptr().addr(), buffer.len());
        if let Some(memory) = seen.get(&place) {
            return Ok(memory.clone());
        }
        let memory = match self.registrations.register(buffer) {
            Ok(memory) => memory,
            Err(error @ (FabricError::Registration { .. } | FabricError::OutOfMemory { .. })) => {
                warn!(%error, "a buffer cannot be registered for lending in place; it is copied instead");
                None
            }
            Err(error) => return Err(error),
        };
        seen.insert(place, memory.clone());
        Ok(memory)
    }
}

impl fmt::Debug for LoanPool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "LoanPool({:?}, {:?}, {:?})", self.fabric.kind(), self.staging, self.registrations)
    }
}
