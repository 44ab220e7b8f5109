//! What the whole-system tests and the demonstration share.

pub mod tpch;
