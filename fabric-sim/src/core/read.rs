//! One endpoint's outstanding reads.

use thallus_fabric::memory::LocalRange;
use thallus_fabric::{Completion, ReadFailure, ReadToken};

use super::KeyId;

/// A read on its way.
#[derive(Debug)]
pub(super) struct Read {
    pub(super) token: ReadToken,
    pub(super) key: KeyId,
    pub(super) address: u64,
    pub(super) into: LocalRange,
    /// The endpoint's step in which the bytes are copied.
    pub(super) copy_at: u64,
    /// The step in which it completes.
    pub(super) complete_at: u64,
    /// The step in which the network lets its memory go: later than the completion, if that comes too early.
    pub(super) held_until: u64,
    /// The step in which it fails if there is no path.
    pub(super) give_up_at: u64,
    /// How the copy went, once made.
    pub(super) copied: Option<Result<(), ReadFailure>>,
    /// It completed, and its memory is held still.
    pub(super) announced: bool,
}

/// A read that has ended. The caller drops it, and with it the memory, outside of any lock.
#[derive(Debug)]
pub struct Finished {
    /// How it ended.
    pub completion: Completion,
    /// Where it was to land. `None`: the network still writes there.
    pub into: Option<LocalRange>,
}

impl Read {
    pub(super) fn finish(self, result: Result<(), ReadFailure>) -> Finished {
        Finished { completion: Completion { token: self.token, result }, into: Some(self.into) }
    }
}

/// The event that an endpoint waits for after a step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Progress {
    /// For nothing, until a call on another endpoint.
    Idle,
    /// For a later step.
    Waiting,
    /// The peer is gone; every read has ended.
    Down,
}
