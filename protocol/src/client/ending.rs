//! The end of a client's data plane, and of its connection.

use std::sync::Arc;

use super::{ClientConnection, ClientEvent, ClientOutput, State};
use crate::codes::CloseCode;
use crate::error::{ApiMisuse, ConnectionError, StreamError};
use crate::link::clip;
use crate::time::Timestamp;
use crate::timers::Timer;

impl ClientConnection {
    /// Handles all deadlines that have passed.
    pub(super) fn expire(&mut self, now: Timestamp) {
        while let Some(timer) = self.core.timers.expired(now) {
            match timer {
                Timer::Handshake if self.state == State::Connecting => {
                    self.fabric_down(&format!(
                        "the fabric was not connected within {:?}",
                        self.config.timeouts.handshake
                    ));
                }
                Timer::Handshake => self.end(ConnectionError::HandshakeTimeout(self.config.timeouts.handshake)),
                Timer::KeepAlive => drop(self.core.ping(now)),
                Timer::Idle => self.end(ConnectionError::IdleTimeout(self.core.link.timeouts().idle)),
                Timer::Answer(stream) => self.upload_is_late(stream),
                _ => {}
            }
        }
        if let Err(error) = self.core.lender.expire(now) {
            self.end(error);
        }
        if let Err(reason) = self.core.borrower.expire(now) {
            self.fabric_down(&reason);
        }
    }

    pub(super) fn fabric_closed(&mut self) -> Result<(), ApiMisuse> {
        if !std::mem::take(&mut self.fabric_closing) {
            return Err(ApiMisuse::State { command: "fabric-closed", state: "no close is pending" });
        }
        self.endpoint_open = false;
        let reported = self.core.borrower.closed();
        self.absorb();
        if self.state == State::Closing {
            self.closed();
        }
        reported
    }

    /// The data plane has failed, or could not be opened, in both directions. Outstanding reads complete with an error
    /// when the endpoint closes.
    pub(super) fn fabric_down(&mut self, reason: &str) {
        if self.state == State::Connecting {
            self.core.timers.clear(Timer::Handshake);
            self.state = State::Open;
        } else if !self.core.borrower.is_up() {
            return;
        }
        let reason = clip(reason.to_owned());
        self.core.borrower.path_down(&reason);
        self.core.lender.path_down(&reason);
        self.absorb();
        self.core.event(ClientEvent::FabricDown { reason });
        self.close_fabric();
    }

    pub(super) fn close_fabric(&mut self) {
        if self.endpoint_open && !std::mem::replace(&mut self.fabric_closing, true) {
            self.core.output(ClientOutput::CloseFabric);
        }
    }

    /// Begins the end of the connection. The order is: streams end, the data plane is shut, its reads complete, leases
    /// end, the connection is closed.
    pub(super) fn end(&mut self, error: ConnectionError) {
        if self.state.is_ending() {
            return;
        }
        self.absorb();
        let error = Arc::new(error);
        let goodbye = match &*error {
            ConnectionError::ControlLost(_) | ConnectionError::Goodbye { .. } => None,
            ConnectionError::Closed => Some((CloseCode::Normal, String::new())),
            _ if self.state == State::AwaitingWelcome => None,
            // The text of an error may contain text of the peer, for example a field name of megabytes.
            _ => Some((error.close_code(), clip(error.to_string()))),
        };
        if let Some((code, message)) = goodbye {
            self.core.borrower.release_abandoned(&error);
            self.absorb();
            self.core.borrower.say_all_releases();
            self.absorb();
            self.core.goodbye(code, &message);
        }
        self.state = State::Closing;
        self.core.shut(&error);
        self.absorb();
        for stream in self.uploads.keys().copied().collect::<Vec<_>>() {
            self.upload_failed(stream, StreamError::Connection(Arc::clone(&error)));
        }
        if self.endpoint_open {
            self.close_fabric();
        } else {
            self.closed();
        }
    }

    fn closed(&mut self) {
        self.state = State::Closed;
        self.core.closed();
    }
}
