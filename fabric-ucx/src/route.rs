//! The route of one-sided reads between two endpoints: the UCX transport that carries them, or none.
//!
//! Without such a transport, UCX emulates reads by messages that the lender's worker answers. The decision uses UCX's
//! functions for programs, not text that it prints:
//!
//! | UCX | question | answer |
//! |---|---|---|
//! | all | `ucp_rkey_ptr` of an unpacked key | the memory is mapped here: shared memory |
//! | 1.14 and later | `ucp_ep_query` | the transports of the endpoint, by name |
//! | 1.13 | the memory domains of both keys | RDMA, if both have a device (UCX cannot say if it reaches the peer) |

use thallus_fabric::Transport;

use crate::domains::Domains;

/// Transports that read a peer's memory one-sidedly, by the prefixes of their names.
const RDMA: [&str; 4] = ["rc_", "dc_", "srd", "ugni"];
const SHARED_MEMORY: [&str; 3] = ["sysv", "posix", "xpmem"];

/// The route of the reads of one region.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Route {
    /// The region is mapped into this process.
    SharedMemory,
    /// A device reads it.
    Rdma,
    /// The lender's worker would answer messages.
    Emulated,
}

/// The known properties of a connected endpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Path {
    /// Names and devices of the endpoint's transports (`sysv/memory`); `None` for UCX before 1.14, which does not
    /// report them.
    pub(crate) transports: Option<Vec<String>>,
    /// The domains with which memory of this end is registered.
    pub(crate) own: Domains,
    /// Whether both ends are on one host, in the same namespaces.
    pub(crate) is_local: bool,
}

impl Path {
    /// The route of reads of a region whose key has entries for `domains`. `mapped`: whether the region is mapped into
    /// this process.
    pub(crate) fn route(&self, domains: Domains, mapped: bool) -> Route {
        if mapped {
            return Route::SharedMemory;
        }
        let by_device = match &self.transports {
            Some(names) => names.iter().any(|name| is(name, &RDMA)),
            None => self.own.rdma,
        };
        if domains.rdma && by_device { Route::Rdma } else { Route::Emulated }
    }

    /// Whether UCX may have chosen shared memory between these ends.
    pub(crate) fn may_share(&self) -> bool {
        self.transports
            .as_ref()
            .map_or(self.own.has_segments(), |names| names.iter().any(|name| is(name, &SHARED_MEMORY)))
    }

    /// The transports of one-sided reads. If there are none, also the reason why inline transfer is better.
    pub(crate) fn transport(&self) -> Transport {
        let (reading, all) = match &self.transports {
            Some(names) => {
                (joined(names.iter().filter(|name| is(name, &RDMA) || is(name, &SHARED_MEMORY))), joined(names.iter()))
            }
            None => (self.expected(), "messages".to_owned()),
        };
        if !reading.is_empty() {
            return Transport { name: reading, inferior: None };
        }
        let all = if all.is_empty() { "unknown".to_owned() } else { all };
        let inferior = Some(self.emulated(&all));
        Transport { name: all, inferior }
    }

    /// The reason why reads over `transports` would be emulated.
    pub(crate) fn emulated(&self, transports: &str) -> String {
        format!(
            "UCX has only {transports} between these ends, which has no one-sided reads: they would be emulated by \
             messages, slower than bytes sent inline"
        )
    }

    /// For UCX 1.13: the transports of this end that can reach the peer.
    fn expected(&self) -> String {
        let local = self.is_local && self.own.has_segments();
        let names = [
            (local && self.own.system_v, "sysv"),
            (local && self.own.posix, "posix"),
            (self.own.rdma, "InfiniBand or RoCE"),
        ];
        names.iter().filter(|(there, _)| *there).map(|(_, name)| *name).collect::<Vec<_>>().join(" ")
    }
}

fn is(name: &str, kinds: &[&str]) -> bool {
    kinds.iter().any(|kind| name.starts_with(kind))
}

/// Each name once, in order.
fn joined<'a>(names: impl Iterator<Item = &'a String>) -> String {
    let mut once: Vec<&str> = Vec::new();
    for name in names {
        if !once.contains(&name.as_str()) {
            once.push(name);
        }
    }
    once.join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    const NONE: Domains = Domains { system_v: false, posix: false, rdma: false };
    const DEVICE: Domains = Domains { rdma: true, ..NONE };
    const SEGMENT: Domains = Domains { system_v: true, ..NONE };

    fn path(names: &[&str], own: Domains, is_local: bool) -> Path {
        let names: Vec<_> = names.iter().map(ToString::to_string).collect();
        Path { transports: (!names.is_empty()).then_some(names), own, is_local }
    }

    #[test]
    fn what_is_mapped_is_shared_memory_and_nothing_else_is() {
        for path in [path(&["tcp/lo"], NONE, true), path(&[], SEGMENT, true), path(&["sysv/memory"], SEGMENT, true)] {
            assert_eq!(path.route(SEGMENT, true), Route::SharedMemory);
            assert_eq!(path.route(SEGMENT, false), Route::Emulated, "{path:?}");
        }
    }

    #[test]
    fn a_device_reads_what_is_registered_with_one_at_both_ends() {
        let named = path(&["rc_mlx5/mlx5_0:1", "ud_mlx5/mlx5_0:1"], DEVICE, false);
        assert_eq!((named.route(DEVICE, false), named.route(SEGMENT, false)), (Route::Rdma, Route::Emulated));
        // Datagram transports do not carry one-sided reads.
        assert_eq!(path(&["ud_verbs/rxe0:1"], DEVICE, false).route(DEVICE, false), Route::Emulated);
        assert_eq!(path(&["tcp/eth0"], DEVICE, false).route(DEVICE, false), Route::Emulated);
        // UCX 1.13.
        assert_eq!(path(&[], DEVICE, false).route(DEVICE, false), Route::Rdma);
        assert_eq!(path(&[], SEGMENT, false).route(DEVICE, false), Route::Emulated);
    }

    #[test]
    fn transports_that_read_are_named_once() {
        let transport = path(&["sysv/memory", "sysv/memory", "cma/memory", "tcp/lo"], SEGMENT, true).transport();
        assert_eq!(transport, Transport { name: "sysv/memory".into(), inferior: None });
        let both = Domains { rdma: true, ..SEGMENT };
        assert_eq!(path(&[], both, true).transport().name, "sysv InfiniBand or RoCE");
        assert_eq!(path(&[], both, false).transport().name, "InfiniBand or RoCE");
    }

    #[test]
    fn without_a_transport_that_reads_the_path_is_inferior() {
        let transport = path(&["tcp/eth0", "tcp/eth0"], SEGMENT, false).transport();
        assert_eq!(transport.name, "tcp/eth0");
        assert!(transport.inferior.unwrap().contains("only tcp/eth0"));
        // UCX 1.13: another host, and no device.
        assert!(path(&[], SEGMENT, false).transport().inferior.unwrap().contains("only messages"));
        assert!(path(&[], NONE, true).transport().inferior.is_some());
    }
}
