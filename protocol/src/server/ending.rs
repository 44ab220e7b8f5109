//! How leases, data planes and whole connections end at the server.

use std::time::Duration;

use bytes::Bytes;

use super::stream::{OutgoingStream, Pending};
use super::{DataPlane, ServerConnection, ServerOutput, State};
use crate::codes::{CloseCode, StreamCode};
use crate::error::ConnectionError;
use crate::ids::LeaseId;
use crate::lease::LeaseEnd;
use crate::link::clip;
use crate::message::{Fencing, ToClient};
use crate::time::Timestamp;
use crate::timers::Timer;

/// How long a client has to give back what it is reading, once a drain has ended its streams.
const RELEASE_GRACE: Duration = Duration::from_secs(1);

impl ServerConnection {
    pub(super) fn fire_timers(&mut self, now: Timestamp) {
        while let Some(timer) = self.timers.expired(now) {
            match timer {
                Timer::Handshake => self.end(ConnectionError::HandshakeTimeout(self.config.timeouts.handshake)),
                Timer::KeepAlive => {
                    let nonce = self.link.ping(now, &mut self.timers);
                    self.transmit(&ToClient::Ping(nonce), Bytes::new());
                }
                Timer::Idle => self.end(ConnectionError::IdleTimeout(self.link.timeouts().idle)),
                Timer::Drain => self.drain_is_over(now),
                Timer::Stream(stream) => {
                    if self.streams.contains_key(&stream) {
                        self.stop(stream, StreamCode::DeadlineExceeded, String::new());
                    }
                }
                Timer::Lease(lease) => self.lease_expired(lease),
                Timer::Room(stream) => self.found_no_room(stream),
                Timer::Read(_) | Timer::Releases => {}
            }
        }
    }

    /// The client hears why its streams end before its leases do: closing at once would have it find them revoked, and take
    /// an end in good order for a transfer that failed.
    fn drain_is_over(&mut self, now: Timestamp) {
        if self.streams.is_empty() {
            self.end(ConnectionError::Closed);
            return;
        }
        for stream in self.streams.keys().copied().collect::<Vec<_>>() {
            self.stop(stream, StreamCode::ShuttingDown, "not done within the drain timeout".into());
        }
        self.timers.set(Timer::Drain, now + RELEASE_GRACE);
    }

    fn lease_expired(&mut self, lease: LeaseId) {
        let by_word = self.data.opened().is_some_and(|fabric| fabric.fencing == Fencing::LeaseWord);
        if !by_word || self.leases.revoked() >= self.config.max_leases as usize {
            // This fabric cuts off a connection, not a lease; or the client sits on everything it gets.
            if self.leases.is_live(lease) {
                self.end(ConnectionError::LeaseExpired(lease));
            }
            return;
        }
        if let Some(ended) = self.leases.revoke(lease) {
            self.out.push_back(ServerOutput::EndLease { lease, slot: ended.slot, end: LeaseEnd::Revoked });
            if self.streams.contains_key(&ended.stream) {
                let held = format!("{lease:?} was not released within {:?}", self.config.lease_timeout);
                self.stop(ended.stream, StreamCode::LeaseExpired, held);
            }
        }
    }

    /// Nothing is lent from now on; streams that had begun to lend end, new ones travel inline.
    pub(super) fn fabric_down(&mut self, reason: String) {
        if let Some(fabric) = self.data.opened().cloned() {
            self.data = DataPlane::Down(fabric);
        }
        self.out.push_back(ServerOutput::FabricDown { reason: reason.clone() });
        let caught = |open: &OutgoingStream| {
            matches!(open.pending, Some(Pending::Lent(_))) || open.is_pulled() && open.lend_from(0).is_some()
        };
        let caught: Vec<_> = self.streams.iter().filter(|(_, open)| caught(open)).map(|(id, _)| *id).collect();
        for stream in caught {
            self.stop(stream, StreamCode::DataPlaneLost, format!("{reason}; run the query again"));
        }
    }

    pub(super) fn close_when_drained(&mut self) {
        // What is mapped is kept without the connection, too.
        let kept = self.leases.mapped();
        if self.draining && self.state == State::Open && self.streams.is_empty() && self.leases.len() == kept {
            self.end(ConnectionError::Closed);
        }
    }

    pub(super) fn say_goodbye(&mut self, code: CloseCode, message: &str) {
        let message = clip(message.to_owned());
        self.transmit(&ToClient::Goodbye { code, message }, Bytes::new());
    }

    /// Begins the end of the connection: streams stop, the data plane is shut, then leases end, then it is closed.
    pub(super) fn end(&mut self, error: ConnectionError) {
        if self.is_ending() {
            return;
        }
        let silent = matches!(
            error,
            ConnectionError::ControlLost(_) | ConnectionError::Goodbye { .. } | ConnectionError::Closed
        );
        // Before the hello the peer may be anything; it has our preface, which is all that every version understands.
        if !silent && self.state != State::AwaitingHello {
            self.say_goodbye(error.close_code(), &error.to_string());
        }
        for (stream, open) in std::mem::take(&mut self.streams) {
            self.out.push_back(ServerOutput::StopQuery { stream, reason: None, failure: None });
            self.withdraw_pending(open);
        }
        self.ended_by = Some(error);
        self.timers.clear_all();
        #[cfg(feature = "planted-bugs")]
        if crate::planted::is_planted(crate::planted::Bug::TornDownBeforeClosed) {
            while let Some((lease, ended)) = self.leases.pop() {
                self.out.push_back(ServerOutput::EndLease { lease, slot: ended.slot, end: LeaseEnd::TornDown });
            }
        }
        let opening = self.state == State::OpeningFabric;
        self.state = State::Closing;
        if self.data.opened().is_some() {
            self.out.push_back(ServerOutput::CloseFabric);
        } else if !opening {
            self.torn_down();
        }
    }

    /// The peer is cut off: now, and only now, the leases end.
    pub(super) fn torn_down(&mut self) {
        while let Some((lease, ended)) = self.leases.pop() {
            self.out.push_back(ServerOutput::EndLease { lease, slot: ended.slot, end: LeaseEnd::TornDown });
        }
        self.state = State::Closed;
        let error = self.ended_by.take().unwrap_or(ConnectionError::Closed);
        self.out.push_back(ServerOutput::Closed(error));
    }
}
