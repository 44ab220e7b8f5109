//! What goes into a client's connection, and what comes out.

use std::sync::Arc;

use arrow_schema::SchemaRef;
use bytes::Bytes;

use crate::codec::Frame;
use crate::error::{ConnectionError, StreamError};
use crate::ids::{AskId, ReadId, RegionId, RemoteRange, StreamId};
use crate::layout::{CheckedDescriptor, Piece, SlabLayout};
use crate::message::{ExecuteOptions, FabricChoice, Region, ServerLimits, SortKey, StreamStats};
use crate::time::Timestamp;
use crate::timers::Timer;

/// Everything that can happen to a client's connection.
#[derive(Debug)]
pub enum ClientInput<'a> {
    /// Time passed.
    Time,
    /// Bytes came on the control connection.
    Received(&'a [u8]),
    /// The control connection is gone: end of file, or an error.
    ControlLost(String),
    /// The driver reports or asks something.
    Command(ClientCommand),
}

/// What the driver reports or asks.
#[derive(Debug)]
pub enum ClientCommand {
    /// Answers [`ClientOutput::ConnectFabric`]: connected, and the probe's word was read and right.
    FabricUp {
        /// What carries it.
        transport: String,
    },
    /// Answers [`ClientOutput::ConnectFabric`]: it does not work, or no better than inline.
    FabricUnavailable {
        /// Why.
        reason: String,
    },
    /// The endpoint failed as a whole.
    FabricFailed {
        /// Why.
        reason: String,
    },
    /// Answers [`ClientOutput::CloseFabric`]: every read has completed, and been reported.
    FabricClosed,
    /// Run a query.
    Execute {
        /// Names the result; above all before.
        stream: StreamId,
        /// The text.
        sql: String,
        /// How. `credit` is the window of the stream.
        options: ExecuteOptions,
    },
    /// The application does not want the stream any more.
    Cancel {
        /// This stream.
        stream: StreamId,
    },
    /// The application took batches that cost so much credit. Not for lazy ones, see [`ClientCommand::GiveUp`].
    Consumed {
        /// This stream.
        stream: StreamId,
        /// [`ClientEvent::Batch`]'s cost.
        cost: u64,
    },
    /// The application asks for a part of a lazy batch: [`ClientEvent::Found`] or [`ClientEvent::AskFailed`] answers, whatever
    /// happens. It may ask as often as it likes, also before earlier asks are answered.
    Ask {
        /// The batch's stream, which may have ended well since.
        stream: StreamId,
        /// The batch's position in it.
        seq: u64,
        /// Names the answer; unlike those that the batch still owes.
        ask: AskId,
        /// Ranges of the descriptor's buffers.
        pieces: Vec<Piece>,
    },
    /// The application is done with a lazy batch: its lease and its credit are given back. To be said once for each, also for
    /// those that were lost; asks that were not answered are answered as cancelled. Or it is done with a mapped batch, of which
    /// nothing is mapped any more: its lease is given back; its credit was by [`ClientCommand::Consumed`].
    GiveUp {
        /// The batch's stream.
        stream: StreamId,
        /// The batch's position in it.
        seq: u64,
    },
    /// All reads of [`ClientOutput::Read`] have completed, or [`ClientOutput::Map`] has been tried; with the first error, if one
    /// failed.
    ReadDone {
        /// Which.
        read: ReadId,
        /// Whether all bytes are there.
        result: Result<(), ReadProblem>,
    },
    /// Answers [`ClientOutput::ReadWord`].
    WordRead {
        /// Which.
        read: ReadId,
        /// What stands there.
        result: Result<u64, ReadProblem>,
    },
    /// A delivered batch is invalid: arrays cannot be built from it.
    ///
    /// The stream's good end may have been said along with its last batch, and is not taken back: whoever rejects a batch
    /// tells the application so, and nothing that follows for that stream.
    Rejected {
        /// This stream.
        stream: StreamId,
        /// Which batch.
        seq: u64,
        /// What is wrong with it.
        reason: String,
    },
    /// Ask whether the server is there; [`ClientEvent::Pong`] answers.
    Ping,
    /// Close: cancel what runs, shut the data plane, say goodbye.
    Close,
}

/// Why a batch's bytes are not there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ReadProblem {
    /// There is no memory to read into; nothing was posted.
    NoMemory(String),
    /// A read failed, in the fabric's words.
    Failed(String),
}

/// A batch, or what was asked for of a lazy one, to be read: take a slab of `layout.len` bytes, post a read for each place into its range.
#[derive(Clone, Debug)]
pub struct ReadBatch {
    /// Names it until it is delivered or discarded.
    pub read: ReadId,
    /// For its stream.
    pub stream: StreamId,
    /// Where the buffers go in the slab: one range for each of the descriptor's buffers, or of the pieces that were asked for.
    pub layout: SlabLayout,
    /// Which buffer or piece comes from where; empty buffers have no place.
    pub places: Vec<(usize, RemoteRange)>,
}

/// The bytes of a delivered batch.
#[derive(Clone, Debug)]
pub enum Payload {
    /// In the slab of this read, laid out as [`ReadBatch::layout`] said.
    Lent {
        /// Which read.
        read: ReadId,
        /// Shape of the batch.
        descriptor: Arc<CheckedDescriptor>,
    },
    /// Still where it was, and on loan until [`ClientCommand::GiveUp`]. Its cost is given back with that, and not by
    /// [`ClientCommand::Consumed`].
    Lazy {
        /// Shape of the batch.
        descriptor: Arc<CheckedDescriptor>,
    },
    /// Mapped, by this read, and on loan until [`ClientCommand::GiveUp`], whatever becomes of its stream.
    Mapped {
        /// Which read.
        read: ReadId,
        /// Shape of the batch.
        descriptor: Arc<CheckedDescriptor>,
    },
    /// Arrow IPC.
    Inline(Bytes),
}

/// What the application hears.
#[derive(Clone, Debug)]
pub enum ClientEvent {
    /// The server answered the hello.
    Welcome {
        /// What it calls itself.
        server: String,
        /// The protocol version in use.
        version: u16,
        /// What it allows.
        limits: ServerLimits,
    },
    /// The data plane works.
    FabricUp {
        /// What carries it.
        transport: String,
    },
    /// There is no data plane (any more): results travel inline. To be said loudly.
    FabricDown {
        /// Why.
        reason: String,
    },
    /// A query runs.
    Schema {
        /// Of this stream.
        stream: StreamId,
        /// Decoded.
        schema: SchemaRef,
        /// As it came, for the inline decoder.
        ipc: Bytes,
        /// What the stream is sorted by, if it is a partition of a sorted result. Every column is one of the schema's.
        order: Vec<SortKey>,
    },
    /// The next batch of a stream, all of it there, its lease proven; or, of a lazy stream, to be asked for.
    Batch {
        /// Of this stream.
        stream: StreamId,
        /// Its position, from 0.
        seq: u64,
        /// What [`ClientCommand::Consumed`] gives back.
        cost: u64,
        /// Its bytes.
        payload: Payload,
    },
    /// What was asked for of a lazy batch is there, its lease proven since.
    Found {
        /// The batch's stream.
        stream: StreamId,
        /// The batch.
        seq: u64,
        /// Which ask.
        ask: AskId,
        /// In this read's slab: one range for each piece.
        read: ReadId,
    },
    /// What was asked for of a lazy batch does not come.
    AskFailed {
        /// The batch's stream.
        stream: StreamId,
        /// The batch.
        seq: u64,
        /// Which ask.
        ask: AskId,
        /// Why. Only after [`StreamError::OutOfMemory`] is it of use to ask again.
        error: StreamError,
    },
    /// A stream is whole. Its lazy batches can still be asked for.
    End {
        /// This stream.
        stream: StreamId,
        /// The lender's figures.
        stats: StreamStats,
    },
    /// A stream ended in an error. Nothing more comes for it, and its lazy batches are lost.
    Failed {
        /// This stream.
        stream: StreamId,
        /// Which.
        error: StreamError,
    },
    /// The server takes no new queries.
    Draining,
    /// The server answered [`ClientCommand::Ping`].
    Pong,
}

/// What a client's connection wants done.
#[derive(Debug)]
pub enum ClientOutput {
    /// Write these bytes, after all before.
    Transmit(Frame),
    /// Connect the endpoint that was offered, import the words region, read the probe.
    ConnectFabric(FabricChoice),
    /// Take in a region. If it cannot be, reads of it fail, and that is how it is reported.
    ImportRegion(Region),
    /// Drop a region.
    ForgetRegion(RegionId),
    /// Read a batch.
    Read(ReadBatch),
    /// Map a batch's places: no slab, and nothing is read. Answered by [`ClientCommand::ReadDone`] as reads are.
    Map(ReadBatch),
    /// Read a lease word, now that the batch's reads have completed.
    ReadWord {
        /// Of this read.
        read: ReadId,
        /// Eight bytes.
        at: RemoteRange,
    },
    /// The slab of this read is not wanted any more, or what it mapped: to be let go of at once.
    Discard {
        /// Which.
        read: ReadId,
    },
    /// Tell the application.
    Event(ClientEvent),
    /// Close the endpoint, report what completes, then say [`ClientCommand::FabricClosed`].
    CloseFabric,
    /// All is done. Close the control connection after what was transmitted.
    Closed(ConnectionError),
    /// Nothing more to do until an input comes, or this deadline passes.
    Wait(Option<(Timestamp, Timer)>),
}
