//! Thallus over InfiniBand verbs: RDMA READ through reliable connections, on InfiniBand, RoCE and Soft-RoCE.
//!
//! [`VerbsFabric`] is the [`Fabric`]: one port of one device. Each endpoint has two queue pairs and one completion
//! queue.
//!
//! # Protection of lent memory
//!
//! A peer can read exactly the memory that is lent to it, for as long as it is lent: the device checks every read.
//! [`Exposure`] lists the methods; [`VerbsFabric::describe`] reports the chosen method and the reason. Closing an
//! endpoint, or the end of a loan, cuts the peer off in hardware ([`Fencing::Revocation`]).
//!
//! # Libraries
//! Types come from `ibverbs-sys`, the ffi of crate `ibverbs`. libibverbs itself is loaded when a fabric is opened. A
//! program with this crate starts on hosts without rdma-core; there [`VerbsFabric::new`] reports the missing library.
//!
//! # Death of the peer
//!
//! The device notices it by itself: outstanding reads end in "retry counter exceeded" after about a second. A lender,
//! whose device only answers reads, notices it by the control connection.

#![warn(missing_docs)]

mod address;
mod device;
mod diagnose;
mod endpoint;
mod exposure;
mod gid;
mod library;
mod limits;
mod memory;
mod options;
mod queue;
mod reads;
mod status;
mod verify;

use std::sync::Arc;

use arrow_buffer::Buffer;
use thallus_fabric::memory::{FilePiece, RegisteredMemory};
use thallus_fabric::{Capabilities, Endpoint, Fabric, FabricError, Fencing, Maps, Touch};
use thallus_protocol::FabricKind;

use device::Device;
pub use diagnose::diagnose;
pub use endpoint::VerbsEndpoint;
use exposure::Scope;
pub use options::{Exposure, VerbsOptions};
use queue::Domain;
use status::{down, unavailable};

/// Maximum length of one read in bytes: long enough that the device's work per read is negligible, short enough that
/// reads of several batches share the link.
const MAX_READ: u32 = 1 << 20;
/// Maximum number of outstanding reads of an endpoint. The device has as many in flight as both devices can (16 or so,
/// reported by [`Endpoint::transport`]); the others wait in its queue.
const MAX_OUTSTANDING_READS: usize = 128;

/// The fabric over one port of an RDMA device.
#[derive(Debug)]
pub struct VerbsFabric {
    options: VerbsOptions,
    scope: Scope,
    /// The reason why windows are not used, if they were considered.
    scope_reason: Option<String>,
    max_read: u64,
    max_outstanding: usize,
    domain: Arc<Domain>,
    device: Arc<Device>,
}

impl VerbsFabric {
    /// Opens the device that the options name, or the first device with an active port.
    ///
    /// # Errors
    /// [`FabricError::Unavailable`] with the missing part and its remedy.
    pub fn new(options: VerbsOptions) -> Result<Self, FabricError> {
        Self::open(options, verify::windows_hold)
    }

    /// As [`VerbsFabric::new`], with memory windows, whether or not the device enforces their bounds. For tests of
    /// windows on Soft-RoCE, which supports windows except for their bounds.
    #[doc(hidden)]
    pub fn with_unverified_windows(options: VerbsOptions) -> Result<Self, FabricError> {
        Self::open(VerbsOptions { exposure: Exposure::Windows, ..options }, |_| Ok(()))
    }

    fn open(options: VerbsOptions, verify: fn(&Arc<Domain>) -> Result<(), String>) -> Result<Self, FabricError> {
        let device = Arc::new(Device::open(&options).map_err(unavailable)?);
        let domain = Domain::new(&device).map_err(unavailable)?;
        let limits = device.limits;
        if (limits.max_work_requests as usize) < MAX_OUTSTANDING_READS + 1 {
            let reason = format!("device {} takes {} work requests at once", device.name, limits.max_work_requests);
            return Err(unavailable(reason));
        }
        let windows = || match limits.windows {
            true => verify(&domain),
            false => Err("the device has no memory windows of type 2B".to_owned()),
        };
        let (scope, scope_reason) = match options.exposure {
            Exposure::Whole => (Scope::Whole, None),
            Exposure::Registrations => (Scope::Registrations, None),
            Exposure::Windows => match windows() {
                Ok(()) => (Scope::Windows, None),
                Err(reason) => return Err(unavailable(format!("{}: {reason}", device.name))),
            },
            Exposure::Auto => match windows() {
                Ok(()) => (Scope::Windows, None),
                Err(reason) => (Scope::Registrations, Some(reason)),
            },
        };
        let max_read = u64::from(MAX_READ.min(device.port.max_message));
        Ok(VerbsFabric {
            options,
            scope,
            scope_reason,
            max_read,
            max_outstanding: MAX_OUTSTANDING_READS,
            domain,
            device,
        })
    }

    /// A description of the port and of the way in which lent memory is exposed.
    #[must_use]
    pub fn describe(&self) -> String {
        let Device { name, port, .. } = &*self.device;
        let how = match self.scope {
            Scope::Windows => "a memory window for each loan",
            Scope::Registrations => "a registration for each loan",
            Scope::Whole => "ONE KEY FOR ALL MEMORY: clients can read each other's results",
        };
        let why = self.scope_reason.as_ref().map(|reason| format!(" ({reason})")).unwrap_or_default();
        format!("{name} port {}, {}; {how}{why}", port.number, port.gid)
    }

    /// An endpoint, as [`Fabric::endpoint`] creates it.
    ///
    /// # Errors
    /// [`FabricError::EndpointDown`] if the device has no resources for another endpoint.
    pub fn verbs_endpoint(&self) -> Result<VerbsEndpoint, FabricError> {
        VerbsEndpoint::new(self).map_err(down)
    }
}

impl Fabric for VerbsFabric {
    fn kind(&self) -> FabricKind {
        FabricKind::VERBS
    }

    fn capabilities(&self) -> Capabilities {
        // A key for all memory stays valid after the loan for which it was given.
        let fencing = if self.scope == Scope::Whole { Fencing::LeaseWord } else { Fencing::Revocation };
        Capabilities {
            fencing,
            max_read: self.max_read,
            max_outstanding_reads: self.max_outstanding,
            exposes_ranges: self.scope != Scope::Whole,
            registers_when_exposed: self.scope == Scope::Registrations,
            maps: Maps::Nothing {
                reason: "an RDMA device reads memory, and maps none; on one host shm and UCX do".into(),
            },
        }
    }

    fn allocate(&self, len: usize, _touch: Touch) -> Result<Arc<RegisteredMemory>, FabricError> {
        // The device pins the pages, which touches them.
        memory::allocate(&self.domain, len, self.scope.access())
    }

    fn register(&self, buffer: Buffer) -> Result<Arc<RegisteredMemory>, FabricError> {
        let access = (self.scope != Scope::Registrations).then(|| self.scope.access());
        memory::register(&self.domain, buffer, access)
    }

    fn adopt(&self, _piece: FilePiece) -> Result<Arc<RegisteredMemory>, FabricError> {
        Err(FabricError::Unsupported { fabric: FabricKind::VERBS, what: "lend memory files" })
    }

    fn endpoint(&self) -> Result<Box<dyn Endpoint>, FabricError> {
        Ok(Box::new(self.verbs_endpoint()?))
    }
}

/// The examples of README.md compile.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
