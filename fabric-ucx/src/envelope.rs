//! The frame around blobs that UCX packs. It is needed because UCX reads worker addresses and remote keys without
//! bounds or checks.
//!
//! It protects from accident: a truncated or wrong blob, another fabric's blob, a peer with an incompatible UCX. It
//! does **not** protect from malice: a peer that computes the checksum can send any content.
//!
//! ```text
//! offset  size  field
//!      0     4  magic: "TUXA" (worker address) or "TUXK" (remote key)
//!      4     1  version of this layout: 2
//!      5     1  major version of the sender's UCX
//!      6     2  minor version of the sender's UCX        (integers are little-endian)
//!      8     8  key: address of the first byte of the memory that it opens
//!               worker address: identity of the host (`host`)
//!     16     8  key: length of that memory in bytes; worker address: 0
//!     24     4  length of the payload
//!     28     n  payload, as UCX packed it
//!   28+n     8  FNV-1a (64 bits) of everything before
//! ```

use ucx_sys::Version;

use crate::checksum::fnv1a;

const LAYOUT: u8 = 2;
const HEADER: usize = 28;
const CHECKSUM: usize = 8;
/// Maximum length of a blob, in bytes, as the `Endpoint` trait defines it.
const LONGEST: usize = 64 * 1024;

/// The kind of the payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    WorkerAddress,
    RemoteKey,
}

impl Kind {
    fn magic(self) -> [u8; 4] {
        match self {
            Kind::WorkerAddress => *b"TUXA",
            Kind::RemoteKey => *b"TUXK",
        }
    }

    fn name(self) -> &'static str {
        match self {
            Kind::WorkerAddress => "UCX worker address",
            Kind::RemoteKey => "UCX remote key",
        }
    }
}

/// An opened envelope.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Opened<'a> {
    /// For a key: address and length of the memory that it opens. For a worker address: the identity of its host, and
    /// 0.
    pub(crate) about: (u64, u64),
    pub(crate) payload: &'a [u8],
}

/// Frames `payload`, which UCX of this `version` packed. For `about` see [`Opened::about`].
pub(crate) fn seal(kind: Kind, version: Version, about: (u64, u64), payload: &[u8]) -> Result<Vec<u8>, String> {
    let total = HEADER + payload.len() + CHECKSUM;
    if total > LONGEST {
        return Err(format!("{} of {} bytes is too long to be sent", kind.name(), payload.len()));
    }
    let Version { major, minor, .. } = version;
    let mut blob = Vec::with_capacity(total);
    blob.extend(kind.magic());
    blob.extend([LAYOUT, major.min(u8::MAX.into()) as u8]);
    blob.extend((minor.min(u16::MAX.into()) as u16).to_le_bytes());
    blob.extend(about.0.to_le_bytes());
    blob.extend(about.1.to_le_bytes());
    blob.extend((payload.len() as u32).to_le_bytes());
    blob.extend(payload);
    blob.extend(fnv1a(&blob).to_le_bytes());
    Ok(blob)
}

/// Checks and opens a blob from a peer, for an end with UCX of this `version`.
pub(crate) fn open(kind: Kind, version: Version, blob: &[u8]) -> Result<Opened<'_>, String> {
    let name = kind.name();
    if !(HEADER + CHECKSUM..=LONGEST).contains(&blob.len()) {
        return Err(format!("{} bytes cannot be a {name}", blob.len()));
    }
    if blob[..4] != kind.magic() {
        return Err(format!("not a {name}: it begins with {:02x?}", &blob[..4]));
    }
    if blob[4] != LAYOUT {
        return Err(format!("{name} in layout {}; this build reads layout {LAYOUT}", blob[4]));
    }
    let integer =
        |at: usize, len: usize| blob[at..at + len].iter().rev().fold(0u64, |sum, &byte| sum << 8 | u64::from(byte));
    let end = blob.len() - CHECKSUM;
    if integer(24, 4) != (end - HEADER) as u64 {
        return Err(format!("{name} of {} bytes announces a payload of {}", end - HEADER, integer(24, 4)));
    }
    if integer(end, 8) != fnv1a(&blob[..end]) {
        return Err(format!("{name} is damaged: its checksum is wrong"));
    }
    // UCX promises that minor versions are compatible with each other.
    let Version { major, minor, .. } = version;
    if u32::from(blob[5]) != major {
        return Err(format!("{name} of UCX {}.{}; this host has UCX {major}.{minor}", blob[5], integer(6, 2)));
    }
    let payload = &blob[HEADER..end];
    let plausible = match kind {
        // A header byte, the worker's 8-byte id, and at least one device entry.
        Kind::WorkerAddress => payload.len() > 10,
        Kind::RemoteKey => remote_key_fits(payload),
    };
    if !plausible {
        return Err(format!("{name} of {} bytes is malformed", payload.len()));
    }
    Ok(Opened { about: (integer(8, 8), integer(16, 8)), payload })
}

/// Walks a packed remote key as `ucp_ep_rkey_unpack` will (`ucp_rkey_packed_size` in UCX's `ucp_rkey.c`): an 8-byte map
/// of memory domains, a byte of memory type, then for each domain in the map a length byte and as many bytes. From 1.14
/// on more bytes may follow: see `to_unpack`.
pub(crate) fn remote_key_fits(payload: &[u8]) -> bool {
    let Some((domains, rest)) = payload.split_first_chunk::<8>() else { return false };
    let Some((_, mut rest)) = rest.split_first() else { return false };
    for _ in 0..u64::from_ne_bytes(*domains).count_ones() {
        let Some((&len, tail)) = rest.split_first() else { return false };
        let Some(tail) = tail.get(usize::from(len)..) else { return false };
        rest = tail;
    }
    true
}

/// The memory domains of a packed remote key, as a bit map of their numbers.
pub(crate) fn domains(key: &[u8]) -> u64 {
    key.first_chunk().map_or(0, |map| u64::from_ne_bytes(*map))
}

/// The device of a remote key whose device is not known, and the end of its list of distances
/// (`UCS_SYS_DEVICE_ID_UNKNOWN`).
const NO_DEVICE: u8 = 0xff;

/// A packed remote key as any version of UCX unpacks it, without a read beyond its end. The key is one that `open` has
/// checked.
///
/// Empty entries are left out. UCX before 1.19 packs them for domains that need no key (TCP, CMA). UCX from 1.19 on,
/// where these domains have no keys any more, refuses to unpack a key with such entries.
///
/// Behind the entries, UCX from 1.20 on has a device and the distances from other devices. It does not get the length
/// of the key, and reads distances until one begins with `NO_DEVICE` (`ucp_rkey_proto_resolve`). Distances to main
/// memory are of no use here, so what the peer has written there is replaced by `NO_DEVICE`.
pub(crate) fn to_unpack(key: &[u8]) -> Vec<u8> {
    let mut map = 0_u64;
    let mut kept = Vec::with_capacity(key.len());
    for (domain, entry) in entries(key).filter(|(_, entry)| !entry.is_empty()) {
        map |= 1 << domain;
        // The length of an entry is a byte.
        kept.push(entry.len() as u8);
        kept.extend_from_slice(entry);
    }
    let memory_type = key.get(8).copied().unwrap_or_default();
    [&map.to_ne_bytes()[..], &[memory_type], &kept, &[NO_DEVICE, NO_DEVICE]].concat()
}

/// The entries of a packed remote key that `open` has checked, by the numbers of their memory domains.
pub(crate) fn entries(key: &[u8]) -> impl Iterator<Item = (u32, &[u8])> {
    let map = domains(key);
    let mut rest = key.get(9..).unwrap_or_default();
    (0..u64::BITS).filter(move |domain| map & (1 << domain) != 0).map_while(move |domain| {
        let (&len, tail) = rest.split_first()?;
        let (entry, tail) = tail.split_at_checked(len.into())?;
        rest = tail;
        Some((domain, entry))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const UCX: Version = Version::new(1, 16);

    #[test]
    fn what_was_sealed_opens() {
        let blob = seal(Kind::WorkerAddress, UCX, (0, 0), b"0123456789abcdef").unwrap();
        assert_eq!(open(Kind::WorkerAddress, UCX, &blob).unwrap().payload, b"0123456789abcdef");
        let mut key = 1u64.to_ne_bytes().to_vec();
        key.extend([0, 2, 7, 7]);
        let blob = seal(Kind::RemoteKey, UCX, (4096, 8), &key).unwrap();
        assert_eq!(open(Kind::RemoteKey, UCX, &blob).unwrap(), Opened { about: (4096, 8), payload: &key });
    }

    #[test]
    fn every_damaged_byte_and_every_truncation_is_noticed() {
        let blob = seal(Kind::WorkerAddress, UCX, (0, 0), b"0123456789abcdef").unwrap();
        for at in 0..blob.len() {
            let mut damaged = blob.clone();
            damaged[at] ^= 0x40;
            assert!(open(Kind::WorkerAddress, UCX, &damaged).is_err(), "byte {at}");
            assert!(open(Kind::WorkerAddress, UCX, &blob[..at]).is_err(), "cut at {at}");
        }
        assert!(open(Kind::RemoteKey, UCX, &blob).unwrap_err().contains("not a UCX remote key"));
    }

    #[test]
    fn minor_versions_of_ucx_talk_to_each_other_and_major_ones_do_not() {
        let blob = seal(Kind::WorkerAddress, Version::new(1, 22), (0, 0), b"0123456789abcdef").unwrap();
        assert!(open(Kind::WorkerAddress, UCX, &blob).is_ok());
        let error = open(Kind::WorkerAddress, Version::new(2, 0), &blob).unwrap_err();
        assert!(error.contains("of UCX 1.22") && error.contains("has UCX 2.0"), "{error}");
    }

    #[test]
    fn a_key_has_an_entry_for_each_of_its_domains() {
        let mut key = 0b1010_u64.to_ne_bytes().to_vec();
        key.extend([0, 2, 7, 8, 0]);
        assert_eq!(entries(&key).collect::<Vec<_>>(), [(1, &[7_u8, 8][..]), (3, &[][..])]);
        assert_eq!(entries(&key[..11]).count(), 0);
    }

    #[test]
    fn a_key_to_unpack_has_no_empty_entries_and_no_device() {
        let mut expected = 0b0100_u64.to_ne_bytes().to_vec();
        expected.extend([5, 2, 7, 8, NO_DEVICE, NO_DEVICE]);
        // Nothing behind the entries, as before 1.20; a device with distances, whose end is missing.
        for behind in [&[][..], &[3, 1, 0, 0, 1, 0]] {
            let mut key = 0b1110_u64.to_ne_bytes().to_vec();
            key.extend([5, 0, 2, 7, 8, 0]);
            key.extend(behind);
            assert_eq!(to_unpack(&key), expected);
        }
        assert!(remote_key_fits(&expected));
        assert_eq!(to_unpack(&expected), expected);
    }

    #[test]
    fn remote_keys_that_run_out_of_bounds_are_refused() {
        let sealed = |payload: &[u8]| seal(Kind::RemoteKey, UCX, (0, 0), payload).unwrap();
        for payload in [&[][..], &[0; 8], &[1, 0, 0, 0, 0, 0, 0, 0, 0], &[1, 0, 0, 0, 0, 0, 0, 0, 0, 200, 1]] {
            assert!(open(Kind::RemoteKey, UCX, &sealed(payload)).is_err(), "{payload:?}");
        }
        assert!(open(Kind::RemoteKey, UCX, &sealed(&[0; 9])).is_ok());
    }
}
