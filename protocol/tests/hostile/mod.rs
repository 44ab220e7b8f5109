//! A hostile server: its messages, and the client that receives them.

pub(crate) mod client;
pub(crate) mod messages;
pub(crate) mod ops;
