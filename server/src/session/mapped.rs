//! What clients have mapped: a loan that nothing can take back. It ends when the client gives it back, or when the client's
//! process is gone; that its connection has ended, or the server's task for it, says nothing.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use thallus_fabric::process::Presence;
use thallus_protocol::LeaseEnd;
use thallus_protocol::message::ProcessId;
use tracing::{info, warn};

use super::lender::Held;

/// How often to look whether processes are gone.
const INTERVAL: Duration = Duration::from_secs(1);

/// Says whether a process is there.
type Look = fn(ProcessId) -> Presence;

/// Memory that processes have mapped whose connections are gone. Never freed before they are gone: not even by this one's end,
/// since whoever frees memory may write to it.
pub(crate) struct Leftovers {
    look: Look,
    kept: Mutex<BTreeMap<ProcessId, Vec<Held>>>,
}

impl Leftovers {
    pub(crate) fn new(look: Look) -> Arc<Self> {
        Arc::new(Leftovers { look, kept: Mutex::default() })
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

    /// Lets go of what processes had that are gone. Whether anything is left.
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

async fn watch(leftovers: Arc<Leftovers>) {
    loop {
        tokio::time::sleep(INTERVAL).await;
        if !leftovers.sweep() {
            return;
        }
    }
}

impl Drop for Leftovers {
    fn drop(&mut self) {
        let kept = std::mem::take(&mut *self.lock());
        if !kept.is_empty() {
            warn!(processes = kept.len(), "memory is still mapped by processes: it is never freed");
            std::mem::forget(kept);
        }
    }
}

impl fmt::Debug for Leftovers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.lock().iter().map(|(process, held)| (process.pid, held.len()))).finish()
    }
}

/// Who has a loan mapped, and where what is left of it goes.
#[derive(Clone, Debug)]
pub(crate) struct Borrower {
    pub(crate) process: ProcessId,
    pub(crate) leftovers: Arc<Leftovers>,
}

/// What keeps a loan's memory, for as long as its borrower may look at it.
#[derive(Debug)]
pub(super) struct Holding {
    held: Option<Held>,
    borrower: Option<Borrower>,
}

impl Holding {
    pub(super) fn new(held: Held, borrower: Option<Borrower>) -> Self {
        Holding { held: Some(held), borrower }
    }

    /// The lease has ended: so has the borrower's use of it, unless the lease was torn down while that had it mapped.
    pub(super) fn end(mut self, end: LeaseEnd) {
        if matches!(end, LeaseEnd::Released | LeaseEnd::Withdrawn) {
            self.borrower = None;
        }
    }
}

impl Drop for Holding {
    fn drop(&mut self) {
        // Also where a connection's task ends without a word.
        if let (Some(Borrower { process, leftovers }), Some(held)) = (self.borrower.take(), self.held.take()) {
            leftovers.keep(process, held);
        }
    }
}
