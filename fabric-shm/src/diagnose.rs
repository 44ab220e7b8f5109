//! Whether the fabric works on this host, shown by real reads.

use std::future::poll_fn;
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant};

use thallus_fabric::diagnosis::{Diagnosis, Finding};
use thallus_fabric::memory::{PoolLimits, SlabPool, StagingArena};
use thallus_fabric::{Endpoint, Fabric, FabricKind, ReadToken, RegionId, RemoteRange};
use tokio::time::timeout;

use crate::{MAX_READ, ShmFabric, ShmOptions};

const REGION: RegionId = RegionId(1);
const REGION_BYTES: usize = 4 << 20;
/// Bound for one round of reads.
const ROUND: Duration = Duration::from_secs(5);
/// Duration of the measurement.
const MEASURED: Duration = Duration::from_millis(50);

/// Opens the fabric and reads between two endpoints of this process. Blocks for about 100 ms.
#[must_use]
pub fn diagnose(options: ShmOptions) -> Diagnosis {
    let mut findings = Vec::new();
    if let Some(directory) = &options.directory {
        findings.push(Finding::good("directory for sockets", directory.display().to_string()));
    }
    let verdict = ShmFabric::new(options).map_err(|error| error.to_string()).and_then(|fabric| rehearse(&fabric));
    Diagnosis { fabric: FabricKind::SHM, verdict, findings }
}

fn rehearse(fabric: &ShmFabric) -> Result<String, String> {
    // A separate thread: the caller may be within a runtime, which must not be blocked.
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.map_err(|error| error.to_string())?.block_on(read(fabric))
        });
        thread.join().unwrap_or_else(|_| Err("the test reads panicked".to_owned()))
    })
}

async fn read(fabric: &ShmFabric) -> Result<String, String> {
    let error = |error: thallus_fabric::FabricError| error.to_string();
    let content: Vec<u8> = (0..REGION_BYTES).map(|at| (at.wrapping_mul(0x9e37_79b9) >> 13) as u8).collect();
    let fabric: Arc<dyn Fabric> = Arc::new(fabric.clone());
    let (arena, pool) = (
        StagingArena::new(Arc::clone(&fabric), PoolLimits::default()),
        SlabPool::new(Arc::clone(&fabric), PoolLimits::default()),
    );
    let lent = arena.stage(&[&content]).map_err(error)?;
    let lent = lent.first().ok_or("no memory was lent")?;
    let (mut lender, mut reader) = (fabric.endpoint().map_err(error)?, fabric.endpoint().map_err(error)?);
    lender.connect(&reader.address()).map_err(error)?;
    reader.connect(&lender.address()).map_err(error)?;
    let memory = lent.memory();
    let key = lender.expose(memory, 0..memory.len()).map_err(error)?;
    reader.import(REGION, memory.address(), memory.len() as u64, &key).map_err(error)?;

    let (mut bytes, began) = (0, Instant::now());
    loop {
        let slab = pool.take(REGION_BYTES).map_err(error)?;
        let piece = MAX_READ as usize;
        for offset in (0..REGION_BYTES).step_by(piece) {
            let from = RemoteRange { region: REGION, address: lent.address() + offset as u64, len: MAX_READ };
            let into = slab.range(offset, piece).map_err(error)?;
            reader.post_read(ReadToken(offset as u64), from, into).map_err(error)?;
        }
        let round = complete(&mut *lender, &mut *reader, REGION_BYTES / piece);
        timeout(ROUND, round).await.map_err(|_| format!("reads did not complete within {ROUND:?}"))??;
        let read = slab.into_buffer().map_err(|_| "the fabric kept the memory of completed reads")?;
        if read.as_slice() != content {
            return Err("wrong bytes were read".to_owned());
        }
        bytes += REGION_BYTES;
        if began.elapsed() >= MEASURED {
            break;
        }
    }
    let rate = bytes as f64 / began.elapsed().as_secs_f64() / 1e9;
    Ok(format!("reads are one-sided by memfd, {rate:.2} GB/s between two endpoints of this process"))
}

/// Polls both ends until this number of reads has completed.
async fn complete(lender: &mut dyn Endpoint, reader: &mut dyn Endpoint, count: usize) -> Result<(), String> {
    let (mut completions, mut ignored) = (Vec::new(), Vec::new());
    poll_fn(|cx| {
        while completions.len() < count {
            let polled = [lender.poll(cx, &mut ignored), reader.poll(cx, &mut completions)];
            if let Some(Poll::Ready(Err(error))) = polled.iter().find(|polled| matches!(polled, Poll::Ready(Err(_)))) {
                return Poll::Ready(Err(error.to_string()));
            }
            if polled.iter().all(Poll::is_pending) {
                return Poll::Pending;
            }
        }
        Poll::Ready(Ok(()))
    })
    .await?;
    let failed = completions.iter().find_map(|completion| completion.result.as_ref().err());
    failed.map_or(Ok(()), |failure| Err(failure.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_host_reads_through_shared_memory() {
        let directory = tempfile::tempdir().unwrap();
        let options = ShmOptions { directory: Some(directory.path().to_owned()), ..ShmOptions::default() };
        let diagnosis = diagnose(options);
        assert!(diagnosis.verdict.clone().unwrap().contains("memfd"), "{diagnosis:?}");
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0, "a socket is left");
        let missing = ShmOptions { directory: Some("/does/not/exist".into()), ..ShmOptions::default() };
        assert!(diagnose(missing).verdict.unwrap_err().contains("/does/not/exist"));
    }
}
