//! Limits of what a peer may send inline.

/// Limits of a decoder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InlineLimits {
    /// Maximum number of fields of a schema, nested ones included.
    pub max_fields: usize,
    /// Maximum number of elements of any one array, rows included: arrays of nulls have elements but no bytes.
    pub max_len: u64,
}

impl Default for InlineLimits {
    /// 100 000 fields, 2^31 - 1 elements.
    fn default() -> Self {
        InlineLimits { max_fields: 100_000, max_len: (1 << 31) - 1 }
    }
}
