//! Which transports UCX chose for an endpoint, read from what `ucp_ep_print_info` prints: UCX 1.13 has no query for it,
//! and the query that 1.14 has does not tell lanes for one-sided reads from others.
//!
//! ```text
//! #                 lane[0]:  0:sysv/memory.0 md[0]           -> md[0]/sysv/sysdev[255] am am_bw#0
//! #                 lane[1]:  1:cma/memory.0 md[1]            -> md[1]/cma/sysdev[255] rma_bw#0
//! #                  get[1]: 0..<zcopy>..(inf)
//! ```
//! Lanes with a `get[]` line carry one-sided reads natively. With none, UCX emulates reads by messages over the `am` lane.

use thallus_fabric::Transport;

/// An endpoint's lanes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Lanes {
    pub(crate) transport: Transport,
    /// The peer's memory domains, by number, that lanes for one-sided reads lead to. A remote key names the domains that
    /// its memory is registered with; UCX emulates where the two share none (`ucp_rkey_find_rma_lane`).
    pub(crate) domains: u64,
}

/// Reads the output of `ucp_ep_print_info`.
pub(crate) fn read(info: &str) -> Lanes {
    let mut lanes = Vec::new();
    let mut leads_to = Vec::new();
    let mut native = Vec::new();
    for line in info.lines() {
        let line = line.trim_start_matches(['#', ' ']);
        if let Some((lane, rest)) = indexed(line, "lane[") {
            // "0:sysv/memory.0 md[0] ..." : resource number, transport/device, path number.
            let resource = rest.split_whitespace().find_map(|word| word.split_once(':').map(|(_, name)| name));
            let resource = resource.filter(|name| !name.is_empty()).or_else(|| {
                // The number may be padded away from its name: " 0:" then "sysv/memory.0".
                rest.split_whitespace().find(|word| word.contains('/'))
            });
            let name = resource.map_or("unknown", |name| name.rsplit_once('.').map_or(name, |(name, _)| name));
            lanes.push((lane, name.to_owned()));
            let domain = rest.split_once("-> md[").and_then(|(_, domain)| domain.split_once(']'));
            if let Some(domain) = domain.and_then(|(domain, _)| domain.parse::<u32>().ok()) {
                leads_to.push((lane, domain));
            }
        } else if let Some((lane, _)) = indexed(line, "get[") {
            native.push(lane);
        }
    }
    let domains = leads_to
        .iter()
        .filter(|(lane, _)| native.contains(lane))
        .fold(0, |map, &(_, domain)| map | 1u64.checked_shl(domain).unwrap_or(0));
    let names = |wanted: &dyn Fn(u32) -> bool| {
        let mut names: Vec<&str> = Vec::new();
        for (_, name) in lanes.iter().filter(|(lane, _)| wanted(*lane)) {
            if !names.contains(&name.as_str()) {
                names.push(name);
            }
        }
        names.join(" ")
    };
    let reads = names(&|lane| native.contains(&lane));
    if !reads.is_empty() {
        return Lanes { transport: Transport { name: reads, inferior: None }, domains };
    }
    let all = names(&|_| true);
    let all = if all.is_empty() { "unknown".to_owned() } else { all };
    let inferior = format!(
        "UCX found only {all} between these ends, which has no one-sided reads; they would be emulated in software, slower \
         than bytes sent inline"
    );
    Lanes { transport: Transport { name: all, inferior: Some(inferior) }, domains: 0 }
}

/// The number and what follows of `lane[3]: rest`.
fn indexed<'a>(line: &'a str, prefix: &str) -> Option<(u32, &'a str)> {
    let (number, rest) = line.strip_prefix(prefix)?.split_once("]:")?;
    Some((number.parse().ok()?, rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHARED_MEMORY: &str = "#
# UCP endpoint
#
#               peer: <no debug data>
#                 lane[0]:  0:sysv/memory.0 md[0]           -> md[0]/sysv/sysdev[255] am am_bw#0
#                 lane[1]:  1:posix/memory.0 md[1]          -> md[1]/posix/sysdev[255]
#
#                  put[0]: 0..<short>..4294967296..<bcopy>..(inf)
#                  get[0]: 0..<bcopy>..(inf)
#                  get[1]: 0..<bcopy>..(inf)
";
    const TCP: &str = "#
#                 lane[0]: 12:tcp/eth0.0 md[0]           -> md[0]/tcp/sysdev[255] am am_bw#0 wireup{tcp/eth0}
#
#                  rma_bw: mds rndv_rkey_size 9
";

    #[test]
    fn lanes_that_read_are_named() {
        let lanes = read(SHARED_MEMORY);
        assert_eq!(lanes.transport, Transport { name: "sysv/memory posix/memory".into(), inferior: None });
        assert_eq!(lanes.domains, 0b11);
    }

    #[test]
    fn lanes_that_do_not_read_lead_nowhere() {
        let text = SHARED_MEMORY.replace("#                  get[0]: 0..<bcopy>..(inf)\n", "");
        let lanes = read(&text);
        assert_eq!(lanes.transport, Transport { name: "posix/memory".into(), inferior: None });
        assert_eq!(lanes.domains, 0b10);
    }

    #[test]
    fn tcp_alone_is_inferior() {
        let lanes = read(TCP);
        assert_eq!((lanes.transport.name.as_str(), lanes.domains), ("tcp/eth0", 0));
        assert!(lanes.transport.inferior.unwrap().contains("only tcp/eth0"));
    }

    #[test]
    fn what_cannot_be_read_is_inferior() {
        for text in ["", "lane[]: x", "lane[1]:", "get[0]: 0..<bcopy>..(inf)", "lane[99999999999]: 0:a/b.0"] {
            assert!(read(text).transport.inferior.is_some(), "{text:?}");
        }
    }
}
