//! The fabrics that this build has, opened as the options ask. The only place that knows them by name.

use std::sync::Arc;

use thallus_fabric::Fabric;

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

#[cfg(feature = "ucx")]
fn open_ucx(options: &ConnectOptions) -> Result<Arc<dyn Fabric>, String> {
    use thallus_fabric_ucx::{UcxFabric, UcxOptions};
    let ucx = UcxOptions {
        transports: options.ucx_tls.clone(),
        net_devices: options.ucx_net_devices.clone(),
        busy_poll: options.busy_poll,
        ..UcxOptions::default()
    };
    UcxFabric::new(ucx).map(|fabric| Arc::new(fabric) as Arc<dyn Fabric>).map_err(|error| error.to_string())
}

#[cfg(not(feature = "ucx"))]
fn open_ucx(_options: &ConnectOptions) -> Result<Arc<dyn Fabric>, String> {
    Err("this client was built without UCX (feature `ucx`)".into())
}

#[cfg(feature = "verbs")]
fn open_verbs(options: &ConnectOptions) -> Result<Arc<dyn Fabric>, String> {
    use thallus_fabric_verbs::{VerbsFabric, VerbsOptions};
    let verbs = VerbsOptions {
        device: options.verbs_device.clone(),
        port: options.verbs_port,
        gid: options.verbs_gid,
        busy_poll: options.busy_poll,
        ..VerbsOptions::default()
    };
    VerbsFabric::new(verbs).map(|fabric| Arc::new(fabric) as Arc<dyn Fabric>).map_err(|error| error.to_string())
}

#[cfg(not(feature = "verbs"))]
fn open_verbs(_options: &ConnectOptions) -> Result<Arc<dyn Fabric>, String> {
    Err("this client was built without verbs (feature `verbs`)".into())
}
