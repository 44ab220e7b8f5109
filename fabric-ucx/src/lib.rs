//! Thallus over [UCX](https://openucx.org): one-sided reads by RDMA or shared memory, whatever the installed UCX finds.
//!
//! [`UcxFabric`] is the [`Fabric`]: one UCX context, and one UCX worker per endpoint.

#![warn(missing_docs)]

mod context;
mod endpoint;
mod envelope;
mod lanes;
mod memory;
mod operations;
mod options;
mod pages;
mod peer;
mod quiet;
mod status;
mod stream;
mod worker;

use std::sync::Arc;

use arrow_buffer::Buffer;
use thallus_fabric::memory::RegisteredMemory;
use thallus_fabric::{Capabilities, Endpoint, Fabric, FabricError, Fencing};
use thallus_protocol::FabricKind;

use context::UcxContext;
use endpoint::UcxEndpoint;
pub use options::{Allocation, UcxOptions};
use status::{down, unavailable};
use worker::Worker;

/// Longest single read. Through shared memory a read is a copy within the call, and must not hold up the executor's thread.
const MAX_READ: u64 = 1 << 20;
/// Most reads that an endpoint has outstanding.
const MAX_OUTSTANDING_READS: usize = 256;

/// UCX on this host.
#[derive(Debug)]
pub struct UcxFabric {
    context: Arc<UcxContext>,
    options: UcxOptions,
}

impl UcxFabric {
    /// Opens UCX.
    ///
    /// # Errors
    /// [`FabricError::Unavailable`] with the failing call, UCX's words, and what was asked for.
    pub fn new(options: UcxOptions) -> Result<Self, FabricError> {
        let context = UcxContext::new(&options).map_err(unavailable)?;
        Ok(UcxFabric { context: Arc::new(context), options })
    }
}

impl Fabric for UcxFabric {
    fn kind(&self) -> FabricKind {
        FabricKind::UCX
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities {
            fencing: Fencing::LeaseWord,
            max_read: MAX_READ,
            max_outstanding_reads: MAX_OUTSTANDING_READS,
        }
    }

    fn allocate(&self, len: usize) -> Result<Arc<RegisteredMemory>, FabricError> {
        match self.options.allocation {
            Allocation::HugePages => memory::allocate_pages(&self.context, len),
            Allocation::Segment => memory::allocate_segment(&self.context, len),
        }
    }

    fn register(&self, buffer: Buffer) -> Result<Arc<RegisteredMemory>, FabricError> {
        memory::register(&self.context, buffer)
    }

    fn endpoint(&self) -> Result<Box<dyn Endpoint>, FabricError> {
        let worker = Worker::new(self.context.clone()).map_err(down)?;
        Ok(Box::new(UcxEndpoint::new(worker, self.options.busy_poll)?))
    }
}
