//! What goes into a client's connection, and what comes out, besides the halves' own.

use std::time::Duration;

use crate::borrower::BorrowerCommand;
use crate::connection;
use crate::error::StreamError;
use crate::ids::StreamId;
use crate::lender::LenderCommand;
use crate::message::{FabricChoice, Fencing, LendFrom, OpenOptions, Region, Request, ServerLimits, Thresholds};

/// Everything that can happen to a client's connection.
pub type ClientInput<'a> = connection::Input<'a, ClientCommand>;
/// Everything that a client's connection wants done.
pub type ClientOutput = connection::Output<ClientEvent>;

/// How this end lends, as the driver has prepared it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LentWords {
    /// How this end fences what it lends.
    pub fencing: Fencing,
    /// The lease words: eight bytes a slot, as many slots as [`super::ClientConfig::max_leases`], and one more, the
    /// probe.
    pub words: Region,
    /// The value that the driver has put into the probe.
    pub probe_value: u64,
}

/// How an upload is to be run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct UploadOptions {
    /// From which size on batches are lent.
    pub lend_from: LendFrom,
    /// For [`LendFrom::Auto`]: what this end has measured.
    pub measured: Option<Thresholds>,
    /// The upload ends in an error after this time.
    pub deadline: Option<Duration>,
}

/// What the driver reports or asks.
#[derive(Debug)]
pub enum ClientCommand {
    /// To the lender's half.
    Lender(LenderCommand),
    /// To the borrower's half.
    Borrower(BorrowerCommand),
    /// Answers [`ClientEvent::ConnectFabric`]: connected, and the probe's word was read and right.
    FabricUp {
        /// What carries the reads.
        transport: String,
        /// How this end lends. `None`: uploads go inline.
        lending: Option<LentWords>,
    },
    /// Answers [`ClientEvent::ConnectFabric`]: it does not work, or no better than inline.
    FabricUnavailable {
        /// Why.
        reason: String,
    },
    /// The endpoint failed as a whole.
    FabricFailed {
        /// Why.
        reason: String,
    },
    /// Answers [`connection::Output::CloseFabric`]: every read has completed, and been reported.
    FabricClosed,
    /// Open a stream that the server lends.
    Open {
        /// Names it; above all before.
        stream: StreamId,
        /// What is wanted. Not an upload.
        request: Request,
        /// How. `credit` is the window of the stream.
        options: OpenOptions,
    },
    /// Open an upload: its schema and batches are then handed over as [`LenderCommand`]s.
    Upload {
        /// Names it; above all before.
        stream: StreamId,
        /// The table that the rows are for.
        table: String,
        /// How.
        options: UploadOptions,
    },
    /// The application does not want an upload any more. Nothing more is said of it, but that the lender's source stops
    /// if it runs.
    Withdraw {
        /// The upload.
        stream: StreamId,
    },
    /// Ask whether the server is there; [`ClientEvent::Pong`] answers.
    Ping,
    /// Close: cancel what runs, shut the data plane, say goodbye.
    Close,
}

/// What only a client's connection wants done, and what its application is told.
#[derive(Clone, Debug)]
pub enum ClientEvent {
    /// The server answered the hello.
    Welcome {
        /// The server's name.
        server: String,
        /// The protocol version in use.
        version: u16,
        /// What it allows.
        limits: ServerLimits,
    },
    /// Connect the endpoint that was offered, import the words' region, read the probe.
    ConnectFabric(FabricChoice),
    /// The data plane works.
    FabricUp {
        /// What carries it.
        transport: String,
    },
    /// There is no data plane (any more): batches travel inline. To be logged as a warning.
    FabricDown {
        /// Why.
        reason: String,
    },
    /// The server reads what this end lends: uploads are lent from now on.
    ReversePathUp {
        /// What carries the reads.
        transport: String,
    },
    /// The server does not read what this end lends: uploads travel inline.
    ReversePathDown {
        /// Why.
        reason: String,
    },
    /// An upload is complete: the server has taken its rows.
    Uploaded {
        /// The upload.
        stream: StreamId,
        /// Rows taken.
        rows: u64,
    },
    /// An upload failed: the server has taken none of its rows; or it is not known, if the connection was lost
    /// meanwhile.
    UploadFailed {
        /// The upload.
        stream: StreamId,
        /// Why.
        error: StreamError,
    },
    /// The server takes no new streams.
    Draining,
    /// The server answered [`ClientCommand::Ping`].
    Pong,
}
