//! Both protocol machines in one thread, without a network and without reads: measures the cost of a batch in the
//! protocol alone.

use std::collections::BTreeMap;

use bytes::Bytes;
use thallus_protocol::borrower::{BorrowerCommand, BorrowerEvent, BorrowerTask};
use thallus_protocol::client::{ClientCommand, ClientConfig, ClientEvent, ClientInput, ClientOutput};
use thallus_protocol::codec::Frame;
use thallus_protocol::layout::BatchDescriptor;
use thallus_protocol::lender::{LenderCommand, LenderTask, Loan};
use thallus_protocol::message::{
    FabricOffer, Fencing, LendFrom, OpenOptions, Region, Request, ServerLimits, Thresholds,
};
use thallus_protocol::server::{OpenedFabric, ServerCommand, ServerConfig, ServerEvent, ServerInput, ServerOutput};
use thallus_protocol::{
    ClientConnection, FabricKind, LeaseId, Machine, RegionId, RemoteRange, ServerConnection, StreamId, Timestamp,
};

const NOW: Timestamp = Timestamp::ZERO;
const WORDS: u64 = 1 << 20;
const DATA: RemoteRange = RemoteRange { region: RegionId(2), address: 1 << 30, len: 1 << 30 };
const LEASES: u32 = 511;
const LOANS: u64 = 1 << 30;
const TIMEOUT: std::time::Duration = std::time::Duration::from_secs(30);

/// The lent batches of a query: one batch, repeated `batches` times.
#[derive(Clone, Debug)]
pub struct Lent {
    pub schema: Bytes,
    pub descriptor: BatchDescriptor,
    pub rows: u64,
    pub batches: u64,
}

/// A client's and a server's machine, connected, with a data plane.
#[derive(Debug)]
pub struct Pair {
    client: ClientConnection,
    server: ServerConnection,
    /// Values of the lease words, by slot, without the probe.
    words: BTreeMap<u32, u64>,
    lent: Option<Lent>,
    /// Batches of the running query that are still to be lent.
    left: u64,
    last_lease: u64,
    last_stream: u32,
    /// True if the region of the lent memory has been announced.
    announced: bool,
    delivered: u64,
    ended: bool,
}

impl Default for Pair {
    fn default() -> Self {
        Self::new()
    }
}

impl Pair {
    /// Connects the two machines.
    pub fn new() -> Self {
        let offer = FabricOffer { kind: FabricKind::SIM, address: Bytes::from_static(b"client") };
        let client = ClientConfig {
            name: "client".into(),
            fabrics: vec![offer],
            frame: Default::default(),
            checksum: true,
            first_window: u64::MAX,
            borrow: ServerConfig::borrower_config(LOANS, TIMEOUT),
            timeouts: Default::default(),
            max_loan_bytes: LOANS,
            max_leases: LEASES,
            word_nonce: 43,
            lease_timeout: TIMEOUT,
            thresholds: Thresholds::uniform(0),
        };
        let server = ServerConfig {
            name: "server".into(),
            fabrics: vec![FabricKind::SIM],
            no_fabric_reason: String::new(),
            vendor: thallus_protocol::message::Vendor::default(),
            limits: ServerLimits { max_streams: 16, max_loan_bytes: LOANS, max_sql_bytes: 1024 },
            frame: Default::default(),
            checksum: true,
            thresholds: Thresholds::uniform(0),
            max_leases: LEASES,
            word_nonce: 42,
            timeouts: Default::default(),
            lease_timeout: TIMEOUT,
            drain_timeout: TIMEOUT,
            borrow: ServerConfig::borrower_config(LOANS, TIMEOUT),
        };
        let mut pair = Pair {
            client: ClientConnection::new(client, NOW).expect("a short hello"),
            server: ServerConnection::new(server, NOW),
            words: BTreeMap::new(),
            lent: None,
            left: 0,
            last_lease: 0,
            last_stream: 0,
            announced: false,
            delivered: 0,
            ended: false,
        };
        pair.pump();
        pair
    }

    /// Runs a query to its end: every batch is announced, "read", proven, consumed and released.
    pub fn query(&mut self, lent: &Lent) {
        self.lent = Some(lent.clone());
        (self.left, self.delivered, self.ended) = (lent.batches, 0, false);
        self.last_stream += 1;
        let options = OpenOptions { lend_from: LendFrom::Bytes(0), credit: 64 << 20, ..Default::default() };
        let request = Request::Sql("q".into());
        self.tell_client(ClientCommand::Open { stream: StreamId(self.last_stream), request, options });
        self.pump();
        assert!(self.ended && self.delivered == lent.batches, "{} of {} batches", self.delivered, lent.batches);
    }

    fn tell_client(&mut self, command: ClientCommand) {
        self.client.handle(NOW, ClientInput::Command(command)).expect("this driver calls the machine as specified");
    }

    fn tell_server(&mut self, command: ServerCommand) {
        self.server.handle(NOW, ServerInput::Command(command)).expect("this driver calls the machine as specified");
    }

    /// Steps both machines until neither has output.
    fn pump(&mut self) {
        while self.client_step() | self.server_step() {}
    }

    fn client_step(&mut self) -> bool {
        let mut any = false;
        loop {
            match self.client.poll_output() {
                ClientOutput::Wait(_) => return any,
                ClientOutput::Transmit(frame) => self.deliver_to_server(&frame),
                ClientOutput::Event(ClientEvent::ConnectFabric(_)) => {
                    self.tell_client(ClientCommand::FabricUp { transport: "none".into(), lending: None });
                }
                ClientOutput::Borrower(BorrowerTask::Read(batch)) => {
                    let word = batch.lease_word.map(|at| self.words.get(&slot(at.address)).copied().unwrap_or(0));
                    self.borrower(BorrowerCommand::ReadDone { read: batch.read, result: Ok(word) });
                }
                ClientOutput::Stream(BorrowerEvent::Batch { stream, cost, .. }) => {
                    self.delivered += 1;
                    self.borrower(BorrowerCommand::Consumed { stream, cost });
                }
                ClientOutput::Stream(BorrowerEvent::End { .. }) => self.ended = true,
                ClientOutput::Stream(BorrowerEvent::Failed { error, .. }) => panic!("{error}"),
                ClientOutput::Closed(error) => panic!("{error}"),
                _ => {}
            }
            any = true;
        }
    }

    fn server_step(&mut self) -> bool {
        let mut any = false;
        loop {
            match self.server.poll_output() {
                ServerOutput::Wait(_) => return any,
                ServerOutput::Transmit(frame) => self.deliver_to_client(&frame),
                ServerOutput::Event(ServerEvent::OpenFabric { .. }) => {
                    let len = u64::from(LEASES + 1) * 8;
                    let words = Region { id: RegionId(1), base: WORDS, len, key: Bytes::from_static(b"words") };
                    let address = Bytes::from_static(b"server");
                    let opened = OpenedFabric { address, fencing: Fencing::LeaseWord, words, probe_value: 7 };
                    self.tell_server(ServerCommand::FabricOpened(opened));
                }
                ServerOutput::Event(ServerEvent::Query { stream, .. }) => {
                    let schema = self.lent.as_ref().expect("a query runs").schema.clone();
                    self.lender(LenderCommand::Schema { stream, schema, order: Vec::new() });
                }
                ServerOutput::Lender(LenderTask::Pull { stream, .. }) => self.pulled(stream),
                ServerOutput::Lender(LenderTask::OpenLease { lease, word }) => {
                    self.words.extend(word);
                    self.expose(lease);
                }
                ServerOutput::Lender(LenderTask::EndLease { slot: Some(slot), .. }) => {
                    self.words.remove(&slot);
                }
                ServerOutput::Closed(error) => panic!("{error}"),
                _ => {}
            }
            any = true;
        }
    }

    fn pulled(&mut self, stream: StreamId) {
        if self.left == 0 {
            return self.lender(LenderCommand::Finish { stream, execute_nanos: 0 });
        }
        self.left -= 1;
        self.last_lease += 1;
        let Lent { descriptor, rows, .. } = self.lent.clone().expect("a query runs");
        let loan = Loan { lease: LeaseId(self.last_lease), descriptor, staged: 0, cost: Default::default() };
        self.lender(LenderCommand::Lend { stream, loan, rows });
    }

    /// Exposes the buffers of a lease, one after the other in the single region.
    fn expose(&mut self, lease: LeaseId) {
        let buffers = &self.lent.as_ref().expect("a query runs").descriptor.buffers;
        let mut address = DATA.address;
        let mut places = Vec::with_capacity(buffers.len());
        for &len in buffers.iter().filter(|&&len| len > 0) {
            places.push(RemoteRange { region: DATA.region, address, len });
            address += len;
        }
        let region = Region { id: DATA.region, base: DATA.address, len: DATA.len, key: Bytes::from_static(b"key") };
        let announce = if std::mem::replace(&mut self.announced, true) { Vec::new() } else { vec![region] };
        self.lender(LenderCommand::Exposed { lease, announce, places });
    }

    fn lender(&mut self, command: LenderCommand) {
        self.tell_server(ServerCommand::Lender(command));
    }

    fn borrower(&mut self, command: BorrowerCommand) {
        self.tell_client(ClientCommand::Borrower(command));
    }

    fn deliver_to_server(&mut self, frame: &Frame) {
        for part in [&frame.head, &frame.payload].into_iter().filter(|part| !part.is_empty()) {
            self.server.handle(NOW, ServerInput::Received(part)).expect("this driver calls the machine as specified");
        }
    }

    fn deliver_to_client(&mut self, frame: &Frame) {
        for part in [&frame.head, &frame.payload].into_iter().filter(|part| !part.is_empty()) {
            self.client.handle(NOW, ClientInput::Received(part)).expect("this driver calls the machine as specified");
        }
    }
}

fn slot(address: u64) -> u32 {
    u32::try_from((address - WORDS) / 8).unwrap_or(u32::MAX)
}
