//! Registered memory: what a fabric may read from or write to, and who keeps it alive meanwhile.
//!
//! - [`RegisteredMemory`] and [`LocalRange`] are what fabrics deal in.
//! - [`SlabPool`] is the borrower's: slabs for reads to land in, which come back when the last array over them is dropped.
//! - [`StagingArena`] and [`LeaseWords`] are the lender's: copies of what cannot be lent from where it lies, and the words
//!   that tell a late reader that its lease has ended. A [`RegisteredSpace`] tells what can be lent from where it lies;
//!   `RegisteredHeap`, behind a feature, makes a whole program's heap such a space. A [`RegistrationCache`] registers what lies in
//!   none, and keeps what may be lent again.
//! - [`Trusting`] makes arrays over such memory, of what the protocol has validated.
//! - [`keep`] makes a buffer over a peer's memory that says when nobody looks at it any more.
//!
//! The only unsafe code outside the fabric crates is here.

mod available;
mod copy;
mod extents;
mod faults;
#[cfg(feature = "registered-heap")]
mod heap;
mod kept;
mod lease_words;
mod pages;
mod pool;
#[cfg(test)]
mod pool_tests;
mod registered;
mod registrations;
mod slab;
mod space;
mod staging;
#[cfg(test)]
mod test_fabric;
mod trusting;

pub use available::check_available;
pub(crate) use available::room_in;
pub use faults::thread_page_faults;
#[cfg(feature = "registered-heap")]
pub use heap::{HeapError, HeapMemory, HeapStats, RegisteredHeap};
pub use kept::keep;
pub use lease_words::LeaseWords;
pub use pages::Pages;
pub use pool::{PoolLimits, PoolStats, SlabPool, WeakPool};
pub use registered::{LocalRange, RangeHold, RegisteredMemory, Registration};
pub use registrations::{CachePolicy, CacheStats, RegistrationCache};
pub use slab::Slab;
pub use space::RegisteredSpace;
pub use staging::{StagedRange, StagingArena, StagingStats};
pub use trusting::Trusting;

/// The grain of slabs: each begins at a multiple of this and is a multiple of this long. The smallest page of every machine
/// that Thallus runs on, which is also a multiple of the 64 bytes that arrow recommends its buffers be aligned to.
pub const PAGE: usize = 4096;
