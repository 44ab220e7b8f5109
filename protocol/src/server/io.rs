//! Inputs and outputs of a server's connection, besides those of the two halves.

use bytes::Bytes;

use crate::borrower::BorrowerCommand;
use crate::codes::CloseCode;
use crate::connection;
use crate::ids::{FabricKind, StreamId};
use crate::lender::LenderCommand;
use crate::message::{Failure, Fencing, Lending, ObjectsRequest, OpenOptions, Region};

/// Inputs of a server's connection.
pub type ServerInput<'a> = connection::Input<'a, ServerCommand>;
/// Outputs of a server's connection.
pub type ServerOutput = connection::Output<ServerEvent>;

/// The data plane of a connection, as the driver opened it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OpenedFabric {
    /// This end's address blob.
    pub address: Bytes,
    /// How this end fences the memory that it lends.
    pub fencing: Fencing,
    /// The region of the lease words: eight bytes a slot, [`super::ServerConfig::max_leases`] slots, and one more for
    /// the probe.
    pub words: Region,
    /// The value that the driver has written into the probe.
    pub probe_value: u64,
}

/// Commands and reports of the driver.
#[derive(Debug)]
pub enum ServerCommand {
    /// A command to the lender's half.
    Lender(LenderCommand),
    /// A command to the borrower's half.
    Borrower(BorrowerCommand),
    /// Answers [`ServerEvent::OpenFabric`].
    FabricOpened(OpenedFabric),
    /// Answers [`ServerEvent::OpenFabric`]: the fabric cannot be opened.
    FabricUnavailable {
        /// The reason.
        reason: String,
    },
    /// Answers [`ServerEvent::ProbeClient`]: the client's probe was read and had the expected value.
    ReversePathUp {
        /// The transport that carries the reads.
        transport: String,
    },
    /// Answers [`ServerEvent::ProbeClient`]: the client's memory cannot be read.
    ReversePathDown {
        /// The reason.
        reason: String,
    },
    /// The endpoint failed as a whole: no memory on loan can be read any more, in either direction.
    FabricFailed {
        /// The reason.
        reason: String,
    },
    /// Answers [`connection::Output::CloseFabric`]: the endpoint is closed, its peer is cut off as far as the fabric
    /// can do this, and every read has been reported.
    FabricClosed,
    /// The engine accepts an upload: the client may send.
    Accept {
        /// The upload.
        stream: StreamId,
        /// Initial window of the client, in bytes.
        window: u64,
        /// Maximum size of the window in bytes.
        max_window: u64,
    },
    /// The engine is done with an upload: after its end, with all its rows; or at any time, with an error.
    Answer {
        /// The upload.
        stream: StreamId,
        /// Number of rows taken, or the error.
        result: Result<u64, Failure>,
    },
    /// Accept no new streams, finish those that run, then close.
    Drain,
    /// Close now.
    Close {
        /// The code that the peer receives.
        code: CloseCode,
        /// The reason as text.
        message: String,
    },
}

/// Events and tasks of a server's connection alone.
#[derive(Debug)]
pub enum ServerEvent {
    /// Open an endpoint and connect it to the peer's address.
    OpenFabric {
        /// The fabric.
        kind: FabricKind,
        /// The client's address blob, untrusted.
        peer: Bytes,
    },
    /// The client lends too: import the region of its lease words, and read the probe. Uploads are lent only after a
    /// successful answer.
    ProbeClient(Lending),
    /// The client reports a working data plane.
    FabricUp {
        /// The transport that carries the reads, as the client reports it.
        transport: String,
    },
    /// The client offers no fabric that the server has: results travel inline. A client on this host offers shared
    /// memory alone at first, and then comes again with its other fabrics.
    NoFabric {
        /// The client's fabrics.
        offered: Vec<FabricKind>,
        /// The reason, in words.
        reason: String,
    },
    /// There is no data plane, or no longer: results travel inline. To be logged as a warning.
    FabricDown {
        /// The reason.
        reason: String,
    },
    /// Run a query.
    Query {
        /// The stream of the result.
        stream: StreamId,
        /// The text of the query.
        sql: String,
        /// Options of the request.
        options: OpenOptions,
    },
    /// Describe a statement without running it: one row.
    Describe {
        /// The stream of the answer.
        stream: StreamId,
        /// The text of the statement.
        sql: String,
        /// Options of the request.
        options: OpenOptions,
    },
    /// List the objects of the database.
    Objects {
        /// The stream of the list.
        stream: StreamId,
        /// The objects that are asked for.
        request: ObjectsRequest,
        /// Options of the request.
        options: OpenOptions,
    },
    /// Take an upload. [`ServerCommand::Accept`] allows the client to send; the schema and the batches come as
    /// [`connection::Output::Stream`]; [`ServerCommand::Answer`] ends it.
    Upload {
        /// The upload's stream.
        stream: StreamId,
        /// The table that receives the rows.
        table: String,
        /// Options of the request. The client cancels the upload after its deadline.
        options: OpenOptions,
    },
    /// The client cancels an upload whose end has been delivered and which is not answered yet: take none of its rows.
    UploadWithdrawn {
        /// The upload's stream.
        stream: StreamId,
    },
}
