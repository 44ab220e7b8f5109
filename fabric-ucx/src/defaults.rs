//! UCX's options that this crate sets, unless the environment or the caller's options set them.

use std::ops::Range;

use ucx_sys::{Ucx, Version};

use crate::config::{Config, Refusal};

/// An option, the versions of UCX that it applies to, and the effect of its absence.
struct Setting {
    name: &'static str,
    value: &'static str,
    versions: Range<Version>,
    without: &'static str,
}

const OLDEST: Version = ucx_sys::OLDEST;
const MM_SPLIT: Version = Version::new(1, 19);
const NEXT_MAJOR: Version = Version::new(2, 0);

/// A setting for every version.
const fn always(name: &'static str, value: &'static str, without: &'static str) -> Setting {
    Setting { name, value, versions: OLDEST..NEXT_MAJOR, without }
}

/// A setting for both kinds of shared memory. Their options have a common prefix up to 1.18 and separate ones from 1.19
/// on.
const fn shared_memory(names: [&'static str; 3], value: &'static str, without: &'static str) -> [Setting; 3] {
    let [common, posix, sysv] = names;
    [
        Setting { name: common, value, versions: OLDEST..MM_SPLIT, without },
        Setting { name: posix, value, versions: MM_SPLIT..NEXT_MAJOR, without },
        Setting { name: sysv, value, versions: MM_SPLIT..NEXT_MAJOR, without },
    ]
}

/// The interval at which UCX checks whether the peer's process exists.
pub(crate) const KEEPALIVE: &str = "KEEPALIVE_INTERVAL";

const EXCLUDED: &str = "results travel inline between processes of one host";
const LARGE: &str = "each connection takes some MiB for messages through shared memory";
const PINNED: &str = "each connection takes tens of MiB of pinned memory, if an RDMA device is used";

/// UCX up to 1.19 ignores unknown names; later versions refuse them. The options of RDMA devices are known only where
/// UCX's module for such devices is installed.
const SETTINGS: [&[Setting]; 4] = [
    // Without it, endpoints with error handling, which a forced close needs, exclude shared memory
    // (`uct_mm_iface_query`); between processes of one host only emulation over TCP would be left.
    &shared_memory(["MM_ERROR_HANDLING", "POSIX_ERROR_HANDLING", "SYSV_ERROR_HANDLING"], "y", EXCLUDED),
    // Receive buffers of messages through shared memory. UCX's default of 512 of 8 KiB, per worker and transport, takes
    // 4 MiB for each connection, touched or not. Here they only carry the wire-up (and emulated reads, if allowed).
    &shared_memory(["MM_FIFO_SIZE", "POSIX_FIFO_SIZE", "SYSV_FIFO_SIZE"], "32", LARGE),
    &shared_memory(["MM_RX_BUFS_GROW", "POSIX_RX_BUFS_GROW", "SYSV_RX_BUFS_GROW"], "48", LARGE),
    &[
        // The same for RDMA: UCX's default of 4095 takes 67 MB for each connection, pinned.
        always("IB_RX_QUEUE_LEN", "64", PINNED),
        always("IB_RX_BUFS_GROW", "64", PINNED),
        always("IB_TX_BUFS_GROW", "64", PINNED),
        // UCX's default of 20 s is longer than the deadlines of a query.
        always(KEEPALIVE, "2s", "the end of a peer's process is noticed after 20 s"),
        // When UCX gives up a peer that does not answer the datagrams by which an RDMA connection is made, 1.13 fails
        // an assertion (`uct_ud_ep_t` cleanup, "tx.window") and ends the process. The endpoint closes such a connection
        // long before. Later versions get the option too, since it has not been shown that they do not fail.
        always("UD_TIMEOUT", "60m", "a peer that goes away while an RDMA connection is made may end this process"),
    ],
];

/// Sets the options that this UCX has and the environment does not set. An option that cannot be set is logged, with
/// the effect of its absence.
pub(crate) fn apply(ucx: &Ucx, config: &Config) {
    for Setting { name, value, versions, without } in SETTINGS.into_iter().flatten() {
        if !versions.contains(&ucx.version()) || std::env::var_os(format!("UCX_{name}")).is_some() {
            continue;
        }
        match config.set(name, value) {
            Ok(()) => {}
            Err(Refusal::Unknown(reason)) => tracing::debug!(reason, without, "UCX does not have an option"),
            Err(Refusal::Failed(reason)) => tracing::warn!(reason, without, "UCX did not accept an option"),
        }
    }
}
