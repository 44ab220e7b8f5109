//! The limits of a cache of registrations.

use std::time::Duration;

/// The rules and limits of a [`RegistrationCache`](super::RegistrationCache).
#[derive(Clone, Copy, Debug)]
pub struct CachePolicy {
    /// Maximum number of bytes that stay registered, on loan or not. Above it, a registration lasts only as long as its
    /// loan.
    pub max_bytes: usize,
    /// Maximum number of registrations that are kept, on loan or not: devices limit their number.
    pub max_entries: usize,
    /// A clock, for measuring once what registering and copying cost here. `None`: every buffer is registered when it
    /// is first lent.
    pub clock: Option<fn() -> Duration>,
}

impl Default for CachePolicy {
    /// 1 GiB, 4096 entries, without measuring.
    fn default() -> Self {
        CachePolicy { max_bytes: 1 << 30, max_entries: 4096, clock: None }
    }
}
