//! A server's machine with a client that sends arbitrary messages.

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;
use thallus_protocol::borrower::BorrowerConfig;
use thallus_protocol::codes::StreamCode;
use thallus_protocol::message::{Failure, Fencing, ServerLimits, Thresholds};
use thallus_protocol::server::{OpenedFabric, ServerCommand, ServerConfig, ServerConnection, ServerEvent};
use thallus_protocol::{FabricKind, StreamId};

use crate::LIMITS;
use crate::frames::{START, Step};
use crate::peer::{BATCH, CREDIT, LEASES, LOANS, Peer, words};

/// An answer for which the machine waits.
enum Asked {
    Open,
    ProbeClient,
    Schema(StreamId),
    Upload(StreamId),
}

/// The machine with its driver.
pub struct Server {
    peer: Peer<ServerConnection>,
    asked: VecDeque<Asked>,
    /// Uploads that have neither ended nor been withdrawn.
    uploads: BTreeMap<StreamId, bool>,
}

impl Default for Server {
    fn default() -> Self {
        let config = ServerConfig {
            name: String::new(),
            fabrics: vec![FabricKind::SIM],
            no_fabric_reason: String::new(),
            vendor: thallus_protocol::message::Vendor::default(),
            limits: ServerLimits { max_streams: 3, max_loan_bytes: LOANS, max_sql_bytes: 64 },
            frame: Default::default(),
            checksum: false,
            thresholds: Thresholds::uniform(64),
            max_leases: LEASES,
            word_nonce: 1,
            timeouts: Default::default(),
            lease_timeout: std::time::Duration::from_secs(9),
            drain_timeout: std::time::Duration::from_secs(9),
            borrow: BorrowerConfig {
                max_regions: 4,
                layout: LIMITS,
                ..ServerConfig::borrower_config(BATCH, std::time::Duration::from_secs(9))
            },
        };
        let peer = Peer::new(ServerConnection::new(config, START), |event| match event {
            ServerEvent::Upload { stream, .. } => Some(*stream),
            _ => None,
        });
        Server { peer, asked: VecDeque::new(), uploads: BTreeMap::new() }
    }
}

impl Server {
    /// Applies a step and checks the invariants.
    pub fn step(&mut self, step: Step) {
        match step {
            Step::Answer(choice) => self.answer(choice),
            step => self.peer.apply(&step),
        }
        self.look();
    }

    /// Closes the control connection. All streams and leases must end.
    pub fn finish(mut self) {
        self.peer.lose_control();
        self.look();
        // The machine always waits for the answer to `OpenFabric`.
        if self.asked.iter().any(|asked| matches!(asked, Asked::Open)) {
            self.peer.command(ServerCommand::FabricUnavailable { reason: String::new() });
        }
        self.peer.finish();
        self.look();
    }

    fn look(&mut self) {
        while let Some(event) = self.peer.events.pop_front() {
            match event {
                ServerEvent::OpenFabric { .. } => self.asked.push_back(Asked::Open),
                ServerEvent::ProbeClient(_) => self.asked.push_back(Asked::ProbeClient),
                ServerEvent::Query { stream, .. }
                | ServerEvent::Describe { stream, .. }
                | ServerEvent::Objects { stream, .. } => self.asked.push_back(Asked::Schema(stream)),
                ServerEvent::Upload { stream, .. } => {
                    self.uploads.insert(stream, false);
                    self.asked.push_back(Asked::Upload(stream));
                }
                ServerEvent::UploadWithdrawn { stream } => assert!(self.uploads.remove(&stream).is_some()),
                ServerEvent::FabricUp { .. } | ServerEvent::NoFabric { .. } | ServerEvent::FabricDown { .. } => {}
            }
        }
        Peer::<ServerConnection>::check(self.peer.machine.lender());
        assert_eq!(self.peer.machine.borrower().outstanding_reads(), self.peer.reads.len());
    }

    fn answer(&mut self, choice: u8) {
        if self.peer.closed {
            return;
        }
        let refuses = choice % 8 == 7;
        match self.asked.pop_front() {
            None if choice >= 0xF0 => self.end_upload(choice),
            None => self.peer.answer(choice),
            Some(Asked::Open) if refuses => {
                self.peer.command(ServerCommand::FabricUnavailable { reason: String::new() });
            }
            Some(Asked::Open) => {
                let (address, fencing) = (Bytes::new(), Fencing::LeaseWord);
                let opened = OpenedFabric { address, fencing, words: words(), probe_value: 7 };
                self.peer.command(ServerCommand::FabricOpened(opened));
            }
            Some(Asked::ProbeClient) if refuses => {
                self.peer.command(ServerCommand::ReversePathDown { reason: String::new() });
            }
            Some(Asked::ProbeClient) => self.peer.command(ServerCommand::ReversePathUp { transport: String::new() }),
            Some(Asked::Schema(stream)) => self.peer.schema(stream),
            Some(Asked::Upload(stream)) => {
                self.peer.command(ServerCommand::Accept { stream, window: 1000, max_window: CREDIT });
            }
        }
    }

    /// Ends an upload as the engine would: with a result if its end was delivered, otherwise with an error.
    fn end_upload(&mut self, choice: u8) {
        let at = usize::from(choice & 0x0F) % self.uploads.len().max(1);
        let Some(stream) = self.uploads.keys().nth(at).copied() else { return };
        self.uploads.remove(&stream);
        let failure = Failure::new(StreamCode::Execution, "");
        let result = if self.peer.has_ended(stream) { Ok(1) } else { Err(failure) };
        self.peer.command(ServerCommand::Answer { stream, result });
    }
}
