//! The hello, the choice of the fabric, and the data plane in both directions.

use super::{OpenedFabric, ServerCommand, ServerConnection, ServerEvent, ServerOutput, State};
use crate::codec::{MAX_ADDRESS, MAX_KEY};
use crate::codes::CloseCode;
use crate::error::{ApiMisuse, ConnectionError};
use crate::ids::FabricKind;
use crate::lender::within;
use crate::link::truncate;
use crate::message::{Extensions, FabricChoice, FabricOffer, FromBorrower, Hello, Lending, Message, Welcome};
use crate::misbehaviour::PeerMisbehaved;
use crate::time::Timestamp;

/// Maximum number of fabrics that a client may offer.
const MAX_OFFERS: usize = 16;

impl ServerConnection {
    pub(super) fn hello(&mut self, now: Timestamp, hello: Hello) -> Result<(), ConnectionError> {
        self.core.understands("hello", &hello.extensions)?;
        for offer in &hello.fabrics {
            limit("fabric address bytes", offer.address.len(), MAX_ADDRESS)?;
        }
        limit("fabrics offered", hello.fabrics.len(), MAX_OFFERS)?;
        self.core.borrower.set_lender_limit(hello.max_loan_bytes);
        let offered: Vec<_> = hello.fabrics.iter().map(|offer| offer.kind.clone()).collect();
        let common = hello.fabrics.into_iter().filter(|offer| self.config.fabrics.contains(&offer.kind));
        self.candidates = common.collect();
        if !self.open_next() {
            let reason = self.nothing_in_common(&offered);
            self.core.event(ServerEvent::NoFabric { offered, reason: reason.clone() });
            self.welcome(now, Err(reason));
        }
        Ok(())
    }

    /// Has the next candidate opened. `false` if there is none.
    fn open_next(&mut self) -> bool {
        let Some(FabricOffer { kind, address }) = self.candidates.pop_front() else { return false };
        self.state = State::OpeningFabric;
        self.chosen = Some(kind.clone());
        self.core.event(ServerEvent::OpenFabric { kind, peer: address });
        true
    }

    fn nothing_in_common(&self, offered: &[FabricKind]) -> String {
        let names: Vec<_> = offered.iter().map(FabricKind::as_str).collect();
        match (self.config.fabrics.is_empty(), offered.is_empty()) {
            (true, _) => self.config.no_fabric_reason.clone(),
            (false, true) => "the client offered no fabric".into(),
            (false, false) => format!(
                "no fabric in common: the client offered {}, the server has {:?}",
                truncate(names.join(", ")),
                self.config.fabrics
            ),
        }
    }

    fn welcome(&mut self, now: Timestamp, fabric: Result<FabricChoice, String>) {
        self.state = State::Open;
        self.core.link.established(now, &mut self.core.timers);
        self.core.link.accept_messages();
        let (name, limits) = (self.config.name.clone(), self.config.limits.clone());
        let extensions = self.config.vendor.extensions();
        self.core.send(Message::Welcome(Welcome { name, fabric, limits, extensions }));
        if self.draining {
            self.core.goodbye(CloseCode::ShuttingDown, "");
        }
    }

    /// Processes the driver's reports about the data plane.
    pub(super) fn plane_command(&mut self, now: Timestamp, command: ServerCommand) -> Result<(), ApiMisuse> {
        match command {
            ServerCommand::FabricOpened(fabric) if self.state == State::OpeningFabric => {
                let choice = self.choice(fabric)?;
                self.welcome(now, Ok(choice));
            }
            ServerCommand::FabricUnavailable { reason } if self.state == State::OpeningFabric => {
                self.refusals.push(reason);
                if !self.open_next() {
                    let reasons = std::mem::take(&mut self.refusals).join("; ");
                    let reason = truncate(reasons);
                    self.core.event(ServerEvent::FabricDown { reason: reason.clone() });
                    self.welcome(now, Err(reason));
                }
            }
            // The connection ended while the fabric was being opened: close the fabric again.
            ServerCommand::FabricOpened(fabric) if self.is_closing_unopened() => {
                let _described = self.core.lender.path_opened(fabric.fencing, fabric.words, fabric.probe_value);
                self.core.output(ServerOutput::CloseFabric);
            }
            ServerCommand::FabricUnavailable { .. } if self.is_closing_unopened() => self.torn_down(),
            ServerCommand::FabricClosed if self.state == State::Closing && self.core.lender.has_path() => {
                let reported = self.core.borrower.closed();
                self.absorb();
                self.torn_down();
                reported?;
            }
            ServerCommand::FabricFailed { reason } => self.fabric_failed(&truncate(reason)),
            ServerCommand::ReversePathUp { transport } => {
                if self.state == State::Open && self.core.borrower.path_name() == "none" {
                    self.core.borrower.path_up();
                    let extensions = Extensions::none();
                    let up = FromBorrower::PathUp { transport: truncate(transport), lending: None, extensions };
                    self.core.send(Message::Borrower(up));
                }
            }
            ServerCommand::ReversePathDown { reason } => {
                self.core.borrower.path_down(&reason);
            }
            other => {
                return Err(ApiMisuse::State { command: command_name(&other), state: self.state.name() });
            }
        }
        Ok(())
    }

    /// The description of an opened fabric for the client.
    fn choice(&mut self, fabric: OpenedFabric) -> Result<FabricChoice, ApiMisuse> {
        let Some(kind) = self.chosen.clone() else {
            return Err(ApiMisuse::State { command: "fabric-opened", state: self.state.name() });
        };
        let OpenedFabric { address, fencing, words, probe_value } = fabric;
        let key = words.key.len();
        // This comes first: the fabric is open and must be closed, even if one of the checks below fails.
        let lending = self.core.lender.path_opened(fencing, words, probe_value)?;
        within("fabric address", address.len(), MAX_ADDRESS)?;
        within("remote key", key, MAX_KEY)?;
        Ok(FabricChoice { kind, address, lending })
    }

    /// Whether the connection ended while the driver was opening the fabric, and the driver has not reported the result
    /// yet.
    fn is_closing_unopened(&self) -> bool {
        self.state == State::Closing && !self.core.lender.has_path()
    }

    pub(super) fn path_up(&mut self, transport: String, lending: Option<Lending>) -> Result<(), PeerMisbehaved> {
        let was = self.core.lender.path_name();
        if !self.core.lender.path_up() {
            return Err(PeerMisbehaved::Unexpected { got: "path-up", state: self.state.name() });
        }
        if was != "unproven" {
            return Ok(());
        }
        self.core.event(ServerEvent::FabricUp { transport: truncate(transport) });
        if let Some(lending) = lending {
            self.core.borrower.set_lease_words(&lending)?;
            self.core.event(ServerEvent::ProbeClient(lending));
        }
        Ok(())
    }

    pub(super) fn path_down(&mut self, reason: String) -> Result<(), PeerMisbehaved> {
        let was = self.core.lender.path_name();
        let reason = truncate(reason);
        if !self.core.lender.path_down(&reason) {
            return Err(PeerMisbehaved::Unexpected { got: "path-down", state: self.state.name() });
        }
        // Both ends may see the fabric fail at the same time, or this end has stopped lending before.
        if was != "down" {
            self.core.event(ServerEvent::FabricDown { reason });
        }
        // The client has closed its endpoint, so that its memory cannot be read either.
        self.core.borrower.path_down("the client has closed its end of the data plane");
        Ok(())
    }

    fn fabric_failed(&mut self, reason: &str) {
        if self.is_ending() || !self.core.lender.has_path() {
            return;
        }
        // This end may have stopped lending before.
        if self.core.lender.path_name() != "down" {
            self.core.lender.path_down(reason);
            self.core.event(ServerEvent::FabricDown { reason: reason.to_owned() });
        }
        self.core.borrower.path_down(reason);
    }
}

fn limit(what: &'static str, value: usize, limit: usize) -> Result<(), PeerMisbehaved> {
    if value <= limit { Ok(()) } else { Err(PeerMisbehaved::Limit { what, value: value as u64, limit: limit as u64 }) }
}

fn command_name(command: &ServerCommand) -> &'static str {
    match command {
        ServerCommand::FabricOpened(_) => "fabric-opened",
        ServerCommand::FabricUnavailable { .. } => "fabric-unavailable",
        ServerCommand::FabricClosed => "fabric-closed",
        _ => "other",
    }
}
