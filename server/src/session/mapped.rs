//! Memory that clients have mapped. The server cannot revoke such a loan. It ends when the client releases it, or when
//! the client's process ends, but not with the connection or the server's task for the connection.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use thallus_driver::{KeepLoan, LoanBuffers};
use thallus_fabric::PresenceProbe;
use thallus_fabric::process::{Presence, TcpEnds};
use thallus_protocol::message::ProcessId;
use tracing::{info, warn};

/// Interval of the checks for ended processes.
const INTERVAL: Duration = Duration::from_secs(1);

/// Returns whether a process exists.
type PresenceCheck = fn(ProcessId) -> Presence;

/// Returns whether a process has the client's end of a control connection open.
type PeerCheck = fn(ProcessId, Option<TcpEnds>) -> bool;

/// Memory that processes have mapped and whose connections have ended. It is never freed before these processes end,
/// not even at the end of the server's process, because freeing memory may write to it.
pub(crate) struct OrphanedLoans {
    presence: PresenceCheck,
    is_peer: PeerCheck,
    kept: Mutex<Vec<Orphans>>,
}

/// The loans of one ended connection whose client process has them mapped.
struct Orphans {
    client: MappingClient,
    held: Vec<LoanBuffers>,
}

/// A client process that may map memory.
#[derive(Clone)]
pub(crate) struct MappingClient {
    /// The process id, as the client sent it.
    pid: u32,
    probe: PresenceProbe,
}

impl MappingClient {
    /// A client at the other end of a fabric that detects the end of its process.
    pub(crate) fn by_fabric(pid: u32, probe: PresenceProbe) -> Self {
        MappingClient { pid, probe }
    }
}

impl OrphanedLoans {
    pub(crate) fn new(presence: PresenceCheck, is_peer: PeerCheck) -> Arc<Self> {
        Arc::new(OrphanedLoans { presence, is_peer, kept: Mutex::default() })
    }

    /// The process with this id, if it is the client at the other end of this connection, so that the client's end can
    /// be detected. With the id of another process a client could keep loans for as long as that process runs.
    pub(crate) fn find(&self, process: ProcessId, ends: Option<TcpEnds>) -> Option<MappingClient> {
        if !(self.is_peer)(process, ends) {
            return None;
        }
        let presence = self.presence;
        let client = MappingClient { pid: process.pid, probe: Arc::new(move || presence(process)) };
        ((client.probe)() == Presence::Running).then_some(client)
    }

    fn keep(self: &Arc<Self>, client: &MappingClient, held: LoanBuffers) {
        let is_first = {
            let mut kept = self.lock();
            let is_first = kept.is_empty();
            match kept.iter_mut().find(|orphans| Arc::ptr_eq(&orphans.client.probe, &client.probe)) {
                Some(orphans) => orphans.held.push(held),
                None => {
                    info!(
                        pid = client.pid,
                        "a connection with mapped memory ended: the memory is kept until the client's process ends"
                    );
                    kept.push(Orphans { client: client.clone(), held: vec![held] });
                }
            }
            is_first
        };
        // Without a runtime the server's process is about to end, and keeps all memory until then.
        if is_first && let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(watch(Arc::clone(self)));
        }
    }

    /// Frees the memory of ended processes. Returns whether any memory is left.
    fn sweep(&self) -> bool {
        let (freed, left) = {
            let mut kept = self.lock();
            let all = std::mem::take(&mut *kept).into_iter();
            let (freed, left): (Vec<_>, Vec<_>) = all.partition(|orphans| (orphans.client.probe)() == Presence::Ended);
            *kept = left;
            (freed, !kept.is_empty())
        };
        for Orphans { client, held } in freed {
            let batches = held.len();
            info!(pid = client.pid, batches, "a process is gone, and what it had mapped is free again");
        }
        left
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Orphans>> {
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
            warn!(connections = kept.len(), "memory is still mapped by client processes: it is never freed");
            std::mem::forget(kept);
        }
    }
}

impl fmt::Debug for OrphanedLoans {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.lock().iter().map(|orphans| (orphans.client.pid, orphans.held.len()))).finish()
    }
}

/// Keeps the loans of this client's process after the end of their connection.
pub(crate) fn keep_for(client: MappingClient, orphans: Arc<OrphanedLoans>) -> KeepLoan {
    Arc::new(move |held| orphans.keep(&client, held))
}
