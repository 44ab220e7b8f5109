//! Descriptors of partitions, which another connection, process or host can read.
//!
//! A result has one partition, and its descriptor is the statement itself: the query runs when the partition is read.
//! More partitions would be parts of one run of the query, and the server begins such a run only once every part has
//! been requested, within seconds: a reader that reads one partition after the other, as ADBC allows, would wait for
//! parts that it never requests. The connections of one reader can still work in parallel (`adbc.thallus.partitions`).

use adbc_core::error::Result;
use serde::{Deserialize, Serialize};
use thallus_client::Defaults;

use crate::error::invalid_argument;

/// Begin of every descriptor, with the version of its format.
const MAGIC: &[u8] = b"thallus-partition-1\n";
/// The longest descriptor that is read.
const MAX_BYTES: usize = 1 << 20;

/// A result to read elsewhere.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Descriptor {
    pub(crate) sql: String,
    catalog: Option<String>,
    schema: Option<String>,
}

impl Descriptor {
    pub(crate) fn new(sql: String, defaults: &Defaults) -> Self {
        Descriptor { sql, catalog: defaults.catalog.clone(), schema: defaults.schema.clone() }
    }

    pub(crate) fn defaults(&self) -> Defaults {
        Defaults { catalog: self.catalog.clone(), schema: self.schema.clone() }
    }

    pub(crate) fn to_bytes(&self) -> Result<Vec<u8>> {
        let mut bytes = MAGIC.to_vec();
        serde_json::to_writer(&mut bytes, self)
            .map_err(|e| invalid_argument(format!("cannot write a partition: {e}")))?;
        Ok(bytes)
    }

    /// # Errors
    /// The bytes are no descriptor of this driver.
    pub(crate) fn from_bytes(bytes: &[u8]) -> Result<Self> {
        let json = bytes.strip_prefix(MAGIC).filter(|json| json.len() <= MAX_BYTES);
        let json = json.ok_or_else(|| invalid_argument("the bytes are no partition of this driver"))?;
        serde_json::from_slice(json).map_err(|e| invalid_argument(format!("the partition is damaged: {e}")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn descriptors_read_back_and_damaged_ones_are_refused() {
        let defaults = Defaults { catalog: None, schema: Some("s".into()) };
        let descriptor = Descriptor::new("SELECT 'ä'".into(), &defaults);
        let bytes = descriptor.to_bytes().unwrap();
        let read = Descriptor::from_bytes(&bytes).unwrap();
        assert_eq!((read.defaults(), &read), (defaults, &descriptor));
        for length in 0..bytes.len() {
            assert!(Descriptor::from_bytes(&bytes[..length]).is_err());
        }
        assert!(Descriptor::from_bytes(b"thallus-partition-2\n{}").is_err());
    }
}
