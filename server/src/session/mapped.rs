//! Memory that clients have mapped: a loan that nothing can take back. It ends when the client gives it back, or when
//! the client's process is gone. The end of its connection, or of the server's task for it, does not end it.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use thallus_driver::{Held, KeepLoan};
use thallus_fabric::process::Presence;
use thallus_protocol::message::ProcessId;
use tracing::{info, warn};

/// How often to look whether processes are gone.
const INTERVAL: Duration = Duration::from_secs(1);

/// Says whether a process is there.
type Look = fn(ProcessId) -> Presence;

/// Memory that processes have mapped and whose connections are gone. It is never freed before these processes are gone,
/// not even at the end of this one, since freeing memory may write to it.
pub(crate) struct OrphanedLoans {
    look: Look,
    kept: Mutex<BTreeMap<ProcessId, Vec<Held>>>,
}

impl OrphanedLoans {
    pub(crate) fn new(look: Look) -> Arc<Self> {
        Arc::new(OrphanedLoans { look, kept: Mutex::default() })
    }

    /// Whether this process can be seen, so that its end can be.
    pub(crate) fn sees(&self, process: ProcessId) -> bool {
        (self.look)(process) == Presence::There
    }

    fn keep(self: &Arc<Self>, process: ProcessId, held: Held) {
        let is_first = {
            let mut kept = self.lock();
            let is_first = kept.is_empty();
            let of_process = kept.entry(process).or_default();
            if of_process.is_empty() {
                info!(
                    pid = process.pid,
                    "a connection ended of which memory is mapped: it is kept until its process ends"
                );
            }
            of_process.push(held);
            is_first
        };
        // Without a runtime this process is about to end, and keeps everything until then.
        if is_first && let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(watch(Arc::clone(self)));
        }
    }

    /// Frees the memory of processes that are gone. Whether anything is left.
    fn sweep(&self) -> bool {
        let watched: Vec<_> = self.lock().keys().copied().collect();
        for process in watched.into_iter().filter(|process| (self.look)(*process) == Presence::Gone) {
            let freed = self.lock().remove(&process).unwrap_or_default();
            info!(pid = process.pid, batches = freed.len(), "a process is gone, and what it had mapped is free again");
        }
        !self.lock().is_empty()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<ProcessId, Vec<Held>>> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn watch(orphans: Arc<OrphanedLoans>) {
    loop {
        tokio::time::sleep(INTERVAL).await;
        if !orphans.sweep() {
            return;
        }
    }
}

impl Drop for OrphanedLoans {
    fn drop(&mut self) {
        let kept = std::mem::take(&mut *self.lock());
        if !kept.is_empty() {
            warn!(processes = kept.len(), "memory is still mapped by processes: it is never freed");
            std::mem::forget(kept);
        }
    }
}

impl fmt::Debug for OrphanedLoans {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.lock().iter().map(|(process, held)| (process.pid, held.len()))).finish()
    }
}

/// Keeps loans of this process, once their connection is gone.
pub(crate) fn keep_for(process: ProcessId, orphans: Arc<OrphanedLoans>) -> KeepLoan {
    Arc::new(move |held| orphans.keep(process, held))
}
