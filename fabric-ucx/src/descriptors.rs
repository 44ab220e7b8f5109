//! How many file descriptors the process may have: an endpoint takes about a dozen, and the usual limit is 1024.

use std::io;

/// Raises this process's soft limit of open file descriptors to its hard limit, and gives the limit then in force.
///
/// For servers, which have an endpoint for each connection; a program calls it once, at its start. The soft limit is low by
/// default for the sake of programs that use `select(2)` (systemd.exec(5), `LimitNOFILE=`), which this crate and UCX do not.
///
/// # Errors
/// What the system says.
pub fn raise_descriptor_limit() -> io::Result<u64> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the pointer is to a local of the type that the call fills.
    if unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) } != 0 {
        return Err(io::Error::last_os_error());
    }
    if limit.rlim_cur < limit.rlim_max {
        limit.rlim_cur = limit.rlim_max;
        // SAFETY: the pointer is to a local, which the call reads. A raised limit takes nothing from anybody.
        if unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) } != 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(limit.rlim_cur)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_soft_limit_becomes_the_hard_one() {
        let limit = raise_descriptor_limit().unwrap();
        let limits = std::fs::read_to_string("/proc/self/limits").unwrap();
        let line = limits.lines().find_map(|line| line.strip_prefix("Max open files")).unwrap();
        let [soft, hard, ..] = line.split_whitespace().collect::<Vec<_>>()[..] else { panic!("{line}") };
        assert_eq!((soft, hard), (limit.to_string().as_str(), limit.to_string().as_str()));
        assert_eq!(raise_descriptor_limit().unwrap(), limit, "again is no more");
    }
}
