//! The words by which a borrower proves that its lease still stood when its reads completed.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering, fence};

use super::{PAGE, RegisteredMemory};
use crate::{Fabric, FabricError, Touch};

/// Registered words, one per open lease, for fabrics that fence by [`Fencing::LeaseWord`](crate::Fencing::LeaseWord).
///
/// The lender opens a slot with a value that it never used before, and announces slot and value with the loan. After
/// its reads completed, the borrower reads the word. If the word still holds the value, the lender had not begun to
/// reuse the memory when the reads completed, and the bytes are good (the validation of FaRM's lock-free reads:
/// Dragojevic et al., NSDI 2014, section 4). The lender revokes the slot before it reuses the memory.
#[derive(Debug)]
pub struct LeaseWords {
    memory: Arc<RegisteredMemory>,
    /// The value with which each slot was last opened.
    last: Box<[AtomicU64]>,
}

impl LeaseWords {
    /// The value of a slot without an open lease.
    pub const REVOKED: u64 = 0;

    /// Allocates `slots` words from `fabric`, all revoked.
    ///
    /// # Errors
    /// The errors of [`Fabric::allocate`].
    pub fn new(fabric: &dyn Fabric, slots: usize) -> Result<Self, FabricError> {
        let refused =
            |len, reason: &str| FabricError::Registration { fabric: fabric.kind(), len, reason: reason.to_owned() };
        let len = slots
            .max(1)
            .checked_mul(size_of::<u64>())
            .and_then(|len| len.checked_next_multiple_of(PAGE))
            .ok_or_else(|| refused(usize::MAX, "more lease words than an address space holds"))?;
        let memory = fabric.allocate(len, Touch::Now)?;
        // The memory must have no other user: the atomic accesses below could race with non-atomic ones.
        let usable =
            memory.len() >= len && (memory.address() as usize).is_multiple_of(size_of::<u64>()) && memory.claim();
        if !usable {
            return Err(refused(len, "the fabric's memory is too short, misaligned, read-only, or in use already"));
        }
        let words = LeaseWords { memory, last: (0..slots).map(|_| AtomicU64::new(Self::REVOKED)).collect() };
        (0..slots)
            .for_each(|slot| words.word(slot).expect("a slot below `slots`").store(Self::REVOKED, Ordering::SeqCst));
        Ok(words)
    }

    /// Number of slots.
    #[must_use]
    pub fn slots(&self) -> usize {
        self.last.len()
    }

    /// Opens a lease in `slot`. `value` must not be [`LeaseWords::REVOKED`] and must never have been used in this slot
    /// before. Otherwise a late reader would take the new lease for its own.
    ///
    /// # Errors
    /// [`FabricError::Misuse`]: the slot does not exist or is open already, or `value` is [`LeaseWords::REVOKED`] or
    /// the value of the previous lease.
    pub fn open(&self, slot: usize, value: u64) -> Result<(), FabricError> {
        if value == Self::REVOKED {
            return Err(FabricError::Misuse("a lease was opened with the value of a revoked lease"));
        }
        let word = self.word(slot)?;
        if self.last[slot].load(Ordering::Relaxed) == value && word.load(Ordering::Relaxed) == Self::REVOKED {
            return Err(FabricError::Misuse(
                "a lease was opened with the value of the previous lease, which a late reader may hold",
            ));
        }
        word.compare_exchange(Self::REVOKED, value, Ordering::SeqCst, Ordering::SeqCst)
            .map_err(|_| FabricError::Misuse("a lease was opened in a slot that is open already"))?;
        self.last[slot].store(value, Ordering::Relaxed);
        Ok(())
    }

    /// Ends the lease in `slot`, and returns whether it was open. After this returns, later writes to the lent memory,
    /// by this thread or by a thread that synchronizes with it, become visible after the revocation, to remote readers
    /// too.
    ///
    /// # Errors
    /// [`FabricError::Misuse`]: the slot does not exist.
    pub fn revoke(&self, slot: usize) -> Result<bool, FabricError> {
        let before = self.word(slot)?.swap(Self::REVOKED, Ordering::SeqCst);
        // On some machines the swap alone does not keep later plain writes behind it. This fence is the writer's side
        // of a sequence lock.
        fence(Ordering::SeqCst);
        Ok(before != Self::REVOKED)
    }

    /// Address of the slot's 8 bytes in the lender's address space. The value is stored in native byte order.
    ///
    /// # Errors
    /// [`FabricError::Misuse`]: the slot does not exist.
    pub fn address(&self, slot: usize) -> Result<u64, FabricError> {
        self.word(slot)?;
        Ok(self.memory.address() + (slot * size_of::<u64>()) as u64)
    }

    /// The memory, to be exposed to the peer.
    #[must_use]
    pub fn memory(&self) -> &Arc<RegisteredMemory> {
        &self.memory
    }

    fn word(&self, slot: usize) -> Result<&AtomicU64, FabricError> {
        if slot >= self.slots() {
            return Err(FabricError::Misuse("no such lease word"));
        }
        // SAFETY: `new` checked that the memory holds `slots` words, aligned and writable, and that it was claimed for
        // `self`; it lives as long as `self`. Since then it is accessed by atomics only, here and by the reads of
        // in-process peers.
        Ok(unsafe { AtomicU64::from_ptr(self.memory.start().as_ptr().cast::<u64>().add(slot)) })
    }
}

#[cfg(test)]
mod tests {
    use super::super::test_fabric::TestFabric;
    use super::*;

    #[test]
    fn a_slot_opens_once_and_is_revoked_once() {
        let words = LeaseWords::new(&TestFabric::default(), 3).unwrap();
        assert!(words.memory().len() >= 24);
        words.open(2, 7).unwrap();
        assert!(matches!(words.open(2, 8), Err(FabricError::Misuse(_))));
        assert_eq!(words.revoke(2), Ok(true));
        assert_eq!(words.revoke(2), Ok(false));
        assert!(matches!(words.open(2, 7), Err(FabricError::Misuse(_))), "a late reader would accept it");
        words.open(2, 8).unwrap();
        assert_eq!(words.revoke(1), Ok(false));
    }

    #[test]
    fn misuse_is_told() {
        let words = LeaseWords::new(&TestFabric::default(), 1).unwrap();
        assert!(matches!(words.open(1, 7), Err(FabricError::Misuse(_))));
        assert!(matches!(words.open(0, LeaseWords::REVOKED), Err(FabricError::Misuse(_))));
        assert!(matches!(words.revoke(usize::MAX), Err(FabricError::Misuse(_))));
        assert!(matches!(words.address(1), Err(FabricError::Misuse(_))));
        assert!(matches!(LeaseWords::new(&TestFabric::default(), usize::MAX), Err(FabricError::Registration { .. })));
    }

    #[test]
    fn shared_memory_is_refused() {
        let fabric = TestFabric { share_allocations: true, ..TestFabric::default() };
        let _first = LeaseWords::new(&fabric, 1).unwrap();
        assert!(matches!(LeaseWords::new(&fabric, 1), Err(FabricError::Registration { .. })));
    }

    #[test]
    fn addresses_are_the_words_places() {
        let words = LeaseWords::new(&TestFabric::default(), 600).unwrap();
        words.open(513, 0x0102_0304_0506_0708).unwrap();
        let pool = super::super::SlabPool::new(Arc::new(TestFabric::default()), Default::default());
        let slab = pool.take(8).unwrap();
        let offset = words.memory().offset_of(words.address(513).unwrap(), 8).unwrap();
        assert!(slab.range(0, 8).unwrap().fill_from(words.memory(), offset));
        assert_eq!(slab.into_buffer().unwrap().as_slice(), 0x0102_0304_0506_0708_u64.to_ne_bytes());
    }
}
