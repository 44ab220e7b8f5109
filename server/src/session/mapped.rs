//! Memory that clients have mapped. The server cannot revoke such a loan. It ends when the client releases it, or when
//! the client's process ends, but not with the connection or the server's task for the connection.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use thallus_driver::{Held, KeepLoan};
use thallus_fabric::process::Presence;
use thallus_protocol::message::ProcessId;
use tracing::{info, warn};

/// Interval of the checks for ended processes.
const INTERVAL: Duration = Duration::from_secs(1);

/// Returns whether a process exists.
type Look = fn(ProcessId) -> Presence;

/// Memory that processes have mapped and whose connections have ended. It is never freed before these processes end,
/// not even at the end of the server's process, because freeing memory may write to it.
pub(crate) struct OrphanedLoans {
    look: Look,
    kept: Mutex<BTreeMap<ProcessId, Vec<Held>>>,
}

impl OrphanedLoans {
    pub(crate) fn new(look: Look) -> Arc<Self> {
        Arc::new(OrphanedLoans { look, kept: Mutex::default() })
    }

    /// Whether this process is visible, so that its end can be detected.
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
                    "a connection with mapped memory ended: the memory is kept until the client's process ends"
                );
            }
            of_process.push(held);
            is_first
        };
        // Without a runtime the server's process is about to end, and keeps all memory until then.
        if is_first && let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(watch(Arc::clone(self)));
        }
    }

    /// Frees the memory of ended processes. Returns whether any memory is left.
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
            warn!(processes = kept.len(), "memory is still mapped by client processes: it is never freed");
            std::mem::forget(kept);
        }
    }
}

impl fmt::Debug for OrphanedLoans {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.lock().iter().map(|(process, held)| (process.pid, held.len()))).finish()
    }
}

/// Keeps the loans of this process after the end of their connection.
pub(crate) fn keep_for(process: ProcessId, orphans: Arc<OrphanedLoans>) -> KeepLoan {
    Arc::new(move |held| orphans.keep(process, held))
}
