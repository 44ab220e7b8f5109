//! Registered memory: what a fabric may read from or write to, and who keeps it alive meanwhile.
//!
//! The only unsafe code outside the fabric crates is here.

mod registered;

pub use registered::{LocalRange, RegisteredMemory, Registration};
