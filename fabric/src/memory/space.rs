//! Finding the registered memory that a buffer lies in.

use std::fmt;
use std::sync::Arc;

use super::RegisteredMemory;

/// Memory that is registered already, in which the buffers of a batch may lie.
pub trait RegisteredSpace: Send + Sync + fmt::Debug {
    /// The memory that all of `bytes` lie in, and at which offset. `None` also for no bytes: there is nothing to lend.
    fn find(&self, bytes: &[u8]) -> Option<(&Arc<RegisteredMemory>, usize)>;
}
