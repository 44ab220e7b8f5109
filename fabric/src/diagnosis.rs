//! Diagnosis of the fabrics on this host, with advice, for the `doctor` command and a server's log.

use std::fs;

use thallus_protocol::FabricKind;

use crate::memory::{HostMemory, cgroup_file};

/// The diagnosis of one fabric.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Diagnosis {
    /// The fabric.
    pub fabric: FabricKind,
    /// The transport of its reads. Or the reason why there is none, and the remedy.
    pub verdict: Result<String, String>,
    /// The checked properties.
    pub findings: Vec<Finding>,
}

/// One checked property of the host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// The device or limit.
    pub subject: String,
    /// Its state.
    pub state: String,
    /// The remedy, if the state is a problem.
    pub advice: Option<String>,
}

impl Finding {
    /// A property without a problem.
    pub fn good(subject: impl Into<String>, state: impl Into<String>) -> Self {
        Finding { subject: subject.into(), state: state.into(), advice: None }
    }

    /// A property with a problem.
    pub fn bad(subject: impl Into<String>, state: impl Into<String>, advice: impl Into<String>) -> Self {
        Finding { subject: subject.into(), state: state.into(), advice: Some(advice.into()) }
    }
}

/// The limits of this process and host that affect fabrics, compared with `wanted` bytes of registered memory.
#[must_use]
pub fn host(wanted: u64) -> Vec<Finding> {
    [locked_memory(wanted), memory(wanted), rdma_cgroup(), shared_memory(wanted), open_files()]
        .into_iter()
        .flatten()
        .collect()
}

/// The limit of locked memory of this thread in bytes; `None`: unlimited or unknown.
#[must_use]
pub fn memlock_limit() -> Option<u64> {
    let status = fs::read_to_string("/proc/thread-self/status").unwrap_or_default();
    if locks_without_limit(&status) { None } else { limit("Max locked memory") }
}

/// Whether the thread has CAP_IPC_LOCK. Root has it.
fn locks_without_limit(status: &str) -> bool {
    const CAP_IPC_LOCK: u32 = 14;
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let effective = effective.and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok());
    effective.is_some_and(|capabilities| capabilities >> CAP_IPC_LOCK & 1 == 1)
}

/// The soft limit of this name in `/proc/self/limits`.
fn limit(name: &str) -> Option<u64> {
    let limits = fs::read_to_string("/proc/self/limits").ok()?;
    soft_limit(&limits, name)
}

fn soft_limit(limits: &str, name: &str) -> Option<u64> {
    let line = limits.lines().find_map(|line| line.strip_prefix(name))?;
    // "unlimited" does not parse.
    line.split_whitespace().next()?.parse().ok()
}

fn mib(bytes: u64) -> String {
    format!("{} MiB", bytes >> 20)
}

fn locked_memory(wanted: u64) -> Option<Finding> {
    let subject = "locked memory";
    Some(match memlock_limit() {
        None => Finding::good(subject, "unlimited"),
        Some(bytes) if bytes >= wanted => Finding::good(subject, format!("{}, {} are wanted", mib(bytes), mib(wanted))),
        Some(bytes) => Finding::bad(
            subject,
            format!("{} KiB, {} are wanted", bytes >> 10, mib(wanted)),
            "RDMA pins memory: raise the limit (LimitMEMLOCK=infinity in a systemd unit, `memlock unlimited` in \
             /etc/security/limits.conf, --ulimit memlock=-1 for a container)",
        ),
    })
}

fn memory(wanted: u64) -> Option<Finding> {
    let HostMemory { limit, available, limited_by } = HostMemory::now()?;
    let (of, advice) = match limited_by {
        None => ("this host".to_owned(), "lend or hold less at once, or use a larger machine"),
        Some(file) => {
            (file.display().to_string(), "raise the container's or unit's memory limit: shared memory counts too")
        }
    };
    let state = format!("{} available of {} ({of}), {} are wanted", mib(available), mib(limit), mib(wanted));
    Some(if available >= wanted { Finding::good("memory", state) } else { Finding::bad("memory", state, advice) })
}

fn rdma_cgroup() -> Option<Finding> {
    let max = cgroup_file("rdma.max").filter(|max| !max.trim().is_empty())?;
    let confined = max.split_whitespace().filter_map(|word| word.split_once('=')).any(|(_, limit)| limit != "max");
    let state = max.trim().replace('\n', "; ");
    Some(if confined {
        Finding::bad(
            "cgroup rdma.max",
            state,
            "each connection takes two queue pairs; raise it if connections are refused",
        )
    } else {
        Finding::good("cgroup rdma.max", state)
    })
}

fn shared_memory(wanted: u64) -> Option<Finding> {
    let found = rustix::fs::statvfs("/dev/shm").ok()?;
    let room = found.f_bavail.checked_mul(found.f_frsize)?;
    let state = format!("{} left, {} are wanted", mib(room), mib(wanted));
    Some(if room >= wanted {
        Finding::good("/dev/shm", state)
    } else {
        Finding::bad("/dev/shm", state, "make room (--shm-size for a container, `mount -o remount,size=8G /dev/shm`)")
    })
}

fn open_files() -> Option<Finding> {
    /// More than the dozen descriptors that a connection uses.
    const FEW: u64 = 1024;
    let files = limit("Max open files")?;
    Some(if files >= FEW {
        Finding::good("open files", files.to_string())
    } else {
        Finding::bad("open files", files.to_string(), "raise it (`ulimit -n`, LimitNOFILE= in a systemd unit)")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_read_as_the_kernel_writes_them() {
        let text = "Limit                     Soft Limit           Hard Limit           Units     \n\
                    Max open files            1024                 524288               files     \n\
                    Max locked memory         unlimited            8388608              bytes     \n";
        assert_eq!(soft_limit(text, "Max open files"), Some(1024));
        assert_eq!(soft_limit(text, "Max locked memory"), None);
        assert_eq!(soft_limit(text, "Max nice"), None);
        assert!(locks_without_limit("Name:\tx\nCapEff:\t000001ffffffffff\n"));
        assert!(!locks_without_limit("Name:\tx\nCapEff:\t000001ffffffbfff\n"));
    }

    #[test]
    fn wanting_too_much_is_found_with_advice() {
        let findings = host(1 << 60);
        let memory = findings.iter().find(|finding| finding.subject == "memory").expect("there is /proc/meminfo");
        assert!(memory.advice.is_some(), "{memory:?}");
        assert!(host(0).iter().filter(|finding| finding.subject == "memory").all(|finding| finding.advice.is_none()));
    }
}
