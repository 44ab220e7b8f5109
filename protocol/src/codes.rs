//! Reasons as numbers on the wire, so that a newer peer can send reasons that this build does not know.

use std::fmt;

use serde::{Deserialize, Serialize};

macro_rules! codes {
    ($(#[$doc:meta])* $name:ident { $($(#[$vdoc:meta])* $variant:ident = $code:literal, $text:literal;)* }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
        #[serde(from = "u16", into = "u16")]
        pub enum $name {
            $($(#[$vdoc])* $variant,)*
            /// A reason that this build does not know.
            Unknown(u16),
        }

        impl From<u16> for $name {
            fn from(code: u16) -> Self {
                match code {
                    $($code => $name::$variant,)*
                    other => $name::Unknown(other),
                }
            }
        }

        impl From<$name> for u16 {
            fn from(code: $name) -> u16 {
                match code {
                    $($name::$variant => $code,)*
                    $name::Unknown(other) => other,
                }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                match self {
                    $($name::$variant => f.write_str($text),)*
                    $name::Unknown(other) => write!(f, "reason {other} (from a newer peer)"),
                }
            }
        }
    };
}

codes! {
    /// Why a stream or a request ended in an error.
    StreamCode {
        /// The SQL text does not parse.
        Syntax = 1, "SQL syntax error";
        /// A table that the query names does not exist.
        UnknownTable = 2, "unknown table";
        /// The query does not fit the tables: columns, types, functions.
        Plan = 3, "invalid query";
        /// The server does not support the request.
        Unsupported = 4, "unsupported";
        /// The statement would change something.
        ReadOnly = 5, "the server is read-only";
        /// The query failed while it ran.
        Execution = 6, "execution failed";
        /// The engine reached a limit on its resources.
        ResourcesExhausted = 7, "resources exhausted";
        /// A table's files could not be read.
        Source = 8, "table source unreadable";
        /// A bug at the server.
        Internal = 9, "internal server error";
        /// The client cancelled it.
        Cancelled = 10, "cancelled";
        /// The stream's deadline passed.
        DeadlineExceeded = 11, "deadline exceeded";
        /// The connection has the maximum number of streams open.
        TooManyStreams = 12, "too many streams";
        /// The server is shutting down.
        ShuttingDown = 13, "the server is shutting down";
        /// One batch is larger than the server may lend or the client accepts.
        BatchTooLarge = 14, "batch too large";
        /// The client held a lease for longer than the server allows.
        LeaseExpired = 15, "lease expired";
        /// The data plane failed in mid-stream.
        DataPlaneLost = 16, "the data plane went down";
        /// The SQL text is longer than the server accepts.
        SqlTooLong = 17, "SQL text too long";
        /// Arrow cannot carry the result.
        Unencodable = 18, "the result cannot be encoded";
        /// The request for this partition does not fit the others, or the server's limits.
        PartitionInvalid = 19, "invalid partition";
        /// Some partitions of the result were not requested in time.
        PartitionMissing = 20, "partitions are missing";
        /// Another partition of the result failed before its end.
        PartitionLost = 21, "another partition was lost";
        /// The server allows no mapping, or not for this client.
        MappingRefused = 22, "mapping refused";
        /// A one-sided read of memory that the other end had lent failed.
        ReadFailed = 23, "a one-sided read failed";
        /// A lease no longer stood after its bytes had been read.
        LeaseLost = 24, "lease lost";
        /// The bytes that were sent are not a valid batch.
        InvalidBatch = 25, "invalid batch";
        /// There is no memory to read a batch into.
        OutOfMemory = 26, "out of memory";
        /// An object that was to be created exists.
        AlreadyExists = 27, "exists already";
        /// The parameters do not fit the statement, in number or type.
        Parameters = 28, "wrong parameters";
        /// A value breaks a constraint of its table.
        Constraint = 29, "constraint violated";
    }
}

impl StreamCode {
    /// The SQLSTATE of ISO/IEC 9075 or, if that has none, of PostgreSQL.
    #[must_use]
    pub fn sqlstate(self) -> &'static str {
        match self {
            StreamCode::Syntax => "42601",
            StreamCode::UnknownTable => "42P01",
            StreamCode::Plan => "42000",
            StreamCode::Unsupported | StreamCode::Unencodable | StreamCode::MappingRefused => "0A000",
            StreamCode::ReadOnly => "25006",
            StreamCode::Execution => "22000",
            StreamCode::ResourcesExhausted => "53000",
            StreamCode::Source => "58030",
            StreamCode::Internal => "XX000",
            StreamCode::Cancelled | StreamCode::DeadlineExceeded | StreamCode::PartitionMissing => "57014",
            StreamCode::TooManyStreams => "53400",
            StreamCode::ShuttingDown => "57P01",
            StreamCode::BatchTooLarge | StreamCode::SqlTooLong => "54000",
            StreamCode::LeaseExpired => "57P05",
            StreamCode::DataPlaneLost | StreamCode::PartitionLost | StreamCode::ReadFailed | StreamCode::LeaseLost => {
                "08006"
            }
            StreamCode::PartitionInvalid => "22023",
            StreamCode::InvalidBatch => "22P03",
            StreamCode::OutOfMemory => "53200",
            StreamCode::AlreadyExists => "42P07",
            StreamCode::Parameters => "07001",
            StreamCode::Constraint => "23502",
            StreamCode::Unknown(_) => "HY000",
        }
    }

    /// Whether the same request may succeed on another attempt, at this or another server.
    #[must_use]
    pub fn is_retryable(self) -> bool {
        matches!(
            self,
            StreamCode::ResourcesExhausted
                | StreamCode::TooManyStreams
                | StreamCode::ShuttingDown
                | StreamCode::LeaseExpired
                | StreamCode::DataPlaneLost
                | StreamCode::PartitionMissing
                | StreamCode::PartitionLost
                | StreamCode::ReadFailed
                | StreamCode::LeaseLost
                | StreamCode::OutOfMemory
        )
    }
}

codes! {
    /// Why a connection ends, or accepts no more streams.
    CloseCode {
        /// No error.
        Normal = 0, "closed";
        /// The server is shutting down. It finishes running streams.
        ShuttingDown = 1, "the server is shutting down";
        /// The server has the maximum number of connections.
        TooManyConnections = 2, "too many connections";
        /// The peer broke the protocol.
        ProtocolError = 3, "protocol error";
        /// The peer was silent for too long.
        IdleTimeout = 4, "idle timeout";
        /// The hello did not come in time.
        HandshakeTimeout = 5, "handshake timeout";
        /// A bug at the other end.
        Internal = 6, "internal error";
        /// A message has a critical extension that this end does not know.
        Unsupported = 7, "unsupported extension";
    }
}

codes! {
    /// Why the borrower cancelled a stream.
    CancelReason {
        /// The application dropped it.
        Dropped = 0, "dropped by the application";
        /// A one-sided read failed.
        ReadFailed = 1, "a read failed";
        /// The bytes that arrived are not a valid batch.
        InvalidBatch = 2, "invalid batch";
        /// The lease no longer stood after its bytes had been read.
        LeaseLost = 3, "lease lost";
        /// One batch is larger than the borrower accepts.
        BatchTooLarge = 4, "batch too large";
        /// The borrower's deadline passed.
        DeadlineExceeded = 5, "deadline exceeded";
        /// The borrower has no memory for a batch.
        OutOfMemory = 6, "out of memory";
        /// The request that the stream belongs to has failed; the answer to the request contains the reason.
        RequestFailed = 7, "the request failed";
        /// The stream has a critical extension that the borrower does not know.
        Unsupported = 8, "unsupported";
    }
}
