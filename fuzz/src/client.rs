//! A client's machine with a server that sends arbitrary messages.

use bytes::Bytes;
use thallus_protocol::borrower::{BorrowerCommand, BorrowerConfig};
use thallus_protocol::client::{ClientCommand, ClientConfig, ClientConnection, ClientEvent, LentWords, UploadOptions};
use thallus_protocol::message::{Access, FabricOffer, Fencing, LendFrom, OpenOptions, Request, Thresholds};
use thallus_protocol::{FabricKind, StreamId};

use crate::LIMITS;
use crate::frames::{START, Step};
use crate::peer::{BATCH, CREDIT, LEASES, LOANS, Peer, words};

/// Number of results, of which the last is read on demand; also the number of uploads after them.
const RESULTS: u32 = 3;

/// The machine with its driver.
pub struct Client {
    peer: Peer<ClientConnection>,
    last_stream: u32,
    /// Uploads neither answered nor withdrawn.
    uploads: Vec<StreamId>,
    connecting: bool,
}

impl Default for Client {
    fn default() -> Self {
        let config = ClientConfig {
            name: String::new(),
            fabrics: vec![FabricOffer { kind: FabricKind::SIM, address: Bytes::new() }],
            frame: Default::default(),
            checksum: false,
            first_window: 1000,
            borrow: BorrowerConfig {
                max_batch_bytes: BATCH,
                max_regions: 4,
                layout: LIMITS,
                inline: Default::default(),
                read_timeout: std::time::Duration::from_secs(9),
            },
            timeouts: Default::default(),
            max_loan_bytes: LOANS,
            max_leases: LEASES,
            word_nonce: 1,
            lease_timeout: std::time::Duration::from_secs(9),
            thresholds: Thresholds::same(64),
        };
        let machine = ClientConnection::new(config, START).expect("a short hello");
        Client { peer: Peer::new(machine, |_| None), last_stream: 0, uploads: Vec::new(), connecting: false }
    }
}

impl Client {
    /// Applies a step and checks the invariants.
    pub fn step(&mut self, step: Step) {
        match step {
            Step::Answer(choice) => self.answer(choice),
            step => self.peer.happen(&step),
        }
        self.look();
    }

    /// Closes the control connection. All uploads, streams and leases must end.
    pub fn finish(mut self) {
        self.connecting = false;
        self.peer.lost();
        self.peer.finish();
        self.look();
        assert!(self.uploads.is_empty());
    }

    fn look(&mut self) {
        while let Some(event) = self.peer.events.pop_front() {
            match event {
                ClientEvent::ConnectFabric(_) => self.connecting = true,
                ClientEvent::FabricUp { .. } | ClientEvent::FabricDown { .. } if self.last_stream == 0 => self.open(),
                ClientEvent::Uploaded { stream, .. } | ClientEvent::UploadFailed { stream, .. } => {
                    let at = self.uploads.iter().position(|upload| *upload == stream);
                    self.uploads.remove(at.expect("an upload is answered once"));
                }
                _ => {}
            }
        }
        Peer::<ClientConnection>::check(self.peer.machine.lender());
        assert_eq!(self.peer.machine.outstanding_reads(), self.peer.reads.len());
    }

    fn open(&mut self) {
        for number in 1..=2 * RESULTS {
            self.last_stream = number;
            let stream = StreamId(number);
            if number > RESULTS {
                self.uploads.push(stream);
                let options = UploadOptions { lend_from: LendFrom::Bytes(0), ..UploadOptions::default() };
                self.peer.command(ClientCommand::Upload { stream, table: String::new(), options });
                self.peer.schema(stream);
            } else {
                self.peer.borrow(stream);
                let access = if number == RESULTS { Access::OnDemand } else { Access::Read };
                let options = OpenOptions { credit: CREDIT, access, ..OpenOptions::default() };
                self.peer.command(ClientCommand::Open { stream, request: Request::Sql(String::new()), options });
            }
        }
    }

    fn answer(&mut self, choice: u8) {
        if std::mem::take(&mut self.connecting) && !self.peer.closed {
            let lending = LentWords { fencing: Fencing::LeaseWord, words: words(), probe_value: 7 };
            let lending = (choice % 2 == 0).then_some(lending);
            return self.peer.command(ClientCommand::FabricUp { transport: String::new(), lending });
        }
        match choice {
            // Without a stream, `Peer::answer` completes a read.
            0xF0.. if self.last_stream > 0 => {
                let stream = StreamId(u32::from(choice & 0x0F) % self.last_stream + 1);
                if stream.0 <= RESULTS {
                    self.peer.borrower(BorrowerCommand::Cancel { stream });
                } else {
                    self.uploads.retain(|upload| *upload != stream);
                    self.peer.command(ClientCommand::Withdraw { stream });
                }
            }
            choice => self.peer.answer(choice),
        }
    }
}
