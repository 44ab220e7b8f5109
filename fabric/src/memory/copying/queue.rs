//! The copies that wait to be made, and the reports of their ends.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Waker;

use super::interleave;

/// Most bytes of short pieces that are taken from the queue at a time.
const BYTES_AT_A_TIME: usize = 64 << 10;

/// A piece to be copied.
pub(super) struct Copy {
    pub(super) operation: u64,
    pub(super) from: *const u8,
    pub(super) to: *mut u8,
    pub(super) len: usize,
}

// SAFETY: the caller of [`Copies::post`](super::Copies::post) vouches for both pointers, on any thread, until the copy
// is reported.
unsafe impl Send for Copy {}

/// How a copy ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// Every byte is in place.
    Done,
    /// The copy was not begun.
    Cancelled,
    /// The memory is not there, or not all of it.
    Refused,
}

/// The ends of operations, in their order, until the endpoint takes them.
#[derive(Debug, Default)]
pub struct Reports(Mutex<Vec<(u64, End)>>);

impl Reports {
    /// Reports the end of an operation.
    pub fn ended(&self, operation: u64, end: End) {
        self.lock().push((operation, end));
    }

    /// Takes all reports.
    pub fn take(&self) -> Vec<(u64, End)> {
        std::mem::take(&mut self.lock())
    }

    fn all_done(&self, operations: impl Iterator<Item = u64>) {
        self.lock().extend(operations.map(|operation| (operation, End::Done)));
    }

    fn lock(&self) -> MutexGuard<'_, Vec<(u64, End)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The copies of one endpoint that wait to be made.
pub struct CopyQueue {
    reports: Arc<Reports>,
    state: Mutex<State>,
}

#[derive(Default)]
pub(super) struct State {
    pub(super) waiting: VecDeque<Copy>,
    pub(super) waiting_bytes: usize,
    /// Copies that a thread is making.
    pub(super) underway: usize,
    /// Helpers that were woken for this queue and have not finished it.
    pub(super) helpers: usize,
    /// The waker of the endpoint, while it only waits for helpers.
    pub(super) waker: Option<Waker>,
}

impl State {
    /// Moves the copies that have waited longest to `making`, as under way. `false` if none waits.
    pub(super) fn begin_some(&mut self, making: &mut Vec<Copy>) -> bool {
        let mut bytes = 0;
        while bytes < BYTES_AT_A_TIME
            && let Some(copy) = self.waiting.pop_front()
        {
            bytes += copy.len;
            making.push(copy);
        }
        self.waiting_bytes -= bytes;
        self.underway += making.len();
        !making.is_empty()
    }
}

impl CopyQueue {
    pub(super) fn new(reports: &Arc<Reports>) -> Self {
        CopyQueue { reports: reports.clone(), state: Mutex::default() }
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A helper's work: makes copies until none waits.
    pub fn help(&self) {
        let mut making = Vec::new();
        loop {
            let mut state = self.lock();
            if !state.begin_some(&mut making) {
                // Under the same lock: a copy that is posted from here on wakes a helper again.
                state.helpers -= 1;
                return;
            }
            drop(state);
            self.make(&mut making);
        }
    }

    /// Reports the copies that no thread has begun as cancelled.
    pub(super) fn cancel(&self) {
        let cancelled = {
            let mut state = self.lock();
            state.waiting_bytes = 0;
            std::mem::take(&mut state.waiting)
        };
        for copy in cancelled {
            self.reports.ended(copy.operation, End::Cancelled);
        }
    }

    pub(super) fn make(&self, copies: &mut Vec<Copy>) {
        for copy in &*copies {
            // SAFETY: the contract of `Copies::post` holds until the report below.
            unsafe { interleave::copy(copy.from, copy.to, copy.len) };
        }
        // Under the lock that `wait` takes: when nothing is under way, the report is there.
        let waker = {
            let mut state = self.lock();
            self.reports.all_done(copies.iter().map(|copy| copy.operation));
            state.underway -= copies.len();
            state.waker.take()
        };
        copies.clear();
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}
