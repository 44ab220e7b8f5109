//! The address blob: where an endpoint listens, and the secrets by which both ends know each other.
//!
//! The blob travels on the control connection. The kernel shows the names of abstract sockets to every process of a
//! network namespace (`/proc/net/unix`), so a name proves nothing. A peer that connects must show the secret of the
//! blob.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use bytes::Bytes;
use thallus_fabric::FabricError;

use crate::status::unavailable;

/// Begins every blob: the format, and its version.
const MAGIC: [u8; 8] = *b"THLSHM02";
/// Longest path of a Unix socket (unix(7), `sun_path`), without its zero byte.
const MAX_PATH: usize = 107;

/// Bytes that no other process can guess.
pub(crate) type Secret = [u8; 16];

/// An endpoint's address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Address {
    /// The kernel that the endpoint's process runs under, since its last start; 0 if that is not known.
    pub(crate) host: [u8; 16],
    /// The network namespace of the endpoint's process: abstract names belong to one.
    pub(crate) network: [u8; 16],
    /// The name of its socket, without the prefix.
    pub(crate) name: [u8; 8],
    /// A peer that connects shows it.
    pub(crate) secret: Secret,
    /// The path of its second socket, if it has one.
    pub(crate) path: Option<PathBuf>,
}

impl Address {
    /// A new address of this process. `directory`: for the socket with a path.
    pub(crate) fn new(directory: Option<&Path>) -> Result<Self, FabricError> {
        let mut random = [0; 24];
        getrandom::fill(&mut random).map_err(|error| unavailable(format!("no random numbers: {error}")))?;
        let (name, secret) = (first(&random), first(&random[8..]));
        let path = directory.map(|directory| directory.join(socket_name(&name)));
        if let Some(path) = path.as_ref().filter(|path| path.as_os_str().len() > MAX_PATH) {
            let reason = format!("the path of a socket is too long: {} (limit {MAX_PATH} bytes)", path.display());
            return Err(unavailable(reason));
        }
        Ok(Address { host: host(), network: network(), name, secret, path })
    }

    /// The blob.
    pub(crate) fn to_bytes(&self) -> Bytes {
        let path = self.path.as_deref().map_or(&[][..], |path| path.as_os_str().as_encoded_bytes());
        [&MAGIC[..], &self.host, &self.network, &self.name, &self.secret, path].concat().into()
    }

    /// The address in a peer's blob, which is untrusted.
    pub(crate) fn parse(blob: &[u8]) -> Result<Self, String> {
        use std::os::unix::ffi::OsStrExt;
        let rest = blob.strip_prefix(&MAGIC).ok_or("it is no address of this fabric, or of another version")?;
        if rest.len() < 56 {
            return Err("the address is too short".to_owned());
        }
        let (host, network) = (first(rest), first(&rest[16..]));
        let (name, secret, path) = (first(&rest[32..]), first(&rest[40..]), &rest[56..]);
        if path.len() > MAX_PATH || path.contains(&0) {
            return Err("the path in the address is malformed".to_owned());
        }
        let path = (!path.is_empty()).then(|| PathBuf::from(std::ffi::OsStr::from_bytes(path)));
        // Only a name that this crate gives: a peer must not have this process connect to other sockets of the host.
        if path.as_ref().is_some_and(|path| path.file_name() != Some(socket_name(&name).as_ref())) {
            return Err("the path in the address is not that of its socket".to_owned());
        }
        if path.as_ref().is_some_and(|path| path.is_relative()) {
            return Err("the path in the address is relative".to_owned());
        }
        Ok(Address { host, network, name, secret, path })
    }

    /// Returns true if an abstract name means the same socket to this process as to the peer. In another namespace any
    /// process could listen under the peer's name.
    pub(crate) fn shares_names(&self) -> bool {
        self.network == network()
    }

    /// The name of the abstract socket.
    pub(crate) fn abstract_name(&self) -> String {
        socket_name(&self.name)
    }

    /// Returns true unless the peer is known to be under the kernel of this process.
    pub(crate) fn is_elsewhere(&self) -> bool {
        let own = host();
        own == [0; 16] || own != self.host
    }
}

/// The name of a socket.
fn socket_name(name: &[u8; 8]) -> String {
    format!("thallus-{:016x}", u64::from_be_bytes(*name))
}

/// The first bytes; zeroes if there are fewer.
fn first<const N: usize>(bytes: &[u8]) -> [u8; N] {
    bytes.first_chunk().copied().unwrap_or([0; N])
}

/// The kernel's random number of this start (random(4)), as bytes; zeroes if it cannot be read.
fn host() -> [u8; 16] {
    static HOST: LazyLock<[u8; 16]> = LazyLock::new(|| {
        let text = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
        let digits: String = text.chars().filter(char::is_ascii_hexdigit).collect();
        u128::from_str_radix(&digits, 16).map_or([0; 16], u128::to_be_bytes)
    });
    *HOST
}

/// The network namespace of this process, by device and inode; zeroes if that cannot be read.
fn network() -> [u8; 16] {
    use std::os::unix::fs::MetadataExt;
    let found = fs::metadata("/proc/self/ns/net");
    found.map_or([0; 16], |found| (u128::from(found.dev()) << 64 | u128::from(found.ino())).to_be_bytes())
}

/// A socket that is younger may be about to listen.
const SETTLED: std::time::Duration = std::time::Duration::from_secs(10);

/// Removes sockets with a path that no process listens on any more: of processes that were killed.
pub(crate) fn sweep(directory: &Path) -> io::Result<usize> {
    let mut removed = 0;
    for entry in fs::read_dir(directory)?.flatten() {
        let name = entry.file_name();
        let changed = entry.metadata().and_then(|found| found.modified()).ok();
        let is_settled = changed.is_some_and(|at| at.elapsed().is_ok_and(|age| age > SETTLED));
        if is_settled && name.to_str().is_some_and(|name| name.starts_with("thallus-") && name.len() == 24) {
            let is_dead = crate::socket::dial_path(&entry.path())
                .is_err_and(|error| error.kind() == io::ErrorKind::ConnectionRefused);
            removed += usize::from(is_dead && fs::remove_file(entry.path()).is_ok());
        }
    }
    Ok(removed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_arrives_as_it_was_sent_and_nothing_else_is_taken_for_one() {
        for directory in [None, Some(Path::new("/run/thallus"))] {
            let address = Address::new(directory).unwrap();
            let blob = address.to_bytes();
            assert_eq!(Address::parse(&blob), Ok(address.clone()));
            assert!(!address.is_elsewhere());
            for len in 0..64 {
                assert!(Address::parse(&blob[..len]).is_err(), "{len}");
            }
            let mut other = address;
            other.host[3] ^= 1;
            assert!(other.is_elsewhere());
        }
        assert!(Address::new(Some(Path::new(&"/x".repeat(60)))).is_err());
    }

    #[test]
    fn old_sockets_without_a_listener_are_removed_and_no_others() {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: u8| directory.path().join(socket_name(&[name; 8]));
        let listeners: Vec<_> = (0..3).map(|name| crate::socket::listen_at(&at(name)).unwrap()).collect();
        fs::write(directory.path().join("thallus-of-another-sort"), "").unwrap();
        let long_ago = std::time::SystemTime::now() - 2 * SETTLED;
        let age = |name: u8| {
            let time = rustix::fs::Timespec {
                tv_sec: long_ago.duration_since(std::time::UNIX_EPOCH).unwrap().as_secs() as i64,
                tv_nsec: 0,
            };
            let times = rustix::fs::Timestamps { last_access: time, last_modification: time };
            rustix::fs::utimensat(rustix::fs::CWD, at(name), &times, rustix::fs::AtFlags::empty()).unwrap();
        };
        // The first still listens; the second is dead and old, the third dead and young.
        (0..2).for_each(age);
        let mut listeners = listeners.into_iter();
        let _first = listeners.next();
        drop(listeners);
        assert_eq!(sweep(directory.path()).unwrap(), 1);
        assert_eq!([0, 1, 2].map(|name| at(name).exists()), [true, false, true]);
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 3, "the other file stays");
    }

    #[test]
    fn a_peer_names_no_other_socket() {
        let mut address = Address::new(Some(Path::new("/run"))).unwrap();
        address.path = Some("/run/docker.sock".into());
        assert!(Address::parse(&address.to_bytes()).is_err());
    }
}
