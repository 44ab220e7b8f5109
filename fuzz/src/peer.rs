//! A machine of either end with a driver that keeps the machine's contract. It checks invariants that must hold for
//! arbitrary messages from the other end.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use bytes::Bytes;
use thallus_protocol::borrower::{BorrowerCommand, BorrowerEvent, BorrowerTask, Payload, ReadError};
use thallus_protocol::codes::StreamCode;
use thallus_protocol::connection::{Input, Machine, Output};
use thallus_protocol::layout::{BatchDescriptor, Detail, NodeDescriptor, Piece};
use thallus_protocol::lender::{Lender, LenderCommand, LenderTask, Loan};
use thallus_protocol::message::{Failure, Region};
use thallus_protocol::{LeaseId, PartId, ReadId, RegionId, RemoteRange, StreamId, Timestamp};

use crate::frames::{START, Step};

/// Largest number of open leases.
pub const LEASES: u32 = 3;
/// Limit on loan, in bytes.
pub const LOANS: u64 = 4096;
/// Size of the largest batch that may be borrowed, in bytes.
pub const BATCH: u64 = 1 << 16;
/// Window of each borrowed stream, in bytes.
pub const CREDIT: u64 = 4000;

/// A borrowed stream: the next sequence number, and the costs of batches not consumed yet.
#[derive(Debug, Default)]
struct Borrowed {
    next: u64,
    untaken: Vec<u64>,
}

/// A batch on demand: the lengths of its buffers, and the outstanding reads of its parts.
type Held = (Vec<u64>, BTreeSet<PartId>);

/// The machine, and the state of its driver.
pub struct Peer<M: Machine> {
    now: Timestamp,
    pub(crate) machine: M,
    /// Outstanding reads, each with whether it includes a lease word.
    pub(crate) reads: BTreeMap<ReadId, bool>,
    slabs: BTreeSet<ReadId>,
    borrowed: BTreeMap<StreamId, Borrowed>,
    held: BTreeMap<(StreamId, u64), Held>,
    last_part: u64,
    /// Requests for the next batch or the end, each with whether the batch may be lent.
    pulled: VecDeque<(StreamId, bool)>,
    /// Loans: the length in bytes, and the slot of an open lease.
    loans: BTreeMap<LeaseId, (u64, Option<u32>)>,
    slots: BTreeSet<u32>,
    last_lease: u64,
    closing: bool,
    pub(crate) closed: bool,
    pub(crate) events: VecDeque<M::Event>,
    /// Returns the stream that this end must borrow because of an event.
    opens: fn(&M::Event) -> Option<StreamId>,
    /// Borrowed streams that have ended without an error.
    ended: BTreeSet<StreamId>,
}

/// The region of the lease words and of all lent bytes.
pub fn words() -> Region {
    Region { id: RegionId(1), base: 0, len: 8 * u64::from(LEASES + 1), key: Bytes::new() }
}

impl<M: Machine> Peer<M> {
    /// Wraps a new machine.
    pub fn new(machine: M, opens: fn(&M::Event) -> Option<StreamId>) -> Self {
        Peer {
            now: START,
            machine,
            reads: BTreeMap::new(),
            slabs: BTreeSet::new(),
            borrowed: BTreeMap::new(),
            held: BTreeMap::new(),
            last_part: 0,
            pulled: VecDeque::new(),
            loans: BTreeMap::new(),
            slots: BTreeSet::new(),
            last_lease: 0,
            closing: false,
            closed: false,
            events: VecDeque::new(),
            opens,
            ended: BTreeSet::new(),
        }
    }

    /// Applies received bytes or the passing of time.
    pub fn apply(&mut self, step: &Step) {
        match step {
            Step::Bytes(bytes) => self.input(Input::Received(bytes)),
            Step::Pass(time) => {
                self.now = self.now + *time;
                self.input(Input::Time);
            }
            Step::Answer(_) => {}
        }
    }

    /// Closes the control connection from the other end.
    pub fn lose_control(&mut self) {
        self.input(Input::ControlLost("gone".into()));
    }

    /// Closes the fabric if due, and checks that the connection, all reads, streams and loans have ended.
    pub fn finish(&mut self) {
        self.close();
        assert!(self.closed && self.reads.is_empty() && self.slabs.is_empty() && self.borrowed.is_empty());
        assert!(self.loans.is_empty() && self.slots.is_empty());
    }

    /// Checks that the lender stays within its limits.
    pub fn check(lender: &Lender) {
        assert!(lender.bytes_on_loan() <= LOANS && lender.open_leases() <= LEASES as usize);
    }

    /// Whether a borrowed stream has ended without an error.
    pub fn has_ended(&self, stream: StreamId) -> bool {
        self.ended.contains(&stream)
    }

    /// Registers a stream that this end borrows from now on.
    pub fn borrow(&mut self, stream: StreamId) {
        assert!(self.borrowed.insert(stream, Borrowed::default()).is_none());
    }

    pub(crate) fn command(&mut self, command: M::Command) {
        self.input(Input::Command(command));
    }

    fn lender(&mut self, command: LenderCommand) {
        self.command(M::lender_command(command));
    }

    pub(crate) fn borrower(&mut self, command: BorrowerCommand) {
        self.command(M::borrower_command(command));
    }

    /// Sends the schema of a stream that this end lends.
    pub fn schema(&mut self, stream: StreamId) {
        self.lender(LenderCommand::Schema { stream, schema: Bytes::from_static(b"schema"), order: Vec::new() });
    }

    pub(crate) fn input(&mut self, input: Input<'_, M::Command>) {
        self.machine.handle(self.now, input).expect("this driver keeps the contract");
        loop {
            match self.machine.poll_output() {
                Output::Wait(deadline) => {
                    assert!(!self.closed || deadline.is_none());
                    break;
                }
                Output::Lender(task) => self.lender_task(task),
                Output::Borrower(task) => self.borrower_task(task),
                Output::Stream(event) => self.stream_event(event),
                Output::Event(event) => {
                    if let Some(stream) = (self.opens)(&event) {
                        self.borrow(stream);
                    }
                    self.events.push_back(event);
                }
                Output::CloseFabric => assert!(!std::mem::replace(&mut self.closing, true)),
                Output::Closed(_) => {
                    assert!(!std::mem::replace(&mut self.closed, true));
                    assert!(!self.closing && self.loans.is_empty());
                }
                Output::Transmit(_) => assert!(!self.closed),
            }
        }
    }

    fn lender_task(&mut self, task: LenderTask) {
        match task {
            LenderTask::Pull { stream, lend_from, .. } => self.pulled.push_back((stream, lend_from.is_some())),
            LenderTask::Stop { .. } => {}
            LenderTask::OpenLease { lease, word } => {
                let (len, opened) = self.loans.get_mut(&lease).expect("a lease that was lent");
                *opened = word.map(|(slot, _)| slot);
                assert!(opened.is_some_and(|slot| self.slots.insert(slot)));
                let place = RemoteRange { region: RegionId(1), address: 0, len: *len };
                let places = if *len > 0 { vec![place] } else { vec![] };
                // The contract: immediately, before any other input.
                let exposed = M::lender_command(LenderCommand::Exposed { lease, announce: Vec::new(), places });
                self.machine.handle(self.now, Input::Command(exposed)).expect("this driver keeps the contract");
            }
            LenderTask::EndLease { lease, slot, .. } => {
                assert_eq!(self.loans.remove(&lease).map(|(_, slot)| slot), Some(slot));
                assert!(slot.is_none_or(|slot| self.slots.remove(&slot)));
            }
        }
    }

    fn borrower_task(&mut self, task: BorrowerTask) {
        match task {
            BorrowerTask::Read(batch) | BorrowerTask::Map(batch) => {
                assert!(batch.layout.len <= BATCH);
                assert!(batch.lease_word.is_none_or(|at| (at.len, at.address % 8) == (8, 0)));
                let is_new = self.reads.insert(batch.read, batch.lease_word.is_some()).is_none();
                assert!(self.slabs.insert(batch.read) && is_new);
            }
            BorrowerTask::Discard { read } => assert!(!self.reads.contains_key(&read) && self.slabs.remove(&read)),
            BorrowerTask::Import(_) | BorrowerTask::UnimportRegion(_) => {}
        }
    }

    fn stream_event(&mut self, event: BorrowerEvent) {
        match event {
            BorrowerEvent::Batch { stream, seq, cost, payload } => {
                let Borrowed { next, untaken } = self.borrowed.get_mut(&stream).expect("a stream that runs");
                assert_eq!(*next, seq);
                *next += 1;
                untaken.push(cost);
                assert!(untaken.iter().sum::<u64>() <= CREDIT.max(BATCH + 256));
                match payload {
                    Payload::Lent { read, .. } | Payload::Mapped { read, .. } => {
                        assert!(!self.reads.contains_key(&read) && self.slabs.remove(&read));
                    }
                    Payload::OnDemand { descriptor } => {
                        // Its credit returns when the application releases the batch.
                        untaken.pop();
                        let held = (descriptor.buffers.clone(), BTreeSet::new());
                        assert!(self.held.insert((stream, seq), held).is_none());
                    }
                    Payload::Inline(_) => {}
                }
            }
            BorrowerEvent::PartRead { stream, seq, part, read } => {
                assert!(!self.reads.contains_key(&read) && self.slabs.remove(&read));
                assert!(self.held.get_mut(&(stream, seq)).is_some_and(|(_, parts)| parts.remove(&part)));
            }
            BorrowerEvent::PartFailed { stream, seq, part, .. } => {
                assert!(self.held.get_mut(&(stream, seq)).is_some_and(|(_, parts)| parts.remove(&part)));
            }
            BorrowerEvent::End { stream, .. } => {
                assert!(self.borrowed.remove(&stream).is_some(), "{stream:?} ends twice");
                self.ended.insert(stream);
            }
            // A request refused immediately has no other event, and may not be in `borrowed`.
            BorrowerEvent::Failed { stream, .. } => {
                self.borrowed.remove(&stream);
                assert!(!self.ended.contains(&stream), "{stream:?} ends twice");
            }
            BorrowerEvent::Schema { .. } => {}
        }
    }

    /// Answers a task of the machine, or does something that an application may do.
    pub fn answer(&mut self, choice: u8) {
        match choice % 8 {
            0 => self.close(),
            1 => {
                let full = self.borrowed.iter_mut().find(|(_, borrowed)| !borrowed.untaken.is_empty());
                if let Some((&stream, Borrowed { untaken, .. })) = full {
                    let cost = untaken.remove(0);
                    self.borrower(BorrowerCommand::Consumed { stream, cost });
                }
            }
            2 => self.hand_over(choice / 8),
            3 => self.complete(Err(ReadError::failed("as the fuzzer chose"))),
            4 if !self.held.is_empty() => self.read_part(usize::from(choice / 8)),
            5 if !self.held.is_empty() => {
                let at = usize::from(choice / 8) % self.held.len();
                let Some(&(stream, seq)) = self.held.keys().nth(at) else { return };
                self.borrower(BorrowerCommand::ReleaseBatch { stream, seq });
                assert!(self.held.remove(&(stream, seq)).is_some_and(|(_, parts)| parts.is_empty()));
            }
            _ => self.complete(Ok(u64::from(choice / 8))),
        }
    }

    /// Answers the oldest pull.
    fn hand_over(&mut self, choice: u8) {
        let Some((stream, lent)) = self.pulled.pop_front() else { return };
        let command = match choice % 8 {
            6 => LenderCommand::Finish { stream, execute_nanos: 1 },
            7 => LenderCommand::Fail { stream, failure: Failure::new(StreamCode::Execution, "") },
            0..4 if lent => {
                self.last_lease += 1;
                let lease = LeaseId(self.last_lease);
                let len = u64::from(choice) * 8;
                self.loans.insert(lease, (len, None));
                let node = NodeDescriptor { len: len / 8, nulls: 0, null_bit: 0, detail: Detail::None };
                let descriptor = BatchDescriptor { rows: len / 8, nodes: vec![node], buffers: vec![len] };
                let loan = Loan { lease, descriptor, staged: 0, cost: Default::default() };
                LenderCommand::Lend { stream, loan, rows: len / 8 }
            }
            _ => LenderCommand::Inline { stream, ipc: vec![0; usize::from(choice) * 40].into(), rows: 1 },
        };
        self.lender(command);
    }

    /// Requests half of each buffer of a batch on demand.
    fn read_part(&mut self, at: usize) {
        let at = at % self.held.len();
        let Some((&(stream, seq), (buffers, parts))) = self.held.iter_mut().nth(at) else { return };
        self.last_part += 1;
        let part = PartId(self.last_part);
        parts.insert(part);
        let half = |(buffer, len): (usize, &u64)| Piece { buffer, offset: len / 2, len: len - len / 2 };
        let pieces = buffers.iter().enumerate().map(half).collect();
        self.borrower(BorrowerCommand::ReadPart { stream, seq, part, pieces });
    }

    fn complete(&mut self, found: Result<u64, ReadError>) {
        let Some((read, word)) = self.reads.pop_first() else { return };
        let result = found.map(|found| word.then_some(found));
        self.borrower(BorrowerCommand::ReadDone { read, result });
    }

    fn close(&mut self) {
        if std::mem::take(&mut self.closing) {
            while !self.reads.is_empty() {
                self.complete(Err(ReadError::failed("flushed")));
            }
            self.command(M::fabric_closed());
        }
    }
}
