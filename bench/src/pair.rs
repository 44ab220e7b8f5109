//! Both protocol machines in one thread, with nothing between them and nothing read: what a batch costs in the protocol alone.

use std::collections::BTreeMap;

use bytes::Bytes;
use thallus_protocol::client::{ClientCommand, ClientConfig, ClientEvent, ClientInput, ClientOutput};
use thallus_protocol::codec::Frame;
use thallus_protocol::layout::{BatchDescriptor, LayoutLimits};
use thallus_protocol::message::{Delivery, ExecuteOptions, FabricOffer, Fencing, Region, ServerLimits};
use thallus_protocol::server::{Loan, OpenedFabric, ServerCommand, ServerConfig, ServerInput, ServerOutput};
use thallus_protocol::{
    ClientConnection, FabricKind, LeaseId, RegionId, RemoteRange, ServerConnection, StreamId, Timestamp,
};

const NOW: Timestamp = Timestamp::ZERO;
const WORDS: u64 = 1 << 20;
const DATA: RemoteRange = RemoteRange { region: RegionId(2), address: 1 << 30, len: 1 << 30 };
const LEASES: u32 = 511;

/// What a query lends: so many times the same batch.
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
    /// What stands in the lease words, by slot; the probe has none, it is answered here.
    words: BTreeMap<u32, u64>,
    lent: Option<Lent>,
    /// Batches of the running query that are still to be lent.
    left: u64,
    last_lease: u64,
    last_stream: u32,
    delivered: u64,
    ended: bool,
}

impl Default for Pair {
    fn default() -> Self {
        Self::new()
    }
}

impl Pair {
    /// Connects.
    pub fn new() -> Self {
        let offer = FabricOffer { kind: FabricKind::SIM, address: Bytes::from_static(b"client") };
        let client = ClientConfig {
            name: "client".into(),
            fabrics: vec![offer],
            frame: Default::default(),
            max_batch_bytes: 1 << 30,
            max_regions: 16,
            layout: LayoutLimits::default(),
            inline: Default::default(),
            timeouts: Default::default(),
            first_window: u64::MAX,
            read_timeout: std::time::Duration::from_secs(30),
        };
        let server = ServerConfig {
            name: "server".into(),
            fabrics: vec![FabricKind::SIM],
            no_fabric: String::new(),
            limits: ServerLimits { max_streams: 16, max_loan_bytes: 1 << 30, max_sql_bytes: 1024 },
            frame: Default::default(),
            inline_threshold: 0,
            max_leases: LEASES,
            word_nonce: 42,
            timeouts: Default::default(),
            lease_timeout: std::time::Duration::from_secs(30),
            drain_timeout: std::time::Duration::from_secs(30),
        };
        let mut pair = Pair {
            client: ClientConnection::new(client, NOW).expect("a short hello"),
            server: ServerConnection::new(server, NOW),
            words: BTreeMap::new(),
            lent: None,
            left: 0,
            last_lease: 0,
            last_stream: 0,
            delivered: 0,
            ended: false,
        };
        pair.pump();
        let region = Region { id: DATA.region, base: DATA.address, len: DATA.len, key: Bytes::from_static(b"key") };
        pair.tell_server(ServerCommand::Announce(region));
        pair.pump();
        pair
    }

    /// Runs a query to its end: every batch is announced, "read", proven, consumed and released.
    pub fn query(&mut self, lent: &Lent) {
        self.lent = Some(lent.clone());
        (self.left, self.delivered, self.ended) = (lent.batches, 0, false);
        self.last_stream += 1;
        let options = ExecuteOptions { delivery: Delivery::Lent, credit: 64 << 20, ..Default::default() };
        let execute = ClientCommand::Execute { stream: StreamId(self.last_stream), sql: "q".into(), options };
        self.tell_client(execute);
        self.pump();
        assert!(self.ended && self.delivered == lent.batches, "{} of {} batches", self.delivered, lent.batches);
    }

    fn tell_client(&mut self, command: ClientCommand) {
        self.client.handle(NOW, ClientInput::Command(command)).expect("this driver keeps the contract");
    }

    fn tell_server(&mut self, command: ServerCommand) {
        self.server.handle(NOW, ServerInput::Command(command)).expect("this driver keeps the contract");
    }

    /// Until neither machine has anything to do.
    fn pump(&mut self) {
        while self.client_step() | self.server_step() {}
    }

    fn client_step(&mut self) -> bool {
        let mut any = false;
        loop {
            match self.client.poll_output() {
                ClientOutput::Wait(_) => return any,
                ClientOutput::Transmit(frame) => self.deliver_to_server(&frame),
                ClientOutput::ConnectFabric(_) => {
                    self.tell_client(ClientCommand::FabricUp { transport: "none".into() })
                }
                ClientOutput::Read(read) => {
                    self.tell_client(ClientCommand::ReadDone { read: read.read, result: Ok(()) });
                }
                ClientOutput::ReadWord { read, at } => {
                    let word = self.words.get(&slot(at.address)).copied().unwrap_or(0);
                    self.tell_client(ClientCommand::WordRead { read, result: Ok(word) });
                }
                ClientOutput::Event(ClientEvent::Batch { stream, cost, .. }) => {
                    self.delivered += 1;
                    self.tell_client(ClientCommand::Consumed { stream, cost });
                }
                ClientOutput::Event(ClientEvent::End { .. }) => self.ended = true,
                ClientOutput::Event(ClientEvent::Failed { error, .. }) => panic!("{error}"),
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
                ServerOutput::OpenFabric { .. } => {
                    let len = u64::from(LEASES + 1) * 8;
                    let words = Region { id: RegionId(1), base: WORDS, len, key: Bytes::from_static(b"words") };
                    let address = Bytes::from_static(b"server");
                    let opened = OpenedFabric { address, fencing: Fencing::LeaseWord, words, probe_value: 7 };
                    self.tell_server(ServerCommand::FabricOpened(opened));
                }
                ServerOutput::Execute { stream, .. } => {
                    let schema = self.lent.as_ref().expect("a query runs").schema.clone();
                    self.tell_server(ServerCommand::Schema { stream, schema, order: Vec::new() });
                }
                ServerOutput::Pull { stream, .. } => self.pulled(stream),
                ServerOutput::OpenLease { word: Some((slot, value)), .. } => {
                    self.words.insert(slot, value);
                }
                ServerOutput::EndLease { slot: Some(slot), .. } => {
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
            return self.tell_server(ServerCommand::Finish { stream, execute_nanos: 0 });
        }
        self.left -= 1;
        self.last_lease += 1;
        let Lent { descriptor, rows, .. } = self.lent.clone().expect("a query runs");
        let mut address = DATA.address;
        let mut places = Vec::with_capacity(descriptor.buffers.len());
        for &len in descriptor.buffers.iter().filter(|&&len| len > 0) {
            places.push(RemoteRange { region: DATA.region, address, len });
            address += len;
        }
        let loan = Loan { lease: LeaseId(self.last_lease), descriptor, places, staged: 0, effort: Default::default() };
        self.tell_server(ServerCommand::Lend { stream, loan, rows });
    }

    fn deliver_to_server(&mut self, frame: &Frame) {
        for part in [&frame.head, &frame.payload].into_iter().filter(|part| !part.is_empty()) {
            self.server.handle(NOW, ServerInput::Received(part)).expect("this driver keeps the contract");
        }
    }

    fn deliver_to_client(&mut self, frame: &Frame) {
        for part in [&frame.head, &frame.payload].into_iter().filter(|part| !part.is_empty()) {
            self.client.handle(NOW, ClientInput::Received(part)).expect("this driver keeps the contract");
        }
    }
}

fn slot(address: u64) -> u32 {
    u32::try_from((address - WORDS) / 8).unwrap_or(u32::MAX)
}
