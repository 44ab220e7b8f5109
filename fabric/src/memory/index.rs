//! Which registered memory a buffer lies in.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use super::RegisteredMemory;

/// Memory that is registered already, in which the buffers of a batch may lie.
pub trait RegisteredSpace: Send + Sync + fmt::Debug {
    /// The memory that all of `bytes` lie in, and at which offset. `None` also for no bytes: there is nothing to lend.
    fn find(&self, bytes: &[u8]) -> Option<(&Arc<RegisteredMemory>, usize)>;
}

/// Registered memory by address, to find out which of a batch's buffers can be lent from where they lie.
#[derive(Clone, Debug, Default)]
pub struct MemoryIndex {
    by_address: BTreeMap<u64, Arc<RegisteredMemory>>,
}

impl MemoryIndex {
    /// Adds `memory`; returns what the index had at the same address. Memories in the index never overlap otherwise,
    /// unless the same bytes are registered twice; then either may be found.
    pub fn insert(&mut self, memory: Arc<RegisteredMemory>) -> Option<Arc<RegisteredMemory>> {
        self.by_address.insert(memory.address(), memory)
    }

    /// Takes out the memory that begins at `address`.
    pub fn remove(&mut self, address: u64) -> Option<Arc<RegisteredMemory>> {
        self.by_address.remove(&address)
    }

    /// How many memories there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.by_address.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.by_address.is_empty()
    }
}

impl RegisteredSpace for MemoryIndex {
    fn find(&self, bytes: &[u8]) -> Option<(&Arc<RegisteredMemory>, usize)> {
        if bytes.is_empty() {
            return None;
        }
        let address = bytes.as_ptr() as u64;
        let (_, memory) = self.by_address.range(..=address).next_back()?;
        Some((memory, memory.offset_of(address, bytes.len() as u64)?))
    }
}

#[cfg(test)]
mod tests {
    use arrow_buffer::Buffer;

    use super::super::test_fabric::TestFabric;
    use super::*;
    use crate::Fabric;

    #[test]
    fn a_buffer_is_found_where_all_of_it_lies() {
        let buffers = [0_u8, 1, 2].map(|at| Buffer::from(vec![at; 1000]));
        let mut index = MemoryIndex::default();
        for buffer in &buffers[..2] {
            assert!(index.insert(TestFabric::default().register(buffer.clone()).unwrap()).is_none());
        }
        for buffer in &buffers[..2] {
            let (memory, offset) = index.find(&buffer[990..]).unwrap();
            assert_eq!((memory.address(), offset), (buffer.as_ptr() as u64, 990));
            assert!(index.find(&buffer[10..10]).is_none());
        }
        assert!(index.find(&buffers[2]).is_none());
        assert_eq!(index.remove(buffers[0].as_ptr() as u64).unwrap().len(), 1000);
        assert!(index.find(&buffers[0]).is_none());
        assert_eq!(index.len(), 1);
    }

    #[test]
    fn a_buffer_that_reaches_past_the_end_is_not_found() {
        let buffer = Buffer::from(vec![1_u8; 1000]);
        let mut index = MemoryIndex::default();
        index.insert(TestFabric::default().register(buffer.slice_with_length(100, 800)).unwrap());
        assert!(index.find(&buffer[899..901]).is_none());
        assert!(index.find(&buffer[99..101]).is_none());
        assert_eq!(index.find(&buffer[100..900]).unwrap().1, 0);
    }
}
