//! Identity of the host and the namespaces of a process.

use std::fs;

use crate::checksum::fnv1a;

/// A number that two processes share if, and almost certainly only if, they run under one kernel since its last start,
/// and use the same System V segments and process ids. 0 where the system does not provide it.
pub(crate) fn identity() -> u64 {
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    let namespace = |name: &str| fs::read_link(format!("/proc/self/ns/{name}")).map(|link| link.display().to_string());
    match (boot.trim(), namespace("ipc"), namespace("pid")) {
        ("", ..) | (_, Err(_), _) | (_, _, Err(_)) => 0,
        (boot, Ok(ipc), Ok(pid)) => fnv1a(format!("{boot} {ipc} {pid}").as_bytes()),
    }
}

/// Whether `identity`, of the peer, is that of this process.
pub(crate) fn is_this(identity: u64) -> bool {
    identity != 0 && identity == self::identity()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_host_is_known_and_another_is_not() {
        let own = identity();
        assert!(own != 0 && is_this(own));
        assert!(!is_this(own ^ 1) && !is_this(0));
    }
}
