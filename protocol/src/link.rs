//! The control connection, the same at both ends: preface, frames, keepalive, idle timeout.
//!
//! # Signs of life
//! Three events prove that the link works in both directions, and restart the timers of keepalive and idle timeout:
//! a pong that answers a ping; [`PROOF_BYTES`] of any messages since the last sign of life; and a control connection
//! that takes bytes again after it was full. Fewer bytes prove one direction only: if the other direction is dead, the
//! peer still sends pings. Many bytes prove both directions, because a peer whose bytes are neither acknowledged nor
//! credited soon has to stop. They are needed on a slow link, where a pong may wait behind data that the peer's host
//! has already accepted.

use std::time::Duration;

use bytes::{Bytes, BytesMut};

use crate::codec::{self, Decoded, Decoder, FEATURE_CHECKSUM, FEATURES, Frame, FrameLimits, Preface, VERSIONS};
use crate::error::{ApiMisuse, ConnectionError};
use crate::message::Message;
use crate::misbehaviour::PeerMisbehaved;
use crate::time::Timestamp;
use crate::timers::{Timer, Timers};

/// Timeouts of a control connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LinkTimeouts {
    /// Time from the start to the end of the handshake.
    pub handshake: Duration,
    /// Time without a sign of life after which this end sends a ping, and between two pings. At most a third of `idle`
    /// is used, so that the peer has time to answer.
    pub keepalive: Duration,
    /// Time without a sign of life after which the connection ends.
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

/// Least limits. They fit the longest fabric address with a remote key, a full release, and clipped texts.
const LEAST: FrameLimits = FrameLimits { message: 256 << 10, payload: 4 << 10 };
/// Least keepalive interval: with a shorter one the connection would do nothing but send pings.
const LEAST_KEEPALIVE: Duration = Duration::from_millis(1);
/// Bytes that are a sign of life. More than all pings, credits and releases of an idle time, and little enough for the
/// slowest link: 2 KiB a second suffice for an idle timeout of 30 s.
const PROOF_BYTES: usize = 64 << 10;

#[derive(Debug)]
pub(crate) struct Link {
    decoder: Decoder,
    limits: FrameLimits,
    timeouts: LinkTimeouts,
    version: Option<u16>,
    /// Feature bits that this end requests.
    features: u64,
    /// Feature bits in use, once the peer's preface has arrived.
    common: Option<u64>,
    /// Number of the last ping that was sent.
    pings: u64,
    /// Number of the last ping that was answered.
    answered: u64,
    /// Bytes that have arrived since the last sign of life.
    unproven: usize,
    /// Bytes that had arrived and were not decoded when the last message had been decoded.
    undecoded: usize,
    /// True if the peer has received this end's part of the handshake.
    greeted: bool,
}

impl Link {
    /// Returns a link and its preface, which must be sent first, and sets the first deadline. Raises limits and times
    /// that are too small to work to the least that do. `checksum`: whether this end requests checksums of frames.
    pub(crate) fn new(
        limits: FrameLimits,
        timeouts: LinkTimeouts,
        checksum: bool,
        now: Timestamp,
        timers: &mut Timers,
    ) -> (Self, Frame) {
        let limits =
            FrameLimits { message: limits.message.max(LEAST.message), payload: limits.payload.max(LEAST.payload) };
        let keepalive = timeouts.keepalive.min(timeouts.idle / 3).max(LEAST_KEEPALIVE);
        let timeouts = LinkTimeouts { keepalive, ..timeouts };
        timers.set(Timer::Handshake, now + timeouts.handshake);
        let features = if checksum { FEATURES } else { FEATURES & !FEATURE_CHECKSUM };
        let preface = Preface { versions: VERSIONS, features }.encode();
        // A hello and a welcome are short. A peer that has not sent one costs no more memory than that.
        let decoder = Decoder::new(LEAST);
        let link = Link {
            decoder,
            limits,
            timeouts,
            version: None,
            features,
            common: None,
            pings: 0,
            answered: 0,
            unproven: 0,
            undecoded: 0,
            greeted: false,
        };
        let head = Bytes::copy_from_slice(&preface);
        (link, Frame { head, payload: Bytes::new(), urgent: false, is_batch: false })
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

    /// The handshake is done: from now on the idle timeout applies.
    pub(crate) fn established(&mut self, now: Timestamp, timers: &mut Timers) {
        timers.clear(Timer::Handshake);
        self.sign_of_life(now, timers);
    }

    /// The peer has received this end's part of the handshake: from now on a ping may go before other messages.
    pub(crate) fn greeted(&mut self) {
        self.greeted = true;
    }

    /// Accepts messages up to the limit, because the peer has introduced itself. Payloads stay at the least limit.
    pub(crate) fn accept_messages(&mut self) {
        self.decoder.set_limits(FrameLimits { payload: LEAST.payload, ..self.limits });
    }

    /// Accepts messages and payloads up to the limits, because the peer may lend from now on.
    pub(crate) fn accept_payloads(&mut self) {
        self.decoder.set_limits(self.limits);
    }

    /// Bytes of memory that are kept for a frame that has not arrived completely.
    pub(crate) fn held_bytes(&self) -> usize {
        self.decoder.held_bytes()
    }

    /// Appends received bytes.
    pub(crate) fn push(&mut self, bytes: &[u8]) {
        self.decoder.push(bytes);
    }

    /// The buffer that the driver can read bytes into.
    pub(crate) fn buffer(&mut self) -> &mut BytesMut {
        self.decoder.buffer()
    }

    /// Restarts the keepalive and idle timers, because the link has proven to work in both directions.
    pub(crate) fn sign_of_life(&mut self, now: Timestamp, timers: &mut Timers) {
        self.unproven = 0;
        timers.set(Timer::KeepAlive, now + self.timeouts.keepalive);
        timers.set(Timer::Idle, now + self.timeouts.idle);
    }

    /// Counts the bytes that have arrived since the last call.
    pub(crate) fn arrived(&mut self, now: Timestamp, timers: &mut Timers) {
        self.unproven += self.decoder.undecoded().saturating_sub(self.undecoded);
        self.undecoded = self.decoder.undecoded();
        if self.unproven >= PROOF_BYTES {
            self.sign_of_life(now, timers);
        }
    }

    /// A pong has arrived.
    pub(crate) fn pong(&mut self, nonce: u64, now: Timestamp, timers: &mut Timers) {
        if nonce > self.answered && nonce <= self.pings {
            self.answered = nonce;
            self.sign_of_life(now, timers);
        }
    }

    /// The next complete message and its payload.
    pub(crate) fn next(&mut self) -> Result<Option<(Message, Bytes)>, ConnectionError> {
        loop {
            let decoded = self.decoder.decode::<Message>().map_err(PeerMisbehaved::from)?;
            self.undecoded = self.decoder.undecoded();
            match decoded {
                None => return Ok(None),
                Some(Decoded::Message(message, payload)) => {
                    if !payload.is_empty() && !message.has_payload() {
                        let len = payload.len();
                        return Err(PeerMisbehaved::from(codec::DecodeError::UnexpectedPayload { len }).into());
                    }
                    return Ok(Some((message, payload)));
                }
                Some(Decoded::Preface(preface)) => {
                    let theirs = preface.versions;
                    let common = VERSIONS.common(theirs);
                    self.version = Some(common.ok_or(ConnectionError::Version { ours: VERSIONS, theirs })?);
                    let features = self.features & preface.features;
                    self.common = Some(features);
                    self.decoder.verify_checksums(features & FEATURE_CHECKSUM != 0);
                }
            }
        }
    }

    /// Returns the nonce of a ping that is sent now, and sets the time of the next one.
    pub(crate) fn ping(&mut self, now: Timestamp, timers: &mut Timers) -> u64 {
        timers.set(Timer::KeepAlive, now + self.timeouts.keepalive);
        self.pings += 1;
        self.pings
    }

    /// Encodes a message as a frame: with a checksum, unless the peer is known not to verify it.
    pub(crate) fn encode(&self, message: &Message, payload: Bytes) -> Result<Frame, ApiMisuse> {
        let checked = self.common.unwrap_or(self.features) & FEATURE_CHECKSUM != 0;
        let frame = codec::encode_checked(message, payload, self.limits, checked)
            .map_err(|e| ApiMisuse::Encode(e.to_string()))?;
        // The server's first pings may be queued behind its Welcome, which must come first.
        let urgent = self.greeted && matches!(message, Message::Ping(_) | Message::Pong(_));
        Ok(Frame { urgent, ..frame })
    }
}

/// Shortens a text for the peer to a length that always fits a frame.
pub(crate) fn truncate(mut message: String) -> String {
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
