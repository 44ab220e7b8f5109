//! The fabrics that this build has, opened as the options ask. The only place that knows them by name.

use std::sync::Arc;

use thallus_fabric::Fabric;
use thallus_fabric::diagnosis::Diagnosis;
#[cfg(not(all(feature = "ucx", feature = "verbs")))]
use thallus_protocol::FabricKind;

use crate::error::ClientError;
use crate::options::{ConnectOptions, FabricPreference};

type Opened = (Vec<Arc<dyn Fabric>>, Option<String>);
type Open = fn(&ConnectOptions) -> Result<Arc<dyn Fabric>, String>;

/// The fabrics that the options ask for, best first; or why there are none.
pub(crate) fn open(options: &ConnectOptions) -> Result<Opened, ClientError> {
    let candidates: &[Open] = match options.fabric {
        FabricPreference::None => return Ok((Vec::new(), None)),
        // Where there is an RDMA device, verbs check every access and cost the lender nothing; UCX finds what else there is.
        FabricPreference::Auto => &[open_verbs, open_ucx],
        FabricPreference::Ucx => &[open_ucx],
        FabricPreference::Verbs => &[open_verbs],
    };
    let (mut fabrics, mut missing) = (Vec::new(), Vec::new());
    for open in candidates {
        match open(options) {
            Ok(fabric) => fabrics.push(fabric),
            Err(reason) => {
                tracing::debug!(reason, "a fabric is not available");
                missing.push(reason);
            }
        }
    }
    if !fabrics.is_empty() {
        return Ok((fabrics, None));
    }
    let message = missing.join("; ");
    if options.require_fabric {
        return Err(ClientError::Fabric { message });
    }
    Ok((fabrics, Some(message)))
}

/// Whether each fabric can work on this host, best first.
pub(crate) fn diagnose(options: &ConnectOptions) -> Vec<Diagnosis> {
    vec![diagnose_verbs(options), diagnose_ucx(options)]
}

#[cfg(feature = "ucx")]
fn ucx(options: &ConnectOptions) -> thallus_fabric_ucx::UcxOptions {
    thallus_fabric_ucx::UcxOptions {
        transports: options.ucx_tls.clone(),
        net_devices: options.ucx_net_devices.clone(),
        busy_poll: options.busy_poll,
        ..Default::default()
    }
}

#[cfg(feature = "ucx")]
fn diagnose_ucx(options: &ConnectOptions) -> Diagnosis {
    thallus_fabric_ucx::diagnose(ucx(options))
}

#[cfg(not(feature = "ucx"))]
fn diagnose_ucx(options: &ConnectOptions) -> Diagnosis {
    not_built(FabricKind::UCX, open_ucx(options))
}

#[cfg(feature = "ucx")]
fn open_ucx(options: &ConnectOptions) -> Result<Arc<dyn Fabric>, String> {
    use thallus_fabric_ucx::UcxFabric;
    UcxFabric::new(ucx(options)).map(|fabric| Arc::new(fabric) as Arc<dyn Fabric>).map_err(|error| error.to_string())
}

#[cfg(not(feature = "ucx"))]
fn open_ucx(_options: &ConnectOptions) -> Result<Arc<dyn Fabric>, String> {
    Err("this client was built without UCX (feature `ucx`)".into())
}

#[cfg(feature = "verbs")]
fn verbs(options: &ConnectOptions) -> thallus_fabric_verbs::VerbsOptions {
    thallus_fabric_verbs::VerbsOptions {
        device: options.verbs_device.clone(),
        port: options.verbs_port,
        gid: options.verbs_gid,
        busy_poll: options.busy_poll,
        ..Default::default()
    }
}

#[cfg(feature = "verbs")]
fn diagnose_verbs(options: &ConnectOptions) -> Diagnosis {
    thallus_fabric_verbs::diagnose(verbs(options))
}

#[cfg(not(feature = "verbs"))]
fn diagnose_verbs(options: &ConnectOptions) -> Diagnosis {
    not_built(FabricKind::VERBS, open_verbs(options))
}

#[cfg(feature = "verbs")]
fn open_verbs(options: &ConnectOptions) -> Result<Arc<dyn Fabric>, String> {
    use thallus_fabric_verbs::VerbsFabric;
    VerbsFabric::new(verbs(options))
        .map(|fabric| Arc::new(fabric) as Arc<dyn Fabric>)
        .map_err(|error| error.to_string())
}

#[cfg(not(feature = "verbs"))]
fn open_verbs(_options: &ConnectOptions) -> Result<Arc<dyn Fabric>, String> {
    Err("this client was built without verbs (feature `verbs`)".into())
}

#[cfg(not(all(feature = "ucx", feature = "verbs")))]
fn not_built(fabric: FabricKind, opened: Result<Arc<dyn Fabric>, String>) -> Diagnosis {
    let verdict = opened.map(|_| String::new());
    Diagnosis { fabric, verdict, findings: Vec::new() }
}
