//! Inputs and outputs of a client's connection, besides those of the two halves.

use std::time::Duration;

use crate::borrower::BorrowerCommand;
use crate::connection;
use crate::error::StreamError;
use crate::ids::StreamId;
use crate::lender::LenderCommand;
use crate::message::{
    Defaults, FabricChoice, Fencing, Ingest, LendFrom, OpenOptions, Region, Request, ServerLimits, Thresholds, Vendor,
};

/// Inputs of a client's connection.
pub type ClientInput<'a> = connection::Input<'a, ClientCommand>;
/// Outputs of a client's connection.
pub type ClientOutput = connection::Output<ClientEvent>;

/// The lease words of this end, as the driver has prepared them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeaseWordRegion {
    /// How this end fences the memory that it lends.
    pub fencing: Fencing,
    /// The region of the lease words: eight bytes a slot, [`super::ClientConfig::max_leases`] slots, and one more for
    /// the probe.
    pub words: Region,
    /// The value that the driver has written into the probe.
    pub probe_value: u64,
}

/// Options of an upload.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct UploadOptions {
    /// The size from which on batches are lent.
    pub lend_from: LendFrom,
    /// Thresholds that this end has measured, for [`LendFrom::Auto`].
    pub measured: Option<Thresholds>,
    /// The upload ends in an error after this time.
    pub deadline: Option<Duration>,
    /// The catalog and the schema of the table, if its name has none.
    pub defaults: Defaults,
    /// The treatment of the table.
    pub ingest: Ingest,
}

/// Commands and reports of the driver.
#[derive(Debug)]
pub enum ClientCommand {
    /// A command to the lender's half.
    Lender(LenderCommand),
    /// A command to the borrower's half.
    Borrower(BorrowerCommand),
    /// Answers [`ClientEvent::ConnectFabric`]: the endpoint is connected, and the probe was read with the expected
    /// value.
    FabricUp {
        /// The transport that carries the reads.
        transport: String,
        /// How this end lends. `None`: uploads travel inline.
        lending: Option<LeaseWordRegion>,
    },
    /// Answers [`ClientEvent::ConnectFabric`]: the fabric does not work, or is not better than inline.
    FabricUnavailable {
        /// The reason.
        reason: String,
    },
    /// The endpoint failed as a whole.
    FabricFailed {
        /// The reason.
        reason: String,
    },
    /// Answers [`connection::Output::CloseFabric`]: every read has completed and has been reported.
    FabricClosed,
    /// Open a stream that the server lends.
    Open {
        /// The id of the stream, above all earlier ones.
        stream: StreamId,
        /// The request. Not an upload.
        request: Request,
        /// Options of the request. `credit` is the window of the stream.
        options: OpenOptions,
    },
    /// Open an upload. [`LenderCommand`]s then hand over its schema and batches.
    Upload {
        /// The id of the stream, above all earlier ones.
        stream: StreamId,
        /// The table that receives the rows.
        table: String,
        /// Options of the upload.
        options: UploadOptions,
    },
    /// The application cancels an upload. No event follows for it, except that the lender's source stops if it runs.
    Withdraw {
        /// The upload.
        stream: StreamId,
    },
    /// Check that the server is alive. [`ClientEvent::Pong`] answers.
    Ping,
    /// Close: cancel streams that run, shut the data plane, send a goodbye.
    Close,
}

/// Events and tasks of a client's connection alone.
#[derive(Clone, Debug)]
pub enum ClientEvent {
    /// The server answered the hello.
    Welcome {
        /// The server's name.
        server: String,
        /// The protocol version in use.
        version: u16,
        /// Limits that the server sets.
        limits: ServerLimits,
        /// The database behind the server.
        vendor: Vendor,
    },
    /// Connect the endpoint that was offered, import the words' region, read the probe.
    ConnectFabric(FabricChoice),
    /// The data plane works.
    FabricUp {
        /// The transport that carries the reads.
        transport: String,
    },
    /// There is no data plane, or no longer: batches travel inline. To be logged as a warning.
    FabricDown {
        /// The reason.
        reason: String,
    },
    /// The server can read memory that this end lends: uploads are lent from now on.
    ReversePathUp {
        /// The transport that carries the reads.
        transport: String,
    },
    /// The server cannot read memory that this end lends, or no longer: uploads travel inline.
    ReversePathDown {
        /// The reason.
        reason: String,
    },
    /// An upload is complete: the server has taken its rows.
    Uploaded {
        /// The upload.
        stream: StreamId,
        /// Number of rows taken.
        rows: u64,
    },
    /// An upload failed. The server has taken none of its rows; if the connection was lost before the answer, this is
    /// unknown.
    UploadFailed {
        /// The upload.
        stream: StreamId,
        /// The error.
        error: StreamError,
    },
    /// The server accepts no new streams.
    Draining,
    /// The server answered [`ClientCommand::Ping`].
    Pong,
}
