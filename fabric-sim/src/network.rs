//! The network, shared by its hosts and endpoints: the core behind a lock.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Waker;

use thallus_fabric::observe::LoanObserver;
use thallus_fabric::{LeaseEnd, LeaseId, RemoteRange};

use crate::SimOptions;
use crate::blob::{Blob, Kind};
use crate::core::{Core, EndpointId, Event, HostId, MemoryId, Stats, Violation};

/// A simulated network. Clones are handles of the same network.
#[derive(Clone)]
pub struct SimNetwork {
    shared: Arc<Mutex<Shared>>,
}

/// The core, and the wakers of the endpoints that wait.
pub(crate) struct Shared {
    pub(crate) core: Core,
    pub(crate) wakers: BTreeMap<EndpointId, Waker>,
}

/// The network's part of a registration.
#[derive(Debug)]
pub(crate) struct SimRegistration {
    pub(crate) id: MemoryId,
    pub(crate) len: usize,
    /// Bytes registered at the host.
    pub(crate) registered: Arc<AtomicUsize>,
}

impl Drop for SimRegistration {
    fn drop(&mut self) {
        self.registered.fetch_sub(self.len, Ordering::AcqRel);
    }
}

impl SimNetwork {
    /// A network without hosts. The same seed, and the same calls, give the same run.
    #[must_use]
    pub fn new(seed: u64, options: SimOptions) -> Self {
        let shared = Shared { core: Core::new(seed, options), wakers: BTreeMap::new() };
        SimNetwork { shared: Arc::new(Mutex::new(shared)) }
    }

    /// Crashes a host: all its endpoints close without a call of their owners, and their peers notice.
    pub fn crash(&self, host: HostId) {
        let concerned = {
            let mut shared = self.lock();
            let concerned = shared.core.crash(host);
            concerned.into_iter().filter_map(|endpoint| shared.wakers.remove(&endpoint)).collect::<Vec<_>>()
        };
        concerned.into_iter().for_each(Waker::wake);
    }

    /// Removes or restores the path by which `reader` reads from `lender`, to simulate a partition of the data plane.
    pub fn set_path(&self, reader: HostId, lender: HostId, open: bool) {
        let concerned = {
            let mut shared = self.lock();
            let concerned = shared.core.set_path(reader, lender, open);
            concerned.into_iter().filter_map(|endpoint| shared.wakers.remove(&endpoint)).collect::<Vec<_>>()
        };
        concerned.into_iter().for_each(Waker::wake);
    }

    /// Changes the options of the network from now on.
    pub fn change(&self, change: impl FnOnce(&mut SimOptions)) {
        change(self.lock().core.options_mut());
    }

    /// The events since the last call, if [`SimOptions::record`] is set.
    #[must_use]
    pub fn take_events(&self) -> Vec<Event> {
        self.lock().core.take_events()
    }

    /// Violations so far: reads that the memory protection refused, and leases that broke the rules.
    #[must_use]
    pub fn violations(&self) -> Vec<Violation> {
        self.lock().core.violations().to_vec()
    }

    /// Current figures.
    #[must_use]
    pub fn stats(&self) -> Stats {
        self.lock().core.stats()
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, Shared> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl LoanObserver for SimNetwork {
    fn lent(&self, lender: &[u8], lease: LeaseId, ranges: &[RemoteRange]) {
        if let Ok(Blob { id, .. }) = Blob::unpack(Kind::Address, lender) {
            self.lock().core.lent(EndpointId(id), lease, ranges);
        }
    }

    fn lease_ended(&self, lender: &[u8], lease: LeaseId, end: LeaseEnd) {
        if let Ok(Blob { id, .. }) = Blob::unpack(Kind::Address, lender) {
            self.lock().core.lease_ended(EndpointId(id), lease, end);
        }
    }
}

impl fmt::Debug for SimNetwork {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seed = self.lock().core.seed();
        write!(f, "SimNetwork(seed {seed})")
    }
}
