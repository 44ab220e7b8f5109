//! Makes a batch's buffers readable by peers: where they lie if that is registered memory or can be registered, else by a
//! copy.

use std::collections::HashMap;
use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use arrow_buffer::Buffer;
use thallus_fabric::memory::{PoolLimits, RegisteredMemory, RegisteredSpace, StagedRange, StagingArena};
use thallus_fabric::{Fabric, FabricError, Fencing};
use thallus_protocol::layout::BatchDescriptor;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tracing::{info, warn};

/// Buffers shorter than this are copied side by side into registered memory rather than opened to the borrower each by
/// itself: a registration or a window, and a remote key that the borrower has to take in, cost more than the copy.
const STAGE_BELOW: usize = 32 * 1024;

/// Unit of the budget's permits, since a semaphore counts in 32 bits.
const BUDGET_UNIT: u64 = 4096;

/// What lends over one fabric; shared by all connections.
pub(crate) struct Lender {
    fabric: Arc<dyn Fabric>,
    /// What is registered already, such as the heap in which the engine computes.
    space: Option<Arc<dyn RegisteredSpace>>,
    staging: StagingArena,
    budget: Arc<Semaphore>,
    /// All that the budget ever has.
    permits: usize,
    registers: AtomicBool,
    /// Whether it has been said that buffers lie outside of `space`.
    outside_said: AtomicBool,
}

/// A non-empty buffer of a loan.
#[derive(Debug)]
pub(crate) struct Part {
    pub(crate) memory: Arc<RegisteredMemory>,
    pub(crate) address: u64,
    pub(crate) len: u64,
    /// The part, and what of the memory around it is this loan's too: what may be opened to its borrower.
    pub(crate) scope: Range<usize>,
    /// Whether the memory will be lent from again, so that its region is worth keeping announced.
    pub(crate) lasting: bool,
}

/// Keeps what is on loan alive and counted. Dropped when the lease has ended.
#[derive(Debug)]
pub(crate) struct Held {
    /// Those lent from where they lie: their memory is not freed, and arrow writes to no buffer that somebody else holds.
    _buffers: Vec<Buffer>,
    _staged: Vec<StagedRange>,
    _budget: OwnedSemaphorePermit,
}

/// Where a buffer is lent from.
enum Place {
    Here { memory: Arc<RegisteredMemory>, scope: Range<usize>, lasting: bool },
    Copy,
}

/// A batch that can be lent.
#[derive(Debug)]
pub(crate) struct PreparedLoan {
    pub(crate) descriptor: BatchDescriptor,
    pub(crate) parts: Vec<Part>,
    pub(crate) staged: u64,
    pub(crate) held: Held,
}

impl Lender {
    /// Lends at most `budget` bytes at once over `fabric`; from where they lie, those in `space`, which `fabric` has registered.
    pub(crate) fn new(fabric: Arc<dyn Fabric>, space: Option<Arc<dyn RegisteredSpace>>, budget: u64) -> Self {
        let permits = usize::try_from(budget / BUDGET_UNIT).unwrap_or(usize::MAX).clamp(1, Semaphore::MAX_PERMITS);
        let max_bytes = usize::try_from(budget).unwrap_or(usize::MAX);
        let limits = PoolLimits { max_bytes, ..PoolLimits::default() };
        Lender {
            staging: StagingArena::new(Arc::clone(&fabric), limits),
            fabric,
            space,
            budget: Arc::new(Semaphore::new(permits)),
            permits,
            registers: AtomicBool::new(true),
            outside_said: AtomicBool::new(false),
        }
    }

    pub(crate) fn fabric(&self) -> &Arc<dyn Fabric> {
        &self.fabric
    }

    /// Bytes of the budget that are taken by loans, or by batches that are about to be lent.
    pub(crate) fn bytes_on_loan(&self) -> u64 {
        self.permits.saturating_sub(self.budget.available_permits()) as u64 * BUDGET_UNIT
    }

    /// Bytes that the staging arena has from the fabric.
    pub(crate) fn staged_bytes(&self) -> usize {
        self.staging.stats().pool.bytes_total
    }

    /// Gives staging memory back in which nothing has been for so long, and which no connection knows.
    pub(crate) fn trim(&self, idle: Duration) {
        self.staging.trim(idle);
    }

    /// Makes the buffers of a batch readable, or such that a client can map them. `Ok(None)`: the budget does not allow it now.
    ///
    /// # Errors
    /// The fabric cannot register, and there is no memory to copy to.
    pub(crate) fn prepare(
        &self,
        descriptor: BatchDescriptor,
        buffers: &[Buffer],
        mapped: bool,
    ) -> Result<Option<PreparedLoan>, FabricError> {
        let units = u32::try_from(descriptor.slab_bytes().div_ceil(BUDGET_UNIT)).unwrap_or(u32::MAX);
        let Ok(budget) = Arc::clone(&self.budget).try_acquire_many_owned(units) else { return Ok(None) };

        let filled: Vec<&Buffer> = buffers.iter().filter(|buffer| !buffer.is_empty()).collect();
        let mut registered = HashMap::new();
        let places: Vec<Place> =
            filled.iter().map(|buffer| self.place(buffer, mapped, &mut registered)).collect::<Result<_, _>>()?;
        let to_stage: Vec<&[u8]> = filled
            .iter()
            .zip(&places)
            .filter(|(_, place)| matches!(place, Place::Copy))
            .map(|(buffer, _)| buffer.as_slice())
            .collect();
        let copied = if to_stage.is_empty() { Vec::new() } else { self.staging.stage(&to_stage)? };
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
                Place::Here { memory, scope, lasting } => {
                    lent.push(buffer.clone());
                    Part { memory, address, len, scope, lasting }
                }
                Place::Copy => {
                    let copy = copies.next().ok_or(FabricError::Misuse("fewer copies than were asked for"))?;
                    let scope = staged_scope.clone().unwrap_or_default();
                    Part { memory: Arc::clone(copy.memory()), address: copy.address(), len, scope, lasting: true }
                }
            });
        }
        let held = Held { _buffers: lent, _staged: copied, _budget: budget };
        Ok(Some(PreparedLoan { descriptor, parts, staged, held }))
    }

    /// Where a buffer is to be lent from.
    fn place(
        &self,
        buffer: &Buffer,
        mapped: bool,
        registered: &mut HashMap<(usize, usize), Arc<RegisteredMemory>>,
    ) -> Result<Place, FabricError> {
        // Where the whole of a region is open to whoever has its key, one more range of it costs nothing.
        let opens_each = self.fabric.capabilities().fencing == Fencing::Revocation;
        if opens_each && buffer.len() < STAGE_BELOW {
            return Ok(Place::Copy);
        }
        if let Some(space) = &self.space {
            if let Some((memory, offset)) = space.find(buffer) {
                let scope = offset..offset + buffer.len();
                return Ok(Place::Here { memory: Arc::clone(memory), scope, lasting: true });
            }
            if !self.outside_said.swap(true, Ordering::Relaxed) {
                info!(
                    ?space,
                    "a buffer lies outside of registered memory; such are registered or copied when they are lent"
                );
            }
        }
        // What the fabric has not allocated cannot be mapped.
        if buffer.len() < STAGE_BELOW || mapped {
            return Ok(Place::Copy);
        }
        Ok(match self.register(buffer, registered)? {
            Some(memory) => Place::Here { scope: 0..memory.len(), memory, lasting: false },
            None => Place::Copy,
        })
    }

    /// Registers a buffer where it lies; columns that share one share the registration. `None`: it is to be copied.
    fn register(
        &self,
        buffer: &Buffer,
        seen: &mut HashMap<(usize, usize), Arc<RegisteredMemory>>,
    ) -> Result<Option<Arc<RegisteredMemory>>, FabricError> {
        if !self.registers.load(Ordering::Relaxed) {
            return Ok(None);
        }
        let key = (buffer.as_ptr() as usize, buffer.len());
        if let Some(memory) = seen.get(&key) {
            return Ok(Some(Arc::clone(memory)));
        }
        match self.fabric.register(buffer.clone()) {
            Ok(memory) => {
                seen.insert(key, Arc::clone(&memory));
                Ok(Some(memory))
            }
            Err(FabricError::Unsupported { .. }) => {
                self.registers.store(false, Ordering::Relaxed);
                Ok(None)
            }
            Err(error @ FabricError::Registration { .. }) => {
                warn!(%error, "a buffer cannot be lent from where it lies, and is copied");
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }
}

impl fmt::Debug for Lender {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Lender({:?}, {:?})", self.fabric.kind(), self.staging)
    }
}
