//! One end of a connection: its machine, and a driver for each role.

use bytes::Bytes;
use thallus_protocol::borrower::BorrowerCommand;
use thallus_protocol::client::{ClientCommand, ClientConfig, ClientEvent, LeaseWordRegion};
use thallus_protocol::connection::{Input, Machine, Output};
use thallus_protocol::layout::LayoutLimits;
use thallus_protocol::lender::Lender;
use thallus_protocol::message::{FabricChoice, FabricOffer, Fencing, Lending, Region, ServerLimits, Thresholds};
use thallus_protocol::server::{OpenedFabric, ServerCommand, ServerConfig, ServerEvent};
use thallus_protocol::{
    ApiMisuse, ClientConnection, ConnectionError, FabricKind, ServerConnection, StreamId, Timestamp,
};

use super::borrow::Borrowing;
use super::lend::Lending as LendSide;
use super::memory::{Memory, PROBE, WORDS, WORDS_BASE};
use super::script::*;
use super::{DRAIN_TIMEOUT, LEASE_TIMEOUT, Pipe, READ_TIMEOUT, timeouts};

/// State of an end's data plane.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Plane {
    None,
    /// The machine waits until the data plane is opened or connected.
    Asked,
    Open,
    /// The machine waits until the data plane is closed.
    Closing,
    Closed,
}

/// The memory of both ends, from the view of one end.
pub(crate) struct Memories<'a> {
    pub(crate) mine: &'a mut Memory,
    pub(crate) theirs: &'a Memory,
}

/// The differences between the two ends.
pub(crate) trait End: Machine + std::fmt::Debug + Sized {
    fn lender(&self) -> &Lender;
    fn borrower(&self) -> &thallus_protocol::borrower::Borrower;
    fn open_streams(&self) -> usize;
    fn event(driver: &mut Driver<Self>, now: Timestamp, event: Self::Event, memories: &mut Memories<'_>);
    /// Answers that the data plane is open or unavailable.
    fn answer_open(driver: &mut Driver<Self>, now: Timestamp, memories: &mut Memories<'_>);
    /// Answers whether the other end's memory can be read.
    fn answer_prove(driver: &mut Driver<Self>, now: Timestamp, well: bool);
}

/// One end with its driver.
#[derive(Debug)]
pub(crate) struct Driver<M: End> {
    pub(crate) machine: M,
    pub(crate) knobs: Knobs,
    pub(crate) plane: Plane,
    pub(crate) wake: Option<Timestamp>,
    pub(crate) closed: Option<ConnectionError>,
    /// Whether the application may send requests.
    pub(crate) ready: bool,
    /// Whether this end's endpoint has failed.
    pub(crate) broken: bool,
    pub(crate) scripts: Vec<Script>,
    pub(crate) lend: LendSide,
    pub(crate) borrow: Borrowing,
    /// The fabric to which the client connects.
    choice: Option<FabricChoice>,
    /// The probe that this end must read.
    pub(crate) prove: Option<Lending>,
    /// At the client: uploads with their answers.
    pub(crate) uploads: std::collections::BTreeMap<StreamId, Option<Result<u64, thallus_protocol::StreamError>>>,
}

impl Driver<ServerConnection> {
    pub(crate) fn server(knobs: Knobs, scripts: Vec<Script>) -> Self {
        let fabrics = if knobs.server_has_fabric { vec![FabricKind::SIM] } else { vec![] };
        let config = ServerConfig {
            name: "server".into(),
            fabrics,
            no_fabric_reason: "none on this host".into(),
            vendor: thallus_protocol::message::Vendor::default(),
            limits: ServerLimits {
                max_streams: knobs.max_streams,
                max_loan_bytes: knobs.max_loan_bytes,
                max_sql_bytes: 100,
            },
            frame: super::frame(),
            checksum: true,
            thresholds: Thresholds::uniform(64),
            max_leases: knobs.max_leases,
            word_nonce: 42,
            timeouts: timeouts(),
            lease_timeout: LEASE_TIMEOUT,
            drain_timeout: DRAIN_TIMEOUT,
            borrow: ServerConfig::borrower_config(knobs.max_batch_bytes, READ_TIMEOUT),
        };
        Self::over(ServerConnection::new(config, Timestamp::ZERO), knobs, scripts)
    }
}

impl Driver<ServerConnection> {
    /// The engine accepts the `k`th upload, or answers it after the last batch.
    pub(crate) fn sink(&mut self, k: usize) -> Option<ServerCommand> {
        let due = |app: &super::borrow::App| {
            let whole = app.over == Some(Ok(())) && app.untaken.is_empty();
            app.over.is_none() && !app.accepted || whole && app.answered.is_none() && !app.withdrawn
        };
        let due: Vec<_> = self.borrow.apps.iter().filter(|(_, app)| due(app)).map(|(id, _)| *id).collect();
        let stream = *due.get(k % due.len().max(1))?;
        let app = self.borrow.apps.get_mut(&stream)?;
        Some(if app.over.is_none() {
            app.accepted = true;
            ServerCommand::Accept { stream, window: 1500, max_window: 6000 }
        } else {
            app.answered = Some(true);
            ServerCommand::Answer { stream, result: Ok(app.next) }
        })
    }
}

impl Driver<ClientConnection> {
    pub(crate) fn client(knobs: Knobs, scripts: Vec<Script>) -> Self {
        let machine = ClientConnection::new(client_config(&knobs), Timestamp::ZERO).expect("a short hello");
        Self::over(machine, knobs, scripts)
    }
}

pub(crate) fn client_config(knobs: &Knobs) -> ClientConfig {
    let borrow = thallus_protocol::borrower::BorrowerConfig {
        max_batch_bytes: knobs.max_batch_bytes,
        max_regions: 1000,
        layout: LayoutLimits::default(),
        inline: Default::default(),
        read_timeout: READ_TIMEOUT,
    };
    ClientConfig {
        name: "client".into(),
        fabrics: vec![FabricOffer { kind: FabricKind::SIM, address: Bytes::from_static(b"client") }],
        frame: super::frame(),
        checksum: true,
        // Credit for one or two batches, so that windows have to grow.
        first_window: 1500,
        borrow,
        timeouts: timeouts(),
        max_loan_bytes: knobs.max_loan_bytes,
        max_leases: knobs.max_leases,
        word_nonce: 43,
        lease_timeout: LEASE_TIMEOUT,
        thresholds: Thresholds::uniform(64),
    }
}

fn words(knobs: &Knobs) -> Region {
    let len = (u64::from(knobs.max_leases) + 1) * 8;
    Region { id: WORDS, base: WORDS_BASE, len, key: Bytes::from_static(b"words") }
}

impl<M: End> Driver<M> {
    fn over(machine: M, knobs: Knobs, scripts: Vec<Script>) -> Self {
        Driver {
            machine,
            lend: LendSide::new(knobs.clone()),
            borrow: Borrowing::new(knobs.clone()),
            knobs,
            plane: Plane::None,
            wake: None,
            closed: None,
            ready: false,
            broken: false,
            scripts,
            choice: None,
            prove: None,
            uploads: Default::default(),
        }
    }

    pub(crate) fn handle(
        &mut self,
        now: Timestamp,
        input: Input<'_, M::Command>,
        memories: &mut Memories<'_>,
        out: &mut Pipe,
    ) -> Result<(), ApiMisuse> {
        let handled = self.machine.handle(now, input);
        self.drain(now, memories, out);
        self.check();
        handled
    }

    pub(crate) fn command(&mut self, now: Timestamp, command: M::Command) {
        self.machine.handle(now, Input::Command(command)).expect("this driver keeps the contract");
    }

    fn drain(&mut self, now: Timestamp, memories: &mut Memories<'_>, out: &mut Pipe) {
        for turn in 0.. {
            assert!(turn < 100_000, "one input makes {turn} outputs");
            match self.machine.poll_output() {
                Output::Wait(deadline) => {
                    self.wake = deadline.map(|(at, _)| at);
                    assert!(self.closed.is_none() || self.wake.is_none(), "a timer after the close");
                    return;
                }
                Output::Transmit(frame) => {
                    assert!(self.closed.is_none(), "a frame after the close");
                    out.write(&frame);
                }
                Output::Lender(task) => {
                    let plane = self.plane;
                    for command in self.lend.task(task, plane, &self.scripts, memories.mine) {
                        self.command(now, M::lender_command(command));
                    }
                }
                Output::Borrower(task) => {
                    assert!(self.borrow.is_tidying(&task) || self.plane == Plane::Open, "no data plane: {task:?}");
                    self.borrow.task(task, memories.theirs);
                }
                Output::Stream(event) => self.borrow.event(event),
                Output::Event(event) => M::event(self, now, event, memories),
                Output::CloseFabric => {
                    assert!(!matches!(self.plane, Plane::Closing | Plane::Closed), "the data plane is closed twice");
                    self.plane = Plane::Closing;
                    if self.knobs.instant {
                        self.answer(now, memories);
                    }
                }
                Output::Closed(error) => {
                    assert!(self.closed.replace(error).is_none(), "the connection is closed twice");
                    assert!(!matches!(self.plane, Plane::Asked | Plane::Open | Plane::Closing), "{:?}", self.plane);
                    self.lend.all_ended();
                    self.borrow.all_ended();
                    assert!(
                        self.uploads.values().all(Option::is_some),
                        "uploads outlive the connection: {:?}",
                        self.uploads
                    );
                    out.close();
                }
            }
        }
    }

    /// Answers a task of the machine about the fabric. Returns `false` if there is none.
    pub(crate) fn answer(&mut self, now: Timestamp, memories: &mut Memories<'_>) -> bool {
        match self.plane {
            Plane::Asked => M::answer_open(self, now, memories),
            Plane::Closing => {
                for (read, result) in self.borrow.flush() {
                    self.command(now, M::borrower_command(BorrowerCommand::ReadDone { read, result }));
                }
                self.plane = Plane::Closed;
                memories.mine.refuses |= self.knobs.fencing == Fencing::Revocation;
                self.command(now, M::fabric_closed());
            }
            Plane::Open if self.prove.is_some() => return self.answer_prove(now, memories),
            Plane::None | Plane::Open | Plane::Closed => return false,
        }
        true
    }

    fn answer_prove(&mut self, now: Timestamp, memories: &mut Memories<'_>) -> bool {
        let Some(lending) = self.prove.take() else { return false };
        let theirs = memories.theirs;
        let right = !theirs.refuses && theirs.read(lending.probe_at) == lending.probe_value && !self.broken;
        let proves = right && self.knobs.connect_works;
        M::answer_prove(self, now, proves);
        true
    }

    fn check(&self) {
        let lender = self.machine.lender();
        assert!(lender.bytes_on_loan() <= self.knobs.max_loan_bytes);
        assert!(lender.open_leases() <= self.knobs.max_leases as usize);
        if self.closed.is_some() {
            assert_eq!((lender.open_leases(), self.machine.open_streams()), (0, 0));
        }
        self.borrow.check(self.machine.borrower());
    }
}

impl End for ServerConnection {
    fn lender(&self) -> &Lender {
        ServerConnection::lender(self)
    }

    fn borrower(&self) -> &thallus_protocol::borrower::Borrower {
        ServerConnection::borrower(self)
    }

    fn open_streams(&self) -> usize {
        ServerConnection::open_streams(self)
    }

    fn event(driver: &mut Driver<Self>, now: Timestamp, event: ServerEvent, memories: &mut Memories<'_>) {
        match event {
            ServerEvent::OpenFabric { kind, .. } => {
                assert_eq!((kind, driver.plane), (FabricKind::SIM, Plane::None));
                driver.plane = Plane::Asked;
            }
            ServerEvent::ProbeClient(lending) => {
                driver.borrow.import(&lending.words);
                driver.prove = Some(lending);
            }
            ServerEvent::FabricUp { .. } | ServerEvent::NoFabric { .. } | ServerEvent::FabricDown { .. } => {}
            ServerEvent::Query { stream, sql, options } | ServerEvent::Describe { stream, sql, options } => {
                driver.lend.begin(stream, script_of(&driver.scripts, &sql), options.access);
            }
            ServerEvent::Objects { stream, request, options } => {
                let pattern = request.table.unwrap_or_default();
                driver.lend.begin(stream, script_of(&driver.scripts, &pattern), options.access);
            }
            ServerEvent::Upload { stream, table, .. } => {
                driver.borrow.begin(stream, script_of(&driver.scripts, &table), Default::default());
            }
            ServerEvent::UploadWithdrawn { stream } => driver.borrow.withdrawn(stream),
        }
        if driver.knobs.instant {
            driver.answer(now, memories);
        }
    }

    fn answer_open(driver: &mut Driver<Self>, now: Timestamp, _memories: &mut Memories<'_>) {
        if !driver.knobs.open_works {
            driver.plane = Plane::None;
            return driver.command(now, ServerCommand::FabricUnavailable { reason: "no device".into() });
        }
        driver.plane = Plane::Open;
        let (address, fencing) = (Bytes::from_static(b"server"), driver.knobs.fencing);
        let opened = OpenedFabric { address, fencing, words: words(&driver.knobs), probe_value: PROBE };
        driver.command(now, ServerCommand::FabricOpened(opened));
    }

    fn answer_prove(driver: &mut Driver<Self>, now: Timestamp, well: bool) {
        driver.command(
            now,
            match well {
                true => ServerCommand::ReversePathUp { transport: "sim".into() },
                false => ServerCommand::ReversePathDown { reason: "no path".into() },
            },
        );
    }
}

impl End for ClientConnection {
    fn lender(&self) -> &Lender {
        ClientConnection::lender(self)
    }

    fn borrower(&self) -> &thallus_protocol::borrower::Borrower {
        ClientConnection::borrower(self)
    }

    fn open_streams(&self) -> usize {
        ClientConnection::open_streams(self)
    }

    fn event(driver: &mut Driver<Self>, now: Timestamp, event: ClientEvent, memories: &mut Memories<'_>) {
        match event {
            ClientEvent::ConnectFabric(choice) => {
                assert_eq!(driver.plane, Plane::None);
                driver.borrow.import(&choice.lending.words);
                driver.choice = Some(choice);
                driver.plane = Plane::Asked;
                if driver.knobs.instant {
                    driver.answer(now, memories);
                }
            }
            ClientEvent::FabricUp { .. } | ClientEvent::FabricDown { .. } => driver.ready = true,
            ClientEvent::Uploaded { stream, rows } => driver.answered(stream, Ok(rows)),
            ClientEvent::UploadFailed { stream, error } => driver.answered(stream, Err(error)),
            ClientEvent::Welcome { .. }
            | ClientEvent::ReversePathUp { .. }
            | ClientEvent::ReversePathDown { .. }
            | ClientEvent::Draining
            | ClientEvent::Pong => {}
        }
    }

    fn answer_open(driver: &mut Driver<Self>, now: Timestamp, memories: &mut Memories<'_>) {
        let lending = driver.choice.take().expect("a choice to connect to").lending;
        let right = !memories.theirs.refuses && memories.theirs.read(lending.probe_at) == lending.probe_value;
        if driver.knobs.connect_works && right && !driver.broken {
            driver.plane = Plane::Open;
            let lending = driver.knobs.client_lends.then(|| LeaseWordRegion {
                fencing: driver.knobs.fencing,
                words: words(&driver.knobs),
                probe_value: PROBE,
            });
            driver.command(now, ClientCommand::FabricUp { transport: "sim".into(), lending });
        } else {
            driver.command(now, ClientCommand::FabricUnavailable { reason: "no path".into() });
        }
    }

    fn answer_prove(_driver: &mut Driver<Self>, _now: Timestamp, _well: bool) {
        unreachable!("a client connects and proves in one step");
    }
}

impl Driver<ClientConnection> {
    fn answered(&mut self, stream: StreamId, result: Result<u64, thallus_protocol::StreamError>) {
        let upload = self.uploads.get_mut(&stream).expect("a requested upload");
        assert!(upload.replace(result).is_none(), "{stream:?} is answered twice");
    }
}

fn script_of(scripts: &[Script], text: &str) -> Script {
    scripts[text.parse::<usize>().unwrap_or(0) % scripts.len()].clone()
}
