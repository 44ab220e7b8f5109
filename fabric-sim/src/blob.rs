//! Address and key blobs: four magic bytes, two numbers, and a check, all fixed length.

/// The content of a blob.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Blob {
    pub(crate) kind: Kind,
    pub(crate) network: u64,
    pub(crate) id: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Address,
    Key,
}

const LEN: usize = 28;

impl Kind {
    fn magic(self) -> [u8; 4] {
        match self {
            Kind::Address => *b"SIMa",
            Kind::Key => *b"SIMk",
        }
    }
}

impl Blob {
    pub(crate) fn pack(self) -> [u8; LEN] {
        let mut bytes = [0; LEN];
        bytes[..4].copy_from_slice(&self.kind.magic());
        bytes[4..12].copy_from_slice(&self.network.to_le_bytes());
        bytes[12..20].copy_from_slice(&self.id.to_le_bytes());
        let check = check(&bytes[..20]);
        bytes[20..].copy_from_slice(&check.to_le_bytes());
        bytes
    }

    /// The content of `bytes`, if they are a blob of `kind`; otherwise the reason why they are not.
    pub(crate) fn unpack(kind: Kind, bytes: &[u8]) -> Result<Self, &'static str> {
        let bytes: &[u8; LEN] = bytes.try_into().map_err(|_| "it is not 28 bytes long")?;
        let number = |at: usize| u64::from_le_bytes(std::array::from_fn(|byte| bytes[at + byte]));
        if bytes[..4] != kind.magic() {
            return Err("it does not begin as one of a simulated network");
        }
        if number(20) != check(&bytes[..20]) {
            return Err("its check does not match");
        }
        Ok(Blob { kind, network: number(4), id: number(12) })
    }
}

/// FNV-1a, 64 bits: against accidents. The network's memory protection stops forged blobs.
fn check(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xCBF2_9CE4_8422_2325, |hash, &byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01B3))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_was_packed_unpacks() {
        let blob = Blob { kind: Kind::Key, network: 7, id: u64::MAX };
        let packed = blob.pack();
        assert_eq!(Blob::unpack(Kind::Key, &packed), Ok(blob));
        assert!(Blob::unpack(Kind::Address, &packed).is_err());
        for at in 0..packed.len() {
            assert!(Blob::unpack(Kind::Key, &packed[..at]).is_err());
            let mut flipped = packed;
            flipped[at] ^= 1;
            assert!(Blob::unpack(Kind::Key, &flipped).is_err(), "byte {at}");
        }
    }
}
