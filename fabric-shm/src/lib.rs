//! Thallus between processes of one Linux host: regions are memory files (memfd), whose descriptors travel over a Unix
//! socket.
//!
//! [`ShmFabric`] is the [`Fabric`]. It needs no library, no `/dev/shm`, no locked memory, no System V segments and no
//! privileges, and works between users and between containers.
//!
//! # How it works
//!
//! - A region is a memory file. The lender maps it for writing, and then seals it against shrinking, growing and new
//!   writable mappings (memfd_create(2), fcntl(2)). The file ends with its last mapping and descriptor, however the
//!   processes end.
//! - Each endpoint listens on an abstract Unix socket, and on one with a path if there is a
//!   [directory](ShmOptions::directory). The address blob has the socket's name, and a secret that the peer shows.
//! - [`Endpoint::expose`] sends a read-only descriptor of the region over that socket. The peer maps the region, once
//!   for all of its connections.
//! - A read is a copy by the borrower's own threads; the lender has no part in it. A mapped buffer is a slice of the
//!   region, without the copy.
//!
//! # Trust
//! A peer reaches exactly the regions whose descriptors this process sent to it. It can read all of such a region, for
//! as long as it keeps the descriptor, and can neither write, shorten nor punch holes. The kernel vouches for a peer's
//! user (`SO_PEERCRED`), and a region goes only to users of its [`Audience`]. Keys cannot be revoked, so lease words
//! fence the leases ([`Fencing::LeaseWord`]).
//!
//! A borrower maps only ordinary memory files that are sealed against shrinking and against holes: neither the end of
//! the file nor a page in it can vanish under a read. The
//! lender can change bytes during a read, as with any one-sided read; the lease word and the validation of the copy
//! detect that.
//!
//! # When the peer dies
//! The kernel closes its socket, and the endpoint fails immediately. Mapped memory stays readable.

#![warn(missing_docs)]

mod address;
mod attachment;
mod audience;
mod diagnose;
mod endpoint;
mod key;
mod links;
mod options;
mod region;
mod socket;
mod status;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use arrow_buffer::Buffer;
use thallus_fabric::memory::copying::CopyPool;
use thallus_fabric::memory::{FilePiece, RegisteredMemory};
use thallus_fabric::{Capabilities, Endpoint, Fabric, FabricError, FabricKind, Fencing, Maps, Touch};

use attachment::Attachments;
pub use audience::Audience;
pub use diagnose::diagnose;
use endpoint::ShmEndpoint;
pub use options::ShmOptions;
use status::unavailable;

/// Longest single read. A read is a copy by one thread, which must not hold up the executor; several threads share what
/// is read in pieces.
const MAX_READ: u64 = 256 << 10;
/// Most reads that an endpoint has outstanding.
const MAX_OUTSTANDING_READS: usize = 256;

/// Shared memory on this host.
#[derive(Clone, Debug)]
pub struct ShmFabric {
    shared: Arc<Shared>,
}

/// The part of a fabric that its endpoints share.
#[derive(Debug)]
pub(crate) struct Shared {
    options: ShmOptions,
    copy_pool: Arc<CopyPool>,
    attachments: Arc<Attachments>,
    users: Arc<Users>,
}

/// The fabrics for memory of single users.
type Users = Mutex<HashMap<u32, Weak<ShmFabric>>>;

impl ShmFabric {
    /// Opens the fabric, and tries what it needs of the kernel.
    ///
    /// # Errors
    /// [`FabricError::Unavailable`]: the kernel has no memory files with seals (Linux 5.1 has), or a sandbox forbids
    /// them, or the directory for sockets cannot be used.
    pub fn new(options: ShmOptions) -> Result<Self, FabricError> {
        region::allocate(1, Touch::WhenUsed, options.audience).map_err(|error| unavailable(error.to_string()))?;
        if let Some(directory) = &options.directory {
            let swept = address::sweep(directory);
            let swept = swept.map_err(|error| unavailable(format!("directory {}: {error}", directory.display())))?;
            if swept > 0 {
                tracing::info!(directory = %directory.display(), swept, "sockets of processes that are gone");
            }
        }
        let copy_pool = CopyPool::new(options.copy_threads);
        let (attachments, users) = (Arc::default(), Arc::default());
        Ok(ShmFabric { shared: Arc::new(Shared { options, copy_pool, attachments, users }) })
    }

    /// The same fabric for memory that another audience may read.
    fn with_audience(&self, audience: Audience) -> Self {
        let Shared { options, copy_pool, attachments, users } = &*self.shared;
        let options = ShmOptions { audience, ..options.clone() };
        let (copy_pool, attachments, users) = (Arc::clone(copy_pool), Arc::clone(attachments), Arc::clone(users));
        ShmFabric { shared: Arc::new(Shared { options, copy_pool, attachments, users }) }
    }

    /// The fabric for memory that a user may read, the same for all connections of that user.
    fn for_user(&self, user: u32) -> Arc<Self> {
        let mut users = self.shared.users.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = users.get(&user).and_then(Weak::upgrade) {
            return known;
        }
        users.retain(|_, known| known.strong_count() > 0);
        let new = Arc::new(self.with_audience(Audience::User(user)));
        users.insert(user, Arc::downgrade(&new));
        new
    }
}

impl Fabric for ShmFabric {
    fn kind(&self) -> FabricKind {
        FabricKind::SHM
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities {
            fencing: Fencing::LeaseWord,
            max_read: MAX_READ,
            max_outstanding_reads: MAX_OUTSTANDING_READS,
            exposes_ranges: false,
            registers_when_exposed: false,
            maps: Maps::Allocated,
        }
    }

    fn allocate(&self, len: usize, touch: Touch) -> Result<Arc<RegisteredMemory>, FabricError> {
        region::allocate(len, touch, self.shared.options.audience)
    }

    fn register(&self, _buffer: Buffer) -> Result<Arc<RegisteredMemory>, FabricError> {
        Err(FabricError::Unsupported {
            fabric: FabricKind::SHM,
            what: "lend memory of another owner: it has no descriptor; copy it to allocated memory",
        })
    }

    fn adopt(&self, piece: FilePiece) -> Result<Arc<RegisteredMemory>, FabricError> {
        Ok(region::adopt(piece, self.shared.options.audience))
    }

    fn endpoint(&self) -> Result<Box<dyn Endpoint>, FabricError> {
        Ok(Box::new(ShmEndpoint::new(self)?))
    }
}

/// The example of README.md compiles.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
