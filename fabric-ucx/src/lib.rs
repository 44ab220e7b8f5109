//! Thallus over [UCX](https://openucx.org): one-sided reads by RDMA or shared memory, as the installed UCX provides.
//!
//! [`UcxFabric`] is the [`Fabric`]: one UCX context, and one UCX worker per endpoint. UCX is loaded when the first
//! fabric is opened, so a program with this crate starts without it. The project's tests run under UCX 1.13 to 1.22,
//! also between two versions.
//!
//! # Transports of the reads
//!
//! | between | memory from [`Fabric::allocate`] | memory from [`Fabric::register`] |
//! |---|---|---|
//! | hosts with InfiniBand or RoCE | RDMA, by UCX | RDMA, by UCX |
//! | processes of one host and one user | shared memory: the reader copies, by this crate's own threads | emulated |
//! | anything else | emulated | emulated |
//!
//! [`Endpoint::transport`] reports the transport, and module `route` decides it: by UCX's functions for programs
//! (`ucp_rkey_ptr`, `ucp_ep_query`, packed keys), never by text that UCX prints. Through shared memory UCX makes the
//! connection and shares the segments. The copies are this crate's own, since UCX from 1.16 on emulates reads even
//! there.
//!
//! Emulated means that the lender's worker answers messages, at the cost of its CPU. UCX 1.13 to 1.19 were observed to
//! abort a lender whose reader dies during an emulated read (`ucp_progress_get_reply`, unchanged up to 1.22). So
//! emulated reads are off by default ([`UcxOptions::emulation`]): memory that would need them is refused when it is
//! registered or imported, and an endpoint without one-sided reads reports itself as inferior to inline transfer.
//! [`UcxFabric::reads_registered_memory`] is whether registered memory is read one-sidedly.
//!
//! # Trust
//!
//! **Use UCX only between ends that trust each other, on a network that you trust.** UCX cannot revoke a key
//! ([`Fencing::LeaseWord`]), and is not designed against malice. It reads worker addresses and remote keys without
//! bounds: of 60 random worker addresses 53 ended UCX 1.13.1 by abort or segfault, and so did one of 60 with up to
//! three bits flipped, and 11 of 60 such keys. It answers emulated reads and writes for *any* address of this process,
//! without checking a key, whether or not this end uses them. And a shared-memory segment that its owner truncates
//! kills its reader by SIGBUS. This crate puts both blobs into an envelope with a checksum, which protects from
//! accident, not from malice. For more protection use the verbs fabric, where the hardware checks every access, or
//! inline transfer over an encrypted control connection.
//!
//! # Death of the peer
//!
//! Endpoints are created with UCX's peer error handling. A TCP or RDMA connection notices the peer's death by itself.
//! Through shared memory UCX checks every 2 s (`UCX_KEEPALIVE_INTERVAL`) whether the peer's process exists (a process
//! that is dead but not reaped by its parent counts as existing). UCX 1.13 does not check where it has RDMA, since the
//! check can abort this process; there, failed reads and the control connection show the death. Until then one-sided
//! reads of a dead peer's segment succeed: the segment stays mapped, with its last contents, so no wrong byte is read.
//! A [mapped](thallus_fabric::MapsPeer::map) buffer stays readable for as long as it is held.

#![warn(missing_docs)]

mod attachment;
mod capabilities;
mod checksum;
mod config;
mod context;
mod defaults;
mod describe;
mod diagnose;
mod domains;
mod endpoint;
mod envelope;
mod exit;
mod host;
mod memory;
mod operations;
mod options;
mod peer;
mod quiet;
mod rehearse;
mod reports;
mod route;
mod status;
mod stream;
mod worker;

use std::sync::Arc;

use arrow_buffer::Buffer;
use thallus_fabric::memory::copying::CopyPool;
use thallus_fabric::memory::{FilePiece, RegisteredMemory};
use thallus_fabric::{Capabilities, Endpoint, Fabric, FabricError, Fencing, Touch};
use thallus_protocol::FabricKind;

use capabilities::{MAX_OUTSTANDING_READS, MAX_READ, maps};
use context::{UcxContext, keepalive_aborts};
pub use describe::Description;
pub use diagnose::diagnose;
use domains::Domains;
use endpoint::UcxEndpoint;
pub use exit::exit_process;
pub use options::{Allocation, UcxOptions};
use status::{down, unavailable};
use worker::Worker;

/// The fabric over UCX.
#[derive(Debug)]
pub struct UcxFabric {
    context: Arc<UcxContext>,
    copy_pool: Arc<CopyPool>,
    options: UcxOptions,
    /// The domains with which memory of this end is registered.
    domains: Domains,
    description: Description,
}

impl UcxFabric {
    /// Opens UCX.
    ///
    /// # Errors
    /// [`FabricError::Unavailable`] with the failed call, UCX's text, and the requested transports and devices.
    pub fn new(options: UcxOptions) -> Result<Self, FabricError> {
        let (context, domains) = open(&options).map_err(unavailable)?;
        // RDMA devices register memory in place. On one host, only segments that UCX allocates are read one-sidedly.
        let description = Description::new(context.ucx(), &context.info().unwrap_or_default(), domains.rdma);
        let copy_pool = CopyPool::new(options.copy_threads);
        let fabric = UcxFabric { context, copy_pool, options, domains, description };
        fabric.check_lockable().map_err(|error| unavailable(error.to_string()))?;
        Ok(fabric)
    }

    /// Checks whether a worker can get the locked memory that RDMA needs. If not, UCX 1.13
    /// (`uct_ud_iface_complete_init`) would retry for ever.
    fn check_lockable(&self) -> Result<(), FabricError> {
        /// More bytes than a worker registers with these settings.
        const WORKER: usize = 4 << 20;
        if self.domains.rdma { memory::allocate_pages(&self.context, WORKER).map(drop) } else { Ok(()) }
    }

    /// An endpoint that also reads by emulation.
    fn emulating_endpoint(&self) -> Result<Box<dyn Endpoint>, FabricError> {
        self.open_endpoint(&UcxOptions { emulation: true, ..self.options.clone() })
    }

    fn open_endpoint(&self, options: &UcxOptions) -> Result<Box<dyn Endpoint>, FabricError> {
        self.check_lockable()?;
        let worker = Worker::new(self.context.clone()).map_err(down)?;
        Ok(Box::new(UcxEndpoint::new(worker, &self.copy_pool, options, self.domains)?))
    }

    /// A description of UCX on this host, for the `doctor` command.
    #[must_use]
    pub fn describe(&self) -> &Description {
        &self.description
    }

    /// Whether some transport of this host reads memory from [`Fabric::register`] one-sidedly. If not, such memory can
    /// be lent only after a copy to memory from [`Fabric::allocate`].
    #[must_use]
    pub fn reads_registered_memory(&self) -> bool {
        self.description.reads_registered_memory
    }
}

/// Opens UCX, and finds the memory domains with which memory of this end is registered.
fn open(options: &UcxOptions) -> Result<(Arc<UcxContext>, Domains), String> {
    let context = UcxContext::new(options)?;
    let domains = memory::domains(&context)?;
    let ucx = context.ucx();
    if !keepalive_aborts(ucx.version(), domains) {
        return Ok((context, domains));
    }
    drop(context);
    Ok((UcxContext::without_keepalive(ucx, options)?, domains))
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
            exposes_ranges: false,
            registers_when_exposed: false,
            maps: maps(&self.options, self.domains),
        }
    }

    fn allocate(&self, len: usize, touch: Touch) -> Result<Arc<RegisteredMemory>, FabricError> {
        match self.options.allocation {
            // UCX or a device pins the pages, so they are touched in any case.
            Allocation::HugePages => memory::allocate_pages(&self.context, len),
            Allocation::Segment => memory::allocate_segment(&self.context, len, touch),
        }
    }

    fn register(&self, buffer: Buffer) -> Result<Arc<RegisteredMemory>, FabricError> {
        if !self.options.emulation && !self.reads_registered_memory() {
            return Err(FabricError::Unsupported {
                fabric: FabricKind::UCX,
                what: "lend registered memory here: no transport reads it one-sidedly; copy to allocated memory",
            });
        }
        memory::register(&self.context, buffer)
    }

    fn adopt(&self, _piece: FilePiece) -> Result<Arc<RegisteredMemory>, FabricError> {
        Err(FabricError::Unsupported { fabric: FabricKind::UCX, what: "lend memory files" })
    }

    fn endpoint(&self) -> Result<Box<dyn Endpoint>, FabricError> {
        self.open_endpoint(&self.options)
    }
}

/// The examples of README.md compile.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
