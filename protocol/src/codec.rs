//! Bytes on the control connection: a fixed preface, then frames. All numbers are little endian.
//!
//! **Preface**, the same in every version, the first 24 bytes of each end: `"THALLUS
//! "`, the lowest and the highest protocol version that the end speaks (`u16` each), a CRC-32 of the other 20 bytes
//! (`u32`), feature bits (`u64`). The connection uses the highest version that both ends speak. It uses a feature if
//! both ends have set its bit.
//!
//! **Frame**: length of the message (`u32`), length of the payload (`u32`), checksum of the body (`u32`), checksum of
//! the header (`u32`), the message in postcard, the payload. The decoder checks the header as soon as it has arrived,
//! before it allocates memory or waits for more bytes: first its checksum, then the lengths against [`FrameLimits`].
//! The checksum of the body is the CRC-32 (IEEE 802.3) of the message and the payload. The checksum of the header is
//! the CRC-32 of the twelve bytes before it. See [`FEATURE_CHECKSUM`].

use bytes::{Buf, Bytes, BytesMut};
use serde::Serialize;
use serde::de::DeserializeOwned;
use thiserror::Error;

/// Protocol versions that this build speaks.
pub const VERSIONS: VersionRange = VersionRange { min: 1, max: 1 };
/// Longest fabric address blob in a hello, in bytes.
pub const MAX_ADDRESS: usize = 64 * 1024;
/// Longest packed remote key, in bytes.
pub const MAX_KEY: usize = 4096;
/// Payload bytes in a frame; a larger inline batch travels in pieces of this size.
pub const PIECE: usize = 4 << 20;

/// Feature bit: frames carry checksums. An end requests them unless a layer below (TLS) already has checksums.
///
/// An end that requests checksums computes them for every frame until the peer's preface shows that the peer does not
/// request them. The receiver of a frame verifies them if both ends request them. Otherwise the eight bytes are zero
/// and are ignored.
pub const FEATURE_CHECKSUM: u64 = 1;
/// Feature bits that this build requests.
pub const FEATURES: u64 = FEATURE_CHECKSUM;

const MAGIC: [u8; 8] = *b"THALLUS\n";
const PREFACE: usize = 24;
const HEADER: usize = 16;
/// Position of the body's checksum in a frame's header.
const BODY_CHECKSUM: std::ops::Range<usize> = 8..12;
/// Position of the header's own checksum, which covers all bytes before it.
const HEADER_CHECKSUM: std::ops::Range<usize> = 12..16;
/// Position of the checksum in the preface.
const PREFACE_CHECKSUM: std::ops::Range<usize> = 12..16;
/// A payload shorter than this is copied out of the receive buffer, so that a kept payload does not keep the whole
/// buffer.
const SMALL_PAYLOAD: usize = 16 << 10;
/// Minimum room in the receive buffer for the next read.
const RECEIVE_ROOM: usize = 64 << 10;
/// Maximum room that is reserved ahead for a frame that has arrived in part.
const RECEIVE_AHEAD: usize = 1 << 20;

/// The protocol versions that an end speaks, `min` and `max` included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VersionRange {
    /// Lowest.
    pub min: u16,
    /// Highest.
    pub max: u16,
}

impl VersionRange {
    /// The highest version that both ends speak.
    #[must_use]
    pub fn common(self, other: VersionRange) -> Option<u16> {
        let version = self.max.min(other.max);
        (version >= self.min && version >= other.min).then_some(version)
    }
}

impl std::fmt::Display for VersionRange {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.min == self.max { write!(f, "{}", self.max) } else { write!(f, "{} to {}", self.min, self.max) }
    }
}

/// The first bytes that an end sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Preface {
    /// Versions that the end speaks.
    pub versions: VersionRange,
    /// Feature bits that the end requests, see [`FEATURES`]. Unknown bits are ignored.
    pub features: u64,
}

impl Preface {
    /// The bytes on the wire.
    #[must_use]
    pub fn encode(self) -> [u8; PREFACE] {
        let mut bytes = [0; PREFACE];
        bytes[..8].copy_from_slice(&MAGIC);
        bytes[8..10].copy_from_slice(&self.versions.min.to_le_bytes());
        bytes[10..12].copy_from_slice(&self.versions.max.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.features.to_le_bytes());
        let checksum = preface_checksum(&bytes);
        bytes[PREFACE_CHECKSUM].copy_from_slice(&checksum.to_le_bytes());
        bytes
    }
}

/// The CRC-32 of a preface without the checksum itself.
fn preface_checksum(bytes: &[u8; PREFACE]) -> u32 {
    let mut crc = crc32fast::Hasher::new();
    crc.update(&bytes[..PREFACE_CHECKSUM.start]);
    crc.update(&bytes[PREFACE_CHECKSUM.end..]);
    crc.finalize()
}

/// The CRC-32 of a frame's message and payload.
fn body_checksum(message: &[u8], payload: &[u8]) -> u32 {
    let mut crc = crc32fast::Hasher::new();
    crc.update(message);
    crc.update(payload);
    crc.finalize()
}

/// The CRC-32 of a frame's header. Without it a corrupted length would make the receiver wait for bytes that never
/// come.
fn header_checksum(header: &[u8]) -> u32 {
    crc32fast::hash(&header[..HEADER_CHECKSUM.start])
}

/// The largest frame that a decoder accepts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrameLimits {
    /// Bytes of a message.
    pub message: u32,
    /// Bytes of a payload.
    pub payload: u32,
}

impl Default for FrameLimits {
    fn default() -> Self {
        FrameLimits { message: 4 << 20, payload: PIECE as u32 }
    }
}

/// One message and its payload, ready to be written one after the other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// Lengths, checksums and message.
    pub head: Bytes,
    /// Bytes that follow the head. Often empty.
    pub payload: Bytes,
    /// True if the frame goes before all frames that are queued and not begun. So a peer that is sent a lot of data
    /// still receives pings and pongs at once.
    pub urgent: bool,
    /// True if the payload is a piece of a batch. Credit bounds the batches that wait to be written, and nothing bounds
    /// other messages, such as the answers to a peer that does not read.
    pub is_batch: bool,
}

impl Frame {
    /// Bytes on the wire.
    #[must_use]
    pub fn len(&self) -> usize {
        self.head.len() + self.payload.len()
    }

    /// Always `false`: a frame has a head.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// The received bytes cannot come from a correct peer.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum DecodeError {
    /// The connection does not begin with the preface's magic bytes.
    #[error("not a Thallus connection: it begins with {found:02x?}")]
    Magic {
        /// The first eight bytes.
        found: [u8; 8],
    },
    /// The preface was corrupted in transit.
    #[error("the preface is damaged: its checksum is not that of its bytes")]
    DamagedPreface {
        /// Checksum of the bytes that arrived.
        expected: u32,
        /// Checksum in the preface.
        found: u32,
    },
    /// A frame was corrupted in transit.
    #[error("a frame is damaged: its checksum is not that of its bytes")]
    DamagedFrame {
        /// Checksum of the bytes that arrived.
        expected: u32,
        /// Checksum in the frame.
        found: u32,
    },
    /// A frame is longer than the limit.
    #[error("a {part} of {len} bytes exceeds the limit of {limit}")]
    TooLong {
        /// `message` or `payload`.
        part: &'static str,
        /// Announced length.
        len: u32,
        /// The limit.
        limit: u32,
    },
    /// A message does not decode.
    #[error("malformed message: {reason}")]
    Malformed {
        /// The message of postcard's error.
        reason: String,
    },
    /// A message decodes, but bytes are left over.
    #[error("{excess} bytes follow the message within its length")]
    Trailing {
        /// Number of bytes left over.
        excess: usize,
    },
    /// A payload follows a message that has none.
    #[error("unexpected payload of {len} bytes")]
    UnexpectedPayload {
        /// Length of the payload in bytes.
        len: usize,
    },
}

/// A message cannot be sent.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum EncodeError {
    /// It would exceed the peer's limit.
    #[error("a {part} of {len} bytes exceeds the limit of {limit}")]
    TooLong {
        /// `message` or `payload`.
        part: &'static str,
        /// Its length in bytes.
        len: usize,
        /// The limit.
        limit: u32,
    },
    /// The serializer refused it.
    #[error("cannot serialize: {0}")]
    Serialize(String),
}

/// Encodes a message with its payload and checksums.
///
/// # Errors
/// [`EncodeError::TooLong`] against `limits`.
pub fn encode<M: Serialize>(message: &M, payload: Bytes, limits: FrameLimits) -> Result<Frame, EncodeError> {
    encode_checked(message, payload, limits, true)
}

/// Encodes a message with its payload, and with checksums if the peer may verify them.
pub(crate) fn encode_checked<M: Serialize>(
    message: &M,
    payload: Bytes,
    limits: FrameLimits,
    checked: bool,
) -> Result<Frame, EncodeError> {
    let head = postcard::to_extend(message, vec![0; HEADER]).map_err(|e| EncodeError::Serialize(e.to_string()))?;
    let length = |part, len: usize, limit: u32| match u32::try_from(len) {
        Ok(short) if short <= limit => Ok(short),
        _ => Err(EncodeError::TooLong { part, len, limit }),
    };
    let message_len = length("message", head.len() - HEADER, limits.message)?;
    let payload_len = length("payload", payload.len(), limits.payload)?;
    let mut head = head;
    head[..4].copy_from_slice(&message_len.to_le_bytes());
    head[4..8].copy_from_slice(&payload_len.to_le_bytes());
    if checked {
        let checksum = body_checksum(&head[HEADER..], &payload);
        head[BODY_CHECKSUM].copy_from_slice(&checksum.to_le_bytes());
        let checksum = header_checksum(&head);
        head[HEADER_CHECKSUM].copy_from_slice(&checksum.to_le_bytes());
    }
    Ok(Frame { head: head.into(), payload, urgent: false, is_batch: false })
}

/// Bytes of a message in a frame, without its payload.
pub(crate) fn message_len<M: Serialize>(message: &M) -> usize {
    postcard::experimental::serialized_size(message).unwrap_or(usize::MAX)
}

/// An item that a [`Decoder`] returns.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decoded<M> {
    /// The peer's preface, always first and only once.
    Preface(Preface),
    /// A message and its payload.
    Message(M, Bytes),
}

/// Incremental decoder: bytes in, split anywhere; preface and messages out.
///
/// After an error the decoder repeats that error.
#[derive(Debug)]
pub struct Decoder {
    buffer: BytesMut,
    limits: FrameLimits,
    preface_seen: bool,
    verifies: bool,
    failed: Option<DecodeError>,
}

impl Decoder {
    /// A decoder for one direction of one connection. It verifies checksums until [`Decoder::verify_checksums`]
    /// disables this.
    #[must_use]
    pub fn new(limits: FrameLimits) -> Self {
        Decoder { buffer: BytesMut::new(), limits, preface_seen: false, verifies: true, failed: None }
    }

    /// Sets the largest frame that is accepted from now on.
    pub fn set_limits(&mut self, limits: FrameLimits) {
        self.limits = limits;
    }

    /// Bytes of memory that the decoder keeps for a frame that has not arrived completely.
    #[must_use]
    pub fn held_bytes(&self) -> usize {
        self.buffer.capacity()
    }

    /// Sets whether the checksums of frames are verified.
    pub fn verify_checksums(&mut self, verifies: bool) {
        self.verifies = verifies;
    }

    /// Appends received bytes.
    pub fn push(&mut self, bytes: &[u8]) {
        if self.failed.is_none() {
            self.buffer.extend_from_slice(bytes);
        }
    }

    /// The buffer that bytes are decoded from, with room for more at its end. A reader appends received bytes to it; a
    /// payload is handed over without a copy.
    pub fn buffer(&mut self) -> &mut BytesMut {
        if self.failed.is_some() {
            self.buffer.clear();
        }
        // The room is at most the number of bytes that have arrived, so that a peer that only announces a long frame
        // costs no memory.
        let ahead = self.missing().min(self.buffer.len()).min(RECEIVE_AHEAD);
        self.buffer.reserve(ahead.max(RECEIVE_ROOM));
        &mut self.buffer
    }

    /// Bytes that have arrived and are not decoded.
    pub(crate) fn undecoded(&self) -> usize {
        self.buffer.len()
    }

    /// Bytes of the first frame that have not arrived. 0 if its header has not arrived either.
    fn missing(&self) -> usize {
        let lengths = self.buffer.first_chunk::<HEADER>().filter(|_| self.preface_seen).map(lengths);
        lengths.map_or(0, |[message, payload]| {
            let whole = HEADER as u64 + u64::from(message) + u64::from(payload);
            usize::try_from(whole).unwrap_or(usize::MAX).saturating_sub(self.buffer.len())
        })
    }

    /// The next complete item, or `None` until more bytes arrive.
    ///
    /// # Errors
    /// [`DecodeError`], on this and every later call.
    pub fn decode<M: DeserializeOwned>(&mut self) -> Result<Option<Decoded<M>>, DecodeError> {
        if let Some(error) = &self.failed {
            return Err(error.clone());
        }
        self.advance().inspect_err(|error| {
            self.failed = Some(error.clone());
            self.buffer = BytesMut::new();
        })
    }

    fn advance<M: DeserializeOwned>(&mut self) -> Result<Option<Decoded<M>>, DecodeError> {
        if self.preface_seen { self.message() } else { Ok(self.preface()?.map(Decoded::Preface)) }
    }

    fn preface(&mut self) -> Result<Option<Preface>, DecodeError> {
        // Refused at the first wrong byte, so that a stray HTTP client need not send a whole preface to be refused.
        let have = self.buffer.len().min(MAGIC.len());
        if self.buffer[..have] != MAGIC[..have] {
            let mut found = [0; 8];
            found[..have].copy_from_slice(&self.buffer[..have]);
            return Err(DecodeError::Magic { found });
        }
        let Some(preface) = self.buffer.first_chunk::<PREFACE>() else { return Ok(None) };
        let expected = preface_checksum(preface);
        let mut bytes = self.buffer.split_to(PREFACE);
        bytes.advance(MAGIC.len());
        let versions = VersionRange { min: bytes.get_u16_le(), max: bytes.get_u16_le() };
        let found = bytes.get_u32_le();
        if found != expected {
            return Err(DecodeError::DamagedPreface { expected, found });
        }
        self.preface_seen = true;
        Ok(Some(Preface { versions, features: bytes.get_u64_le() }))
    }

    fn message<M: DeserializeOwned>(&mut self) -> Result<Option<Decoded<M>>, DecodeError> {
        let Some(header) = self.buffer.first_chunk::<HEADER>() else { return Ok(None) };
        if self.verifies {
            verify(header_checksum(header), &header[HEADER_CHECKSUM])?;
        }
        let [message_len, payload_len] = lengths(header);
        for (part, len, limit) in
            [("message", message_len, self.limits.message), ("payload", payload_len, self.limits.payload)]
        {
            if len > limit {
                return Err(DecodeError::TooLong { part, len, limit });
            }
        }
        let (message_len, payload_len) = (message_len as usize, payload_len as usize);
        if self.buffer.len() < HEADER + message_len + payload_len {
            return Ok(None);
        }
        let header = self.buffer.split_to(HEADER);
        let body = self.buffer.split_to(message_len);
        let payload = self.buffer.split_to(payload_len);
        if self.verifies {
            verify(body_checksum(&body, &payload), &header[BODY_CHECKSUM])?;
        }
        let (message, rest) =
            postcard::take_from_bytes(&body).map_err(|e| DecodeError::Malformed { reason: e.to_string() })?;
        if !rest.is_empty() {
            return Err(DecodeError::Trailing { excess: rest.len() });
        }
        let payload = if payload_len < SMALL_PAYLOAD { Bytes::copy_from_slice(&payload) } else { payload.freeze() };
        Ok(Some(Decoded::Message(message, payload)))
    }
}

/// Compares a checksum with the four bytes that were sent.
fn verify(expected: u32, mut sent: &[u8]) -> Result<(), DecodeError> {
    let found = sent.get_u32_le();
    if found == expected { Ok(()) } else { Err(DecodeError::DamagedFrame { expected, found }) }
}

/// The lengths in a frame's header: message, payload.
fn lengths(header: &[u8; HEADER]) -> [u32; 2] {
    let [a, b, c, d, e, f, g, h, ..] = *header;
    [u32::from_le_bytes([a, b, c, d]), u32::from_le_bytes([e, f, g, h])]
}
