//! A client's and a server's machine, with two pipes, a network, and a source of batches at each end. Time does not
//! pass by itself: the test requests every step.

mod end;

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use thallus_fabric::memory::{PoolLimits, SlabPool};
use thallus_fabric::{Fabric, Fencing};
use thallus_fabric_sim::core::{Core, Violation};
use thallus_fabric_sim::{SimNetwork, SimOptions};
use thallus_protocol::borrower::{BorrowerCommand, BorrowerConfig, BorrowerEvent, Payload};
use thallus_protocol::client::{ClientCommand, ClientConfig, ClientEvent, LeaseWordRegion, UploadOptions};
use thallus_protocol::codec::FrameLimits;
use thallus_protocol::connection::Input;
use thallus_protocol::message::{FabricOffer, LendFrom, OpenOptions, Request, ServerLimits, Thresholds};
use thallus_protocol::server::{OpenedFabric, ServerCommand, ServerConfig, ServerEvent};
use thallus_protocol::{ClientConnection, FabricKind, LinkTimeouts, ServerConnection, StreamId, Timestamp};

use self::end::{End, Happened, PROBE, Shared, content};

pub const MAX_LOAN: u64 = 4000;
/// Longest time for which a borrower holds releases back, in ms.
const HELD_BACK_MS: u64 = 2;
const SLOTS: u32 = 4;

/// One stream at its borrower.
#[derive(Default)]
struct App {
    upload: bool,
    credit: u64,
    rows: Vec<u64>,
    untaken: VecDeque<u64>,
    /// All batches of an upload have been delivered.
    ended: bool,
    over: Option<bool>,
}

/// A stream that is requested once the connection is open.
struct Waiting {
    at: usize,
    rows: Vec<u64>,
}

pub struct Pair {
    shared: Shared,
    server: End<ServerConnection>,
    client: End<ClientConnection>,
    apps: Vec<App>,
    /// Numbers of rows of each stream's batches.
    scripts: Vec<Vec<u64>>,
    waiting: VecDeque<Waiting>,
    is_open: bool,
}

fn timeouts() -> LinkTimeouts {
    LinkTimeouts {
        handshake: Duration::from_secs(60),
        keepalive: Duration::from_secs(20),
        idle: Duration::from_secs(60),
    }
}

const LONG: Duration = Duration::from_secs(3600);

fn borrowing() -> BorrowerConfig {
    BorrowerConfig { max_regions: 1000, ..ServerConfig::borrower_config(MAX_LOAN, LONG) }
}

fn server_config(seed: u64) -> ServerConfig {
    ServerConfig {
        name: "server".into(),
        fabrics: vec![FabricKind::SIM],
        no_fabric_reason: String::new(),
        vendor: thallus_protocol::message::Vendor::default(),
        limits: ServerLimits { max_streams: 8, max_loan_bytes: MAX_LOAN, max_sql_bytes: 100 },
        frame: FrameLimits::default(),
        checksum: true,
        thresholds: Thresholds::uniform(0),
        max_leases: SLOTS,
        word_nonce: seed,
        timeouts: timeouts(),
        lease_timeout: LONG,
        drain_timeout: LONG,
        borrow: borrowing(),
    }
}

fn client_config(seed: u64) -> ClientConfig {
    ClientConfig {
        name: "client".into(),
        fabrics: vec![FabricOffer { kind: FabricKind::SIM, address: Bytes::new() }],
        frame: FrameLimits::default(),
        checksum: true,
        first_window: u64::MAX,
        borrow: borrowing(),
        timeouts: timeouts(),
        max_loan_bytes: MAX_LOAN,
        max_leases: SLOTS,
        word_nonce: !seed,
        lease_timeout: LONG,
        thresholds: Thresholds::uniform(0),
    }
}

impl Pair {
    pub fn new(seed: u64, fencing: Fencing) -> Self {
        let options =
            SimOptions { fencing, latency: 0..=6, completion_lag: 0..=3, loans: true, ..SimOptions::default() };
        let mut core = Core::new(seed, options);
        let (here, there) = (core.add_host(), core.add_host());
        let (at_server, at_client) = (core.add_endpoint(here), core.add_endpoint(there));
        core.connect(at_server, at_client).expect("two new endpoints");
        core.connect(at_client, at_server).expect("two new endpoints");
        let fabric = SimNetwork::new(seed, SimOptions::default()).host();
        let pool = SlabPool::new(Arc::clone(&fabric) as Arc<dyn Fabric>, PoolLimits::default());
        let now = Timestamp::ZERO;
        let server = ServerConnection::new(server_config(seed), now);
        let client = ClientConnection::new(client_config(seed), now).expect("a short hello");
        let mut pair = Pair {
            server: End::new(server, here, at_server, &fabric),
            client: End::new(client, there, at_client, &fabric),
            shared: Shared { now, core, fabric, pool },
            apps: Vec::new(),
            scripts: Vec::new(),
            waiting: VecDeque::new(),
            is_open: false,
        };
        pair.server.drain(&mut pair.shared);
        pair.client.drain(&mut pair.shared);
        pair
    }

    fn serve(&mut self, command: ServerCommand) {
        self.server.command(&mut self.shared, command);
    }

    fn ask(&mut self, command: ClientCommand) {
        self.client.command(&mut self.shared, command);
    }

    /// Handles all events of both ends.
    fn look(&mut self) {
        loop {
            if let Some(happened) = self.server.happened.pop_front() {
                self.at_server(happened);
            } else if let Some(happened) = self.client.happened.pop_front() {
                self.at_client(happened);
            } else {
                break;
            }
        }
        while self.is_open || self.client.closed {
            let Some(waiting) = self.waiting.pop_front() else { return };
            self.open(waiting);
        }
    }

    pub fn execute(&mut self, rows: Vec<u64>, credit: u64, upload: bool) {
        self.apps.push(App { upload, credit, ..App::default() });
        self.scripts.push(rows.clone());
        self.waiting.push_back(Waiting { at: self.apps.len() - 1, rows });
        self.look();
    }

    fn open(&mut self, Waiting { at, rows }: Waiting) {
        let (stream, App { upload, credit, .. }) = (StreamId(at as u32 + 1), &self.apps[at]);
        if *upload {
            let options = UploadOptions { lend_from: LendFrom::Bytes(0), ..UploadOptions::default() };
            self.ask(ClientCommand::Upload { stream, table: "t".into(), options });
            self.client.begin(&mut self.shared, stream, rows);
        } else {
            let options = OpenOptions { lend_from: LendFrom::Bytes(0), credit: *credit, ..OpenOptions::default() };
            self.ask(ClientCommand::Open { stream, request: Request::Sql("q".into()), options });
        }
        self.look();
    }

    fn at_server(&mut self, happened: Happened<ServerEvent>) {
        match happened {
            Happened::Stream(event) => self.arrived(event, true),
            Happened::Probe(true) => self.serve(ServerCommand::ReversePathUp { transport: "core".into() }),
            Happened::Probe(false) => self.serve(ServerCommand::ReversePathDown { reason: "the probe".into() }),
            Happened::Event(ServerEvent::OpenFabric { .. }) => {
                let (fencing, words) = self.server.open_words(&mut self.shared);
                let opened = OpenedFabric { address: Bytes::new(), fencing, words, probe_value: PROBE };
                self.serve(ServerCommand::FabricOpened(opened));
            }
            Happened::Event(ServerEvent::ProbeClient(lending)) => self.server.prove(&mut self.shared, &lending),
            Happened::Event(ServerEvent::Query { stream, .. }) => {
                let rows = self.scripts[stream.0 as usize - 1].clone();
                self.server.begin(&mut self.shared, stream, rows);
            }
            Happened::Event(ServerEvent::Upload { stream, .. }) => {
                let window = self.apps[stream.0 as usize - 1].credit;
                self.serve(ServerCommand::Accept { stream, window, max_window: window.saturating_mul(2) });
            }
            Happened::Event(_) => {}
        }
    }

    fn at_client(&mut self, happened: Happened<ClientEvent>) {
        match happened {
            Happened::Stream(event) => self.arrived(event, false),
            Happened::Probe(true) => {
                let (fencing, words) = self.client.open_words(&mut self.shared);
                let lending = Some(LeaseWordRegion { fencing, words, probe_value: PROBE });
                self.ask(ClientCommand::FabricUp { transport: "core".into(), lending });
            }
            Happened::Probe(false) => self.ask(ClientCommand::FabricUnavailable { reason: "the probe".into() }),
            Happened::Event(ClientEvent::ConnectFabric(choice)) => {
                self.client.prove(&mut self.shared, &choice.lending);
            }
            Happened::Event(ClientEvent::FabricUp { .. } | ClientEvent::FabricDown { .. }) => self.is_open = true,
            Happened::Event(ClientEvent::Uploaded { stream, rows }) => {
                assert_eq!(rows, self.apps[stream.0 as usize - 1].rows.iter().sum::<u64>(), "{stream:?}");
                self.over_with(stream, true);
            }
            Happened::Event(ClientEvent::UploadFailed { stream, .. }) => self.over_with(stream, false),
            Happened::Event(_) => {}
        }
    }

    /// Handles an event for a borrower's application.
    fn arrived(&mut self, event: BorrowerEvent, at_server: bool) {
        match event {
            BorrowerEvent::Batch { stream, seq, cost, payload } => {
                let bytes = match payload {
                    Payload::Lent { read, .. } if at_server => self.server.take_slab(read),
                    Payload::Lent { read, .. } => self.client.take_slab(read),
                    Payload::Inline(bytes) => bytes.to_vec(),
                    other => panic!("{other:?}"),
                };
                let app = &mut self.apps[stream.0 as usize - 1];
                assert_eq!(app.upload, at_server, "{stream:?}");
                assert_eq!(seq, app.rows.len() as u64, "batches come in order");
                // The rest of a slab is padding.
                let rows = self.scripts[stream.0 as usize - 1][app.rows.len()];
                assert_eq!(bytes[..rows as usize * 8], content(stream, seq, rows), "{stream:?}, batch {seq}");
                app.rows.push(rows);
                app.untaken.push_back(cost);
            }
            BorrowerEvent::End { stream, .. } if at_server => {
                self.apps[stream.0 as usize - 1].ended = true;
                self.answer(stream);
            }
            BorrowerEvent::End { stream, .. } => self.over_with(stream, true),
            // The client learns of the failure from the answer.
            BorrowerEvent::Failed { .. } if at_server => {}
            BorrowerEvent::Failed { stream, .. } => self.over_with(stream, false),
            _ => {}
        }
    }

    /// Answers an upload once all its batches have been taken.
    fn answer(&mut self, stream: StreamId) {
        let app = &self.apps[stream.0 as usize - 1];
        if app.ended && app.untaken.is_empty() && self.server.machine.is_upload(stream) {
            let rows = app.rows.iter().sum();
            self.serve(ServerCommand::Answer { stream, result: Ok(rows) });
        }
    }

    fn over_with(&mut self, stream: StreamId, well: bool) {
        let before = self.apps[stream.0 as usize - 1].over.replace(well);
        assert_eq!(before, None, "{stream:?} ended twice");
    }

    pub fn cancel(&mut self, at: usize) {
        let stream = StreamId(at as u32 + 1);
        if self.apps[at].over.is_some() {
            return;
        }
        if let Some(waiting) = self.waiting.iter().position(|waiting| waiting.at == at) {
            self.waiting.remove(waiting);
            // Stream ids ascend, so this id counts as used.
            self.apps[at].over = Some(false);
            return;
        }
        if self.apps[at].upload {
            // No further event follows for this stream.
            self.apps[at].over = Some(false);
            self.ask(ClientCommand::Withdraw { stream });
        } else {
            self.client.borrower(&mut self.shared, BorrowerCommand::Cancel { stream });
        }
        self.look();
    }

    pub fn advance(&mut self, millis: u64) {
        self.shared.now = self.shared.now + Duration::from_millis(millis);
        self.server.handle(&mut self.shared, Input::Time);
        self.client.handle(&mut self.shared, Input::Time);
        self.look();
    }

    /// Cuts the control connection: bytes in transit are lost, and both ends learn of it.
    pub fn cut(&mut self) {
        self.server.is_cut = true;
        self.client.is_cut = true;
        self.server.out.clear();
        self.client.out.clear();
        self.server.handle(&mut self.shared, Input::ControlLost("cut".into()));
        self.client.handle(&mut self.shared, Input::ControlLost("cut".into()));
        self.look();
    }

    pub fn server_receives(&mut self, most: usize) -> bool {
        let out = &mut self.client.out;
        let bytes: Vec<u8> = out.drain(..most.min(out.len())).collect();
        self.server.receive(&mut self.shared, &bytes);
        self.look();
        !bytes.is_empty()
    }

    pub fn client_receives(&mut self, most: usize) -> bool {
        let out = &mut self.server.out;
        let bytes: Vec<u8> = out.drain(..most.min(out.len())).collect();
        self.client.receive(&mut self.shared, &bytes);
        self.look();
        !bytes.is_empty()
    }

    /// Answers the oldest pull at each end.
    pub fn source(&mut self) -> bool {
        let moved = [self.server.source(&mut self.shared), self.client.source(&mut self.shared)];
        self.look();
        moved.contains(&true)
    }

    /// One step of both endpoints.
    pub fn network(&mut self) -> bool {
        let moved = [self.server.network(&mut self.shared), self.client.network(&mut self.shared)];
        self.look();
        moved.contains(&true)
    }

    /// An application takes its next batch.
    pub fn take(&mut self) -> bool {
        let Some(at) = self.apps.iter().position(|app| !app.untaken.is_empty()) else { return false };
        let (stream, cost) = (StreamId(at as u32 + 1), self.apps[at].untaken.pop_front().unwrap_or_default());
        if self.apps[at].upload {
            self.server.borrower(&mut self.shared, BorrowerCommand::Consumed { stream, cost });
            self.answer(stream);
        } else {
            self.client.borrower(&mut self.shared, BorrowerCommand::Consumed { stream, cost });
        }
        self.look();
        true
    }

    /// Performs all steps that are possible without time passing, apart from the time that releases are held back.
    pub fn settle(&mut self) {
        for _ in 0..100_000 {
            if !self.anything() {
                self.advance(HELD_BACK_MS);
                if !self.anything() {
                    return;
                }
            }
        }
        panic!("steps without end");
    }

    fn anything(&mut self) -> bool {
        let moved = [
            self.server_receives(usize::MAX),
            self.client_receives(usize::MAX),
            self.source(),
            self.network(),
            self.take(),
        ];
        moved.contains(&true)
    }

    pub fn close(&mut self) {
        self.ask(ClientCommand::Close);
        self.settle();
        self.server.handle(&mut self.shared, Input::ControlLost("closed".into()));
        self.look();
        assert_eq!([self.server.closed, self.client.closed], [true; 2], "both have closed");
    }

    pub fn violations(&self) -> &[Violation] {
        self.shared.core.violations()
    }

    /// Bytes on loan of the end that lends more.
    pub fn bytes_on_loan(&self) -> u64 {
        self.server.machine.bytes_on_loan().max(self.client.machine.lender().bytes_on_loan())
    }

    /// Leases that stand at either end, besides those of the words.
    pub fn open_leases(&self) -> usize {
        let machines = self.server.machine.open_leases() + self.client.machine.lender().open_leases();
        machines + self.server.open_leases(&self.shared) + self.client.open_leases(&self.shared)
    }

    pub fn delivered(&self, at: usize) -> &[u64] {
        self.apps.get(at).map_or(&[], |app| &app.rows)
    }

    pub fn over(&self, at: usize) -> Option<bool> {
        self.apps[at].over
    }
}
