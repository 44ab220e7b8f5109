//! The borrower's half of a connection: windows, reads and their proof, parts read on demand, mapped batches, releases.
//!
//! It is the same at a client, which borrows results, and at a server, which borrows uploads. It does no handshake,
//! requests or encoding: messages of the lender go in; messages for the lender, tasks for the driver and events for the
//! application come out.
//!
//! After every call the caller takes the outputs with [`Borrower::poll`] until there are none, and carries them out in
//! order.

mod announced;
mod batches;
mod io;
mod loans;
mod mapped;
mod on_demand;
mod reads;
mod receive;
mod releases;
mod stream;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use batches::{BatchKey, OnDemandBatch, Read};
pub use io::{
    BorrowOptions, BorrowerCommand, BorrowerEvent, BorrowerOutput, BorrowerTask, Payload, ReadBatch, ReadError,
};
use loans::Loans;
use stream::BorrowedStream;

use crate::codes::CancelReason;
use crate::error::{ApiMisuse, ConnectionError, StreamError};
use crate::ids::{LeaseId, ReadId, RegionId, StreamId};
use crate::inline::InlineLimits;
use crate::layout::LayoutLimits;
use crate::link::truncate;
use crate::message::{Failure, Fencing, FromBorrower, FromLender, Lending, Region};
use crate::misbehaviour::PeerMisbehaved;
use crate::time::Timestamp;
use crate::timers::{Timer, Timers};

/// Limits and timeouts of a borrower.
#[derive(Clone, Debug)]
pub struct BorrowerConfig {
    /// Maximum size of a batch in bytes. A stream's window is not widened for a larger one.
    pub max_batch_bytes: u64,
    /// Maximum number of regions that the lender may have announced at once.
    pub max_regions: usize,
    /// Limits of a descriptor.
    pub layout: LayoutLimits,
    /// Limits of a schema and of an inline batch.
    pub inline: InlineLimits,
    /// Time limit of a batch's reads. After it the data plane counts as failed.
    pub read_timeout: Duration,
}

/// The data plane from this end to the lender's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Path {
    None,
    Up,
    /// It has failed; nothing is read any more.
    Down,
}

/// The borrower's half of a connection.
#[derive(Debug)]
pub struct Borrower {
    config: BorrowerConfig,
    timers: Timers,
    path: Path,
    fencing: Option<Fencing>,
    /// The region of the lender's lease words.
    words: Option<RegionId>,
    /// Maximum bytes that the lender has on loan at once.
    lender_limit: u64,
    regions: BTreeMap<RegionId, Region>,
    streams: BTreeMap<StreamId, BorrowedStream>,
    reads: BTreeMap<ReadId, Read>,
    last_read: u64,
    /// Batches on demand that the application has not given up.
    on_demand: BTreeMap<BatchKey, OnDemandBatch>,
    /// Mapped batches that are delivered, or about to be, and that the application has not given up.
    mapped: BTreeMap<BatchKey, LeaseId>,
    loans: Loans,
    deadlines: BTreeMap<StreamId, Duration>,
    ended_by: Option<Arc<ConnectionError>>,
    out: VecDeque<BorrowerOutput>,
}

impl Borrower {
    /// A borrower without a data plane.
    #[must_use]
    pub fn new(config: BorrowerConfig) -> Self {
        Borrower {
            config,
            timers: Timers::default(),
            path: Path::None,
            fencing: None,
            words: None,
            lender_limit: 0,
            regions: BTreeMap::new(),
            streams: BTreeMap::new(),
            reads: BTreeMap::new(),
            last_read: 0,
            on_demand: BTreeMap::new(),
            mapped: BTreeMap::new(),
            loans: Loans::default(),
            deadlines: BTreeMap::new(),
            ended_by: None,
            out: VecDeque::new(),
        }
    }

    /// The next output.
    #[must_use]
    pub fn poll(&mut self) -> Option<BorrowerOutput> {
        self.out.pop_front()
    }

    /// The next deadline and its reason.
    #[must_use]
    pub fn deadline(&self) -> Option<(Timestamp, Timer)> {
        self.timers.next()
    }

    /// Number of batches that are being read.
    #[must_use]
    pub fn outstanding_reads(&self) -> usize {
        self.reads.len()
    }

    /// Number of streams that have not ended on both sides.
    #[must_use]
    pub fn open_streams(&self) -> usize {
        self.streams.len()
    }

    /// Whether a stream has not ended on both sides.
    #[must_use]
    pub fn is_open(&self, stream: StreamId) -> bool {
        self.streams.contains_key(&stream)
    }

    /// The state of the data plane, in one word for traces.
    #[must_use]
    pub fn path_name(&self) -> &'static str {
        match self.path {
            Path::None => "none",
            Path::Up => "up",
            Path::Down => "down",
        }
    }

    /// Whether batches can be read.
    #[must_use]
    pub fn is_up(&self) -> bool {
        self.path == Path::Up
    }

    /// Sets the maximum bytes that the lender has on loan at once.
    pub fn set_lender_limit(&mut self, bytes: u64) {
        self.lender_limit = bytes;
    }

    /// The lender has announced its lease words. The probe among them is used to prove the path.
    ///
    /// # Errors
    /// The announced words are malformed.
    pub fn set_lease_words(&mut self, lending: &Lending) -> Result<(), PeerMisbehaved> {
        announced::check_lending(lending)?;
        self.fencing = Some(lending.fencing);
        self.regions.insert(lending.words.id, lending.words.clone());
        self.words = Some(lending.words.id);
        self.check_range(lending.probe_at)
    }

    /// The probe was read and had the expected value. The connection has to inform the lender.
    pub fn path_up(&mut self) {
        self.path = Path::Up;
        // These were announced before the path was proven. The words' region was already imported for the probe.
        for region in self.regions.values().filter(|region| Some(region.id) != self.words) {
            self.out.push_back(BorrowerOutput::Task(BorrowerTask::Import(region.clone())));
        }
    }

    /// The path was not proven, or has failed. Outstanding reads complete with an error when the endpoint closes.
    /// Returns whether the path was not down before.
    pub fn path_down(&mut self, reason: &str) -> bool {
        if self.path == Path::Down {
            return false;
        }
        self.path = Path::Down;
        let reason = truncate(reason.to_owned());
        // A lender that never offered its memory needs no message.
        if self.fencing.is_some() {
            self.send(FromBorrower::PathDown { reason: reason.clone() });
        }
        self.lose_all(&reason);
        true
    }

    /// Begins a stream that is borrowed. The connection sends the initial grant.
    pub fn open(&mut self, now: Timestamp, stream: StreamId, options: BorrowOptions) {
        if let Some(deadline) = options.deadline {
            self.timers.set(Timer::Stream(stream), now + deadline);
            self.deadlines.insert(stream, deadline);
        }
        self.streams.insert(stream, BorrowedStream::new(stream, options.window, options.max_window, options.access));
    }

    /// Gives a window to a stream that was opened without one: from now on its lender may send.
    pub fn admit(&mut self, stream: StreamId, window: u64, max_window: u64) {
        let limit = crate::credit::batch_cost(self.lender_limit);
        if let Some(open) = self.streams.get_mut(&stream).filter(|open| !open.ended && !open.remote_done)
            && let Some(total) = open.admit(window.min(limit), max_window.min(limit))
        {
            self.send(FromBorrower::Credit { stream, total });
        }
    }

    /// Processes a command or a report of the driver.
    ///
    /// # Errors
    /// [`ApiMisuse`] if the driver broke the contract.
    pub fn command(&mut self, now: Timestamp, command: BorrowerCommand) -> Result<(), ApiMisuse> {
        match command {
            BorrowerCommand::Consumed { stream, cost } => self.consumed(stream, cost)?,
            BorrowerCommand::ReadPart { stream, seq, part, pieces } => {
                self.read_part(now, (stream, seq), part, &pieces)?;
            }
            BorrowerCommand::ReleaseBatch { stream, seq } => self.give_up((stream, seq))?,
            BorrowerCommand::ReadDone { read, result } => self.read_done(read, result)?,
            BorrowerCommand::Rejected { stream, seq, reason } => {
                self.lose((stream, seq), StreamError::InvalidBatch { seq, reason }, CancelReason::InvalidBatch);
            }
            BorrowerCommand::Cancel { stream } => self.cancel(stream, CancelReason::Dropped),
        }
        Ok(())
    }

    /// Cancels a stream for this end. Has no effect if the stream has ended.
    pub fn cancel(&mut self, stream: StreamId, reason: CancelReason) {
        self.fail(stream, StreamError::Cancelled, reason);
    }

    /// The lender fails a stream after its end, while not all of its batches have been delivered. `false`: there is no
    /// such stream.
    pub(crate) fn withdraw(&mut self, stream: StreamId, failure: &Failure) -> bool {
        let ended = self.streams.get(&stream).is_some_and(|open| open.remote_done);
        if ended {
            let failure = Failure { message: truncate(failure.message.clone()), ..failure.clone() };
            self.fail(stream, StreamError::Remote(failure), CancelReason::Dropped);
        }
        ended
    }

    /// Ends a stream for the application, and cancels it at the lender if the lender has not ended it.
    pub(crate) fn fail(&mut self, stream: StreamId, error: StreamError, reason: CancelReason) {
        let Some(open) = self.streams.get_mut(&stream) else { return };
        if std::mem::replace(&mut open.ended, true) {
            return;
        }
        let done = open.remote_done;
        let abandoned = open.abandon();
        // Batches of this stream that are on loan are no longer needed, and other streams may wait for the room.
        self.loans.flush_now();
        for payload in abandoned {
            self.abandon(stream, payload);
        }
        self.clear_deadline(stream);
        self.lose_batches(stream, &error);
        self.event(BorrowerEvent::Failed { stream, error });
        if done {
            self.streams.remove(&stream);
        } else {
            self.send(FromBorrower::Cancel { stream, reason });
        }
    }

    fn clear_deadline(&mut self, stream: StreamId) {
        self.timers.clear(Timer::Stream(stream));
        self.deadlines.remove(&stream);
    }

    /// Handles all deadlines that have passed.
    ///
    /// # Errors
    /// The reads of a batch were not done in time: the data plane counts as failed, for this reason.
    pub fn expire(&mut self, now: Timestamp) -> Result<(), String> {
        let mut dead = Ok(());
        while let Some(timer) = self.timers.expired(now) {
            match timer {
                Timer::Stream(stream) => {
                    let deadline = self.deadlines.remove(&stream).unwrap_or_default();
                    let error = StreamError::DeadlineExceeded(deadline);
                    // This applies also to a stream that is complete while some of its batches are held.
                    self.lose_batches(stream, &error);
                    self.fail(stream, error, CancelReason::DeadlineExceeded);
                }
                Timer::Read(read) => {
                    let after = self.config.read_timeout;
                    if let Some((stream, seq)) = self.reads.get(&read).map(|read| (read.stream, read.seq)) {
                        self.lose((stream, seq), StreamError::ReadTimeout { seq, after }, CancelReason::ReadFailed);
                    }
                    dead = Err(format!("a one-sided read was not done within {after:?}"));
                }
                Timer::Releases => self.loans.flush_now(),
                _ => {}
            }
        }
        dead
    }

    /// The connection is about to end: streams end in its error, and their undelivered batches are released.
    pub fn release_abandoned(&mut self, error: &Arc<ConnectionError>) {
        let holding: BTreeSet<_> = self.on_demand.keys().map(|(stream, _)| *stream).collect();
        for stream in holding {
            self.lose_batches(stream, &StreamError::Connection(Arc::clone(error)));
        }
        for (stream, mut open) in std::mem::take(&mut self.streams) {
            for payload in open.abandon() {
                self.abandon(stream, payload);
            }
            if !open.ended {
                self.event(BorrowerEvent::Failed { stream, error: StreamError::Connection(Arc::clone(error)) });
            }
        }
    }

    /// The connection begins to end: streams end in its error, and no message is sent any more. The driver still has to
    /// report reads.
    pub fn shut(&mut self, error: &Arc<ConnectionError>) {
        self.release_abandoned(error);
        self.ended_by = Some(Arc::clone(error));
        self.timers.clear_all();
        self.loans.forget_releases();
        self.deadlines.clear();
    }

    /// The endpoint is closed: reads that were not reported are lost.
    ///
    /// # Errors
    /// [`ApiMisuse::State`] if there was such a read.
    pub fn closed(&mut self) -> Result<(), ApiMisuse> {
        let unreported: Vec<_> = self.reads.keys().copied().collect();
        for read in &unreported {
            self.lost(*read, "the data plane was closed".into());
        }
        if unreported.is_empty() {
            Ok(())
        } else {
            Err(ApiMisuse::State { command: "fabric-closed", state: "reads are outstanding" })
        }
    }

    fn send(&mut self, message: FromBorrower) {
        if self.ended_by.is_none() {
            self.out.push_back(BorrowerOutput::Send(message));
        }
    }

    fn event(&mut self, event: BorrowerEvent) {
        self.out.push_back(BorrowerOutput::Event(event));
    }

    fn task(&mut self, task: BorrowerTask) {
        self.out.push_back(BorrowerOutput::Task(task));
    }

    /// Processes a message of the lender.
    ///
    /// # Errors
    /// [`PeerMisbehaved`] if the message breaks the protocol.
    pub fn receive(&mut self, now: Timestamp, message: FromLender, payload: Bytes) -> Result<(), PeerMisbehaved> {
        self.message(now, message, payload)
    }
}
