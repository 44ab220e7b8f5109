//! The lender's half of a connection: leases and their words, credit, the batches that wait, and the regions that are
//! announced.
//!
//! It is the same at a server, which lends results, and at a client, which lends uploads. It knows no handshake, no
//! request and no bytes: messages of the borrower go in, messages for the borrower and tasks for the driver come out.
//!
//! After every call the outputs are to be taken by [`Lender::poll`] until there are none, and done in order. That order
//! keeps the promises: a lease's word is set before the message that names it goes out, and cleared before the memory
//! is reused.

mod ending;
mod io;
mod lease;
mod room;
mod send;
mod stream;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use bytes::Bytes;

pub use io::{LendOptions, LenderCommand, LenderOutput, LenderTask, Loan, LoanEffort};
pub use lease::LeaseEnd;
use lease::LeaseTable;
pub(crate) use send::within;
use stream::LentStream;

use crate::codec::FrameLimits;
use crate::codes::CancelReason;
use crate::credit::batch_cost;
use crate::error::ApiMisuse;
use crate::ids::{LeaseId, RegionId, RemoteRange, StreamId};
use crate::message::{Failure, Fencing, FromBorrower, FromLender, Lending, Region, Thresholds};
use crate::misbehaviour::PeerMisbehaved;
use crate::time::Timestamp;
use crate::timers::{Timer, Timers};

/// Limits and times of a lender.
#[derive(Clone, Debug)]
pub struct LenderConfig {
    /// Bytes on loan at once, over all streams.
    pub max_loan_bytes: u64,
    /// Leases at once, at least 1, and slots for lease words.
    pub max_leases: u32,
    /// Entropy: makes lease words unlike anything else that may come to stand in the same memory.
    pub word_nonce: u64,
    /// How long a lease may be kept. A mapped batch may be kept for longer.
    pub lease_timeout: Duration,
    /// Live bytes from which on a batch is lent, where neither end was told otherwise and the borrower has measured
    /// nothing.
    pub thresholds: Thresholds,
    /// The largest message and payload that the borrower takes.
    pub frame: FrameLimits,
}

/// The data plane from the borrower to this end's memory.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Path {
    /// There is none.
    None,
    /// Opened; the borrower has not said yet whether it can read.
    Unproven(Words),
    Up(Words),
    /// Was there; nothing is lent on it any more.
    Down(Words),
}

/// Where the lease words are.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Words {
    fencing: Fencing,
    region: RegionId,
    base: u64,
}

impl Path {
    fn words(&self) -> Option<&Words> {
        match self {
            Path::None => None,
            Path::Unproven(words) | Path::Up(words) | Path::Down(words) => Some(words),
        }
    }
}

/// The lender's half of a connection.
#[derive(Debug)]
pub struct Lender {
    config: LenderConfig,
    timers: Timers,
    path: Path,
    streams: BTreeMap<StreamId, LentStream>,
    /// The last stream of the connection, in either direction.
    last_stream: Option<StreamId>,
    leases: LeaseTable,
    regions: BTreeSet<RegionId>,
    /// The stream that was served last, so that blocked ones take turns.
    served: Option<StreamId>,
    /// The stream whose batch found no room among the loans: until it has, no other may lend.
    waiting: Option<StreamId>,
    /// The connection is ending: nothing more is said.
    stopped: bool,
    out: VecDeque<LenderOutput>,
}

impl Lender {
    /// A lender without a data plane.
    #[must_use]
    pub fn new(mut config: LenderConfig) -> Self {
        config.max_leases = config.max_leases.max(1);
        Lender {
            leases: LeaseTable::new(config.max_leases),
            config,
            timers: Timers::default(),
            path: Path::None,
            streams: BTreeMap::new(),
            last_stream: None,
            regions: BTreeSet::new(),
            served: None,
            waiting: None,
            stopped: false,
            out: VecDeque::new(),
        }
    }

    /// The next thing to do.
    #[must_use]
    pub fn poll(&mut self) -> Option<LenderOutput> {
        self.out.pop_front()
    }

    /// The next deadline and its reason.
    #[must_use]
    pub fn deadline(&self) -> Option<(Timestamp, Timer)> {
        self.timers.next()
    }

    /// Bytes on loan.
    #[must_use]
    pub fn bytes_on_loan(&self) -> u64 {
        self.leases.bytes()
    }

    /// Leases that stand.
    #[must_use]
    pub fn open_leases(&self) -> usize {
        self.leases.len()
    }

    /// Leases that stand of mapped batches.
    #[must_use]
    pub fn mapped_leases(&self) -> usize {
        self.leases.mapped()
    }

    /// Streams that have not ended.
    #[must_use]
    pub fn open_streams(&self) -> usize {
        self.streams.len()
    }

    /// The streams that have not ended.
    pub fn streams(&self) -> impl Iterator<Item = StreamId> {
        self.streams.keys().copied()
    }

    /// Whether a stream is open: a driver need not prepare a batch for one that is not.
    #[must_use]
    pub fn is_open(&self, stream: StreamId) -> bool {
        self.streams.contains_key(&stream)
    }

    /// The state of the data plane, in one word for traces.
    #[must_use]
    pub fn path_name(&self) -> &'static str {
        match self.path {
            Path::None => "none",
            Path::Unproven(_) => "unproven",
            Path::Up(_) => "up",
            Path::Down(_) => "down",
        }
    }

    /// Whether a data plane was opened, whatever has become of it.
    #[must_use]
    pub fn has_path(&self) -> bool {
        self.path != Path::None
    }

    /// Whether batches can be lent.
    #[must_use]
    pub fn is_up(&self) -> bool {
        matches!(self.path, Path::Up(_))
    }

    /// The driver has opened the data plane, and its lease words: eight bytes a slot, as many slots as
    /// [`LenderConfig::max_leases`], and one more, the probe. Says what the borrower is to be told.
    ///
    /// # Errors
    /// [`ApiMisuse::Region`] if the region has no room for the words, or is not aligned.
    pub fn opened(&mut self, fencing: Fencing, words: Region, probe_value: u64) -> Result<Lending, ApiMisuse> {
        let described = Words { fencing, region: words.id, base: words.base };
        let probe_at = word_at(&described, self.config.max_leases);
        let fits = u64::from(self.config.max_leases).saturating_add(1).saturating_mul(8) <= words.len;
        let aligned = words.base.is_multiple_of(8) && words.base.checked_add(words.len).is_some();
        // Kept even if it is not fit to be offered: it is open, and must be closed.
        self.path = Path::Unproven(described);
        self.regions.insert(words.id);
        if !fits || !aligned {
            return Err(ApiMisuse::Region(words.id));
        }
        Ok(Lending { fencing, words, probe_at, probe_value })
    }

    /// The borrower has proven the path. `false`: there is none to prove, or it was proven before.
    pub fn path_up(&mut self) -> bool {
        match &self.path {
            Path::Unproven(words) => {
                self.path = Path::Up(words.clone());
                true
            }
            // This end saw it fail while the borrower said that it works.
            Path::Down(_) => true,
            Path::None | Path::Up(_) => false,
        }
    }

    /// The path is gone, as either end has found out. Nothing is lent from now on: streams that have begun to lend end,
    /// others travel inline. `false`: there was none.
    pub fn path_down(&mut self, reason: &str) -> bool {
        match &self.path {
            Path::None => return false,
            Path::Down(_) => return true,
            Path::Unproven(words) | Path::Up(words) => self.path = Path::Down(words.clone()),
        }
        let caught = self.streams.iter().filter(|(_, open)| open.is_lending()).map(|(id, _)| *id).collect::<Vec<_>>();
        for stream in caught {
            let message = format!("{reason}; run the request again");
            self.stop(stream, Failure::new(crate::codes::StreamCode::DataPlaneLost, message));
        }
        true
    }

    /// The connection has had a stream of this name, lent by whichever end: messages for it may be late.
    pub fn note_stream(&mut self, stream: StreamId) {
        self.last_stream = self.last_stream.max(Some(stream));
    }

    /// The largest credit that a borrower may have unspent.
    #[must_use]
    pub fn max_credit(&self) -> u64 {
        batch_cost(self.config.max_loan_bytes)
    }

    /// A stream begins, to be lent.
    ///
    /// # Errors
    /// The borrower grants more than [`Lender::max_credit`].
    pub fn open(&mut self, now: Timestamp, stream: StreamId, options: LendOptions) -> Result<(), PeerMisbehaved> {
        self.note_stream(stream);
        let limit = self.max_credit();
        if options.credit > limit {
            return Err(PeerMisbehaved::Limit { what: "unspent credit", value: options.credit, limit });
        }
        if let Some(deadline) = options.deadline {
            self.timers.set(Timer::Stream(stream), now + deadline);
        }
        self.streams.insert(stream, LentStream::new(options, now));
        Ok(())
    }

    /// The borrower said something. The state of the path is the connection's affair: see [`Lender::path_up`].
    ///
    /// # Errors
    /// [`PeerMisbehaved`].
    pub fn heard(&mut self, message: FromBorrower) -> Result<(), PeerMisbehaved> {
        match message {
            FromBorrower::Credit { stream, total } => {
                let limit = self.max_credit();
                if let Some(open) = self.streams.get_mut(&stream) {
                    open.credit.grant(total, limit)?;
                } else {
                    self.ensure_known(stream)?;
                }
            }
            FromBorrower::Release { leases } => self.release(leases)?,
            FromBorrower::Cancel { stream, reason } => {
                if self.streams.contains_key(&stream) {
                    self.cancelled(stream, reason);
                } else {
                    self.ensure_known(stream)?;
                }
            }
            FromBorrower::PathUp { .. } | FromBorrower::PathDown { .. } => {}
        }
        Ok(())
    }

    fn cancelled(&mut self, stream: StreamId, reason: CancelReason) {
        self.out.push_back(LenderOutput::Do(LenderTask::Stop { stream, reason: Some(reason), failure: None }));
        self.fail(stream, Failure::cancelled(reason));
    }

    fn release(&mut self, leases: Vec<LeaseId>) -> Result<(), PeerMisbehaved> {
        for lease in leases {
            if let Some(ended) = self.leases.release(lease)? {
                self.timers.clear(Timer::Lease(lease));
                self.end_lease(lease, ended.slot, LeaseEnd::Released);
            }
        }
        Ok(())
    }

    /// Messages for a stream that has ended are late, not wrong.
    fn ensure_known(&self, stream: StreamId) -> Result<(), PeerMisbehaved> {
        if self.last_stream.is_some_and(|last| stream <= last) {
            Ok(())
        } else {
            Err(PeerMisbehaved::UnknownStream(stream))
        }
    }

    fn say(&mut self, message: FromLender, payload: Bytes) {
        if !self.stopped {
            self.out.push_back(LenderOutput::Say(message, payload));
        }
    }

    fn end_lease(&mut self, lease: LeaseId, slot: Option<u32>, end: LeaseEnd) {
        self.out.push_back(LenderOutput::Do(LenderTask::EndLease { lease, slot, end }));
    }
}

/// Where a slot's word is.
fn word_at(words: &Words, slot: u32) -> RemoteRange {
    RemoteRange { region: words.region, address: words.base.saturating_add(u64::from(slot) * 8), len: 8 }
}
