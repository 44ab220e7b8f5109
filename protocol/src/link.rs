//! What both ends of a control connection do alike: preface, frames, keepalive, silence.

use std::time::Duration;

use bytes::Bytes;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::codec::{self, Decoded, Decoder, Frame, FrameLimits, Preface, VERSIONS};
use crate::error::{ApiMisuse, ConnectionError};
use crate::misbehaviour::PeerMisbehaved;
use crate::time::Timestamp;
use crate::timers::{Timer, Timers};

/// How long things may take on a control connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LinkTimeouts {
    /// From the start to the end of the handshake.
    pub handshake: Duration,
    /// Silence after which the peer is pinged.
    pub keepalive: Duration,
    /// Silence after which the peer is taken for dead. More than twice `keepalive` makes sense.
    pub idle: Duration,
}

impl Default for LinkTimeouts {
    fn default() -> Self {
        LinkTimeouts {
            handshake: Duration::from_secs(10),
            keepalive: Duration::from_secs(10),
            idle: Duration::from_secs(30),
        }
    }
}

/// A frame always takes these: the longest fabric address with a remote key, a full release, clipped words.
const LEAST: FrameLimits = FrameLimits { message: 256 << 10, payload: 4 << 10 };
/// Pinging more often than this would do nothing else.
const LEAST_KEEPALIVE: Duration = Duration::from_millis(1);

#[derive(Debug)]
pub(crate) struct Link {
    decoder: Decoder,
    limits: FrameLimits,
    timeouts: LinkTimeouts,
    version: Option<u16>,
    pings: u64,
}

/// What came in, once the preface is dealt with.
pub(crate) enum Incoming<M> {
    Message(M, Bytes),
    Nothing,
}

impl Link {
    /// A link, its preface to be sent first, and its first deadline set. Limits and times that nothing could work with
    /// are raised to what can.
    pub(crate) fn new(
        limits: FrameLimits,
        timeouts: LinkTimeouts,
        now: Timestamp,
        timers: &mut Timers,
    ) -> (Self, Frame) {
        let limits =
            FrameLimits { message: limits.message.max(LEAST.message), payload: limits.payload.max(LEAST.payload) };
        let timeouts = LinkTimeouts { keepalive: timeouts.keepalive.max(LEAST_KEEPALIVE), ..timeouts };
        timers.set(Timer::Handshake, now + timeouts.handshake);
        let preface = Preface { versions: VERSIONS, features: 0 }.encode();
        let link = Link { decoder: Decoder::new(limits), limits, timeouts, version: None, pings: 0 };
        (link, Frame { head: Bytes::copy_from_slice(&preface), payload: Bytes::new() })
    }

    pub(crate) fn version(&self) -> Option<u16> {
        self.version
    }

    pub(crate) fn limits(&self) -> FrameLimits {
        self.limits
    }

    pub(crate) fn timeouts(&self) -> LinkTimeouts {
        self.timeouts
    }

    /// The handshake is done: from now on silence counts.
    pub(crate) fn established(&mut self, now: Timestamp, timers: &mut Timers) {
        timers.clear(Timer::Handshake);
        self.heard(now, timers);
    }

    /// Takes in bytes, which also show that the peer lives.
    pub(crate) fn push(&mut self, now: Timestamp, bytes: &[u8], established: bool, timers: &mut Timers) {
        self.decoder.push(bytes);
        if established {
            self.heard(now, timers);
        }
    }

    fn heard(&mut self, now: Timestamp, timers: &mut Timers) {
        timers.set(Timer::KeepAlive, now + self.timeouts.keepalive);
        #[cfg(feature = "planted-bugs")]
        if crate::planted::is_planted(crate::planted::Bug::IdleTimeoutForgotten) {
            return;
        }
        timers.set(Timer::Idle, now + self.timeouts.idle);
    }

    /// The next message.
    pub(crate) fn next<M: DeserializeOwned>(&mut self) -> Result<Incoming<M>, ConnectionError> {
        loop {
            match self.decoder.decode::<M>().map_err(PeerMisbehaved::from)? {
                None => return Ok(Incoming::Nothing),
                Some(Decoded::Message(message, payload)) => return Ok(Incoming::Message(message, payload)),
                Some(Decoded::Preface(preface)) => {
                    let theirs = preface.versions;
                    let common = VERSIONS.common(theirs);
                    self.version = Some(common.ok_or(ConnectionError::Version { ours: VERSIONS, theirs })?);
                }
            }
        }
    }

    /// The nonce of a ping that is due now, and when the next will be.
    pub(crate) fn ping(&mut self, now: Timestamp, timers: &mut Timers) -> u64 {
        timers.set(Timer::KeepAlive, now + self.timeouts.keepalive);
        self.pings += 1;
        self.pings
    }

    pub(crate) fn encode<M: Serialize>(&self, message: &M, payload: Bytes) -> Result<Frame, ApiMisuse> {
        codec::encode(message, payload, self.limits).map_err(|e| ApiMisuse::Encode(e.to_string()))
    }
}

/// Cuts words for the peer to a length that a frame always takes.
pub(crate) fn clip(mut message: String) -> String {
    const MAX: usize = 4096;
    if message.len() > MAX {
        let mut end = MAX;
        while !message.is_char_boundary(end) {
            end -= 1;
        }
        message.truncate(end);
        message.push('…');
    }
    message
}

/// A payload only where one belongs.
pub(crate) fn no_payload(payload: &Bytes) -> Result<(), PeerMisbehaved> {
    if payload.is_empty() { Ok(()) } else { Err(codec::DecodeError::UnexpectedPayload { len: payload.len() }.into()) }
}
