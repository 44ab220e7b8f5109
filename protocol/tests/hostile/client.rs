//! A client whose driver keeps the contract, with checks of everything that the machine does.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use thallus_protocol::borrower::{BorrowerCommand, BorrowerEvent, BorrowerTask, Payload, ReadError};
use thallus_protocol::client::*;
use thallus_protocol::codec::FrameLimits;
use thallus_protocol::layout::Piece;
use thallus_protocol::lender::{LenderCommand, LenderTask, Loan};
use thallus_protocol::message::*;
use thallus_protocol::{
    ClientConnection, ConnectionError, LeaseId, Machine, PartId, ReadId, RegionId, RemoteRange, StreamId, Timestamp,
};

use super::messages::{lent, lent_as, schema_of};
use super::ops::ClientOp;
use crate::pair;
use crate::pair::bytes_of;
use crate::pair::memory::PROBE;
use crate::pair::script::{descriptor, schema_message};

pub(crate) const LOAN: u64 = 20_000;
pub(crate) const BATCH: u64 = 10_000;
pub(crate) const REGIONS: usize = 4;

/// State of an upload in its source and its application.
#[derive(Debug, Default)]
struct Source {
    lent: bool,
    begun: bool,
    pulled: Option<bool>,
    over: bool,
    answered: bool,
}

/// A client's driver that keeps the contract, and an application that follows the events.
pub(crate) struct Client {
    now: Timestamp,
    machine: ClientConnection,
    /// Outstanding reads, each with whether it includes a lease word.
    reading: BTreeMap<ReadId, bool>,
    slabs: BTreeSet<ReadId>,
    /// For each stream: the next sequence number, whether it has ended, the costs of batches not consumed yet.
    apps: BTreeMap<StreamId, (u64, bool, Vec<u64>)>,
    uploads: BTreeMap<StreamId, Source>,
    leases: BTreeMap<LeaseId, Option<u32>>,
    last_lease: u64,
    last_stream: u32,
    /// Batches on demand: the lengths of their buffers, and the outstanding reads of their parts.
    held: BTreeMap<(StreamId, u64), (Vec<u64>, BTreeSet<PartId>)>,
    last_part: u64,
    asked: bool,
    ready: bool,
    closing: bool,
    sent: usize,
    closed: Option<ConnectionError>,
}

impl Client {
    pub(crate) fn new(frame: FrameLimits) -> Self {
        let mut config = pair::end::client_config(&pair::script::plain());
        config.frame = frame;
        config.first_window = 2000;
        config.max_loan_bytes = LOAN;
        config.borrow.max_batch_bytes = BATCH;
        config.borrow.max_regions = REGIONS;
        Client {
            now: Timestamp::ZERO,
            machine: ClientConnection::new(config, Timestamp::ZERO).expect("a short hello"),
            reading: BTreeMap::new(),
            slabs: BTreeSet::new(),
            apps: BTreeMap::new(),
            uploads: BTreeMap::new(),
            leases: BTreeMap::new(),
            last_lease: 0,
            last_stream: 0,
            held: BTreeMap::new(),
            last_part: 0,
            asked: false,
            ready: false,
            closing: false,
            sent: 0,
            closed: None,
        }
    }

    fn handle(&mut self, input: ClientInput<'_>) {
        self.machine.handle(self.now, input).expect("this driver keeps the contract");
        let (mut outputs, mut sent) = (0, 0);
        loop {
            outputs += 1;
            assert!(outputs < 1000, "one input makes {outputs} outputs");
            match self.machine.poll_output() {
                ClientOutput::Wait(deadline) => {
                    assert!(self.closed.is_none() || deadline.is_none());
                    break;
                }
                ClientOutput::Transmit(frame) => sent += frame.len(),
                ClientOutput::CloseFabric => assert!(!std::mem::replace(&mut self.closing, true)),
                ClientOutput::Borrower(task) => self.borrower_task(task),
                ClientOutput::Lender(task) => self.lender_task(task),
                ClientOutput::Stream(event) => self.stream_event(event),
                ClientOutput::Event(event) => self.event(event),
                ClientOutput::Closed(error) => {
                    assert!(self.closed.replace(error).is_none());
                    assert!(self.reading.is_empty() && self.slabs.is_empty());
                    assert!(self.apps.values().all(|(_, over, _)| *over), "{:?}", self.apps);
                    assert!(self.uploads.values().all(|upload| upload.answered), "{:?}", self.uploads);
                    assert!(self.leases.is_empty(), "{:?}", self.leases);
                }
            }
        }
        self.sent += sent;
        assert!(sent < 15_000, "one input makes {sent} bytes");
        assert!(self.machine.lender().bytes_on_loan() <= LOAN);
        assert_eq!(self.machine.outstanding_reads(), self.reading.len());
        // Memory stays within the granted credit: the window of each stream, or one batch if that is larger.
        let streams = self.apps.len() as u64;
        assert!((self.slabs.len() as u64) * 256 <= streams * (LOAN + BATCH + 512));
    }

    fn borrower_task(&mut self, task: BorrowerTask) {
        match task {
            BorrowerTask::Import(_) | BorrowerTask::UnimportRegion(_) => {}
            BorrowerTask::Read(batch) | BorrowerTask::Map(batch) => {
                let ranges = &batch.layout.ranges;
                assert!(batch.layout.len <= BATCH.max(LOAN), "a slab of {} bytes", batch.layout.len);
                for (index, place) in &batch.places {
                    assert_eq!(ranges[*index].len, place.len);
                }
                assert!(batch.lease_word.is_none_or(|at| (at.len, at.address % 8) == (8, 0)));
                assert!(self.slabs.insert(batch.read));
                assert!(self.reading.insert(batch.read, batch.lease_word.is_some()).is_none());
            }
            BorrowerTask::Discard { read } => {
                assert!(!self.reading.contains_key(&read));
                assert!(self.slabs.remove(&read));
            }
        }
    }

    fn lender_task(&mut self, task: LenderTask) {
        match task {
            LenderTask::Pull { stream, lend_from, .. } => {
                let upload = self.uploads.get_mut(&stream).expect("an upload");
                assert!(!upload.over && upload.pulled.replace(lend_from.is_some()).is_none());
            }
            LenderTask::Stop { stream, .. } => self.uploads.get_mut(&stream).expect("an upload").over = true,
            LenderTask::OpenLease { lease, word } => {
                let (slot, _) = word.expect("leases are fenced by words");
                *self.leases.get_mut(&lease).expect("a lease that was lent") = Some(slot);
                let place = RemoteRange { region: RegionId(1), address: 0, len: 16 };
                let exposed = LenderCommand::Exposed { lease, announce: Vec::new(), places: vec![place; 2] };
                let input = ClientInput::Command(ClientCommand::Lender(exposed));
                self.machine.handle(self.now, input).expect("this driver keeps the contract");
            }
            LenderTask::EndLease { lease, slot, .. } => assert_eq!(self.leases.remove(&lease), Some(slot)),
        }
    }

    fn stream_event(&mut self, event: BorrowerEvent) {
        match event {
            BorrowerEvent::Batch { stream, seq, cost, payload } => {
                let (next, over, untaken) = self.apps.get_mut(&stream).expect("a requested stream");
                assert!(!*over && *next == seq);
                *next += 1;
                untaken.push(cost);
                assert!(untaken.iter().sum::<u64>() <= LOAN + BATCH + 512, "{untaken:?}");
                match payload {
                    Payload::Lent { read, .. } | Payload::Mapped { read, .. } => {
                        assert!(!self.reading.contains_key(&read));
                        assert!(self.slabs.remove(&read));
                    }
                    Payload::OnDemand { descriptor } => {
                        untaken.pop();
                        let held = (descriptor.buffers.clone(), BTreeSet::new());
                        assert!(self.held.insert((stream, seq), held).is_none());
                    }
                    Payload::Inline(_) => {}
                }
            }
            BorrowerEvent::PartRead { stream, seq, part, read } => {
                assert!(self.slabs.remove(&read));
                assert!(self.held.get_mut(&(stream, seq)).is_some_and(|(_, parts)| parts.remove(&part)));
            }
            BorrowerEvent::PartFailed { stream, seq, part, .. } => {
                assert!(self.held.get_mut(&(stream, seq)).is_some_and(|(_, parts)| parts.remove(&part)));
            }
            BorrowerEvent::End { stream, .. } | BorrowerEvent::Failed { stream, .. } => {
                let (_, over, _) = self.apps.get_mut(&stream).expect("a requested stream");
                assert!(!std::mem::replace(over, true), "{stream:?} ends twice");
            }
            BorrowerEvent::Schema { stream, .. } => assert!(!self.apps[&stream].1),
        }
    }

    fn event(&mut self, event: ClientEvent) {
        match event {
            ClientEvent::ConnectFabric(_) => self.asked = true,
            ClientEvent::FabricUp { .. } | ClientEvent::FabricDown { .. } => self.ready = true,
            ClientEvent::Uploaded { stream, .. } | ClientEvent::UploadFailed { stream, .. } => {
                let upload = self.uploads.get_mut(&stream).expect("an upload");
                assert!(!std::mem::replace(&mut upload.answered, true), "{stream:?} is answered twice");
            }
            ClientEvent::Welcome { .. }
            | ClientEvent::ReversePathUp { .. }
            | ClientEvent::ReversePathDown { .. }
            | ClientEvent::Draining
            | ClientEvent::Pong => {}
        }
    }

    /// The source of the `k`th upload does its next step.
    fn source(&mut self, k: usize, ends: bool) {
        let able = |upload: &Source| !upload.over && (!upload.begun || upload.pulled.is_some());
        let able: Vec<_> = self.uploads.iter().filter(|(_, upload)| able(upload)).map(|(id, _)| *id).collect();
        let Some(&stream) = able.get(k % able.len().max(1)) else { return };
        let Some(upload) = self.uploads.get_mut(&stream) else { return };
        if !std::mem::replace(&mut upload.begun, true) {
            let schema = LenderCommand::Schema { stream, schema: schema_message(), order: Vec::new() };
            return self.command(ClientCommand::Lender(schema));
        }
        let lends = upload.pulled.take() == Some(true) && upload.lent;
        let command = if ends {
            upload.over = true;
            LenderCommand::Finish { stream, execute_nanos: 1 }
        } else if lends {
            self.last_lease += 1;
            let lease = LeaseId(self.last_lease);
            self.leases.insert(lease, None);
            let loan = Loan { lease, descriptor: descriptor(2), staged: 0, cost: Default::default() };
            LenderCommand::Lend { stream, loan, rows: 2 }
        } else {
            LenderCommand::Inline { stream, ipc: vec![7; 50].into(), rows: 2 }
        };
        self.command(ClientCommand::Lender(command));
    }

    fn command(&mut self, command: ClientCommand) {
        self.handle(ClientInput::Command(command));
    }

    pub(crate) fn receive(&mut self, message: &Message, payload: Bytes) {
        self.handle(ClientInput::Received(&bytes_of(message, payload)));
    }

    pub(crate) fn apply(&mut self, op: ClientOp) {
        match op {
            ClientOp::Message(message, payload) => self.receive(&message, vec![7; payload].into()),
            ClientOp::Schema(stream) => self.receive(&schema_of(StreamId(stream), Vec::new()), schema_message()),
            ClientOp::Lent { stream, seq, lease, rows, twist } => {
                let batch = lent(lease, rows, twist);
                self.receive(&lent_as(StreamId(stream), seq, batch), Bytes::new());
            }
            ClientOp::Bytes(bytes) => self.handle(ClientInput::Received(&bytes)),
            ClientOp::Read(k, found) => {
                let Some(read) = self.reading.keys().nth(k % self.reading.len().max(1)).copied() else { return };
                self.complete(read, found.map_err(|()| ReadError::failed("no")));
            }
            ClientOp::Answer => self.answer(),
            ClientOp::ReadPart(k, parts) => {
                let k = k % self.held.len().max(1);
                let Some((&(stream, seq), (buffers, due))) = self.held.iter_mut().nth(k) else { return };
                self.last_part += 1;
                let part = PartId(self.last_part);
                due.insert(part);
                let whole = |(buffer, len): (usize, &u64)| Piece { buffer, offset: 0, len: *len };
                let pieces = buffers.iter().enumerate().map(whole).take(parts).collect();
                self.borrower(BorrowerCommand::ReadPart { stream, seq, part, pieces });
            }
            ClientOp::ReleaseBatch(k) => {
                let Some(&(stream, seq)) = self.held.keys().nth(k % self.held.len().max(1)) else { return };
                self.borrower(BorrowerCommand::ReleaseBatch { stream, seq });
                assert_eq!(self.held.remove(&(stream, seq)).map(|(_, parts)| parts.len()), Some(0));
            }
            ClientOp::Upload { lent } if self.ready || self.closed.is_some() => {
                let stream = self.next_stream();
                self.uploads.insert(stream, Source { lent, ..Source::default() });
                let options = UploadOptions { lend_from: LendFrom::Bytes(0), ..UploadOptions::default() };
                self.command(ClientCommand::Upload { stream, table: "t".into(), options });
                if self.uploads[&stream].answered {
                    self.uploads.entry(stream).or_default().over = true;
                }
            }
            ClientOp::Source(k, ends) => self.source(k, ends),
            ClientOp::Withdraw(k) => {
                let Some(stream) = self.uploads.keys().nth(k % self.uploads.len().max(1)).copied() else { return };
                self.uploads.entry(stream).or_default().answered = true;
                self.command(ClientCommand::Withdraw { stream });
            }
            ClientOp::Execute { credit, lazy } if self.ready || self.closed.is_some() => {
                let stream = self.next_stream();
                self.apps.insert(stream, (0, false, Vec::new()));
                let access = if lazy { Access::OnDemand } else { Access::Read };
                let options = OpenOptions { credit, access, ..OpenOptions::default() };
                self.command(ClientCommand::query(stream, "x", options));
            }
            ClientOp::Take => {
                let full = self.apps.iter_mut().find(|(_, (_, _, untaken))| !untaken.is_empty());
                if let Some((&stream, (_, _, untaken))) = full {
                    let cost = untaken.remove(0);
                    self.borrower(BorrowerCommand::Consumed { stream, cost });
                }
            }
            ClientOp::Cancel(stream) if stream <= self.last_stream => {
                self.borrower(BorrowerCommand::Cancel { stream: StreamId(stream) });
            }
            ClientOp::Execute { .. } | ClientOp::Upload { .. } | ClientOp::Cancel(_) => {}
            ClientOp::Advance(ms) => {
                self.now = self.now + std::time::Duration::from_millis(ms);
                self.handle(ClientInput::Time);
            }
        }
    }

    fn next_stream(&mut self) -> StreamId {
        self.last_stream += 1;
        StreamId(self.last_stream)
    }

    fn borrower(&mut self, command: BorrowerCommand) {
        self.command(ClientCommand::Borrower(command));
    }

    fn complete(&mut self, read: ReadId, found: Result<u64, ReadError>) {
        if let Some(word) = self.reading.remove(&read) {
            let result = found.map(|found| word.then_some(found));
            self.borrower(BorrowerCommand::ReadDone { read, result });
        }
    }

    fn answer(&mut self) {
        if self.closing {
            for read in self.reading.keys().copied().collect::<Vec<_>>() {
                self.complete(read, Err(ReadError::failed("flushed")));
            }
            self.closing = false;
            self.command(ClientCommand::FabricClosed);
        } else if std::mem::take(&mut self.asked) {
            let words = Region { id: RegionId(1), base: 0, len: 1 << 12, key: Bytes::new() };
            let lending = Some(LeaseWordRegion { fencing: Fencing::LeaseWord, words, probe_value: PROBE });
            self.command(ClientCommand::FabricUp { transport: "sim".into(), lending });
        }
    }

    pub(crate) fn finish(mut self) -> ConnectionError {
        self.handle(ClientInput::ControlLost("gone".into()));
        self.answer();
        assert_eq!((self.machine.open_streams(), self.machine.outstanding_reads()), (0, 0));
        self.closed.expect("the connection closes")
    }
}
