//! A read between two endpoints of this process. It shows whether UCX reads one-sidedly here, and the rate of its
//! reads.
//!
//! Whether a read is one-sided is tested: once the connection is made, the lender's worker is not polled any more. A
//! read that completes meanwhile is one-sided; one that does not is emulated by messages.

use std::fmt;
use std::future::poll_fn;
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant};

use thallus_fabric::memory::copying;
use thallus_fabric::memory::{LocalRange, RegisteredMemory};
use thallus_fabric::{Completion, Endpoint, Fabric, FabricError, ReadToken, Touch};
use thallus_protocol::{RegionId, RemoteRange};
use tokio::time::timeout;

use crate::UcxFabric;
use crate::capabilities::{MAX_OUTSTANDING_READS, MAX_READ};

const REGION: RegionId = RegionId(1);
const REGION_BYTES: usize = 4 << 20;
/// Maximum time of a step: connecting, or one round of reads.
const STEP: Duration = Duration::from_secs(5);
/// Time that reads may take without the lender's progress before they count as emulated.
const ALONE: Duration = Duration::from_millis(250);
/// Duration of the rate measurement.
const MEASURED: Duration = Duration::from_millis(50);

/// The result of a rehearsal.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Rehearsal {
    /// The transport of the reads.
    pub(crate) transport: String,
    /// Whether they completed without the lender's progress.
    pub(crate) one_sided: bool,
    /// Bytes per second.
    pub(crate) rate: f64,
}

impl fmt::Display for Rehearsal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let how = if self.one_sided { "one-sided" } else { "emulated" };
        write!(f, "{how} by {}, {:.2} GB/s between two endpoints of this process", self.transport, self.rate / 1e9)
    }
}

/// Reads between two endpoints of `fabric`, with emulation too: both ends are in this process, so that neither dies
/// alone.
///
/// Blocks, usually for milliseconds, at most for a few [`STEP`]s.
///
/// # Errors
/// The failed step and the reason.
pub(crate) fn rehearse(fabric: &UcxFabric) -> Result<Rehearsal, String> {
    // On a thread of its own: the caller may be within a runtime, which must not be blocked.
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.map_err(|error| error.to_string())?.block_on(run(fabric))
        });
        thread.join().unwrap_or_else(|_| Err("the rehearsal panicked".to_owned()))
    })
}

async fn run(fabric: &UcxFabric) -> Result<Rehearsal, String> {
    let mut pair = Pair::connect(fabric).map_err(|error| error.to_string())?;
    let transport = pair.reader.transport().map(|transport| transport.name).unwrap_or_default();
    pair.read(&[(0, 8)], Help::Both, STEP).await.map_err(|reason| format!("the first read: {reason}"))?;
    // Short enough for UCX to read them itself, even where this crate copies longer ones.
    let short: Vec<_> = (0..8).map(|at| (at << 16, copying::SHORTEST as usize / 2)).collect();
    let alone = pair.read(&short, Help::Reader, ALONE).await;
    let one_sided = alone.is_ok();
    let help = if one_sided { Help::Reader } else { Help::Both };
    if !one_sided {
        pair.read(&[], Help::Both, STEP).await.map_err(|reason| format!("reads with the lender's help: {reason}"))?;
    }
    let piece = MAX_READ as usize;
    let all: Vec<_> = (0..REGION_BYTES / piece).map(|at| (at * piece, piece)).collect();
    let (mut bytes, began) = (0, Instant::now());
    while began.elapsed() < MEASURED {
        pair.read(&all, help, STEP).await.map_err(|reason| format!("reads of {REGION_BYTES} bytes: {reason}"))?;
        bytes += REGION_BYTES;
    }
    pair.check()?;
    Ok(Rehearsal { transport, one_sided, rate: bytes as f64 / began.elapsed().as_secs_f64() })
}

/// The ends whose workers make progress while reads are outstanding.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Help {
    Reader,
    Both,
}

struct Pair {
    lender: Box<dyn Endpoint>,
    reader: Box<dyn Endpoint>,
    lent: Arc<RegisteredMemory>,
    into: Arc<RegisteredMemory>,
    next: u64,
    outstanding: usize,
}

impl Pair {
    fn connect(fabric: &UcxFabric) -> Result<Self, FabricError> {
        let (mut lender, mut reader) = (fabric.emulating_endpoint()?, fabric.emulating_endpoint()?);
        lender.connect(&reader.address())?;
        reader.connect(&lender.address())?;
        let (lent, into) = (fabric.allocate(REGION_BYTES, Touch::Now)?, fabric.allocate(REGION_BYTES, Touch::Now)?);
        for at in (0..REGION_BYTES).step_by(8) {
            // SAFETY: within fresh memory that no code reads yet; pages are aligned.
            unsafe { lent.start().add(at).cast::<u64>().write(pattern(at)) };
        }
        let key = lender.expose(&lent, 0..lent.len())?;
        reader.import(REGION, lent.address(), REGION_BYTES as u64, &key)?;
        Ok(Pair { lender, reader, lent, into, next: 0, outstanding: 0 })
    }

    /// Posts reads of `ranges` (offset and length) and waits for all outstanding reads.
    async fn read(&mut self, ranges: &[(usize, usize)], help: Help, bound: Duration) -> Result<(), String> {
        debug_assert!(ranges.len() <= MAX_OUTSTANDING_READS);
        for &(offset, len) in ranges {
            let from = RemoteRange { region: REGION, address: self.lent.address() + offset as u64, len: len as u64 };
            // SAFETY: ranges of one call do not overlap, and the memory is accessed only after the reads.
            let into = unsafe { LocalRange::new(self.into.clone(), offset, len, None) };
            self.reader.post_read(ReadToken(self.next), from, into).map_err(|error| error.to_string())?;
            self.next += 1;
            self.outstanding += 1;
        }
        let mut completions = Vec::new();
        let done = poll_fn(|cx| {
            while self.outstanding > 0 {
                let lender = match help {
                    Help::Both => self.lender.poll(cx, &mut Vec::new()),
                    Help::Reader => Poll::Pending,
                };
                let reader = self.reader.poll(cx, &mut completions);
                for Completion { result, .. } in completions.drain(..) {
                    self.outstanding -= 1;
                    if let Err(failure) = result {
                        return Poll::Ready(Err(failure.to_string()));
                    }
                }
                match (lender, reader) {
                    (Poll::Pending, Poll::Pending) => return Poll::Pending,
                    (Poll::Ready(Err(error)), _) | (_, Poll::Ready(Err(error))) => {
                        return Poll::Ready(Err(error.to_string()));
                    }
                    _ => {}
                }
            }
            Poll::Ready(Ok(()))
        });
        timeout(bound, done).await.map_err(|_| format!("not done within {bound:?}"))?
    }

    /// Checks that every byte is the lender's.
    fn check(&self) -> Result<(), String> {
        let read = self.into.copy_out(0, REGION_BYTES).unwrap_or_default();
        let wrong = read.chunks_exact(8).enumerate().find(|(at, word)| **word != pattern(at * 8).to_ne_bytes());
        wrong.map_or(Ok(()), |(at, _)| Err(format!("wrong bytes were read at {:#x}", at * 8)))
    }
}

fn pattern(at: usize) -> u64 {
    (at as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0x5448_414c_4c55_5321
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::UcxOptions;

    fn over(transports: Option<&str>) -> Rehearsal {
        let options = UcxOptions { transports: transports.map(Into::into), ..UcxOptions::default() };
        rehearse(&UcxFabric::new(options).unwrap()).unwrap()
    }

    #[test]
    fn shared_memory_needs_no_help_and_tcp_does() {
        let shared = over(None);
        assert!(shared.one_sided && shared.rate > 0.0, "{shared}");
        let tcp = over(Some("tcp"));
        assert!(!tcp.one_sided && tcp.rate > 0.0, "{tcp}");
        assert!(tcp.to_string().starts_with("emulated by "), "{tcp}");
    }
}
