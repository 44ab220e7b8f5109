//! What the driver reports and asks of a server's connection.

use bytes::Bytes;

use super::{DataPlane, OpenedFabric, ServerCommand, ServerConnection, ServerOutput, State, send};
use crate::codec::{MAX_ADDRESS, MAX_KEY};
use crate::codes::CloseCode;
use crate::error::{ApiMisuse, ConnectionError};
use crate::link::clip;
use crate::message::{FabricChoice, ToClient};
use crate::time::Timestamp;
use crate::timers::Timer;

impl ServerConnection {
    pub(super) fn command(&mut self, now: Timestamp, command: ServerCommand) -> Result<(), ApiMisuse> {
        match command {
            ServerCommand::FabricOpened(fabric) if self.state == State::OpeningFabric => {
                // Kept even if it is not fit to be offered: it is open, and must be closed.
                self.data = DataPlane::Unproven(fabric.clone());
                let choice = self.choice(fabric)?;
                self.regions.insert(choice.words.id);
                self.welcome(now, Ok(choice));
            }
            ServerCommand::FabricUnavailable { reason } if self.state == State::OpeningFabric => {
                self.welcome(now, Err(clip(reason)));
            }
            // The connection ended while the fabric was being opened: close it again.
            ServerCommand::FabricOpened(fabric) if self.is_closing_unopened() => {
                self.data = DataPlane::Down(fabric);
                self.out.push_back(ServerOutput::CloseFabric);
            }
            ServerCommand::FabricUnavailable { .. } if self.is_closing_unopened() => self.torn_down(),
            ServerCommand::FabricClosed if self.state == State::Closing && self.data != DataPlane::None => {
                self.torn_down()
            }
            ServerCommand::FabricFailed { reason } => {
                if matches!(self.data, DataPlane::Unproven(_) | DataPlane::Up(_)) {
                    self.fabric_down(clip(reason));
                }
            }
            ServerCommand::Drain => self.drain(now),
            ServerCommand::Close { code, message } => {
                if !self.is_ending() {
                    self.say_goodbye(code, &message);
                    self.end(ConnectionError::Closed);
                }
            }
            ServerCommand::Announce(region) => {
                if !self.is_ending() {
                    self.must_be_open("announce")?;
                    within("remote key", region.key.len(), MAX_KEY)?;
                    if !self.regions.insert(region.id) {
                        return Err(ApiMisuse::Region(region.id));
                    }
                    self.transmit(&ToClient::Region(region), Bytes::new());
                }
            }
            ServerCommand::Retire(region) => {
                if !self.is_ending() {
                    self.must_be_open("retire")?;
                    if !self.regions.remove(&region) {
                        return Err(ApiMisuse::Region(region));
                    }
                    self.transmit(&ToClient::RegionGone(region), Bytes::new());
                }
            }
            ServerCommand::Schema { stream, schema, order } => self.schema(stream, schema, order)?,
            ServerCommand::Lend { stream, loan, rows } => self.lend(now, stream, loan, rows)?,
            ServerCommand::Inline { stream, ipc, rows } => self.inline(now, stream, ipc, rows)?,
            ServerCommand::Finish { stream, execute_nanos } => {
                if let Some(open) = self.pulled(stream)? {
                    open.stats.execute_nanos = execute_nanos;
                    open.handed_over(None, 0, now);
                }
            }
            ServerCommand::Fail { stream, code, message } => {
                self.known(stream)?;
                if self.streams.contains_key(&stream) {
                    self.fail_stream(stream, code, message);
                }
            }
            other => return Err(ApiMisuse::State { command: command_name(&other), state: self.state.name() }),
        }
        Ok(())
    }

    fn drain(&mut self, now: Timestamp) {
        if self.draining || self.is_ending() {
            return;
        }
        self.draining = true;
        self.timers.set(Timer::Drain, now + self.config.drain_timeout);
        match self.state {
            State::Open => self.say_goodbye(CloseCode::ShuttingDown, ""),
            State::AwaitingHello => self.end(ConnectionError::Closed),
            _ => {}
        }
    }

    /// What the client is told of an opened fabric.
    fn choice(&self, fabric: OpenedFabric) -> Result<FabricChoice, ApiMisuse> {
        let Some(kind) = self.chosen.clone() else {
            return Err(ApiMisuse::State { command: "fabric-opened", state: self.state.name() });
        };
        within("fabric address", fabric.address.len(), MAX_ADDRESS)?;
        within("remote key", fabric.words.key.len(), MAX_KEY)?;
        let probe_at = send::word_at(&fabric.words, self.config.max_leases);
        let fits = u64::from(self.config.max_leases).saturating_add(1).saturating_mul(8) <= fabric.words.len;
        if !fits || fabric.words.base.checked_add(fabric.words.len).is_none() || !fabric.words.base.is_multiple_of(8) {
            return Err(ApiMisuse::Region(fabric.words.id));
        }
        let OpenedFabric { address, fencing, words, probe_value } = fabric;
        Ok(FabricChoice { kind, address, fencing, words, probe_at, probe_value })
    }

    /// The connection ended while the driver was opening the fabric, and has not heard of it yet.
    fn is_closing_unopened(&self) -> bool {
        self.state == State::Closing && self.data == DataPlane::None
    }

    fn must_be_open(&self, command: &'static str) -> Result<(), ApiMisuse> {
        if self.state == State::Open { Ok(()) } else { Err(ApiMisuse::State { command, state: self.state.name() }) }
    }
}

fn within(what: &'static str, len: usize, limit: usize) -> Result<(), ApiMisuse> {
    if len <= limit { Ok(()) } else { Err(ApiMisuse::Encode(format!("a {what} of {len} bytes, the limit is {limit}"))) }
}

fn command_name(command: &ServerCommand) -> &'static str {
    match command {
        ServerCommand::FabricOpened(_) => "fabric-opened",
        ServerCommand::FabricUnavailable { .. } => "fabric-unavailable",
        ServerCommand::FabricClosed => "fabric-closed",
        _ => "other",
    }
}
