//! Frees memory that was idle for a while. The server does this itself, also for programs that accept connections
//! themselves.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use thallus_driver::LoanPool;
use thallus_fabric::memory::Trimmed;
use tokio::sync::watch;
use tokio::task::AbortHandle;
use tracing::debug;

use crate::session::SeparatePools;

/// Time for which memory without a batch is kept for reuse.
const IDLE_MEMORY: Duration = Duration::from_secs(30);

/// Time for which an empty part of the heap is kept. New memory has to be touched again, so the time is longer than the
/// pauses of a busy server.
const IDLE_HEAP: Duration = Duration::from_secs(10);

/// Interval of the trims.
const INTERVAL: Duration = Duration::from_secs(2);

/// Time in which connections let go of memory that is wanted back. Then the trim is repeated.
const LETTING_GO: Duration = Duration::from_millis(300);

/// Trims the pools of a server in a task that begins with a connection. It ends when there is neither a connection nor
/// memory to free, or with the server.
#[derive(Debug)]
pub(crate) struct Trimming {
    pools: Vec<Arc<LoanPool>>,
    separate_pools: Arc<SeparatePools>,
    connections: Arc<AtomicUsize>,
    /// Tells the connections to let go of memory that is wanted back.
    let_go: Arc<watch::Sender<()>>,
    task: Mutex<Option<AbortHandle>>,
}

impl Trimming {
    pub(crate) fn new(
        pools: Vec<Arc<LoanPool>>,
        separate_pools: Arc<SeparatePools>,
        connections: Arc<AtomicUsize>,
        let_go: Arc<watch::Sender<()>>,
    ) -> Arc<Self> {
        Arc::new(Trimming { pools, separate_pools, connections, let_go, task: Mutex::default() })
    }

    /// Starts the task unless it runs. Call it once the new connection is counted.
    pub(crate) fn start(self: &Arc<Self>) {
        let mut task = self.task.lock().unwrap_or_else(PoisonError::into_inner);
        // The task may also have ended with its runtime.
        if task.as_ref().is_none_or(AbortHandle::is_finished) {
            *task = Some(tokio::spawn(repeat(Arc::downgrade(self))).abort_handle());
        }
    }

    /// Gives back memory of the heap, and returns what is left of it. May take a while: it frees pages.
    fn trim_heap(&self) -> Trimmed {
        let mut all = Trimmed::default();
        for Trimmed { freed, left, held } in self.pools.iter().map(|pool| pool.trim_space(IDLE_HEAP)) {
            all = Trimmed { freed: all.freed + freed, left: all.left + left, held: all.held || held };
        }
        if all.freed > 0 {
            debug!(freed = all.freed, left = all.left, "memory of the heap went back to the system");
        }
        all
    }

    /// Trims the pools. Returns whether the task is still needed, and whether connections have to let go of memory.
    fn trim(&self, heap: Trimmed) -> (bool, bool) {
        let pools = || self.pools.iter().cloned().chain(self.separate_pools.all());
        let mut held = heap.held;
        pools().for_each(|pool| held |= pool.trim(IDLE_MEMORY));
        if held {
            self.let_go.send_replace(());
        }
        // Under the lock, so that a connection that is counted after this decision starts a new task.
        let mut task = self.task.lock().unwrap_or_else(PoisonError::into_inner);
        let needed =
            self.connections.load(Ordering::Relaxed) > 0 || heap.left > 0 || pools().any(|pool| pool.kept_bytes() > 0);
        if !needed {
            *task = None;
        }
        (needed, held)
    }
}

async fn repeat(trimming: Weak<Trimming>) {
    let mut pause = INTERVAL;
    loop {
        tokio::time::sleep(pause).await;
        let Some(strong) = trimming.upgrade() else { return };
        let heap = if strong.pools.iter().any(|pool| pool.has_space()) {
            let strong = Arc::clone(&strong);
            tokio::task::spawn_blocking(move || strong.trim_heap()).await.unwrap_or_default()
        } else {
            Trimmed::default()
        };
        let (needed, held) = strong.trim(heap);
        if !needed {
            return;
        }
        // Once: a connection that is stuck lets go of nothing.
        pause = if held && pause == INTERVAL { LETTING_GO } else { INTERVAL };
    }
}

impl Drop for Trimming {
    fn drop(&mut self) {
        if let Some(task) = self.task.get_mut().unwrap_or_else(PoisonError::into_inner) {
            task.abort();
        }
    }
}
