//! Diagnosis of verbs on this host.

use thallus_fabric::diagnosis::{Diagnosis, Finding};
use thallus_protocol::FabricKind;

use crate::device::{self, Found, FoundPort};
use crate::library::verbs;
use crate::{VerbsFabric, VerbsOptions};

/// Checks libraries, devices, ports and GIDs, and opens the device that the options name.
#[must_use]
pub fn diagnose(options: VerbsOptions) -> Diagnosis {
    let mut findings = Vec::new();
    match verbs() {
        Ok(_) => findings.push(Finding::good("libibverbs", "loaded")),
        Err(reason) => findings.push(Finding::bad("libibverbs", "missing", reason)),
    }
    if let Ok(verbs) = verbs() {
        match device::find(verbs) {
            Ok(found) if found.is_empty() => findings.push(Finding::bad("RDMA devices", "none", device::NO_DEVICE)),
            Ok(found) => findings.extend(found.iter().flat_map(findings_of)),
            Err(reason) => findings.push(Finding::bad("RDMA devices", "cannot be listed", reason)),
        }
    }
    let verdict = VerbsFabric::new(options).map(|fabric| fabric.describe()).map_err(|error| error.to_string());
    Diagnosis { fabric: FabricKind::VERBS, verdict, findings }
}

fn findings_of(device: &Found) -> Vec<Finding> {
    match &device.refused {
        Some(reason) => vec![Finding::bad(&device.name, "cannot be opened", reason)],
        None => device.ports.iter().map(|port| finding_of(&device.name, port)).collect(),
    }
}

fn finding_of(device: &str, port: &FoundPort) -> Finding {
    let subject = format!("{device} port {}", port.number);
    let link = if port.ethernet { "Ethernet" } else { "InfiniBand" };
    let gids: Vec<_> = port.gids.iter().map(ToString::to_string).collect();
    let gids = if gids.is_empty() { "no GIDs".to_owned() } else { gids.join(", ") };
    let state = format!("{}, {link}; {gids}", port.state);
    match (port.active, port.ethernet) {
        (true, true) if port.gids.is_empty() => {
            Finding::bad(subject, state, "give the network interface an address (`ip addr add`)")
        }
        (true, _) => Finding::good(subject, state),
        (false, true) => {
            Finding::bad(subject, state, "look at the cable, and set the network interface up (`ip link set`)")
        }
        (false, false) => {
            Finding::bad(subject, state, "look at the cable (`ibstat`); PORT_INIT: start a subnet manager (opensm)")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_without_a_device_gets_advice() {
        let options = VerbsOptions { device: Some("no such device".into()), ..VerbsOptions::default() };
        let diagnosis = diagnose(options);
        let reason = diagnosis.verdict.expect_err("there is no such device");
        assert!(reason.contains("verbs is unavailable on this host"), "{reason}");
        assert!(!diagnosis.findings.is_empty());
    }

    #[test]
    fn ports_that_are_down_get_advice_by_their_link() {
        let port = |active, ethernet| FoundPort { number: 1, active, state: "PORT", ethernet, gids: Vec::new() };
        let advice = |port| finding_of("x", &port).advice.unwrap_or_default();
        assert!(advice(port(false, true)).contains("ip link set"));
        assert!(advice(port(false, false)).contains("subnet manager"));
        assert!(advice(port(true, true)).contains("ip addr add"));
        assert_eq!(advice(port(true, false)), "");
    }
}
