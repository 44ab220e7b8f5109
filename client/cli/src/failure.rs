//! The failures that end `thallus` early, with their messages and exit codes.

use std::fmt;
use std::io;

use rustix::io::Errno;
use thallus_client::{ClientError, StreamCode};

use super::put::InputError;

/// The exit codes, as listed by `--help`.
pub mod code {
    /// Done.
    pub const SUCCESS: u8 = 0;
    /// An argument or URL is wrong, or the result does not fit the format.
    pub const USAGE: u8 = 2;
    /// No connection could be made.
    pub const CONNECT: u8 = 3;
    /// The server refused the query, or the query failed there.
    pub const QUERY: u8 = 4;
    /// The transfer failed before its end.
    pub const TRANSFER: u8 = 5;
    /// A local file or pipe could not be read or written.
    pub const LOCAL: u8 = 6;
    /// Ctrl-C: 128 + SIGINT.
    pub const INTERRUPTED: u8 = 130;
    /// The reader of the output closed it: 128 + SIGPIPE.
    pub const BROKEN_PIPE: u8 = 141;
    /// Ended by SIGTERM: 128 + SIGTERM.
    pub const TERMINATED: u8 = 143;
}

/// The progress of a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Until the server has introduced itself.
    Connect,
    /// From sending a query.
    Transfer,
}

/// The signal that ended the command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Interrupt {
    /// SIGINT.
    CtrlC,
    /// SIGTERM.
    Terminate,
}

/// The reason why `thallus` ends early.
#[derive(Debug)]
pub enum Failure {
    /// The arguments are invalid or contradict each other.
    Usage {
        /// The problem and its reason.
        message: String,
        /// The remedy.
        hint: String,
    },
    /// The client library returned an error.
    Client {
        /// The phase of the error.
        phase: Phase,
        /// The error.
        error: ClientError,
    },
    /// The result does not fit the format.
    Format {
        /// The problem and its reason.
        message: String,
        /// The remedy.
        hint: String,
    },
    /// An error of a local file or pipe.
    Local {
        /// The operation and its object: `cannot write out.csv`.
        what: String,
        /// The reason.
        source: io::Error,
    },
    /// A file cannot be uploaded.
    Input(InputError),
    /// `thallus doctor` found only inline transfer, and has printed the reason.
    NoFabric,
    /// The reader of the output closed it. This is no error: nothing is printed.
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
            Failure::Input(error) if error.is_of_columns() => code::USAGE,
            Failure::Input(_) | Failure::Local { .. } => code::LOCAL,
            Failure::BrokenPipe => code::BROKEN_PIPE,
            Failure::Interrupted(Interrupt::CtrlC) => code::INTERRUPTED,
            Failure::Interrupted(Interrupt::Terminate) => code::TERMINATED,
        }
    }

    /// The remedy for the user.
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
            Failure::Input(error) => error.hint(),
            Failure::NoFabric => Some("follow the advice in the lines marked !!".into()),
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
            Failure::Input(error) => error.fmt(f),
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
    // A broken connection has the exit code of the phase that it ended.
    let by_phase = match phase {
        Phase::Connect => code::CONNECT,
        Phase::Transfer => code::TRANSFER,
    };
    match error {
        ClientError::Url(..) | ClientError::OutOfRange { .. } | ClientError::TooManyPartitions { .. } => code::USAGE,
        ClientError::Connect { .. } | ClientError::Version { .. } => code::CONNECT,
        ClientError::Query { .. }
        | ClientError::Mapping { .. }
        | ClientError::SqlTooLong { .. }
        | ClientError::Parameters { .. } => code::QUERY,
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
        | ClientError::ConnectionLost { .. }
        | ClientError::Protocol { .. } => by_phase,
        ClientError::Cancelled => code::INTERRUPTED,
        // A library that is newer than this.
        _ => by_phase,
    }
}

/// Returns whether this process, or its host, has no more descriptors. The errors of fabrics keep the operating
/// system's error as a text.
fn is_of_descriptors(error: &ClientError) -> bool {
    let is_local = matches!(error, ClientError::Connect { .. } | ClientError::OutOfMemory { .. });
    let codes = [Errno::MFILE, Errno::NFILE].map(|code| format!("(os error {})", code.raw_os_error()));
    is_local && codes.iter().any(|code| error.to_string().contains(code))
}

fn hint(phase: Phase, error: &ClientError) -> Option<&'static str> {
    if is_of_descriptors(error) {
        return Some("raise the limit of open files (`ulimit -n`), or take few of them: fabric=none in the URL");
    }
    Some(match error {
        ClientError::Url(..) => "a URL looks like thallus://localhost:7807?window=64MiB; see thallus query --help",
        ClientError::Connect { .. } => "check the address, and that thallus-server runs there and its port is open",
        ClientError::Timeout { .. } if phase == Phase::Connect => {
            "check the address and the firewall, or allow more time with connect_timeout in the URL"
        }
        ClientError::Timeout { .. } => {
            "check the server with thallus ping, or allow more time: --deadline, read_timeout in the URL"
        }
        ClientError::Refused { .. } => "try again later; the server's log has details",
        ClientError::Version { .. } => "install client and server of the same release; see thallus version",
        ClientError::Fabric { .. } => "connect without one-sided reads: fabric=none in the URL",
        ClientError::Query { kind, .. } => return query_hint(*kind),
        ClientError::Read { .. } | ClientError::ReadTimeout { .. } => {
            "run the query again; --lend-from never avoids one-sided reads"
        }
        ClientError::LeaseExpired { .. } => "run the query again, and take batches faster or in a larger --window",
        ClientError::BatchTooLarge { .. } => {
            "raise the lesser limit: max_batch in the URL, limits.max_bytes_on_loan_per_connection at the server"
        }
        ClientError::OutOfMemory { .. } => "request less at a time: --window, --batch-rows, pool in the URL",
        ClientError::InvalidBatch { .. } | ClientError::Incomplete { .. } => {
            "this is a bug in the client or the server; their logs say more (THALLUS_LOG)"
        }
        ClientError::TooManyPartitions { .. } => "request fewer --partitions",
        ClientError::Parameters { .. } => "send fewer rows of parameters at a time",
        ClientError::SqlTooLong { .. } => "raise engine.max_sql_bytes at the server",
        ClientError::ConnectionLost { .. } => {
            "the server's log may have the reason; thallus ping shows whether it is back"
        }
        ClientError::Protocol { .. } if phase == Phase::Connect => "is that a thallus-server? See its address and port",
        ClientError::Protocol { .. } => "this is a bug in the client or the server; their logs say more (THALLUS_LOG)",
        ClientError::Mapping { .. } => "leave out --access map",
        ClientError::Merge { .. } => "take rows as they arrive with --unordered",
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
        StreamCode::UnknownTable => Some("thallus tables lists the tables of the server, and the files that it skips"),
        StreamCode::Plan => Some("DESCRIBE table lists a table's columns and their types"),
        StreamCode::DeadlineExceeded => Some("allow more time with --deadline"),
        StreamCode::TooManyStreams => Some("wait for other queries to end, and try again"),
        StreamCode::PartitionInvalid => {
            Some("request fewer --partitions; the server's limits.max_partitions bounds them")
        }
        StreamCode::PartitionMissing | StreamCode::PartitionLost => {
            Some("run the query again; the server's log has details; --partitions 1 needs one connection only")
        }
        _ => None,
    }
}
