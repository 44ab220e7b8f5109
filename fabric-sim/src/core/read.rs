//! One endpoint's outstanding reads.

use thallus_fabric::memory::LocalRange;
use thallus_fabric::{Completion, ReadFailure, ReadToken};

use super::KeyId;

/// An outstanding read.
#[derive(Debug)]
pub(super) struct Read {
    pub(super) token: ReadToken,
    pub(super) key: KeyId,
    pub(super) address: u64,
    pub(super) into: LocalRange,
    /// The endpoint's step in which the bytes are copied.
    pub(super) copy_at: u64,
    /// The step in which the read completes.
    pub(super) complete_at: u64,
    /// The step in which the network drops the range: later than the completion, if the completion is too early.
    pub(super) held_until: u64,
    /// The step in which the read fails if there is no path.
    pub(super) give_up_at: u64,
    /// The result of the copy, once made.
    pub(super) copied: Option<Result<(), ReadFailure>>,
    /// The read has completed, and the network still holds its memory.
    pub(super) announced: bool,
}

/// A read that has ended. The caller drops it, and with it the memory, outside of any lock.
#[derive(Debug)]
pub struct Finished {
    /// The completion.
    pub completion: Completion,
    /// The target. `None`: the network still writes to it.
    pub into: Option<LocalRange>,
}

impl Read {
    pub(super) fn finish(self, result: Result<(), ReadFailure>) -> Finished {
        Finished { completion: Completion { token: self.token, result }, into: Some(self.into) }
    }
}

/// The event for which an endpoint waits after a step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Progress {
    /// None, until a call on another endpoint.
    Idle,
    /// An event in a later step.
    Waiting,
    /// None: the peer has closed, and every read has ended.
    Down,
}
