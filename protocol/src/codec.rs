//! Bytes on the control connection: a fixed preface, then frames.
//!
//! **Preface**, the same in every version, each end's first 24 bytes: `"THALLUS\n"`, lowest and highest protocol version
//! spoken (`u16` each), four zero bytes, feature bits (`u64`). Everything is little endian. The version in use is the
//! highest that both speak.
//!
//! **Frame**: length of the message (`u32`), length of the payload (`u32`), the message in postcard, the payload.
//! Both lengths are checked against [`FrameLimits`] as soon as they have arrived, before anything is allocated for them.

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

const MAGIC: [u8; 8] = *b"THALLUS\n";
const PREFACE: usize = 24;
const HEADER: usize = 8;

/// The protocol versions that an end speaks, both ends included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VersionRange {
    /// Lowest.
    pub min: u16,
    /// Highest.
    pub max: u16,
}

impl VersionRange {
    /// The highest version that both speak.
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

/// What an end says before anything else.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Preface {
    /// Versions it speaks.
    pub versions: VersionRange,
    /// Feature bits; none are defined in version 1, and unknown ones are ignored.
    pub features: u64,
}

impl Preface {
    /// The bytes.
    #[must_use]
    pub fn encode(self) -> [u8; PREFACE] {
        let mut bytes = [0; PREFACE];
        bytes[..8].copy_from_slice(&MAGIC);
        bytes[8..10].copy_from_slice(&self.versions.min.to_le_bytes());
        bytes[10..12].copy_from_slice(&self.versions.max.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.features.to_le_bytes());
        bytes
    }
}

/// Most that a decoder takes in one frame.
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
    /// Lengths and message.
    pub head: Bytes,
    /// Bytes that follow, often none.
    pub payload: Bytes,
}

impl Frame {
    /// Bytes on the wire.
    #[must_use]
    pub fn len(&self) -> usize {
        self.head.len() + self.payload.len()
    }

    /// Whether there is nothing to write, which is never so.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// The bytes cannot be what a peer of ours would send.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum DecodeError {
    /// The connection does not begin as ours do.
    #[error("not a Thallus connection: it begins with {found:02x?}")]
    Magic {
        /// The first eight bytes.
        found: [u8; 8],
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
        /// What postcard said.
        reason: String,
    },
    /// A message decodes, and bytes are left over.
    #[error("{excess} bytes follow the message within its length")]
    Trailing {
        /// How many.
        excess: usize,
    },
    /// A payload stands behind a message that has none.
    #[error("unexpected payload of {len} bytes")]
    UnexpectedPayload {
        /// Its length.
        len: usize,
    },
}

/// A message cannot be sent.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum EncodeError {
    /// It would exceed what the peer takes.
    #[error("a {part} of {len} bytes exceeds the limit of {limit}")]
    TooLong {
        /// `message` or `payload`.
        part: &'static str,
        /// Its length.
        len: usize,
        /// The limit.
        limit: u32,
    },
    /// The serializer refused it.
    #[error("cannot serialize: {0}")]
    Serialize(String),
}

/// Encodes a message with its payload.
///
/// # Errors
/// [`EncodeError::TooLong`] against `limits`.
pub fn encode<M: Serialize>(message: &M, payload: Bytes, limits: FrameLimits) -> Result<Frame, EncodeError> {
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
    Ok(Frame { head: head.into(), payload })
}

/// What a [`Decoder`] found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decoded<M> {
    /// The peer's preface, always first and only once.
    Preface(Preface),
    /// A message and its payload.
    Message(M, Bytes),
}

/// Incremental decoder: bytes in, split anywhere; preface and messages out.
///
/// After an error it is spent, and repeats that error.
#[derive(Debug)]
pub struct Decoder {
    buffer: BytesMut,
    limits: FrameLimits,
    preface_seen: bool,
    failed: Option<DecodeError>,
}

impl Decoder {
    /// A decoder for one direction of one connection.
    #[must_use]
    pub fn new(limits: FrameLimits) -> Self {
        Decoder { buffer: BytesMut::new(), limits, preface_seen: false, failed: None }
    }

    /// Takes in bytes as they came.
    pub fn push(&mut self, bytes: &[u8]) {
        if self.failed.is_none() {
            self.buffer.extend_from_slice(bytes);
        }
    }

    /// The next whole thing, or `None` until more bytes come.
    ///
    /// # Errors
    /// [`DecodeError`], for good.
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
        // Refused at the first wrong byte: a stray HTTP client is not made to wait for more.
        let have = self.buffer.len().min(MAGIC.len());
        if self.buffer[..have] != MAGIC[..have] {
            let mut found = [0; 8];
            found[..have].copy_from_slice(&self.buffer[..have]);
            return Err(DecodeError::Magic { found });
        }
        if self.buffer.len() < PREFACE {
            return Ok(None);
        }
        let mut bytes = self.buffer.split_to(PREFACE);
        bytes.advance(MAGIC.len());
        let versions = VersionRange { min: bytes.get_u16_le(), max: bytes.get_u16_le() };
        let _reserved = bytes.get_u32_le();
        self.preface_seen = true;
        Ok(Some(Preface { versions, features: bytes.get_u64_le() }))
    }

    fn message<M: DeserializeOwned>(&mut self) -> Result<Option<Decoded<M>>, DecodeError> {
        let Some(header) = self.buffer.first_chunk::<HEADER>() else { return Ok(None) };
        let [a, b, c, d, e, f, g, h] = *header;
        let message_len = u32::from_le_bytes([a, b, c, d]);
        let payload_len = u32::from_le_bytes([e, f, g, h]);
        for (part, len, limit) in
            [("message", message_len, self.limits.message), ("payload", payload_len, self.limits.payload)]
        {
            if len > limit {
                return Err(DecodeError::TooLong { part, len, limit });
            }
        }
        let (message_len, payload_len) = (message_len as usize, payload_len as usize);
        let whole = HEADER + message_len + payload_len;
        if self.buffer.len() < whole {
            // What is reserved follows what has come, so that a peer which only announces costs nothing.
            let wanted = (whole - self.buffer.len()).min(self.buffer.len().max(64 * 1024));
            self.buffer.reserve(wanted);
            return Ok(None);
        }
        self.buffer.advance(HEADER);
        let body = self.buffer.split_to(message_len);
        let payload = self.buffer.split_to(payload_len).freeze();
        let (message, rest) =
            postcard::take_from_bytes(&body).map_err(|e| DecodeError::Malformed { reason: e.to_string() })?;
        if !rest.is_empty() {
            return Err(DecodeError::Trailing { excess: rest.len() });
        }
        Ok(Some(Decoded::Message(message, payload)))
    }
}
