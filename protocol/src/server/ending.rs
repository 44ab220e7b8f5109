//! The end of a server's connection.

use std::time::Duration;

use super::{ServerConnection, ServerEvent, ServerOutput, State, shared};
use crate::codes::StreamCode;
use crate::error::ConnectionError;
use crate::message::Failure;
use crate::time::Timestamp;
use crate::timers::Timer;

/// Time for a client to release the batches that it is reading, once a drain has ended its streams.
const RELEASE_GRACE: Duration = Duration::from_secs(1);

impl ServerConnection {
    /// Handles all deadlines that have passed.
    pub(super) fn expire(&mut self, now: Timestamp) {
        while let Some(timer) = self.core.timers.expired(now) {
            match timer {
                Timer::Handshake => self.end(ConnectionError::HandshakeTimeout(self.config.timeouts.handshake)),
                Timer::KeepAlive => drop(self.core.ping(now)),
                Timer::Idle => self.end(ConnectionError::IdleTimeout(self.core.link.timeouts().idle)),
                Timer::Drain => self.drain_is_over(now),
                _ => {}
            }
        }
        if let Err(error) = self.core.lender.expire(now) {
            self.end(error);
        }
        if let Err(reason) = self.core.borrower.expire(now) {
            // The client's reads are independent of this end's: only the reverse path is lost.
            self.core.borrower.path_down(&reason);
        }
    }

    /// Ends the streams before the leases, so that the client receives the reason first. If the connection closed at
    /// once, the client would find its leases revoked and report failed transfers instead of a shutdown.
    fn drain_is_over(&mut self, now: Timestamp) {
        let results: Vec<_> = self.core.lender.streams().collect();
        let uploads: Vec<_> = self.uploads.iter().map(|(stream, upload)| (*stream, upload.ended)).collect();
        if results.is_empty() && uploads.is_empty() {
            self.end(ConnectionError::Closed);
            return;
        }
        let failure = || Failure::new(StreamCode::ShuttingDown, "not done within the drain timeout");
        for stream in results {
            self.core.lender.stop(stream, failure());
        }
        for (stream, ended) in uploads {
            self.refuse(stream, failure());
            if ended {
                self.core.event(ServerEvent::UploadWithdrawn { stream });
            }
        }
        self.core.timers.set(Timer::Drain, now + RELEASE_GRACE);
    }

    pub(super) fn close_when_drained(&mut self) {
        let lender = &self.core.lender;
        // Mapped batches stay on loan without the connection, too.
        let only_mapped = lender.open_leases() == lender.mapped_leases();
        if self.draining && self.state == State::Open && self.open_streams() == 0 && only_mapped {
            self.end(ConnectionError::Closed);
        }
    }

    /// Begins the end of the connection. The order is: streams stop, the data plane is shut, leases end, the connection
    /// is closed.
    pub(super) fn end(&mut self, error: ConnectionError) {
        if self.is_ending() {
            return;
        }
        let silent = matches!(
            error,
            ConnectionError::ControlLost(_) | ConnectionError::Goodbye { .. } | ConnectionError::Closed
        );
        self.absorb();
        self.core.borrower.say_all_releases();
        self.absorb();
        // Before the hello the peer may speak any version. It has received this end's preface, the only part that is
        // the same in every version.
        if !silent && self.state != State::AwaitingHello {
            self.core.goodbye(error.close_code(), &error.to_string());
        }
        let error = shared(error);
        for (stream, upload) in std::mem::take(&mut self.uploads) {
            if upload.ended {
                self.core.event(ServerEvent::UploadWithdrawn { stream });
            }
        }
        let opening = self.state == State::OpeningFabric;
        self.state = State::Closing;
        self.core.shut(&error);
        self.absorb();
        if self.core.lender.has_path() {
            self.core.output(ServerOutput::CloseFabric);
        } else if !opening {
            self.torn_down();
        }
    }

    /// Ends all leases. The peer must be cut off before this call.
    pub(super) fn torn_down(&mut self) {
        self.state = State::Closed;
        self.core.closed();
    }
}
