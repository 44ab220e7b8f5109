//! The contenders of the comparison.

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

/// A way to get a result from a server's memory to a client's; or a limit of the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Contender {
    /// Thallus with its defaults: inline below its threshold, lent above.
    Thallus,
    /// Thallus with everything lent, and read one-sidedly into the client's memory.
    Lent,
    /// Thallus with everything lent, and mapped from the server's memory.
    Mapped,
    /// Thallus with everything inline over TCP: pure RPC.
    Inline,
    /// Arrow Flight in Rust.
    FlightRust,
    /// Arrow Flight in Rust, with `GetFlightInfo` before `DoGet`, as in Flight SQL.
    FlightSqlRust,
    /// Arrow Flight in C++, by pyarrow.
    FlightCpp,
    /// Arrow Flight in C++, with `GetFlightInfo` before `DoGet`, as in Flight SQL.
    FlightSqlCpp,
    /// Limit: a copy between warm buffers of one process.
    Memcpy,
    /// Limit: UCX reads of memory that the peer's fabric allocated, without batches.
    UcxGet,
}

impl Contender {
    pub const ALL: [Contender; 10] = [
        Contender::Thallus,
        Contender::Lent,
        Contender::Mapped,
        Contender::Inline,
        Contender::FlightRust,
        Contender::FlightSqlRust,
        Contender::FlightCpp,
        Contender::FlightSqlCpp,
        Contender::Memcpy,
        Contender::UcxGet,
    ];

    /// Name in tables and plots.
    pub fn name(self) -> &'static str {
        match self {
            Contender::Thallus => "thallus",
            Contender::Lent => "lent",
            Contender::Mapped => "mapped",
            Contender::Inline => "inline",
            Contender::FlightRust => "flight-rust",
            Contender::FlightSqlRust => "flight-sql-rust",
            Contender::FlightCpp => "flight-cpp",
            Contender::FlightSqlCpp => "flight-sql-cpp",
            Contender::Memcpy => "memcpy",
            Contender::UcxGet => "ucx-get",
        }
    }

    /// Returns whether the contender is a limit rather than a rival: it moves bytes, without batches.
    pub fn is_limit(self) -> bool {
        matches!(self, Contender::Memcpy | Contender::UcxGet)
    }

    /// Returns whether the contender is Thallus, and has reports.
    pub fn is_thallus(self) -> bool {
        matches!(self, Contender::Thallus | Contender::Lent | Contender::Mapped | Contender::Inline)
    }
}
