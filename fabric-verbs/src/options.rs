//! Options of a verbs fabric.

use std::fmt;
use std::str::FromStr;

/// Settings of a [`crate::VerbsFabric`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct VerbsOptions {
    /// The device, as `ibv_devices` lists it (`mlx5_0`). Default: the first with an active port.
    pub device: Option<String>,
    /// The port, counted from 1. Default: the first active port.
    pub port: Option<u8>,
    /// Index into the port's table of GIDs (`show_gids`, `/sys/class/infiniband/*/ports/*/gids`). Default on Ethernet:
    /// the first of RoCE v2 with an IPv4 address, otherwise of RoCE v2 with a global IPv6 address, otherwise any entry,
    /// v2 before v1. Default on InfiniBand, where LIDs route within a subnet: 0.
    pub gid: Option<u8>,
    /// The method of exposing lent memory to a peer.
    pub exposure: Exposure,
    /// Whether [`thallus_fabric::Endpoint::poll`] requests another poll immediately while reads are outstanding,
    /// instead of waiting for the completion channel. This saves microseconds per read and costs a core. An idle
    /// endpoint waits in both cases.
    pub busy_poll: bool,
}

/// The method of exposing lent memory to a peer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Exposure {
    /// [`Exposure::Windows`] on a device that has and enforces them, otherwise [`Exposure::Registrations`].
    #[default]
    Auto,
    /// A memory window of type 2 over exactly the lent range, bound to the peer's queue pair and invalidated when the
    /// loan ends. Costs two work requests per loan, and no system call: microseconds.
    Windows,
    /// A memory region over exactly the lent range, in a protection domain of the peer's own, deregistered when the
    /// loan ends. Costs pinning and unpinning of every page of every loan: some tens of microseconds, and more for
    /// larger loans.
    Registrations,
    /// One key for all memory that can be lent. Costs nothing per loan, **and every client can read all memory that any
    /// client was or will be lent**, and the memory between, for as long as it is connected. Only for clients that may
    /// see each other's results.
    Whole,
}

impl Exposure {
    /// The names in configurations.
    pub const NAMES: [&str; 4] = ["auto", "windows", "registrations", "whole"];

    /// The name in configurations.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Exposure::Auto => "auto",
            Exposure::Windows => "windows",
            Exposure::Registrations => "registrations",
            Exposure::Whole => "whole",
        }
    }
}

impl FromStr for Exposure {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        [Exposure::Auto, Exposure::Windows, Exposure::Registrations, Exposure::Whole]
            .into_iter()
            .find(|exposure| exposure.as_str() == name)
            .ok_or_else(|| format!("known: {}", Exposure::NAMES.join(", ")))
    }
}

impl fmt::Display for Exposure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}
