//! Fields that a later version may add to a message: a list of keys and bytes, at the message's end.

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::misbehaviour::PeerMisbehaved;

/// Bit of a key: an end that does not know the key must not act on the message. Without the bit, an unknown key is
/// ignored.
pub const CRITICAL: u16 = 0x8000;
/// Maximum number of extensions of one message.
pub const MAX_EXTENSIONS: usize = 64;
/// Maximum bytes of all extensions of one message together.
pub const MAX_EXTENSION_BYTES: usize = 64 << 10;

/// One added field.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Extension {
    key: u16,
    #[serde(with = "crate::blob")]
    value: Bytes,
}

/// The added fields of a message, in any order, each key at most once. This version defines those of Open, from
/// [`LARGEST_BATCH`](super::LARGEST_BATCH) to [`INGEST`](super::INGEST), and those of Welcome, from
/// [`ENGINE_NAME`](super::ENGINE_NAME) to [`ENGINE_SCHEMA`](super::ENGINE_SCHEMA).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Extensions(Vec<Extension>);

/// A message has a critical extension that this end does not know.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("the critical extension {0:#06x} is unknown to this end; upgrade this end, or do without the extension")]
pub struct UnknownExtension(pub u16);

impl Extensions {
    /// No extensions.
    #[must_use]
    pub const fn none() -> Self {
        Extensions(Vec::new())
    }

    /// The same extensions and one more.
    #[must_use]
    pub fn with(mut self, key: u16, value: impl Into<Bytes>) -> Self {
        self.0.push(Extension { key, value: value.into() });
        self
    }

    /// The value of a key.
    #[must_use]
    pub fn get(&self, key: u16) -> Option<&Bytes> {
        self.0.iter().find(|extension| extension.key == key).map(|extension| &extension.value)
    }

    /// Checks the limits that every peer must keep.
    pub(crate) fn check(&self) -> Result<(), PeerMisbehaved> {
        let limit = |what, value: usize, limit: usize| {
            let (value, limit) = (value as u64, limit as u64);
            if value <= limit { Ok(()) } else { Err(PeerMisbehaved::Limit { what, value, limit }) }
        };
        limit("extensions", self.0.len(), MAX_EXTENSIONS)?;
        limit("extension bytes", self.0.iter().map(|extension| extension.value.len()).sum(), MAX_EXTENSION_BYTES)?;
        let mut keys: Vec<u16> = self.0.iter().map(|extension| extension.key).collect();
        keys.sort_unstable();
        match keys.windows(2).find(|pair| pair[0] == pair[1]) {
            Some(pair) => Err(PeerMisbehaved::ExtensionTwice(pair[0])),
            None => Ok(()),
        }
    }

    /// Returns an error for the first critical extension, for messages that have none in this version.
    pub(crate) fn unknown(&self) -> Result<(), UnknownExtension> {
        self.unknown_besides(&[])
    }

    /// Returns an error for the first critical extension whose key is not one of these.
    pub(crate) fn unknown_besides(&self, known: &[u16]) -> Result<(), UnknownExtension> {
        match self.0.iter().find(|extension| extension.key & CRITICAL != 0 && !known.contains(&extension.key)) {
            Some(extension) => Err(UnknownExtension(extension.key)),
            None => Ok(()),
        }
    }
}
