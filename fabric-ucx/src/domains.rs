//! The memory domains that a packed remote key is for.
//!
//! A key has one entry for each memory domain of its owner that has registered the memory. The content of an entry is
//! part of UCX's wire format between different versions, and has been the same since 1.13. The length and flags of an
//! entry show which kind of domain packed it. There is no other way: UCX lists the domains of a context only in text
//! for people.

use crate::envelope;

/// Length of the entry of a System V segment (`uct_sysv_packed_rkey_t`): its id in 4 bytes, its owner's address in 8.
pub(crate) const SYSTEM_V: usize = 12;
/// Minimum length of the entry of a POSIX segment (`uct_posix_packed_rkey_t`): file, owner's address and length in 8
/// bytes each. A path may follow.
pub(crate) const POSIX: usize = 24;
/// A POSIX segment's file is named as `/proc/PID/fd/FD` (`UCT_POSIX_SEG_FLAG_PROCFS`).
pub(crate) const PROCFS: u64 = 1 << 63;
/// A POSIX segment's file is named for `shm_open` (`UCT_POSIX_SEG_FLAG_SHM_OPEN`).
const SHM_OPEN: u64 = 1 << 62;
/// Length of the entry of an InfiniBand or RoCE device (`UCT_IB_MD_PACKED_RKEY_SIZE`).
const RDMA: usize = 8;

/// The kinds of memory domains that memory is registered with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Domains {
    pub(crate) system_v: bool,
    pub(crate) posix: bool,
    pub(crate) rdma: bool,
}

impl Domains {
    /// The domains of a packed key that the envelope has checked.
    pub(crate) fn of(key: &[u8]) -> Self {
        envelope::entries(key).fold(Domains::default(), |domains, (_, entry)| domains.with(entry))
    }

    /// The union of both sets.
    pub(crate) fn and(self, other: Domains) -> Self {
        Domains {
            system_v: self.system_v || other.system_v,
            posix: self.posix || other.posix,
            rdma: self.rdma || other.rdma,
        }
    }

    fn with(self, entry: &[u8]) -> Self {
        match entry.len() {
            SYSTEM_V => Domains { system_v: true, ..self },
            RDMA => Domains { rdma: true, ..self },
            // XPMEM's entry has the same length, and begins with an id that has neither flag.
            POSIX.. if number(entry, 0).is_some_and(|file| file & (PROCFS | SHM_OPEN) != 0) => {
                Domains { posix: true, ..self }
            }
            _ => self,
        }
    }

    /// Whether peers on this host can attach the memory.
    pub(crate) fn has_segments(self) -> bool {
        self.system_v || self.posix
    }
}

/// The eight bytes at `at` of an entry, as a number in this host's byte order.
pub(crate) fn number(entry: &[u8], at: usize) -> Option<u64> {
    entry.get(at..at.checked_add(8)?)?.first_chunk().map(|bytes| u64::from_ne_bytes(*bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(entries: &[&[u8]]) -> Vec<u8> {
        let map = (1_u64 << entries.len()) - 1;
        let mut key = map.to_ne_bytes().to_vec();
        key.push(0);
        for entry in entries {
            key.push(entry.len() as u8);
            key.extend_from_slice(entry);
        }
        key
    }

    fn posix(flags: u64) -> Vec<u8> {
        [flags | 77, 4096, 8192].iter().flat_map(|number| number.to_ne_bytes()).collect()
    }

    #[test]
    fn domains_are_told_apart_by_their_entries() {
        assert_eq!(Domains::of(&key(&[])), Domains::default());
        // The entries of CMA and TCP are empty.
        assert_eq!(Domains::of(&key(&[&[], &[]])), Domains::default());
        assert_eq!(Domains::of(&key(&[&[7; 12]])), Domains { system_v: true, ..Domains::default() });
        assert_eq!(Domains::of(&key(&[&[], &[7; 8]])), Domains { rdma: true, ..Domains::default() });
        for flag in [PROCFS, SHM_OPEN] {
            assert_eq!(Domains::of(&key(&[&posix(flag)])), Domains { posix: true, ..Domains::default() });
        }
        let with_path = [posix(SHM_OPEN), b"/dev/shm\0".to_vec()].concat();
        let all = Domains { system_v: true, posix: true, rdma: true };
        assert_eq!(Domains::of(&key(&[&[7; 12], &with_path, &[7; 8]])), all);
        // XPMEM.
        assert_eq!(Domains::of(&key(&[&posix(0)])), Domains::default());
        assert_eq!(Domains::default().and(all), all);
        assert!(all.has_segments() && !Domains { rdma: true, ..Domains::default() }.has_segments());
    }
}
