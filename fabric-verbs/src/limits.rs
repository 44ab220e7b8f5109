//! Limits of the process on pinned memory.

use thallus_fabric::diagnosis::memlock_limit;

/// Advice to append to the error of a registration for which the kernel has no memory.
pub(crate) fn memlock_advice() -> String {
    match memlock_limit() {
        Some(bytes) => format!(
            "; this process may lock {} KiB (`ulimit -l`): raise it (LimitMEMLOCK=infinity in a systemd unit, `memlock \
             unlimited` in /etc/security/limits.conf, --ulimit memlock=-1 for a container), or lower the bytes on loan",
            bytes >> 10
        ),
        None => "; locked memory is not limited, so look at free memory and at the device's limits (`rdma resource`)"
            .to_owned(),
    }
}
