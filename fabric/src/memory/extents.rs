//! The free extents of a chunk, and the lengths of the blocks that are cut from it.

use std::collections::{BTreeMap, BTreeSet};

use super::PAGE;

/// The length of the block for `len` bytes: whole pages, and from four pages up one of four steps per doubling (16, 20,
/// 24, 28, 32, 40, 48 ... KiB), so that a freed block fits the next batch of about its size. The waste is less than a
/// page or a quarter of `len`, whichever is more. `None` if no address space is that large.
pub(super) fn block_len(len: usize) -> Option<usize> {
    let step = if len <= 4 * PAGE { PAGE } else { 1 << ((len - 1).ilog2() - 2) };
    let block = len.max(1).checked_next_multiple_of(step)?;
    (isize::try_from(block).is_ok()).then_some(block)
}

/// The free extents of one chunk. Neighbours are merged, so a used block follows each extent.
#[derive(Debug)]
pub(super) struct FreeExtents {
    capacity: usize,
    by_offset: BTreeMap<usize, usize>,
    by_len: BTreeSet<(usize, usize)>,
}

impl FreeExtents {
    /// One extent for a whole chunk of `capacity` bytes.
    pub(super) fn whole(capacity: usize) -> Self {
        let mut free = FreeExtents { capacity, by_offset: BTreeMap::new(), by_len: BTreeSet::new() };
        free.insert(0, capacity);
        free
    }

    pub(super) fn capacity(&self) -> usize {
        self.capacity
    }

    pub(super) fn is_whole(&self) -> bool {
        self.largest() == self.capacity
    }

    /// Length of the longest block that can be taken, in bytes.
    pub(super) fn largest(&self) -> usize {
        self.by_len.last().map_or(0, |&(len, _)| len)
    }

    /// Takes `len` bytes from the shortest extent that holds them (best fit), and returns their offset.
    pub(super) fn take(&mut self, len: usize) -> Option<usize> {
        let &(extent_len, offset) = self.by_len.range((len, 0)..).next()?;
        self.remove(offset, extent_len);
        if extent_len > len {
            self.insert(offset + len, extent_len - len);
        }
        Some(offset)
    }

    /// Returns a block of [`FreeExtents::take`].
    pub(super) fn give(&mut self, offset: usize, len: usize) {
        let (mut start, mut end) = (offset, offset + len);
        if let Some((&before, &before_len)) = self.by_offset.range(..start).next_back() {
            debug_assert!(before + before_len <= start, "block {offset}+{len} was returned twice");
            if before + before_len == start {
                self.remove(before, before_len);
                start = before;
            }
        }
        if let Some((&after, &after_len)) = self.by_offset.range(offset..).next() {
            debug_assert!(after >= end, "block {offset}+{len} was returned twice");
            if after == end {
                self.remove(after, after_len);
                end = after + after_len;
            }
        }
        self.insert(start, end - start);
    }

    fn insert(&mut self, offset: usize, len: usize) {
        self.by_offset.insert(offset, len);
        self.by_len.insert((len, offset));
    }

    fn remove(&mut self, offset: usize, len: usize) {
        self.by_offset.remove(&offset);
        self.by_len.remove(&(len, offset));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_are_whole_pages_and_waste_little() {
        assert_eq!(block_len(0), Some(PAGE));
        assert_eq!(block_len(PAGE), Some(PAGE));
        assert_eq!(block_len(4 * PAGE + 1), Some(5 * PAGE));
        assert_eq!(block_len((1 << 20) + 1), Some((1 << 20) + (1 << 18)));
        assert_eq!(block_len(usize::MAX), None);
        assert_eq!(block_len(isize::MAX as usize), None);
        for len in (1..3_000_000).step_by(997) {
            let block = block_len(len).unwrap();
            assert!(block >= len && block.is_multiple_of(PAGE), "{len} -> {block}");
            assert!(block - len < PAGE.max(len / 4 + 1), "{len} -> {block}");
            assert_eq!(block_len(block), Some(block), "a block's own length is its class");
        }
    }

    #[test]
    fn neighbours_merge_whatever_the_order_of_return() {
        for order in [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]] {
            let mut free = FreeExtents::whole(3 * PAGE);
            let blocks = [0; 3].map(|_| free.take(PAGE).unwrap());
            assert_eq!(free.take(PAGE), None);
            for at in order {
                assert!(!free.is_whole());
                free.give(blocks[at], PAGE);
            }
            assert!(free.is_whole(), "{order:?}");
            assert_eq!(free.take(3 * PAGE), Some(0));
        }
    }

    #[test]
    fn the_best_fit_leaves_long_extents_whole() {
        let mut free = FreeExtents::whole(8 * PAGE);
        let first = free.take(2 * PAGE).unwrap();
        let _between = free.take(PAGE).unwrap();
        free.give(first, 2 * PAGE);
        assert_eq!(free.take(2 * PAGE), Some(first));
        assert_eq!(free.largest(), 5 * PAGE);
    }
}
