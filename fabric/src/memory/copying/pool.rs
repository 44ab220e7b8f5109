//! The helper threads that make copies for all endpoints of a fabric.

use std::collections::VecDeque;
use std::fmt;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;

use super::queue::CopyQueue;

/// The helper threads of one fabric. They start when they are first needed, and end with the fabric.
#[derive(Debug)]
pub struct CopyPool {
    most: usize,
    requests: Arc<Requests>,
}

#[derive(Debug, Default)]
struct Requests {
    state: Mutex<PoolState>,
    waiting: Condvar,
}

#[derive(Default)]
struct PoolState {
    queues: VecDeque<Arc<CopyQueue>>,
    idle: usize,
    threads: usize,
    closed: bool,
}

impl CopyPool {
    /// A pool of at most `most` threads. None is started yet.
    pub fn new(most: usize) -> Arc<Self> {
        Arc::new(CopyPool { most, requests: Arc::default() })
    }

    /// The most threads that may help.
    pub(super) fn most(&self) -> usize {
        self.most
    }

    #[cfg(test)]
    pub(super) fn threads(&self) -> usize {
        self.requests.lock().threads
    }

    /// Shows, by its strong count, whether any helper still runs.
    #[cfg(test)]
    pub(super) fn watch(&self) -> std::sync::Weak<impl Sized + use<>> {
        Arc::downgrade(&self.requests)
    }

    /// Wakes or starts a helper for a queue. `false` if there is no helper and none can be started.
    pub(super) fn wake_helper(&self, queue: &Arc<CopyQueue>) -> bool {
        let mut state = self.requests.lock();
        if state.idle <= state.queues.len() && state.threads < self.most {
            let requests = self.requests.clone();
            match thread::Builder::new().name("thallus-copy".into()).spawn(move || requests.run()) {
                Ok(_detached) => state.threads += 1,
                Err(error) => tracing::debug!(%error, "a thread that helps to copy cannot be started"),
            }
        }
        if state.threads == 0 {
            return false;
        }
        state.queues.push_back(queue.clone());
        self.requests.waiting.notify_one();
        true
    }
}

impl Drop for CopyPool {
    fn drop(&mut self) {
        self.requests.lock().closed = true;
        self.requests.waiting.notify_all();
    }
}

impl Requests {
    fn lock(&self) -> MutexGuard<'_, PoolState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The main loop of a helper.
    fn run(&self) {
        let mut state = self.lock();
        loop {
            // Also once the fabric is gone: the queue counts this helper until it has worked the queue off.
            while let Some(queue) = state.queues.pop_front() {
                drop(state);
                queue.help();
                state = self.lock();
            }
            if state.closed {
                return;
            }
            state.idle += 1;
            state = self.waiting.wait(state).unwrap_or_else(PoisonError::into_inner);
            state.idle -= 1;
        }
    }
}

impl fmt::Debug for PoolState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PoolState").field("threads", &self.threads).field("idle", &self.idle).finish_non_exhaustive()
    }
}
