//! Frees memory that was idle for a while. The server does this itself, also for programs that accept connections
//! themselves.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use thallus_driver::LoanPool;
use tokio::task::AbortHandle;

use crate::session::SeparatePools;

/// Time for which memory without a batch is kept for reuse.
const IDLE_MEMORY: Duration = Duration::from_secs(30);

/// Trims the pools of a server in a task that begins with a connection. It ends when there is neither a connection nor
/// memory to free, or with the server.
#[derive(Debug)]
pub(crate) struct Trimming {
    pools: Vec<Arc<LoanPool>>,
    separate_pools: Arc<SeparatePools>,
    connections: Arc<AtomicUsize>,
    task: Mutex<Option<AbortHandle>>,
}

impl Trimming {
    pub(crate) fn new(
        pools: Vec<Arc<LoanPool>>,
        separate_pools: Arc<SeparatePools>,
        connections: Arc<AtomicUsize>,
    ) -> Arc<Self> {
        Arc::new(Trimming { pools, separate_pools, connections, task: Mutex::default() })
    }

    /// Starts the task unless it runs. Call it once the new connection is counted.
    pub(crate) fn start(self: &Arc<Self>) {
        let mut task = self.task.lock().unwrap_or_else(PoisonError::into_inner);
        // The task may also have ended with its runtime.
        if task.as_ref().is_none_or(AbortHandle::is_finished) {
            *task = Some(tokio::spawn(repeat(Arc::downgrade(self))).abort_handle());
        }
    }

    /// Returns whether the task is still needed.
    fn trim(&self) -> bool {
        let pools = || self.pools.iter().cloned().chain(self.separate_pools.all());
        pools().for_each(|pool| pool.trim(IDLE_MEMORY));
        // Under the lock, so that a connection that is counted after this decision starts a new task.
        let mut task = self.task.lock().unwrap_or_else(PoisonError::into_inner);
        let needed = self.connections.load(Ordering::Relaxed) > 0 || pools().any(|pool| pool.kept_bytes() > 0);
        if !needed {
            *task = None;
        }
        needed
    }
}

async fn repeat(trimming: Weak<Trimming>) {
    loop {
        tokio::time::sleep(IDLE_MEMORY).await;
        if !trimming.upgrade().is_some_and(|trimming| trimming.trim()) {
            return;
        }
    }
}

impl Drop for Trimming {
    fn drop(&mut self) {
        if let Some(task) = self.task.get_mut().unwrap_or_else(PoisonError::into_inner) {
            task.abort();
        }
    }
}
