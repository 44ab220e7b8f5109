//! The fabrics of this build, opened as the options request. Only this module knows them by name.

use std::sync::{Arc, Mutex, PoisonError, Weak};

use thallus_fabric::Fabric;
use thallus_fabric::diagnosis::Diagnosis;
use thallus_protocol::FabricKind;

use crate::error::ClientError;
use crate::options::{ConnectOptions, FabricPreference};

type Opened = (Vec<Arc<dyn Fabric>>, Option<String>);
type Open = fn(&ConnectOptions) -> Result<Arc<dyn Fabric>, String>;

/// The fabrics that the options request, best first; or the reason why there are none.
pub(crate) fn open(options: &ConnectOptions) -> Result<Opened, ClientError> {
    let candidates: &[(FabricKind, Open)] = match options.fabric {
        FabricPreference::None => return Ok((Vec::new(), None)),
        // Shared memory is the fastest on one host. With an RDMA device, verbs check every access and cost the lender
        // nothing; UCX finds the other paths.
        FabricPreference::Auto => {
            &[(FabricKind::SHM, open_shm), (FabricKind::VERBS, open_verbs), (FabricKind::UCX, open_ucx)]
        }
        FabricPreference::Shm => &[(FabricKind::SHM, open_shm)],
        FabricPreference::Ucx => &[(FabricKind::UCX, open_ucx)],
        FabricPreference::Verbs => &[(FabricKind::VERBS, open_verbs)],
    };
    let (mut fabrics, mut missing) = (Vec::new(), Vec::new());
    for (kind, open) in candidates {
        match shared(kind, *open, options) {
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

/// The fabric for a server on this host alone, if the options leave the choice. Opening and connecting the others takes
/// milliseconds.
pub(crate) fn open_local(options: &ConnectOptions) -> Option<Arc<dyn Fabric>> {
    let chooses = options.fabric == FabricPreference::Auto;
    let opened = chooses.then(|| shared(&FabricKind::SHM, open_shm, options))?;
    opened.inspect_err(|reason| tracing::debug!(reason, "a fabric is not available")).ok()
}

/// The options that a fabric was opened with.
#[derive(PartialEq)]
struct Key {
    kind: FabricKind,
    busy_poll: bool,
    copy_threads: Option<u8>,
    ucx: [Option<String>; 2],
    verbs: (Option<String>, Option<u8>, Option<u8>),
}

/// The open fabrics of this process. Connections with the same options share one fabric and its registered memory.
static OPEN: Mutex<Vec<(Key, Weak<dyn Fabric>)>> = Mutex::new(Vec::new());

fn shared(kind: &FabricKind, open: Open, options: &ConnectOptions) -> Result<Arc<dyn Fabric>, String> {
    let key = Key {
        kind: kind.clone(),
        busy_poll: options.busy_poll,
        copy_threads: options.copy_threads,
        ucx: [options.ucx_tls.clone(), options.ucx_net_devices.clone()],
        verbs: (options.verbs_device.clone(), options.verbs_port, options.verbs_gid),
    };
    let mut known = OPEN.lock().unwrap_or_else(PoisonError::into_inner);
    known.retain(|(_, fabric)| fabric.strong_count() > 0);
    if let Some(fabric) = known.iter().filter(|(other, _)| *other == key).find_map(|(_, fabric)| fabric.upgrade()) {
        return Ok(fabric);
    }
    let fabric = open(options)?;
    known.push((key, Arc::downgrade(&fabric)));
    Ok(fabric)
}

/// Whether each fabric works on this host, best first; if not, the reason and the remedy. The function considers the
/// options for devices and transports, and connects to no server.
#[must_use]
pub fn diagnose(options: &ConnectOptions) -> Vec<Diagnosis> {
    vec![diagnose_shm(options), diagnose_verbs(options), diagnose_ucx(options)]
}

#[cfg(target_os = "linux")]
fn shm(options: &ConnectOptions) -> thallus_fabric_shm::ShmOptions {
    let mut shm = thallus_fabric_shm::ShmOptions::default();
    shm.copy_threads = options.copy_threads.map_or(shm.copy_threads, usize::from);
    shm
}

#[cfg(target_os = "linux")]
fn diagnose_shm(options: &ConnectOptions) -> Diagnosis {
    thallus_fabric_shm::diagnose(shm(options))
}

#[cfg(target_os = "linux")]
fn open_shm(options: &ConnectOptions) -> Result<Arc<dyn Fabric>, String> {
    let opened = thallus_fabric_shm::ShmFabric::new(shm(options));
    opened.map(|fabric| Arc::new(fabric) as Arc<dyn Fabric>).map_err(|error| error.to_string())
}

#[cfg(not(target_os = "linux"))]
fn diagnose_shm(options: &ConnectOptions) -> Diagnosis {
    let verdict = open_shm(options).map(|_| String::new());
    Diagnosis { fabric: FabricKind::SHM, verdict, findings: Vec::new() }
}

#[cfg(not(target_os = "linux"))]
fn open_shm(_options: &ConnectOptions) -> Result<Arc<dyn Fabric>, String> {
    Err("the fabric shm needs Linux".into())
}

#[cfg(feature = "ucx")]
fn ucx(options: &ConnectOptions) -> thallus_fabric_ucx::UcxOptions {
    let defaults = thallus_fabric_ucx::UcxOptions::default();
    thallus_fabric_ucx::UcxOptions {
        transports: options.ucx_tls.clone(),
        net_devices: options.ucx_net_devices.clone(),
        busy_poll: options.busy_poll,
        copy_threads: options.copy_threads.map_or(defaults.copy_threads, usize::from),
        ..defaults
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

#[cfg(all(test, feature = "ucx"))]
mod tests {
    use thallus_fabric::memory::PoolLimits;

    use super::*;
    use thallus_driver::Pools;

    #[test]
    fn connections_share_a_fabric_and_its_memory_as_long_as_there_are_any() {
        let options = ConnectOptions::new("h").with_fabric(FabricPreference::Ucx);
        let one = || open(&options).unwrap().0.remove(0);
        let (first, second) = (one(), one());
        assert!(Arc::ptr_eq(&first, &second));
        let other = open(&options.clone().with_ucx_tls(Some("posix,self".into()))).unwrap().0.remove(0);
        assert!(!Arc::ptr_eq(&first, &other), "other options need another fabric");

        let limits = PoolLimits::default();
        let pools = [&first, &second, &other].map(|fabric| Pools::over(fabric, limits));
        drop(pools[0].batches.take(100_000).unwrap());
        assert_eq!(pools.each_ref().map(|pools| pools.batches.stats().registrations), [1, 1, 0]);
        let less = Pools::over(&first, PoolLimits { keep_bytes: 0, ..limits });
        assert_eq!(less.batches.stats().registrations, 0, "other limits need another pool");

        let weak = Arc::downgrade(&first);
        drop((first, second, pools, less));
        assert!(weak.upgrade().is_none(), "a fabric without connections must be dropped");
    }
}
