//! A host of the network as a [`Fabric`].

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use arrow_buffer::Buffer;
use thallus_fabric::memory::{FilePiece, RegisteredMemory, Registration};
use thallus_fabric::{Capabilities, Endpoint, Fabric, FabricError, FabricKind, Fencing, Maps, Touch};

use crate::core::{HostId, MemoryId};
use crate::endpoint::SimEndpoint;
use crate::network::{SimNetwork, SimRegistration};

/// One host of a [`SimNetwork`].
pub struct SimFabric {
    network: SimNetwork,
    host: HostId,
    registered: Arc<AtomicUsize>,
}

impl SimNetwork {
    /// Adds a host.
    #[must_use]
    pub fn host(&self) -> Arc<SimFabric> {
        let host = self.lock().core.add_host();
        Arc::new(SimFabric { network: self.clone(), host, registered: Arc::default() })
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

    fn adopt(&self, _piece: FilePiece) -> Result<Arc<RegisteredMemory>, FabricError> {
        Err(FabricError::Unsupported { fabric: self.kind(), what: "lend memory files" })
    }

    fn endpoint(&self) -> Result<Box<dyn Endpoint>, FabricError> {
        let id = self.network.lock().core.add_endpoint(self.host);
        Ok(Box::new(SimEndpoint::new(self.network.clone(), id)))
    }
}
