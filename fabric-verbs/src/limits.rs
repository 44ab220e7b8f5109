//! Limits of the process that pinning memory runs into.

/// The limit of locked memory in bytes; `None`: unlimited, or not to be found out.
pub(crate) fn memlock() -> Option<u64> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: room for the result.
    let found = unsafe { libc::getrlimit(libc::RLIMIT_MEMLOCK, &mut limit) } == 0;
    (found && limit.rlim_cur != libc::RLIM_INFINITY).then_some(limit.rlim_cur)
}

/// What to add to an error of a registration that the kernel has no memory for.
pub(crate) fn memlock_advice() -> String {
    match memlock() {
        Some(bytes) => format!(
            "; this process may lock {} KiB (`ulimit -l`): raise it (LimitMEMLOCK=infinity in a systemd unit, `memlock \
             unlimited` in /etc/security/limits.conf, --ulimit memlock=-1 for a container), or lower the bytes on loan",
            bytes >> 10
        ),
        None => "; locked memory is not limited, so look at free memory and at the device's limits (`rdma resource`)"
            .to_owned(),
    }
}
