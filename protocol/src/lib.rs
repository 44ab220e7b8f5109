//! The sans-IO protocol of Thallus.

#![forbid(unsafe_code)]

mod ids;
pub mod inline;
pub mod layout;
#[cfg(feature = "testing")]
pub mod testing;
mod time;

pub use ids::{FabricKind, LeaseId, ReadId, RegionId, RemoteRange, StreamId};
pub use time::Timestamp;
