//! The fabrics of this build, opened as configured. Only this module knows them by name.

use std::sync::Arc;

use thallus_fabric::Fabric;
use thallus_fabric::diagnosis::{self, Finding};
use thiserror::Error;
use tracing::{info, warn};

use crate::config::{FabricChoice, FabricConfig};
use crate::server::Fabrics;

/// The fabric that the configuration requires does not work on this host.
#[derive(Debug, Error)]
#[error("{0}")]
pub struct FabricUnavailable(String);

type Opened = Result<Arc<dyn Fabric>, String>;
type Open = fn(&FabricConfig) -> Opened;
type Diagnose = fn(&FabricConfig) -> Vec<Finding>;

/// Logs the limits of this process and host that are too low for `bytes_on_loan`.
pub fn log_limits(bytes_on_loan: u64) {
    log(&diagnosis::host_limits(bytes_on_loan));
}

fn log(findings: &[Finding]) {
    for Finding { subject, state, advice } in findings {
        match advice {
            Some(advice) => info!(subject, state, advice, "needs attention"),
            None => tracing::debug!(subject, state),
        }
    }
}

/// The fabrics that work on this host. If none does, logs the reason as a warning.
///
/// # Errors
/// [`FabricUnavailable`] if the configuration requires one fabric and it does not work.
pub fn open(config: &FabricConfig) -> Result<Fabrics, FabricUnavailable> {
    // With the usual limit of 1024, UCX would have no descriptors for the 80th connection.
    match thallus_fabric::raise_descriptor_limit() {
        Ok(limit) => tracing::debug!(limit, "file descriptors"),
        Err(error) => warn!(%error, "the limit of open files cannot be raised"),
    }
    let candidates: &[(Open, Diagnose)] = match config.kind {
        FabricChoice::None => {
            return Ok(Fabrics { reason: "the server was started with --fabric none".into(), ..Fabrics::default() });
        }
        FabricChoice::Auto => &[(open_verbs, diagnose_verbs), (open_shm, diagnose_shm), (open_ucx, diagnose_ucx)],
        FabricChoice::Shm => &[(open_shm, diagnose_shm)],
        FabricChoice::Ucx => &[(open_ucx, diagnose_ucx)],
        FabricChoice::Verbs => &[(open_verbs, diagnose_verbs)],
    };
    let (mut available, mut missing) = (Vec::new(), Vec::new());
    for (open, diagnose) in candidates {
        match open(config) {
            Ok(fabric) => {
                info!(fabric = %fabric.kind(), "fabric");
                available.push(fabric);
            }
            Err(reason) => {
                info!(reason, "a fabric is not available");
                log(&diagnose(config));
                missing.push(reason);
            }
        }
    }
    if !available.is_empty() {
        return Ok(Fabrics { available, ..Fabrics::default() });
    }
    let reason = missing.join("; ");
    if config.kind != FabricChoice::Auto {
        return Err(FabricUnavailable(reason));
    }
    warn!(reason, "no fabric: all results will travel inline over TCP");
    Ok(Fabrics { reason: format!("the server has no fabric: {reason}"), ..Fabrics::default() })
}

#[cfg(target_os = "linux")]
fn shm(config: &FabricConfig) -> thallus_fabric_shm::ShmOptions {
    use thallus_fabric_shm::{Audience, ShmOptions};
    let mut options = ShmOptions::default();
    options.directory.clone_from(&config.shm.directory);
    options.audience = if config.shm.share_heap { Audience::Everyone } else { Audience::SameUser };
    options
}

#[cfg(target_os = "linux")]
fn diagnose_shm(config: &FabricConfig) -> Vec<Finding> {
    thallus_fabric_shm::diagnose(shm(config)).findings
}

#[cfg(target_os = "linux")]
fn open_shm(config: &FabricConfig) -> Opened {
    let opened = thallus_fabric_shm::ShmFabric::new(shm(config));
    opened.map(|fabric| Arc::new(fabric) as Arc<dyn Fabric>).map_err(|error| error.to_string())
}

#[cfg(not(target_os = "linux"))]
fn diagnose_shm(_config: &FabricConfig) -> Vec<Finding> {
    Vec::new()
}

#[cfg(not(target_os = "linux"))]
fn open_shm(_config: &FabricConfig) -> Opened {
    Err("the fabric shm needs Linux".into())
}

#[cfg(feature = "ucx")]
fn ucx(config: &FabricConfig) -> thallus_fabric_ucx::UcxOptions {
    let joined = |names: &[String]| (!names.is_empty()).then(|| names.join(","));
    thallus_fabric_ucx::UcxOptions {
        library: config.ucx.library.clone(),
        transports: joined(&config.ucx.transports),
        net_devices: joined(&config.ucx.net_devices),
        busy_poll: config.ucx.busy_poll,
        ..Default::default()
    }
}

#[cfg(feature = "ucx")]
fn diagnose_ucx(config: &FabricConfig) -> Vec<Finding> {
    thallus_fabric_ucx::diagnose(ucx(config)).findings
}

#[cfg(not(feature = "ucx"))]
fn diagnose_ucx(_config: &FabricConfig) -> Vec<Finding> {
    Vec::new()
}

#[cfg(feature = "ucx")]
fn open_ucx(config: &FabricConfig) -> Opened {
    let opened = thallus_fabric_ucx::UcxFabric::new(ucx(config));
    opened.map(|fabric| Arc::new(fabric) as Arc<dyn Fabric>).map_err(|error| error.to_string())
}

#[cfg(not(feature = "ucx"))]
fn open_ucx(_config: &FabricConfig) -> Opened {
    Err("this server was built without UCX (feature `ucx`)".into())
}

#[cfg(feature = "verbs")]
fn verbs(config: &FabricConfig) -> thallus_fabric_verbs::VerbsOptions {
    use thallus_fabric_verbs::{Exposure, VerbsOptions};

    use crate::config::ExposureChoice;
    let verbs = &config.verbs;
    let exposure = match verbs.exposure {
        ExposureChoice::Auto => Exposure::Auto,
        ExposureChoice::Windows => Exposure::Windows,
        ExposureChoice::Registrations => Exposure::Registrations,
        ExposureChoice::Whole => Exposure::Whole,
    };
    VerbsOptions {
        device: verbs.device.clone(),
        port: verbs.port,
        gid: verbs.gid,
        exposure,
        busy_poll: verbs.busy_poll,
    }
}

#[cfg(feature = "verbs")]
fn diagnose_verbs(config: &FabricConfig) -> Vec<Finding> {
    thallus_fabric_verbs::diagnose(verbs(config)).findings
}

#[cfg(not(feature = "verbs"))]
fn diagnose_verbs(_config: &FabricConfig) -> Vec<Finding> {
    Vec::new()
}

#[cfg(feature = "verbs")]
fn open_verbs(config: &FabricConfig) -> Opened {
    use thallus_fabric_verbs::{Exposure, VerbsFabric};
    let options = verbs(config);
    let exposure = options.exposure;
    let fabric = VerbsFabric::new(options).map_err(|error| error.to_string())?;
    if exposure == Exposure::Whole {
        warn!(verbs = fabric.describe(), "clients can read all memory from which the server lends");
    } else {
        info!(verbs = fabric.describe());
    }
    Ok(Arc::new(fabric))
}

#[cfg(not(feature = "verbs"))]
fn open_verbs(_config: &FabricConfig) -> Opened {
    Err("this server was built without verbs (feature `verbs`)".into())
}
