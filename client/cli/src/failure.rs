//! Everything that ends `thallus` early: what is said of it, and with which code it exits.

use std::fmt;
use std::io;

use thallus_client::{ClientError, StreamCode};

/// The exit codes, as `--help` lists them.
pub mod code {
    /// An argument or URL is wrong, or the result does not fit the format.
    pub const USAGE: u8 = 2;
    /// No connection came about.
    pub const CONNECT: u8 = 3;
    /// The server refused the query, or it failed there.
    pub const QUERY: u8 = 4;
    /// The transfer failed before its end.
    pub const TRANSFER: u8 = 5;
    /// A local file or pipe could not be read or written.
    pub const LOCAL: u8 = 6;
    /// Ctrl-C: 128 + SIGINT.
    pub const INTERRUPTED: u8 = 130;
    /// The reader of the output went away: 128 + SIGPIPE.
    pub const BROKEN_PIPE: u8 = 141;
    /// Asked to end: 128 + SIGTERM.
    pub const TERMINATED: u8 = 143;
}

/// How far things had come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Until the server has said what it is.
    Connect,
    /// From sending a query.
    Transfer,
}

/// The signal that ended it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Interrupt {
    /// SIGINT.
    CtrlC,
    /// SIGTERM.
    Terminate,
}

/// Why `thallus` ends early.
#[derive(Debug)]
pub enum Failure {
    /// The user asked for what cannot be.
    Usage {
        /// What is wrong, and why.
        message: String,
        /// What to do.
        hint: String,
    },
    /// The client library gave up.
    Client {
        /// When.
        phase: Phase,
        /// Why.
        error: ClientError,
    },
    /// The result does not fit the format.
    Format {
        /// What is wrong, and why.
        message: String,
        /// What to do.
        hint: String,
    },
    /// A file or pipe here.
    Local {
        /// What was done, to what: `cannot write out.csv`.
        what: String,
        /// Why not.
        source: io::Error,
    },
    /// `thallus doctor` found nothing but inline transfer; it has said why.
    NoFabric,
    /// The reader of the output has had enough: no failure of ours, nothing is said.
    BrokenPipe,
    /// A signal.
    Interrupted(Interrupt),
}

impl Failure {
    /// The code to exit with.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        match self {
            Failure::Usage { .. } | Failure::Format { .. } => code::USAGE,
            Failure::Client { phase, error } => exit_code(*phase, error),
            Failure::NoFabric => code::CONNECT,
            Failure::Local { .. } => code::LOCAL,
            Failure::BrokenPipe => code::BROKEN_PIPE,
            Failure::Interrupted(Interrupt::CtrlC) => code::INTERRUPTED,
            Failure::Interrupted(Interrupt::Terminate) => code::TERMINATED,
        }
    }

    /// What the user can do.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        match self {
            Failure::Usage { hint, .. } | Failure::Format { hint, .. } => Some(hint.clone()),
            Failure::Client { phase, error } => hint(*phase, error).map(str::to_owned),
            Failure::Local { source, .. } => match source.kind() {
                io::ErrorKind::StorageFull => Some("make room, or write elsewhere with --output".into()),
                io::ErrorKind::PermissionDenied => {
                    Some("check the permissions, or write elsewhere with --output".into())
                }
                _ => None,
            },
            Failure::NoFabric => Some("do what stands beside the lines marked !!".into()),
            Failure::BrokenPipe | Failure::Interrupted(_) => None,
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Failure::Usage { message, .. } | Failure::Format { message, .. } => f.write_str(message),
            Failure::Client { error, .. } => error.fmt(f),
            Failure::Local { what, source } => write!(f, "{what}: {source}"),
            Failure::NoFabric => f.write_str("no fabric works on this host"),
            Failure::BrokenPipe => f.write_str("the output was closed"),
            Failure::Interrupted(Interrupt::CtrlC) => f.write_str("interrupted"),
            Failure::Interrupted(Interrupt::Terminate) => f.write_str("terminated"),
        }
    }
}

/// The exit code for an error of the client library in a phase.
#[must_use]
pub fn exit_code(phase: Phase, error: &ClientError) -> u8 {
    // What breaks a connection counts as what it prevented.
    let by_phase = match phase {
        Phase::Connect => code::CONNECT,
        Phase::Transfer => code::TRANSFER,
    };
    match error {
        ClientError::Url(..) | ClientError::OutOfRange { .. } | ClientError::TooManyPartitions { .. } => code::USAGE,
        ClientError::Connect { .. } | ClientError::Version { .. } => code::CONNECT,
        ClientError::Query { .. } | ClientError::Mapping { .. } | ClientError::SqlTooLong { .. } => code::QUERY,
        ClientError::Read { .. }
        | ClientError::ReadTimeout { .. }
        | ClientError::LeaseExpired { .. }
        | ClientError::BatchTooLarge { .. }
        | ClientError::InvalidBatch { .. }
        | ClientError::OutOfMemory { .. }
        | ClientError::Incomplete { .. }
        | ClientError::Merge { .. }
        | ClientError::Source { .. }
        | ClientError::Random { .. } => code::TRANSFER,
        ClientError::Timeout { .. }
        | ClientError::Refused { .. }
        | ClientError::Fabric { .. }
        | ClientError::ServerGone { .. }
        | ClientError::Protocol { .. } => by_phase,
        ClientError::Cancelled => code::INTERRUPTED,
        // A library that is newer than this.
        _ => by_phase,
    }
}

fn hint(phase: Phase, error: &ClientError) -> Option<&'static str> {
    Some(match error {
        ClientError::Url(..) => "a URL looks like thallus://localhost:7807?window=64MiB; see thallus query --help",
        ClientError::Connect { .. } => "check the address, and that thallus-server runs there and its port is open",
        ClientError::Timeout { .. } if phase == Phase::Connect => {
            "check the address and the firewall, or allow more time with connect_timeout in the URL"
        }
        ClientError::Timeout { .. } => {
            "see whether the server is well with thallus ping, or allow more time: --deadline, read_timeout in the URL"
        }
        ClientError::Refused { .. } => "try again later; the server's log says more",
        ClientError::Version { .. } => "install client and server of the same release; see thallus version",
        ClientError::Fabric { .. } => "connect without one-sided reads: fabric=none in the URL",
        ClientError::Query { kind, .. } => return query_hint(*kind),
        ClientError::Read { .. } | ClientError::ReadTimeout { .. } => {
            "run the query again; --lend-from never does without one-sided reads"
        }
        ClientError::LeaseExpired { .. } => "run the query again, and take batches faster or in a larger --window",
        ClientError::BatchTooLarge { .. } => "ask for smaller batches with --batch-rows, or raise max_batch in the URL",
        ClientError::OutOfMemory { .. } => "ask for less at once: --window, --batch-rows, pool in the URL",
        ClientError::InvalidBatch { .. } | ClientError::Incomplete { .. } => {
            "this is a bug in the client or the server; their logs say more (THALLUS_LOG)"
        }
        ClientError::TooManyPartitions { .. } => "ask for fewer --partitions",
        ClientError::SqlTooLong { .. } => "raise engine.max_sql_bytes at the server",
        ClientError::ServerGone { .. } => "the server's log may say why; thallus ping says whether it is back",
        ClientError::Protocol { .. } if phase == Phase::Connect => "is that a thallus-server? See its address and port",
        ClientError::Protocol { .. } => "this is a bug in the client or the server; their logs say more (THALLUS_LOG)",
        ClientError::Mapping { .. } => "leave out --access map",
        ClientError::Merge { .. } => "take rows as they come with --unordered",
        ClientError::OutOfRange { .. }
        | ClientError::Source { .. }
        | ClientError::Random { .. }
        | ClientError::Cancelled
        | _ => return None,
    })
}

fn query_hint(kind: StreamCode) -> Option<&'static str> {
    match kind {
        StreamCode::Syntax => Some("check the SQL where the message points"),
        StreamCode::UnknownTable => Some("SHOW TABLES lists the tables that the server has"),
        StreamCode::Plan => Some("DESCRIBE table lists a table's columns and their types"),
        StreamCode::DeadlineExceeded => Some("allow more time with --deadline"),
        StreamCode::TooManyStreams => Some("wait for other queries to end, and try again"),
        StreamCode::PartitionInvalid => {
            Some("ask for fewer --partitions; the server's limits.max_partitions bounds them")
        }
        StreamCode::PartitionMissing | StreamCode::PartitionLost => {
            Some("run the query again; the server's log says more, and with --partitions 1 it takes one connection")
        }
        _ => None,
    }
}
