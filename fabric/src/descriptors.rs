//! The limit of file descriptors of the process. The usual limit is 1024. An endpoint needs from two to about a dozen.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Raises this process's soft limit of open file descriptors to its hard limit, and returns the limit then in force.
///
/// For servers, which have an endpoint for each connection. A program calls it once, at its start. The default of the
/// soft limit is low because some programs use `select(2)` (systemd.exec(5), `LimitNOFILE=`); this project and UCX
/// do not.
///
/// # Errors
/// The error of setrlimit(2).
pub fn raise_descriptor_limit() -> io::Result<u64> {
    let limit = getrlimit(Resource::Nofile);
    if limit.current != limit.maximum {
        setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum })?;
    }
    // `None`: there is no limit.
    Ok(limit.maximum.unwrap_or(u64::MAX))
}

/// The number of open file descriptors that this process may have now.
#[must_use]
pub fn descriptor_limit() -> u64 {
    // `None`: there is no limit.
    getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX)
}

/// Returns whether a descriptor that has just been opened is one of the last ones within this process's limit: the
/// share that open connections and running queries need, an eighth, at least 16 and at most 512.
///
/// The kernel gives a new descriptor the lowest free number (open(2)), so all lower numbers are taken. The answer costs
/// no look at the descriptors themselves. It may be `false` although most higher numbers are taken.
#[must_use]
pub fn is_near_descriptor_limit(newest: BorrowedFd<'_>) -> bool {
    is_among_the_last(u64::try_from(newest.as_raw_fd()).unwrap_or(0), descriptor_limit())
}

fn is_among_the_last(number: u64, limit: u64) -> bool {
    number >= limit.saturating_sub((limit / 8).clamp(16, 512))
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn the_last_descriptors_are_known_by_their_numbers() {
        let first = File::open("/dev/null").unwrap();
        assert!(!is_near_descriptor_limit(first.as_fd()), "{first:?} of {}", descriptor_limit());
        for (limit, last) in [(64, 48), (256, 224), (1024, 896), (20_000, 19_488), (u64::MAX, u64::MAX - 512)] {
            assert!(!is_among_the_last(last - 1, limit) && is_among_the_last(last, limit), "{limit}");
        }
        assert!(is_among_the_last(0, 10));
    }

    #[test]
    fn the_soft_limit_becomes_the_hard_one() {
        let limit = raise_descriptor_limit().unwrap();
        let limits = std::fs::read_to_string("/proc/self/limits").unwrap();
        let line = limits.lines().find_map(|line| line.strip_prefix("Max open files")).unwrap();
        let [soft, hard, ..] = line.split_whitespace().collect::<Vec<_>>()[..] else { panic!("{line}") };
        assert_eq!((soft, hard), (limit.to_string().as_str(), limit.to_string().as_str()));
        assert_eq!(raise_descriptor_limit().unwrap(), limit, "a second call changes nothing");
    }
}
