//! Remote keys: which region of a peer, and where it lies in the peer's address space.
//!
//! A key opens nothing by itself: the region's descriptor travels on the endpoints' own socket.

use bytes::Bytes;

use crate::links::number;

const MAGIC: [u8; 4] = *b"SHMK";

/// A remote key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Key {
    /// The name of the endpoint that exposed the region.
    pub(crate) lender: [u8; 8],
    /// The region's number on that endpoint.
    pub(crate) number: u64,
    /// Its first byte, in the lender's address space.
    pub(crate) base: u64,
    /// Its bytes.
    pub(crate) len: u64,
}

impl Key {
    pub(crate) fn to_bytes(self) -> Bytes {
        let numbers = [self.number, self.base, self.len].map(u64::to_le_bytes);
        [&MAGIC[..], &self.lender, numbers.as_flattened()].concat().into()
    }

    /// The key in these bytes, which are untrusted.
    pub(crate) fn parse(bytes: &[u8]) -> Option<Self> {
        let rest = bytes.strip_prefix(&MAGIC).filter(|rest| rest.len() == 32)?;
        let (lender, numbers) = rest.split_first_chunk()?;
        let [number, base, len] = [0, 8, 16].map(|at| number(&numbers[at..]));
        base.checked_add(len).filter(|_| len > 0).map(|_| Key { lender: *lender, number, base, len })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_read_as_it_was_written_and_nothing_else_is_one() {
        let key = Key { lender: *b"12345678", number: 7, base: 0x7f00_0000_0000, len: 8192 };
        let bytes = key.to_bytes();
        assert_eq!(Key::parse(&bytes), Some(key));
        for len in 0..bytes.len() {
            assert_eq!(Key::parse(&bytes[..len]), None, "{len}");
        }
        assert_eq!(Key::parse(&[&bytes[..], b"x"].concat()), None);
        assert_eq!(Key::parse(&Key { len: 0, ..key }.to_bytes()), None);
        assert_eq!(Key::parse(&Key { base: u64::MAX, ..key }.to_bytes()), None);
    }
}
