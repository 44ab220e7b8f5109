//! The lender's half of a connection: leases and their words, credit, waiting batches, and announced regions.
//!
//! It is the same at a server, which lends results, and at a client, which lends uploads. It does no handshake,
//! requests or encoding: messages of the borrower go in; messages for the borrower and tasks for the driver come out.
//!
//! After every call the caller takes the outputs with [`Lender::poll`] until there are none, and carries them out in
//! order. This order is part of the contract: a lease's word is set before the message that names it is sent, and
//! cleared before the memory is reused.

mod ending;
mod io;
mod lease;
mod room;
mod send;
mod stream;
mod waiting;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use bytes::Bytes;

pub use io::{LendOptions, LenderCommand, LenderOutput, LenderTask, Loan, LoanCost};
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

/// Limits and timeouts of a lender.
#[derive(Clone, Debug)]
pub struct LenderConfig {
    /// Maximum bytes on loan at once, over all streams.
    pub max_loan_bytes: u64,
    /// Maximum number of leases at once, at least 1. Also the number of slots for lease words.
    pub max_leases: u32,
    /// Entropy for lease words, so that they differ from any other content of the same memory.
    pub word_nonce: u64,
    /// Time limit of a lease. Leases of mapped batches have no limit.
    pub lease_timeout: Duration,
    /// Live bytes from which on a batch is lent, if neither end is configured otherwise and the borrower has measured
    /// nothing.
    pub thresholds: Thresholds,
    /// Maximum message and payload of the borrower.
    pub frame: FrameLimits,
}

/// The data plane from the borrower to this end's memory.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Path {
    /// There is none.
    None,
    /// Opened; the borrower has not reported yet whether it can read.
    Unproven(Words),
    Up(Words),
    /// It has failed; nothing is lent on it any more.
    Down(Words),
}

/// Region and fencing of the lease words.
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
    /// The stream that was served last, so that blocked streams take turns.
    served: Option<StreamId>,
    /// The stream whose batch waits for room among the loans. No other stream may lend until that batch is sent.
    waiting: Option<StreamId>,
    /// The connection is ending: no message is sent any more.
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

    /// The next output.
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

    /// Number of leases that stand.
    #[must_use]
    pub fn open_leases(&self) -> usize {
        self.leases.len()
    }

    /// Number of leases of mapped batches that stand.
    #[must_use]
    pub fn mapped_leases(&self) -> usize {
        self.leases.mapped()
    }

    /// Number of streams that have not ended.
    #[must_use]
    pub fn open_streams(&self) -> usize {
        self.streams.len()
    }

    /// The streams that have not ended.
    pub fn streams(&self) -> impl Iterator<Item = StreamId> {
        self.streams.keys().copied()
    }

    /// Whether a stream is open. A driver need not prepare a batch for a closed one.
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

    /// Whether a data plane was opened, even if it has failed since.
    #[must_use]
    pub fn has_path(&self) -> bool {
        self.path != Path::None
    }

    /// Whether batches can be lent.
    #[must_use]
    pub fn is_up(&self) -> bool {
        matches!(self.path, Path::Up(_))
    }

    /// The driver has opened the data plane and its lease words: eight bytes a slot, [`LenderConfig::max_leases`]
    /// slots, and one more for the probe. Returns the description of the words for the borrower.
    ///
    /// # Errors
    /// [`ApiMisuse::Region`] if the region has no room for the words, or is not aligned.
    pub fn path_opened(&mut self, fencing: Fencing, words: Region, probe_value: u64) -> Result<Lending, ApiMisuse> {
        let described = Words { fencing, region: words.id, base: words.base };
        let probe_at = word_at(&described, self.config.max_leases);
        let fits = u64::from(self.config.max_leases).saturating_add(1).saturating_mul(8) <= words.len;
        let aligned = words.base.is_multiple_of(8) && words.base.checked_add(words.len).is_some();
        // The path is recorded even if the words cannot be offered: it is open, and must be closed.
        self.path = Path::Unproven(described);
        self.regions.insert(words.id);
        if !fits || !aligned {
            return Err(ApiMisuse::Region(words.id));
        }
        Ok(Lending { fencing, words, probe_at, probe_value })
    }

    /// The borrower has proven the path. `false`: there is no path, or it was proven before.
    pub fn path_up(&mut self) -> bool {
        match &self.path {
            Path::Unproven(words) => {
                self.path = Path::Up(words.clone());
                true
            }
            // This end detected the failure while the borrower's report of success was on its way.
            Path::Down(_) => true,
            Path::None | Path::Up(_) => false,
        }
    }

    /// The path has failed, according to either end. Nothing is lent from now on: streams that have begun to lend end,
    /// other streams travel inline. `false`: there was no path.
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

    /// Records that the connection has had a stream of this id, lent by either end. Messages for it may arrive late.
    pub fn note_stream(&mut self, stream: StreamId) {
        self.last_stream = self.last_stream.max(Some(stream));
    }

    /// Maximum credit that a borrower may have unspent.
    #[must_use]
    pub fn max_credit(&self) -> u64 {
        batch_cost(self.config.max_loan_bytes)
    }

    /// Begins a stream that is lent.
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

    /// Processes a message of the borrower. The connection handles the state of the path: see [`Lender::path_up`].
    ///
    /// # Errors
    /// [`PeerMisbehaved`] if the message breaks the protocol.
    pub fn receive(&mut self, message: FromBorrower) -> Result<(), PeerMisbehaved> {
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
        self.out.push_back(LenderOutput::Task(LenderTask::Stop { stream, reason: Some(reason), failure: None }));
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

    /// Checks that a stream has existed. Messages for a stream that has ended are late, not wrong.
    fn ensure_known(&self, stream: StreamId) -> Result<(), PeerMisbehaved> {
        if self.last_stream.is_some_and(|last| stream <= last) {
            Ok(())
        } else {
            Err(PeerMisbehaved::UnknownStream(stream))
        }
    }

    fn send(&mut self, message: FromLender, payload: Bytes) {
        if !self.stopped {
            self.out.push_back(LenderOutput::Send(message, payload));
        }
    }

    fn end_lease(&mut self, lease: LeaseId, slot: Option<u32>, end: LeaseEnd) {
        self.out.push_back(LenderOutput::Task(LenderTask::EndLease { lease, slot, end }));
    }
}

/// The place of a slot's word.
fn word_at(words: &Words, slot: u32) -> RemoteRange {
    RemoteRange { region: words.region, address: words.base.saturating_add(u64::from(slot) * 8), len: 8 }
}
