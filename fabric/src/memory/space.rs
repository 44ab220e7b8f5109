//! Finds the registered memory that contains a buffer.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use super::RegisteredMemory;

/// Memory that is already registered, and that may contain the buffers of a batch.
pub trait RegisteredSpace: Send + Sync + fmt::Debug {
    /// The memory that contains all of `bytes`, and their offset in it. `None` also for zero bytes, since there is
    /// nothing to lend.
    fn find(&self, bytes: &[u8]) -> Option<(Arc<RegisteredMemory>, usize)>;

    /// Gives memory back to the system in which nothing has lain for `idle`. Of memory that others hold, it
    /// [wants them to let go](RegisteredMemory::is_wanted_back), and a later call gives it back.
    fn trim(&self, idle: Duration) -> Trimmed;
}

/// What [`RegisteredSpace::trim`] did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Trimmed {
    /// Bytes that went back to the system.
    pub freed: usize,
    /// Bytes in which nothing lies, and which have not gone back yet.
    pub left: usize,
    /// Whether some of these wait for holders to let go.
    pub held: bool,
}
