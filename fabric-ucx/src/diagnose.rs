//! What UCX has on this host, and what is missing.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Duration;

use thallus_fabric::diagnosis::{Diagnosis, Finding};
use thallus_fabric::process::files_in_use;
use thallus_protocol::FabricKind;

use crate::{UcxFabric, UcxOptions};

/// Opens UCX, and looks at its transports.
#[must_use]
pub fn diagnose(options: UcxOptions) -> Diagnosis {
    let (verdict, findings) = match UcxFabric::new(options) {
        Ok(fabric) => {
            let description = fabric.describe();
            let mut findings = vec![
                Finding::good("UCX", &description.version),
                Finding::good("UCX transports", description.transports.join(", ")),
            ];
            findings.extend(abandoned(Path::new("/dev/shm"), A_WHILE));
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

/// No process needs so long from naming a segment to using it.
const A_WHILE: Duration = Duration::from_secs(60);

/// This user's POSIX segments of UCX that are so old and that no process has open. UCX gives a segment a name, writes all of it, and takes the
/// name back (1.13 `uct_posix_mem_alloc`): of a process that is killed between, segment and name stay.
fn abandoned(directory: &Path, age: Duration) -> Option<Finding> {
    // Who has another user's files open is not for everybody to see.
    let own = fs::metadata("/proc/self").ok()?.uid();
    let mut found: Vec<_> = fs::read_dir(directory)
        .ok()?
        .filter_map(|entry| {
            let entry = entry.ok()?;
            let metadata = entry.metadata().ok()?;
            let is_old = metadata.modified().ok()?.elapsed().ok()? >= age;
            let is_ucx = entry.file_name().to_string_lossy().starts_with("ucx_shm_posix_");
            let is_judged = is_ucx && is_old && (metadata.uid() == own || own == 0);
            is_judged.then(|| (entry.path().to_string_lossy().into_owned(), metadata.len()))
        })
        .collect();
    if found.is_empty() {
        return None;
    }
    let used = files_in_use();
    found.retain(|(path, _)| !used.split_whitespace().any(|file| file == path));
    let bytes: u64 = found.iter().map(|(_, len)| len).sum();
    (!found.is_empty()).then(|| {
        Finding::bad(
            "abandoned memory",
            format!("{} KiB in {} of UCX's segments in {}", bytes >> 10, found.len(), directory.display()),
            format!(
                "left by processes that were killed as they started; remove them if no container shares the directory: rm {}",
                found.iter().map(|(path, _)| path.as_str()).collect::<Vec<_>>().join(" ")
            ),
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_killed_processes_left_is_found_and_nothing_else() {
        let directory = tempfile::tempdir().unwrap();
        let make = |name: &str| {
            let path = directory.path().join(name);
            fs::write(&path, [0; 2048]).unwrap();
            path
        };
        let found = |age| abandoned(directory.path(), Duration::from_secs(age));
        make("somebody_elses");
        assert_eq!(found(0), None);
        let path = make("ucx_shm_posix_1f");
        assert_eq!(found(60), None, "it may be about to be used");
        let open = fs::File::open(&path).unwrap();
        assert_eq!(found(0), None, "it is in use");
        drop(open);
        let finding = found(0).unwrap();
        assert!(finding.state.starts_with("2 KiB in 1 of"), "{finding:?}");
        assert!(finding.advice.unwrap().ends_with(&format!("rm {}", path.display())));
    }

    #[test]
    fn what_transports_are_good_for() {
        let of = |names: &[&str]| verdict(&names.iter().map(ToString::to_string).collect::<Vec<_>>());
        assert!(of(&["tcp/eth0", "self/memory"]).unwrap_err().contains("only TCP"));
        assert!(of(&["tcp/eth0", "posix/memory"]).unwrap().contains("this host only, by posix/memory"));
        assert_eq!(of(&["posix/memory", "rc_mlx5/mlx5_0:1"]).unwrap(), "between hosts by rc_mlx5/mlx5_0:1");
    }
}
