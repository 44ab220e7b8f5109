//! Diagnosis of UCX on this host.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Duration;

use thallus_fabric::diagnosis::{Diagnosis, Finding};
use thallus_fabric::process::files_in_use;
use thallus_protocol::FabricKind;

use crate::rehearse::{Rehearsal, rehearse};
use crate::{UcxFabric, UcxOptions};

/// Opens UCX, and reads between two endpoints of its own, over shared memory and over RDMA, where they exist.
///
/// Blocks, usually for some hundred milliseconds.
#[must_use]
pub fn diagnose(options: UcxOptions) -> Diagnosis {
    let fabric = match UcxFabric::new(options.clone()) {
        Ok(fabric) => fabric,
        Err(error) => {
            return Diagnosis { fabric: FabricKind::UCX, verdict: Err(error.to_string()), findings: Vec::new() };
        }
    };
    let description = fabric.describe();
    let mut findings = vec![
        Finding::good("UCX", format!("{} ({})", description.version, description.library)),
        Finding::good("UCX transports", description.transports.join(", ")),
    ];
    // Between processes of one host UCX prefers shared memory, so RDMA is tried separately.
    let is_chosen = options.transports.is_some() || std::env::var_os("UCX_TLS").is_some();
    let device = (fabric.domains.rdma && !is_chosen)
        .then(|| UcxFabric::new(UcxOptions { transports: Some(RDMA_ALONE.to_owned()), ..options }));
    let results = [Some(rehearse(&fabric)), device.map(|fabric| rehearse(&fabric.map_err(|error| error.to_string())?))];
    for result in results.iter().flatten() {
        findings.push(match result {
            Ok(rehearsal) if rehearsal.one_sided => Finding::good("UCX reads", rehearsal.to_string()),
            Ok(rehearsal) => {
                Finding::bad("UCX reads", rehearsal.to_string(), "results travel inline instead, which is faster")
            }
            Err(reason) => {
                Finding::bad("UCX reads", reason, "`ucx_info -d` lists the transports; UCX_LOG_LEVEL=info says more")
            }
        });
    }
    let verdict = verdict(&results.into_iter().flatten().collect::<Vec<_>>(), fabric.domains.rdma);
    findings.extend(abandoned(Path::new("/dev/shm"), A_WHILE));
    Diagnosis { fabric: FabricKind::UCX, verdict, findings }
}

/// All transports of RDMA devices (`UCX_TLS`).
const RDMA_ALONE: &str = "ib,self";

/// The verdict from the results of the reads, on a host with or without an RDMA device.
fn verdict(results: &[Result<Rehearsal, String>], has_device: bool) -> Result<String, String> {
    let texts = |one_sided| {
        let of = results.iter().flatten().filter(move |rehearsal| rehearsal.one_sided == one_sided);
        of.map(ToString::to_string).collect::<Vec<_>>().join("; ")
    };
    let good = texts(true);
    if !good.is_empty() {
        let between_hosts =
            if has_device { "" } else { "; UCX has no RDMA device here, so between hosts results travel inline" };
        return Ok(format!("reads are {good}{between_hosts}"));
    }
    let failed: Vec<_> = results.iter().filter_map(|result| result.as_ref().err().cloned()).collect();
    let reason = if failed.is_empty() { format!("reads are {}", texts(false)) } else { failed.join("; ") };
    Err(format!(
        "UCX has no one-sided reads here: {reason}; look at UCX_TLS, at UCX_NET_DEVICES, and whether UCX's InfiniBand \
         module is installed (`ucx_info -d`)"
    ))
}

/// More time than any process needs between naming a segment and using it.
const A_WHILE: Duration = Duration::from_secs(60);

/// This user's POSIX segments of UCX that are at least this old and that no process has open. UCX gives a segment a
/// name, writes all of it, and removes the name (1.13 `uct_posix_mem_alloc`). If the process is killed between these
/// steps, segment and name remain.
fn abandoned(directory: &Path, age: Duration) -> Option<Finding> {
    // The list of open files of another user's processes is not readable for this process.
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
                "left by processes that were killed as they started; remove them if no container shares the directory: \
                 rm {}",
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
        assert_eq!(found(60), None, "it is new, and may be about to be used");
        let open = fs::File::open(&path).unwrap();
        assert_eq!(found(0), None, "it is in use");
        drop(open);
        let finding = found(0).unwrap();
        assert!(finding.state.starts_with("2 KiB in 1 of"), "{finding:?}");
        assert!(finding.advice.unwrap().ends_with(&format!("rm {}", path.display())));
    }

    #[test]
    fn the_verdict_says_what_carries_reads() {
        let of = |transport: &str, one_sided| Ok(Rehearsal { transport: transport.into(), one_sided, rate: 9.125e9 });
        let error = verdict(&[of("tcp/lo", false)], false).unwrap_err();
        assert!(error.contains("emulated by tcp/lo, 9.12 GB/s") && error.contains("UCX_TLS"), "{error}");
        assert!(verdict(&[Err("broken".into())], false).unwrap_err().contains("broken"));
        let local = verdict(&[of("sysv/memory", true)], false).unwrap();
        assert!(local.contains("one-sided by sysv/memory") && local.contains("no RDMA device"), "{local}");
        let both = verdict(&[of("sysv/memory", true), of("rc_mlx5/mlx5_0:1", true)], true).unwrap();
        assert!(both.contains("by rc_mlx5/mlx5_0:1") && !both.contains("no RDMA device"), "{both}");
    }
}
