//! The data plane of one connection, in both directions: one endpoint, the reads over it, and the loans over it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use arrow_buffer::Buffer;
use thallus_fabric::memory::{SlabPool, TrustedPeer};
use thallus_fabric::{Capabilities, Endpoint, FabricError, PresenceProbe, Transport};
use thallus_protocol::borrower::{BorrowerCommand, BorrowerTask, ReadBatch, ReadError};
use thallus_protocol::lender::{LenderCommand, LenderTask, Loan, LoanCost};
use thallus_protocol::message::{self, Region, Thresholds};
use thallus_protocol::{Cause, ReadId, RegionId, RemoteRange, StreamId, Timestamp};
use tracing::error;

use crate::lending::{KeepLoan, Lending, LendingParameters};
use crate::loans::{LoanPool, PreparedLoan};
use crate::pools::Pools;
use crate::reads::{Done, ReadSlab, Reads};
use crate::threshold::Threshold;

/// Time that an endpoint may take to close before the data plane gives it up.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(10);

#[derive(Debug)]
enum State {
    Open,
    /// The endpoint failed as a whole and is not closed yet.
    Failed,
    Closing {
        deadline: std::pin::Pin<Box<tokio::time::Sleep>>,
    },
    Closed,
}

/// An event of a data plane.
#[derive(Debug)]
pub enum PlaneEvent {
    /// Reads have ended.
    Read(Vec<BorrowerCommand>),
    /// The peer's probe was read: the proof, or the reason for which the data plane does not work.
    ProofCompleted(Result<Proof, String>),
    /// The endpoint failed as a whole.
    Failed(String),
    /// The endpoint is closed.
    Closed,
}

/// Proof that the peer's memory can be read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Proof {
    /// The transport of the reads, as the fabric names it.
    pub transport: String,
    /// Measured rate in bytes per second, if it was measured.
    pub rate: Option<u64>,
}

/// The time during which a stream had reads in flight.
#[derive(Debug, Default)]
struct ReadTime {
    in_flight: usize,
    /// Start of the current interval, while reads are in flight.
    since: Timestamp,
    total: Duration,
}

/// One connection's data plane.
#[derive(Debug)]
pub struct Plane {
    reads: Reads,
    lending: Lending,
    /// Mapped buffers that are not proven or not delivered yet.
    mapped: BTreeMap<ReadId, Vec<Buffer>>,
    times: BTreeMap<StreamId, ReadTime>,
    threshold: Threshold,
    /// The value that the peer's probe must have.
    probe_value: Option<u64>,
    /// The region to read for a measurement of the path, after the probe was read.
    to_measure: Option<RemoteRange>,
    batches: SlabPool,
    state: State,
    /// Events found together with an event that was reported first.
    events: std::collections::VecDeque<PlaneEvent>,
}

impl Plane {
    /// A data plane over an endpoint that is connected to its peer. This end lends over it the memory that `loans`
    /// makes readable.
    #[must_use]
    pub fn new(endpoint: Box<dyn Endpoint>, pools: Pools, capabilities: &Capabilities, loans: Arc<LoanPool>) -> Self {
        let batches = pools.batches.clone();
        Plane {
            reads: Reads::new(endpoint, pools, capabilities.max_read, capabilities.max_outstanding_reads),
            lending: Lending::new(loans),
            mapped: BTreeMap::new(),
            times: BTreeMap::new(),
            threshold: Threshold::new(),
            probe_value: None,
            to_measure: None,
            batches,
            state: State::Open,
            events: std::collections::VecDeque::new(),
        }
    }

    /// The transport of the reads, as the fabric names it.
    pub fn transport(&mut self) -> Option<Transport> {
        self.reads.endpoint().transport()
    }

    /// A probe for the presence of the peer's process, if the fabric has one.
    pub fn peer_presence(&mut self) -> Option<PresenceProbe> {
        self.reads.endpoint().peer_presence()
    }

    /// Opens the region of the peer's lease words and reads the probe among them. [`PlaneEvent::ProofCompleted`]
    /// reports the result. `as_batch`: reads into memory for batches, so that the proof includes that such memory is
    /// available. `measure`: then reads the region repeatedly, to find the rate in the proof.
    pub fn prove(&mut self, lending: &message::Lending, as_batch: bool, measure: bool) {
        self.reads.import(&lending.words);
        let Region { id: region, base: address, len, .. } = lending.words;
        self.to_measure = measure.then_some(RemoteRange { region, address, len });
        self.probe_value = Some(lending.probe_value);
        self.reads.probe(lending.probe_at, as_batch);
    }

    /// Starts lending, under at most `max_leases` leases at once.
    ///
    /// # Errors
    /// There is no memory for lease words, or it cannot be exposed to the peer.
    pub fn open_words(&mut self, max_leases: u32) -> Result<LendingParameters, FabricError> {
        self.reads.ring();
        self.lending.open(self.reads.endpoint(), max_leases)
    }

    /// The pool that makes batches readable by the peer.
    #[must_use]
    pub fn loan_pool(&self) -> &Arc<LoanPool> {
        self.lending.pool()
    }

    /// Whether nothing is on loan.
    #[must_use]
    pub fn has_no_loans(&self) -> bool {
        self.lending.is_empty()
    }

    /// Creates the loan of a batch for the machine, under a new lease. `keep` receives the loan's memory if the loan is
    /// torn down.
    pub fn lend(&mut self, loan: PreparedLoan, cost: LoanCost, keep: Option<KeepLoan>) -> Loan {
        self.lending.lend(loan, cost, keep)
    }

    /// Lets go of announced memory that its owner wants back. Returns the regions to be retired.
    pub(crate) fn let_go(&mut self) -> Vec<RegionId> {
        self.reads.ring();
        self.lending.let_go(self.reads.endpoint())
    }

    /// Carries out a task of the lender's half if it is the data plane's task; otherwise returns it. Appends the
    /// answers to `answer`.
    pub(crate) fn lender_task(
        &mut self,
        task: LenderTask,
        mut answer: impl FnMut(LenderCommand),
    ) -> Option<LenderTask> {
        match task {
            LenderTask::OpenLease { lease, word } => {
                self.reads.ring();
                answer(self.lending.open_lease(self.reads.endpoint(), lease, word));
            }
            LenderTask::EndLease { lease, slot, end } => {
                self.reads.ring();
                for region in self.lending.end_lease(self.reads.endpoint(), lease, slot, end) {
                    answer(LenderCommand::Retire(region));
                }
            }
            other @ (LenderTask::Pull { .. } | LenderTask::Stop { .. }) => return Some(other),
        }
        None
    }

    /// Carries out a task of the borrower's half. Returns the answer if it is available immediately.
    pub(crate) fn borrower_task(&mut self, now: Timestamp, task: BorrowerTask) -> Option<BorrowerCommand> {
        match task {
            BorrowerTask::Import(region) => self.reads.import(&region),
            BorrowerTask::UnimportRegion(region) => self.reads.forget(region),
            BorrowerTask::Read(batch) => {
                self.read_begins(now, batch.stream);
                self.reads.read_batch(batch);
            }
            BorrowerTask::Map(batch) => {
                let read = batch.read;
                if let Err(problem) = self.map(now, batch) {
                    return Some(BorrowerCommand::ReadDone { read, result: Err(problem) });
                }
            }
            BorrowerTask::Discard { read } => {
                self.mapped.remove(&read);
                self.reads.take(read);
            }
        }
        None
    }

    /// Maps all ranges of a batch, or none.
    fn map(&mut self, now: Timestamp, batch: ReadBatch) -> Result<(), ReadError> {
        self.reads.ring();
        // Only streams with `Access::Map` reach this. The documentation of that option states the application's
        // promise.
        let peer = TrustedPeer::assume();
        // Empty buffers have no range.
        let mut buffers = vec![Buffer::from(&[][..]); batch.layout.ranges.len()];
        for (index, place) in &batch.places {
            let mapped =
                peer.map(self.reads.endpoint(), *place).map_err(|error| ReadError::Failed(Cause::new(error)))?;
            if let Some(buffer) = buffers.get_mut(*index) {
                *buffer = mapped;
            }
        }
        self.mapped.insert(batch.read, buffers);
        self.read_begins(now, batch.stream);
        self.reads.prove_mapping(&batch);
        Ok(())
    }

    /// Takes the bytes of a batch or part that has been read.
    pub fn take(&mut self, read: ReadId) -> Option<ReadSlab> {
        self.reads.take(read)
    }

    /// Takes the buffers of a batch that has been mapped.
    pub fn take_mapped(&mut self, read: ReadId) -> Option<Vec<Buffer>> {
        self.reads.take(read);
        self.mapped.remove(&read)
    }

    /// Live bytes from which lending a batch is faster, as measured on this connection.
    #[must_use]
    pub fn thresholds(&self) -> Thresholds {
        self.threshold.get()
    }

    /// A stream has ended. Returns the time during which it had reads in flight.
    pub fn end_reading(&mut self, stream: StreamId) -> Duration {
        self.times.remove(&stream).map_or(Duration::ZERO, |time| time.total)
    }

    fn read_begins(&mut self, now: Timestamp, stream: StreamId) {
        let time = self.times.entry(stream).or_default();
        if time.in_flight == 0 {
            time.since = now;
        }
        time.in_flight += 1;
    }

    fn read_ends(&mut self, now: Timestamp, stream: StreamId) {
        let Some(time) = self.times.get_mut(&stream) else { return };
        time.in_flight = time.in_flight.saturating_sub(1);
        if time.in_flight == 0 {
            time.total += now.since(time.since);
        }
    }

    /// Number of registrations of read memory so far.
    #[must_use]
    pub fn read_registrations(&self) -> u64 {
        self.batches.stats().registrations
    }

    /// Whether the connections over the same memory together have reached the limit of bytes in flight.
    #[must_use]
    pub fn is_at_read_limit(&self) -> bool {
        self.reads.is_at_read_limit()
    }

    /// Frees memory that was idle for this time. Returns whether any is left.
    pub fn trim(&self, idle: Duration) -> bool {
        self.lending.pool().trim(idle);
        self.reads.trim(idle)
    }

    /// Cuts the peer off, as far as the fabric can. [`PlaneEvent::Closed`] follows when the endpoint is closed and
    /// every read has been reported.
    pub fn close(&mut self) {
        self.reads.close();
        self.state = State::Closing { deadline: Box::pin(tokio::time::sleep(CLOSE_TIMEOUT)) };
    }

    /// The next event.
    pub fn poll(&mut self, now: Timestamp, cx: &mut Context<'_>) -> Poll<PlaneEvent> {
        if let Some(event) = self.events.pop_front() {
            return Poll::Ready(event);
        }
        if matches!(self.state, State::Failed | State::Closed) {
            return Poll::Pending;
        }
        let mut done = Vec::new();
        let polled = self.reads.poll(cx, &mut done);
        let probing = self.to_measure.is_some();
        self.report(now, done);
        if probing && self.to_measure.is_none() {
            // The completion of the probe has queued the measuring reads, and no poll has posted them yet.
            cx.waker().wake_by_ref();
        }
        match (&mut self.state, polled) {
            (State::Open, Poll::Ready(Err(error))) => {
                self.state = State::Failed;
                self.events.push_back(PlaneEvent::Failed(error.to_string()));
            }
            (State::Closing { deadline }, _) => {
                let late = deadline.as_mut().poll(cx).is_ready();
                if late && !self.reads.is_closed() {
                    error!("the fabric endpoint did not close within {CLOSE_TIMEOUT:?}");
                    let stuck = self.reads.give_up();
                    self.report(now, stuck);
                }
                if late || self.reads.is_closed() {
                    self.state = State::Closed;
                    self.events.push_back(PlaneEvent::Closed);
                }
            }
            _ => {}
        }
        self.events.pop_front().map_or(Poll::Pending, Poll::Ready)
    }

    fn report(&mut self, now: Timestamp, done: Vec<Done>) {
        let mut reads = Vec::new();
        for done in done {
            match done {
                Done::Probe(found) => match (self.proven(found), self.to_measure.take()) {
                    (Ok(()), Some(region)) => self.reads.measure(region),
                    (proven, _) => {
                        let proof = proven.map(|()| self.proof(None));
                        self.events.push_back(PlaneEvent::ProofCompleted(proof));
                    }
                },
                Done::Rate(measured) => {
                    let rate = |(bytes, took): (u64, Duration)| (bytes as f64 / took.as_secs_f64().max(1e-9)) as u64;
                    let proof = measured.map(|measured| self.proof(Some(rate(measured))));
                    let failed = |problem: ReadError| format!("the path could not be measured: {}", problem.cause());
                    self.events.push_back(PlaneEvent::ProofCompleted(proof.map_err(failed)));
                }
                Done::Batch { read, stream, result, word_took } => {
                    self.read_ends(now, stream);
                    if let (Ok(_), Some(took)) = (&result, word_took) {
                        self.threshold.observe(took);
                    }
                    reads.push(BorrowerCommand::ReadDone { read, result });
                }
            }
        }
        if !reads.is_empty() {
            self.events.push_back(PlaneEvent::Read(reads));
        }
    }

    fn proof(&mut self, rate: Option<u64>) -> Proof {
        Proof { transport: self.transport().map(|transport| transport.name).unwrap_or_default(), rate }
    }

    fn proven(&self, found: Result<u64, ReadError>) -> Result<(), String> {
        match found {
            Ok(found) if Some(found) == self.probe_value => Ok(()),
            Ok(_) => Err("the probe does not have the value that the peer announced".into()),
            Err(problem) => Err(format!("the probe could not be read: {}", problem.cause())),
        }
    }
}
