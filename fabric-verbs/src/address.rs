//! The blobs that two ends exchange over the control connection: addresses of their queue pairs, and keys.
//!
//! Both have a fixed length, are little-endian, and end in a checksum, which protects from accident. No protection from
//! malice is needed: the device checks each read of a peer, independent of the content of its blobs.
//!
//! ```text
//! address                                          key
//! offset  size  field                              offset  size  field
//!      0     4  "TVBA"                                  0     4  "TVBK"
//!      4     1  version of this layout: 1               4     4  rkey
//!      5     1  1 if the port is on Ethernet            8     8  first byte that it opens
//!      6     1  kind of GID (InfiniBand, v1, v2)       16     8  bytes that it opens
//!      7     1  path MTU (`enum ibv_mtu`)              24     8  checksum
//!      8     1  reads that it may have in flight
//!      9     1  reads that it serves at once
//!     10     2  LID
//!     12     4  reading queue pair: number
//!     16     4                      first packet number
//!     20     4  lending queue pair: number
//!     24     4                      first packet number
//!     28    16  GID
//!     44     8  checksum (FNV-1a, 64 bits)
//! ```

use crate::device::Port;
use crate::gid::GidKind;

const LAYOUT: u8 = 1;
const ADDRESS: usize = 52;
const KEY: usize = 32;
/// Queue pair and packet numbers have 24 bits.
const MAX_NUMBER: u32 = (1 << 24) - 1;

/// A queue pair, as its peer addresses it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Side {
    pub(crate) number: u32,
    pub(crate) packet_number: u32,
}

/// One end of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Address {
    pub(crate) ethernet: bool,
    pub(crate) gid_kind: GidKind,
    pub(crate) mtu: u8,
    pub(crate) reads_asked: u8,
    pub(crate) reads_served: u8,
    pub(crate) lid: u16,
    /// The queue pair with which this end reads.
    pub(crate) reading: Side,
    /// The queue pair from which its peer reads.
    pub(crate) lending: Side,
    pub(crate) gid: [u8; 16],
}

/// The remote key of lent memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Key {
    pub(crate) rkey: u32,
    pub(crate) base: u64,
    pub(crate) len: u64,
}

impl Address {
    pub(crate) fn new(port: &Port, reads: (u8, u8), reading: Side, lending: Side) -> Self {
        Address {
            ethernet: port.ethernet,
            gid_kind: port.gid.kind,
            mtu: port.mtu,
            reads_asked: reads.0,
            reads_served: reads.1,
            lid: port.lid,
            reading,
            lending,
            gid: port.gid.bytes,
        }
    }

    pub(crate) fn pack(&self) -> Vec<u8> {
        let mut blob = Vec::with_capacity(ADDRESS);
        blob.extend(b"TVBA");
        let bytes =
            [LAYOUT, u8::from(self.ethernet), self.gid_kind.number(), self.mtu, self.reads_asked, self.reads_served];
        blob.extend(bytes);
        blob.extend(self.lid.to_le_bytes());
        for side in [self.reading, self.lending] {
            blob.extend(side.number.to_le_bytes());
            blob.extend(side.packet_number.to_le_bytes());
        }
        blob.extend(self.gid);
        seal(blob)
    }

    pub(crate) fn unpack(blob: &[u8]) -> Result<Self, String> {
        let fields = open(blob, *b"TVBA", ADDRESS).map_err(|reason| format!("not a verbs address: {reason}"))?;
        if fields[4] != LAYOUT {
            return Err(format!("verbs address in layout {}; this build reads layout {LAYOUT}", fields[4]));
        }
        let side = |at: usize| Side { number: u32_at(fields, at), packet_number: u32_at(fields, at + 4) };
        let address = Address {
            ethernet: fields[5] != 0,
            gid_kind: GidKind::from_number(fields[6]).ok_or_else(|| format!("unknown kind of GID {}", fields[6]))?,
            mtu: fields[7],
            reads_asked: fields[8],
            reads_served: fields[9],
            lid: u16::from_le_bytes([fields[10], fields[11]]),
            reading: side(12),
            lending: side(20),
            gid: fields[28..44].try_into().map_err(|_| "truncated GID")?,
        };
        let numbers = [address.reading, address.lending].map(|side| side.number.max(side.packet_number));
        if numbers.iter().any(|&number| number > MAX_NUMBER) || !(1..=5).contains(&address.mtu) {
            return Err("verbs address with numbers out of range".to_owned());
        }
        Ok(address)
    }
}

impl Key {
    pub(crate) fn pack(&self) -> Vec<u8> {
        let mut blob = Vec::with_capacity(KEY);
        blob.extend(b"TVBK");
        blob.extend(self.rkey.to_le_bytes());
        blob.extend(self.base.to_le_bytes());
        blob.extend(self.len.to_le_bytes());
        seal(blob)
    }

    pub(crate) fn unpack(blob: &[u8]) -> Result<Self, String> {
        let fields = open(blob, *b"TVBK", KEY).map_err(|reason| format!("not a verbs key: {reason}"))?;
        Ok(Key { rkey: u32_at(fields, 4), base: u64_at(fields, 8), len: u64_at(fields, 16) })
    }

    /// Whether `len` bytes at `base` lie within the range of the key.
    pub(crate) fn opens(&self, base: u64, len: u64) -> bool {
        let end = base.checked_sub(self.base).and_then(|offset| offset.checked_add(len));
        self.base.checked_add(self.len).is_some() && end.is_some_and(|end| end <= self.len)
    }
}

fn u32_at(fields: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(std::array::from_fn(|byte| fields[at + byte]))
}

fn u64_at(fields: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(std::array::from_fn(|byte| fields[at + byte]))
}

fn seal(mut blob: Vec<u8>) -> Vec<u8> {
    blob.extend(fnv1a(&blob).to_le_bytes());
    blob
}

fn open(blob: &[u8], magic: [u8; 4], len: usize) -> Result<&[u8], String> {
    if blob.len() != len {
        return Err(format!("{} bytes instead of {len}", blob.len()));
    }
    let (fields, checksum) = blob.split_at(len - 8);
    if fields[..4] != magic {
        return Err(format!("it begins with {:02x?}", &fields[..4]));
    }
    if fnv1a(fields).to_le_bytes() != checksum {
        return Err("its checksum is wrong".to_owned());
    }
    Ok(fields)
}

/// FNV-1a, 64 bits (Fowler, Noll, Vo; draft-eastlake-fnv).
fn fnv1a(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, &byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address() -> Address {
        Address {
            ethernet: true,
            gid_kind: GidKind::RoceV2,
            mtu: 5,
            reads_asked: 16,
            reads_served: 128,
            lid: 0x1234,
            reading: Side { number: 0x00AB_CDEF, packet_number: 1 },
            lending: Side { number: 0x0012_3456, packet_number: MAX_NUMBER },
            gid: std::array::from_fn(|byte| byte as u8),
        }
    }

    #[test]
    fn what_was_packed_unpacks() {
        assert_eq!(Address::unpack(&address().pack()), Ok(address()));
        assert_eq!(address().pack().len(), ADDRESS);
        let key = Key { rkey: 0xDEAD_BEEF, base: 4096, len: u64::MAX };
        assert_eq!(Key::unpack(&key.pack()), Ok(key));
        assert_eq!(key.pack().len(), KEY);
        assert!(Key::unpack(&address().pack()).is_err());
    }

    #[test]
    fn every_damaged_byte_and_every_truncation_is_noticed() {
        let blob = address().pack();
        for at in 0..blob.len() {
            let mut damaged = blob.clone();
            damaged[at] ^= 0x40;
            assert!(Address::unpack(&damaged).is_err(), "byte {at}");
            assert!(Address::unpack(&blob[..at]).is_err(), "cut at {at}");
        }
    }

    #[test]
    fn numbers_out_of_range_are_refused() {
        for wrong in [
            Address { mtu: 0, ..address() },
            Address { mtu: 6, ..address() },
            Address { reading: Side { number: 1 << 24, packet_number: 0 }, ..address() },
            Address { lending: Side { number: 0, packet_number: u32::MAX }, ..address() },
        ] {
            assert!(Address::unpack(&wrong.pack()).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn a_key_opens_what_it_says() {
        let key = Key { rkey: 1, base: 4096, len: 100 };
        assert!(key.opens(4096, 100) && key.opens(4195, 1) && key.opens(4196, 0));
        assert!(!key.opens(4095, 1) && !key.opens(4096, 101) && !key.opens(u64::MAX, 2) && !key.opens(4100, u64::MAX));
        assert!(!Key { len: u64::MAX, ..key }.opens(4096, 1), "a range past the end of the address space");
    }
}
