//! Registered memory: memory that a fabric reads from or writes to, and its owners meanwhile.
//!
//! - [`RegisteredMemory`] and [`LocalRange`] are the types that fabrics use.
//! - [`SlabPool`] is for borrowers: it provides slabs for reads. A slab returns to its pool when the last array over it
//!   is dropped.
//! - [`StagingArena`] and [`LeaseWords`] are for lenders: copies of buffers that cannot be lent in place, and the words
//!   that show a late reader that its lease has ended. A [`RegisteredSpace`] finds the registration that contains a
//!   buffer; `RegisteredHeap`, behind a feature, makes a whole program's heap such a space. A [`RegistrationCache`]
//!   registers other buffers, and keeps registrations that may be used again.
//! - [`UncheckedAssembler`] makes arrays over such memory from parts that the protocol has validated.
//! - [`copying`] makes reads of mapped memory by several threads, for fabrics of one host.
//! - [`TrustedPeer`] maps a peer's memory; [`buffer_with_guard`] makes a buffer that reports the end of its last slice.
//!
//! Outside the fabric crates, only this module has unsafe code.

mod chunks;
mod copy;
pub mod copying;
mod extents;
mod faults;
#[cfg(target_os = "linux")]
mod file;
mod guarded;
#[cfg(feature = "registered-heap")]
mod heap;
mod host;
mod lease_words;
mod pages;
mod piece;
mod pool;
#[cfg(test)]
mod pool_tests;
mod process_id;
mod registered;
mod registrations;
mod slab;
mod space;
mod staging;
#[cfg(test)]
mod test_fabric;
mod unchecked;

pub use chunks::{PoolLimits, PoolStats};
pub use faults::thread_page_faults;
#[cfg(target_os = "linux")]
pub use file::{FileMapping, SEALS};
pub use guarded::buffer_with_guard;
#[cfg(feature = "registered-heap")]
pub use heap::{HeapError, HeapMemory, HeapStats, RegisteredHeap};
pub(crate) use host::cgroup_file;
pub use host::{HostMemory, check_available};
pub use lease_words::LeaseWords;
pub use pages::Pages;
pub use piece::FilePiece;
pub use pool::{SlabPool, WeakPool};
pub use process_id::process_id;
pub use registered::{LocalRange, RangeHold, RegisteredMemory, Registration};
pub use registrations::{CachePolicy, CacheStats, RegistrationCache};
pub use slab::Slab;
pub use space::{RegisteredSpace, Trimmed};
pub use staging::{StagedRange, StagingArena, StagingStats};
pub use unchecked::UncheckedAssembler;

pub use crate::fabric::TrustedPeer;

/// The unit of slabs: start and length of each slab are multiples of it. It is the smallest page of every machine that
/// Thallus runs on, and a multiple of the 64 bytes that arrow recommends as the alignment of buffers.
pub const PAGE: usize = 4096;
