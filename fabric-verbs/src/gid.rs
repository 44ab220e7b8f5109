//! Global identifiers (GIDs) of ports: the list, and the choice of one.

use std::fmt;
use std::fs;
use std::net::Ipv6Addr;

/// An entry of a port's table of GIDs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Gid {
    pub(crate) index: u8,
    pub(crate) bytes: [u8; 16],
    pub(crate) kind: GidKind,
}

/// The format of packets that use a GID.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum GidKind {
    InfiniBand,
    RoceV1,
    RoceV2,
}

impl GidKind {
    /// Its number in an address blob.
    pub(crate) fn number(self) -> u8 {
        match self {
            GidKind::InfiniBand => 0,
            GidKind::RoceV1 => 1,
            GidKind::RoceV2 => 2,
        }
    }

    pub(crate) fn from_number(number: u8) -> Option<Self> {
        [GidKind::InfiniBand, GidKind::RoceV1, GidKind::RoceV2].into_iter().find(|kind| kind.number() == number)
    }
}

impl fmt::Display for GidKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            GidKind::InfiniBand => "InfiniBand",
            GidKind::RoceV1 => "RoCE v1",
            GidKind::RoceV2 => "RoCE v2",
        })
    }
}

impl fmt::Display for Gid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "GID {} {} ({})", self.index, Ipv6Addr::from(self.bytes), self.kind)
    }
}

/// The used entries of a port, from sysfs, where the kernel also provides their kinds
/// (`ABI/stable/sysfs-class-infiniband`).
pub(crate) fn of_port(device: &str, port: u8) -> Vec<Gid> {
    let base = format!("/sys/class/infiniband/{device}/ports/{port}");
    let read = |path: String| fs::read_to_string(path).ok().map(|text| text.trim().to_owned());
    // Only the first 256 entries of a table are used; the first missing file ends the table.
    (0..=u8::MAX)
        .map_while(|index| Some((index, read(format!("{base}/gids/{index}"))?)))
        .filter_map(|(index, text)| {
            let bytes = text.parse::<Ipv6Addr>().ok()?.octets();
            if bytes == [0; 16] {
                return None;
            }
            let kind = match read(format!("{base}/gid_attrs/types/{index}"))?.as_str() {
                "RoCE v2" => GidKind::RoceV2,
                // The kernel reports this for both InfiniBand and RoCE v1.
                _ if read(format!("{base}/link_layer")).as_deref() == Some("Ethernet") => GidKind::RoceV1,
                _ => GidKind::InfiniBand,
            };
            Some(Gid { index, bytes, kind })
        })
        .collect()
}

/// The entry with the requested index, otherwise the entry that most networks route.
pub(crate) fn choose(gids: &[Gid], ethernet: bool, wanted: Option<u8>) -> Result<Gid, String> {
    if let Some(wanted) = wanted {
        let known = || gids.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
        return gids
            .iter()
            .find(|gid| gid.index == wanted)
            .copied()
            .ok_or_else(|| format!("GID {wanted} is empty (there are: {})", known()));
    }
    let best = if ethernet { gids.iter().min_by_key(|gid| (rank(gid), gid.index)) } else { gids.first() };
    best.copied().ok_or_else(|| {
        "its table of GIDs is empty; for RoCE the network interface needs an address (`ip addr add`)".to_owned()
    })
}

/// The lowest rank is preferred: packets over UDP and IP before packets of Ethernet alone; routed addresses before
/// others.
fn rank(gid: &Gid) -> (bool, u8) {
    let address = Ipv6Addr::from(gid.bytes);
    let reach = if address.to_ipv4_mapped().is_some() {
        0
    } else if address.is_unicast_link_local() {
        2
    } else {
        1
    };
    (gid.kind != GidKind::RoceV2, reach)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gid(index: u8, address: &str, kind: GidKind) -> Gid {
        Gid { index, bytes: address.parse::<Ipv6Addr>().unwrap().octets(), kind }
    }

    #[test]
    fn roce_v2_over_ipv4_is_preferred() {
        let table = [
            gid(0, "fe80::1", GidKind::RoceV1),
            gid(1, "fe80::1", GidKind::RoceV2),
            gid(2, "::ffff:10.0.0.1", GidKind::RoceV1),
            gid(3, "::ffff:10.0.0.1", GidKind::RoceV2),
            gid(4, "fd00::1", GidKind::RoceV2),
        ];
        assert_eq!(choose(&table, true, None).unwrap().index, 3);
        assert_eq!(choose(&table[..3], true, None).unwrap().index, 1);
        assert_eq!(choose(&table[1..2], true, None).unwrap().index, 1);
        assert_eq!([&table[1], &table[4]].map(rank), [(false, 2), (false, 1)]);
        assert_eq!(choose(&table, true, Some(4)).unwrap().index, 4);
        assert!(
            choose(&table, true, Some(9)).unwrap_err().contains("GID 9 is empty (there are: GID 0 fe80::1 (RoCE v1)")
        );
        assert!(choose(&[], true, None).unwrap_err().contains("ip addr add"));
    }
}
