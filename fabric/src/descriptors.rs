//! The limit of file descriptors of the process. The usual limit is 1024. An endpoint needs from two to about a dozen.

use std::io;

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
        assert_eq!(raise_descriptor_limit().unwrap(), limit, "a second call changes nothing");
    }
}
