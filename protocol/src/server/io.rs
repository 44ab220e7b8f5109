//! What goes into a server's connection, and what comes out.

use bytes::Bytes;

use crate::codec::Frame;
use crate::codes::{CancelReason, CloseCode, StreamCode};
use crate::error::ConnectionError;
use crate::ids::{FabricKind, LeaseId, RegionId, RemoteRange, StreamId};
use crate::layout::BatchDescriptor;
use crate::lease::LeaseEnd;
use crate::message::{ExecuteOptions, Fencing, Region, SortKey};
use crate::time::Timestamp;
use crate::timers::Timer;

/// Everything that can happen to a server's connection.
#[derive(Debug)]
pub enum ServerInput<'a> {
    /// Time passed.
    Time,
    /// Bytes came on the control connection.
    Received(&'a [u8]),
    /// The control connection is gone: end of file, or an error.
    ControlLost(String),
    /// The driver reports or asks something.
    Command(ServerCommand),
}

/// The data plane of a connection, as the driver opened it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OpenedFabric {
    /// This end's address blob.
    pub address: Bytes,
    /// How what is lent is fenced.
    pub fencing: Fencing,
    /// The lease words: eight bytes a slot, as many slots as [`super::ServerConfig::max_leases`], and one more, the probe.
    pub words: Region,
    /// What the driver has put into the probe.
    pub probe_value: u64,
}

/// A batch of column buffers to be lent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Loan {
    /// Chosen by the driver, above all before.
    pub lease: LeaseId,
    /// Shape of the batch.
    pub descriptor: BatchDescriptor,
    /// Where its buffers are: one for each that is not empty.
    pub places: Vec<RemoteRange>,
    /// How many of its bytes had to be copied to be lent.
    pub staged: u64,
    /// What else it took to make it readable.
    pub effort: LoanEffort,
}

/// What it took to make a batch readable, besides copies: nothing, in steady state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LoanEffort {
    /// Registrations of memory.
    pub registrations: u64,
    /// Regions that were announced for it.
    pub regions: u64,
    /// Page faults.
    pub page_faults: u64,
}

/// What the driver reports or asks.
#[derive(Debug)]
pub enum ServerCommand {
    /// Answers [`ServerOutput::OpenFabric`].
    FabricOpened(OpenedFabric),
    /// Answers [`ServerOutput::OpenFabric`]: it cannot be had.
    FabricUnavailable {
        /// Why.
        reason: String,
    },
    /// The endpoint failed as a whole; what is on loan cannot be read any more.
    FabricFailed {
        /// Why.
        reason: String,
    },
    /// Answers [`ServerOutput::CloseFabric`]: the endpoint is closed, and its peer cut off as far as the fabric can.
    FabricClosed,
    /// Memory that loans will refer to.
    Announce(Region),
    /// Nothing refers to that memory any more.
    Retire(RegionId),
    /// The query runs; its schema as an Arrow IPC stream begins.
    Schema {
        /// Of this stream.
        stream: StreamId,
        /// IPC bytes.
        schema: Bytes,
        /// What a partition is sorted by; at most [`crate::message::MAX_SORT_KEYS`].
        order: Vec<SortKey>,
    },
    /// Answers [`ServerOutput::Pull`] with a batch to be lent.
    Lend {
        /// Of this stream.
        stream: StreamId,
        /// The batch.
        loan: Loan,
        /// Rows in it.
        rows: u64,
    },
    /// Answers [`ServerOutput::Pull`] with a batch to be sent inline.
    Inline {
        /// Of this stream.
        stream: StreamId,
        /// IPC bytes.
        ipc: Bytes,
        /// Rows in it.
        rows: u64,
    },
    /// Answers [`ServerOutput::Pull`]: there are no more batches.
    Finish {
        /// This stream.
        stream: StreamId,
        /// Nanoseconds that the engine took.
        execute_nanos: u64,
    },
    /// The query failed.
    Fail {
        /// This stream.
        stream: StreamId,
        /// Which error.
        code: StreamCode,
        /// In words.
        message: String,
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

/// What a server's connection wants done.
#[derive(Debug)]
pub enum ServerOutput {
    /// Write these bytes, after all before.
    Transmit(Frame),
    /// Open an endpoint and connect it to the peer's address.
    OpenFabric {
        /// Which fabric.
        kind: FabricKind,
        /// The client's address blob, untrusted.
        peer: Bytes,
    },
    /// The client reports a working data plane.
    FabricUp {
        /// What carries it, in the client's words.
        transport: String,
    },
    /// There is no data plane (any more): results travel inline. To be said loudly.
    FabricDown {
        /// Why.
        reason: String,
    },
    /// Run a query.
    Execute {
        /// Its result's name.
        stream: StreamId,
        /// The text.
        sql: String,
        /// How.
        options: ExecuteOptions,
    },
    /// Hand over the next batch of a stream, or its end.
    ///
    /// A driver with much left to write waits with its answer: credit bounds what a client that reads has in flight, and
    /// only this bounds what is queued for one that grants and does not read.
    Pull {
        /// This stream.
        stream: StreamId,
        /// Live bytes from which on the batch is to be lent; `None`: inline, whatever its size.
        lend_from: Option<u64>,
    },
    /// Stop a query. Commands that still come for it are ignored, and loans withdrawn.
    StopQuery {
        /// This stream.
        stream: StreamId,
        /// Why, if the client asked for it.
        reason: Option<CancelReason>,
        /// As what it was told to the client, if it failed here.
        failure: Option<(StreamCode, String)>,
    },
    /// A lease begins: set its word before anything that follows is transmitted.
    OpenLease {
        /// Which.
        lease: LeaseId,
        /// The word's slot and value, where leases are fenced by words.
        word: Option<(u32, u64)>,
    },
    /// A lease ended: clear its word first, then its memory may be reused.
    EndLease {
        /// Which.
        lease: LeaseId,
        /// Its word's slot.
        slot: Option<u32>,
        /// How it ended.
        end: LeaseEnd,
    },
    /// Close the endpoint, and say [`ServerCommand::FabricClosed`] when its peer is cut off.
    CloseFabric,
    /// All is done: every lease has ended. Close the control connection after what was transmitted.
    Closed(ConnectionError),
    /// Nothing more to do until an input comes, or this deadline passes.
    Wait(Option<(Timestamp, Timer)>),
}
