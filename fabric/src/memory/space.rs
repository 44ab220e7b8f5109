//! Finds the registered memory that contains a buffer.

use std::fmt;
use std::sync::Arc;

use super::RegisteredMemory;

/// Memory that is already registered, and that may contain the buffers of a batch.
pub trait RegisteredSpace: Send + Sync + fmt::Debug {
    /// The memory that contains all of `bytes`, and their offset in it. `None` also for zero bytes, since there is
    /// nothing to lend.
    fn find(&self, bytes: &[u8]) -> Option<(&Arc<RegisteredMemory>, usize)>;
}
