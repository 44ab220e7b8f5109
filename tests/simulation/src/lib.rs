//! The real server and the real client, in one process, under every fault, from one seed.

#![forbid(unsafe_code)]

mod app;
mod connection_ends;
pub mod coverage;
pub mod dice;
mod frames;
mod hostile;
mod ledger;
mod links;
pub mod options;
pub mod panics;
pub mod planted;
pub mod scripts;
mod shared;
mod sockets;
mod statements;
pub mod swarm;
mod tap;
pub mod trace;
mod wire;
pub mod world;
