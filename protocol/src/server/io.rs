//! What goes into a server's connection, and what comes out, besides the halves' own.

use std::time::Duration;

use bytes::Bytes;

use crate::borrower::BorrowerCommand;
use crate::codes::CloseCode;
use crate::connection;
use crate::ids::{FabricKind, StreamId};
use crate::lender::LenderCommand;
use crate::message::{Failure, Fencing, Lending, OpenOptions, Region};

/// Everything that can happen to a server's connection.
pub type ServerInput<'a> = connection::Input<'a, ServerCommand>;
/// Everything that a server's connection wants done.
pub type ServerOutput = connection::Output<ServerEvent>;

/// The data plane of a connection, as the driver opened it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OpenedFabric {
    /// This end's address blob.
    pub address: Bytes,
    /// How this end fences what it lends.
    pub fencing: Fencing,
    /// The lease words: eight bytes a slot, as many slots as [`super::ServerConfig::max_leases`], and one more, the
    /// probe.
    pub words: Region,
    /// The value that the driver has put into the probe.
    pub probe_value: u64,
}

/// What the driver reports or asks.
#[derive(Debug)]
pub enum ServerCommand {
    /// To the lender's half.
    Lender(LenderCommand),
    /// To the borrower's half.
    Borrower(BorrowerCommand),
    /// Answers [`ServerEvent::OpenFabric`].
    FabricOpened(OpenedFabric),
    /// Answers [`ServerEvent::OpenFabric`]: it cannot be had.
    FabricUnavailable {
        /// Why.
        reason: String,
    },
    /// Answers [`ServerEvent::Prove`]: the client's probe was read, and right.
    ReversePathUp {
        /// What carries the reads.
        transport: String,
    },
    /// Answers [`ServerEvent::Prove`]: the client's memory cannot be read.
    ReversePathDown {
        /// Why.
        reason: String,
    },
    /// The endpoint failed as a whole; nothing on loan can be read any more, either way.
    FabricFailed {
        /// Why.
        reason: String,
    },
    /// Answers [`connection::Output::CloseFabric`]: the endpoint is closed, its peer cut off as far as the fabric can,
    /// and every read has been reported.
    FabricClosed,
    /// The engine takes an upload: the client may send.
    Accept {
        /// The upload.
        stream: StreamId,
        /// Bytes that the client may have in flight at first.
        window: u64,
        /// Bytes that the window may grow to.
        most: u64,
    },
    /// The engine is done with an upload: with all its rows, after its end; or with an error, at any time.
    Answer {
        /// The upload.
        stream: StreamId,
        /// Rows taken.
        result: Result<u64, Failure>,
    },
    /// Take no new streams, finish what runs, then close.
    Drain,
    /// Close now.
    Close {
        /// What the peer is told.
        code: CloseCode,
        /// In words.
        message: String,
    },
}

/// What only a server's connection wants done.
#[derive(Debug)]
pub enum ServerEvent {
    /// Open an endpoint and connect it to the peer's address.
    OpenFabric {
        /// Which fabric.
        kind: FabricKind,
        /// The client's address blob, untrusted.
        peer: Bytes,
    },
    /// The client lends too: take in the region of its lease words, and read the probe. Reads of uploads depend on the
    /// answer.
    Prove(Lending),
    /// The client reports a working data plane.
    FabricUp {
        /// What carries it, in the client's words.
        transport: String,
    },
    /// There is no data plane (any more): results travel inline. To be logged as a warning.
    FabricDown {
        /// Why.
        reason: String,
    },
    /// Run a query.
    Query {
        /// Its result's name.
        stream: StreamId,
        /// The text.
        sql: String,
        /// How.
        options: OpenOptions,
    },
    /// Take an upload: [`ServerCommand::Accept`] lets the client send; its schema and batches come as
    /// [`connection::Output::Stream`]; [`ServerCommand::Answer`] ends it.
    Upload {
        /// Its name.
        stream: StreamId,
        /// The table that the rows are for.
        table: String,
        /// The client gives up after this time.
        deadline: Option<Duration>,
    },
    /// The client does not want an upload any more whose end has been delivered, and which was not answered: take none
    /// of its rows.
    UploadWithdrawn {
        /// Its name.
        stream: StreamId,
    },
}
