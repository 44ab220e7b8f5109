//! What UCX has on this host, and what is missing.

use thallus_fabric::diagnosis::{Diagnosis, Finding};
use thallus_protocol::FabricKind;

use crate::{UcxFabric, UcxOptions};

/// Opens UCX, and looks at its transports.
#[must_use]
pub fn diagnose(options: UcxOptions) -> Diagnosis {
    let (verdict, findings) = match UcxFabric::new(options) {
        Ok(fabric) => {
            let description = fabric.describe();
            let findings = vec![
                Finding::good("UCX", &description.version),
                Finding::good("UCX transports", description.transports.join(", ")),
            ];
            (verdict(&description.transports), findings)
        }
        Err(error) => (Err(error.to_string()), Vec::new()),
    };
    Diagnosis { fabric: FabricKind::UCX, verdict, findings }
}

/// What of the transports reads one-sidedly.
fn verdict(transports: &[String]) -> Result<String, String> {
    let is = |name: &str, kinds: &[&str]| kinds.iter().any(|kind| name.starts_with(kind));
    let list = |kinds: &[&str]| {
        let of: Vec<_> = transports.iter().filter(|name| is(name, kinds)).map(String::as_str).collect();
        of.join(", ")
    };
    let (rdma, local) = (list(&["rc_", "dc_", "ud_", "ugni"]), list(&["posix", "sysv", "xpmem", "cma", "knem"]));
    match (rdma.is_empty(), local.is_empty()) {
        (false, _) => Ok(format!("between hosts by {rdma}")),
        (true, false) => {
            Ok(format!("between processes of this host only, by {local}; between hosts results travel inline"))
        }
        (true, true) => {
            Err("UCX has no transport for one-sided reads here, only TCP: look at UCX_TLS, at UCX_NET_DEVICES, and \
                             whether UCX's InfiniBand module is installed (`ucx_info -d`)"
                .to_owned())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_transports_are_good_for() {
        let of = |names: &[&str]| verdict(&names.iter().map(ToString::to_string).collect::<Vec<_>>());
        assert!(of(&["tcp/eth0", "self/memory"]).unwrap_err().contains("only TCP"));
        assert!(of(&["tcp/eth0", "posix/memory"]).unwrap().contains("this host only, by posix/memory"));
        assert_eq!(of(&["posix/memory", "rc_mlx5/mlx5_0:1"]).unwrap(), "between hosts by rc_mlx5/mlx5_0:1");
    }
}
