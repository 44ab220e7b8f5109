//! The network as a [`Fabric`].

use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Waker;

use arrow_buffer::Buffer;
use thallus_fabric::memory::{RegisteredMemory, Registration};
use thallus_fabric::observe::LoanObserver;
use thallus_fabric::{
    Capabilities, Endpoint, Fabric, FabricError, FabricKind, Fencing, LeaseEnd, LeaseId, Maps, RemoteRange, Touch,
};

use crate::SimOptions;
use crate::blob::{Blob, Kind};
use crate::core::{Core, EndpointId, Event, HostId, MemoryId, Stats, Violation};
use crate::endpoint::SimEndpoint;

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

/// One host of a [`SimNetwork`].
pub struct SimFabric {
    network: SimNetwork,
    host: HostId,
    registered: Arc<AtomicUsize>,
}

/// The network's part of a registration.
#[derive(Debug)]
pub(crate) struct SimRegistration {
    pub(crate) id: MemoryId,
    len: usize,
    /// Bytes registered at the host.
    registered: Arc<AtomicUsize>,
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

    /// Adds a host.
    #[must_use]
    pub fn host(&self) -> Arc<SimFabric> {
        let host = self.lock().core.add_host();
        Arc::new(SimFabric { network: self.clone(), host, registered: Arc::default() })
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

impl SimFabric {
    /// The host's id in the network.
    #[must_use]
    pub fn id(&self) -> HostId {
        self.host
    }

    /// The network.
    #[must_use]
    pub fn network(&self) -> &SimNetwork {
        &self.network
    }

    /// Bytes currently registered at this host.
    #[must_use]
    pub fn registered_bytes(&self) -> usize {
        self.registered.load(Ordering::Acquire)
    }

    fn registration(&self, len: usize) -> Result<Box<SimRegistration>, FabricError> {
        let limit = self.network.lock().core.options().max_registered;
        let fits = |before: usize| before.checked_add(len).filter(|&after| after <= limit);
        self.registered
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, fits)
            .map_err(|before| FabricError::OutOfMemory { len, available: limit.saturating_sub(before), limit })?;
        let id = self.network.lock().core.new_memory_id();
        Ok(Box::new(SimRegistration { id, len, registered: Arc::clone(&self.registered) }))
    }

    fn announce(&self, id: MemoryId, memory: RegisteredMemory) -> Arc<RegisteredMemory> {
        let memory = Arc::new(memory);
        self.network.lock().core.add_memory(id, self.host, &memory);
        memory
    }
}

impl fmt::Debug for SimFabric {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SimFabric({:?}, {:?})", self.network, self.host)
    }
}

impl Fabric for SimFabric {
    fn kind(&self) -> FabricKind {
        FabricKind::SIM
    }

    fn capabilities(&self) -> Capabilities {
        let shared = self.network.lock();
        let options = shared.core.options();
        Capabilities {
            fencing: options.fencing,
            max_read: options.max_read,
            max_outstanding_reads: options.max_outstanding_reads,
            exposes_ranges: options.exposes_ranges,
            registers_when_exposed: false,
            maps: match options.fencing {
                // As with shared memory.
                Fencing::LeaseWord => Maps::Allocated,
                Fencing::Revocation => {
                    Maps::Nothing { reason: "the simulated network plays a device that maps nothing".into() }
                }
            },
        }
    }

    fn allocate(&self, len: usize, _touch: Touch) -> Result<Arc<RegisteredMemory>, FabricError> {
        let mut id = None;
        let memory = RegisteredMemory::heap(len, |_, len| {
            let registration = self.registration(len)?;
            id = Some(registration.id);
            Ok::<Box<dyn Registration>, FabricError>(registration)
        });
        match (memory, id) {
            (Some(Ok(memory)), Some(id)) => Ok(self.announce(id, memory)),
            (Some(Err(error)), _) => Err(error),
            _ => {
                let limit = self.network.lock().core.options().max_registered;
                Err(FabricError::OutOfMemory { len, available: 0, limit })
            }
        }
    }

    fn register(&self, buffer: Buffer) -> Result<Arc<RegisteredMemory>, FabricError> {
        if !self.network.lock().core.options().foreign_memory {
            return Err(FabricError::Unsupported { fabric: self.kind(), what: "lend memory that it did not allocate" });
        }
        if buffer.is_empty() {
            let reason = "the buffer is empty".to_owned();
            return Err(FabricError::Registration { fabric: self.kind(), len: 0, reason });
        }
        let registration = self.registration(buffer.len())?;
        let id = registration.id;
        Ok(self.announce(id, RegisteredMemory::foreign(buffer, registration)))
    }

    fn endpoint(&self) -> Result<Box<dyn Endpoint>, FabricError> {
        let id = self.network.lock().core.add_endpoint(self.host);
        Ok(Box::new(SimEndpoint::new(self.network.clone(), id)))
    }
}
