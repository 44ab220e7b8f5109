//! The tools of the cases: two connected endpoints, memory with known content, and a driver for both endpoints.

use std::future::poll_fn;
use std::ops::Range;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use arrow_buffer::Buffer;
use bytes::Bytes;
use thallus_protocol::random::SplitMix64;
use thallus_protocol::{RegionId, RemoteRange};

use crate::memory::{LocalRange, PoolLimits, RegisteredMemory, Slab, SlabPool, StagedRange, StagingArena};
use crate::{Completion, Endpoint, Fabric, FabricError, ReadFailure, ReadToken};

/// Maximum time for anything that a case waits for.
pub const DEADLINE: Duration = Duration::from_secs(10);

/// The two hosts of a case, and its name.
#[derive(Debug)]
pub struct Bench {
    case: &'static str,
    /// The host that lends.
    pub lender: Arc<dyn Fabric>,
    /// The host that reads.
    pub borrower: Arc<dyn Fabric>,
    /// The borrower's slabs.
    pub pool: SlabPool,
    arena: StagingArena,
}

/// One end of a connection, and its completions so far.
#[derive(Debug)]
pub struct Side {
    /// The endpoint.
    pub endpoint: Box<dyn Endpoint>,
    /// Every completion polled so far, in order.
    pub done: Vec<Completion>,
    /// The error with which the endpoint failed as a whole.
    pub failed: Option<FabricError>,
    /// Number of polls.
    pub polls: usize,
}

/// Two connected endpoints.
#[derive(Debug)]
pub struct Connection {
    /// Name of the case and the fabric, for messages.
    pub name: String,
    /// The end that lends.
    pub lender: Side,
    /// The end that reads.
    pub borrower: Side,
}

/// Polls every side until `until` returns true, or [`DEADLINE`] has passed. Returns whether `until` returned true.
///
/// A side that failed as a whole is not polled again unless it is closing.
pub async fn drive(sides: &mut [&mut Side], mut until: impl FnMut(&mut [&mut Side]) -> bool) -> bool {
    let driven = poll_fn(|cx| {
        loop {
            if until(sides) {
                return Poll::Ready(());
            }
            let mut any = false;
            for side in sides.iter_mut().filter(|side| side.failed.is_none()) {
                side.polls += 1;
                match side.endpoint.poll(cx, &mut side.done) {
                    Poll::Ready(Ok(())) => any = true,
                    Poll::Ready(Err(error)) => {
                        side.failed = Some(error);
                        any = true;
                    }
                    Poll::Pending => {}
                }
            }
            if !any {
                // A poll without a result may still have changed the state that `until` checks.
                return if until(sides) { Poll::Ready(()) } else { Poll::Pending };
            }
        }
    });
    tokio::time::timeout(DEADLINE, driven).await.is_ok()
}

/// Content of a region: random bytes that depend on the seed.
pub(super) fn pattern(seed: u8, len: usize) -> Vec<u8> {
    let mut random = SplitMix64::new(u64::from(seed));
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        bytes.extend_from_slice(&random.next_u64().to_le_bytes());
    }
    bytes.truncate(len);
    bytes
}

impl Side {
    pub(super) fn new(endpoint: Box<dyn Endpoint>) -> Self {
        Side { endpoint, done: Vec::new(), failed: None, polls: 0 }
    }

    /// Begins the teardown. From now on the side is polled again, even if it failed.
    pub fn close(&mut self) {
        self.endpoint.close();
        self.failed = None;
    }

    /// The result of the read with this token, if it has ended. Panics if it ended twice.
    #[must_use]
    pub fn result(&self, token: u64) -> Option<&Result<(), ReadFailure>> {
        let mut ends = self.done.iter().filter(|completion| completion.token == ReadToken(token));
        let first = ends.next();
        assert!(ends.next().is_none(), "read {token} completed twice: {:?}", self.done);
        first.map(|completion| &completion.result)
    }
}

impl Bench {
    /// A bench for the case of this name. The two hosts may be the same.
    #[must_use]
    pub fn new(case: &'static str, lender: Arc<dyn Fabric>, borrower: Arc<dyn Fabric>) -> Self {
        let limits = PoolLimits {
            max_bytes: 256 << 20,
            first_chunk_bytes: 1 << 20,
            chunk_bytes: 16 << 20,
            ..PoolLimits::default()
        };
        let pool = SlabPool::new(Arc::clone(&borrower), limits);
        let arena = StagingArena::new(Arc::clone(&lender), limits);
        Bench { case, lender, borrower, pool, arena }
    }

    /// Name of the case and the fabric, for messages.
    #[must_use]
    pub fn name(&self) -> String {
        format!("case {} on fabric {}", self.case, self.lender.kind())
    }

    /// Runs a case's future to completion, in a runtime of its own.
    pub(super) fn block_on<T>(&self, case: impl Future<Output = T>) -> T {
        runtime().block_on(case)
    }

    /// Two connected endpoints. Must be called within a runtime.
    #[must_use]
    pub fn connect(&self) -> Connection {
        let name = self.name();
        let endpoint = |fabric: &Arc<dyn Fabric>| {
            Side::new(fabric.endpoint().unwrap_or_else(|error| panic!("{name}: no endpoint: {error}")))
        };
        let (mut lender, mut borrower) = (endpoint(&self.lender), endpoint(&self.borrower));
        let (lender_address, borrower_address) = (lender.endpoint.address(), borrower.endpoint.address());
        lender.endpoint.connect(&borrower_address).unwrap_or_else(|error| panic!("{name}: lender: {error}"));
        borrower.endpoint.connect(&lender_address).unwrap_or_else(|error| panic!("{name}: borrower: {error}"));
        Connection { name, lender, borrower }
    }

    /// Memory of the lender with the given content.
    #[must_use]
    pub fn lend(&self, content: &[u8]) -> StagedRange {
        let mut ranges = self.arena.stage(&[content]).unwrap_or_else(|error| panic!("{}: {error}", self.name()));
        ranges.remove(0)
    }

    /// Takes a slab from the borrower's pool.
    #[must_use]
    pub fn slab(&self, len: usize) -> Slab {
        self.pool.take(len).unwrap_or_else(|error| panic!("{}: {error}", self.name()))
    }

    /// Foreign memory that the lender registers; `None` where the fabric cannot register such memory.
    pub(super) fn register(&self, buffer: Buffer) -> Option<Arc<RegisteredMemory>> {
        match self.lender.register(buffer) {
            Ok(memory) => Some(memory),
            Err(FabricError::Unsupported { .. }) => None,
            Err(error) => panic!("{}: registering: {error}", self.name()),
        }
    }
}

/// A runtime with the features that a fabric may expect.
pub(super) fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime can be made")
}

impl Connection {
    /// Exposes all of `memory` at the lender and imports it at the borrower.
    pub fn share(&mut self, region: RegionId, memory: &Arc<RegisteredMemory>) {
        self.share_range(region, memory, 0..memory.len());
    }

    /// Exposes `range` of `memory` at the lender and imports exactly this range at the borrower. Returns the key.
    pub(super) fn share_range(
        &mut self,
        region: RegionId,
        memory: &Arc<RegisteredMemory>,
        range: Range<usize>,
    ) -> Bytes {
        let name = &self.name;
        let (base, len) = (memory.address() + range.start as u64, range.len() as u64);
        let key = self.lender.endpoint.expose(memory, range);
        let key = key.unwrap_or_else(|error| panic!("{name}: exposing {len} bytes: {error}"));
        let imported = self.borrower.endpoint.import(region, base, len, &key);
        imported.unwrap_or_else(|error| panic!("{name}: importing {len} bytes: {error}"));
        key
    }

    /// Posts a read at the borrower.
    pub fn post(&mut self, token: u64, region: RegionId, address: u64, into: LocalRange) -> Result<(), FabricError> {
        let from = RemoteRange { region, address, len: into.len() as u64 };
        self.borrower.endpoint.post_read(ReadToken(token), from, into)
    }

    /// Polls both sides until these reads have ended. Returns the result of each read.
    pub async fn finish(&mut self, tokens: impl IntoIterator<Item = u64>) -> Vec<Result<(), ReadFailure>> {
        let tokens: Vec<u64> = tokens.into_iter().collect();
        let all = |sides: &mut [&mut Side]| tokens.iter().all(|&token| sides[1].result(token).is_some());
        let in_time = drive(&mut [&mut self.lender, &mut self.borrower], all).await;
        assert!(in_time, "{}: reads {tokens:?} did not end in {DEADLINE:?}: {:?}", self.name, self.borrower);
        tokens.iter().filter_map(|&token| self.borrower.result(token).cloned()).collect()
    }

    /// Reads `len` bytes at `address` through `region`, in pieces of the fabric's maximum read length. Returns the
    /// bytes, or the failure.
    pub async fn read(
        &mut self,
        bench: &Bench,
        region: RegionId,
        address: u64,
        len: usize,
    ) -> Result<Buffer, ReadFailure> {
        let first = 1_000_000 + self.borrower.done.len() as u64;
        let slab = bench.slab(len);
        let longest = usize::try_from(bench.borrower.capabilities().max_read).unwrap_or(usize::MAX).min(len);
        let mut next = first;
        for offset in (0..len).step_by(longest.max(1)) {
            let range = slab.range(offset, longest.min(len - offset)).expect("within its slab");
            if let Err(error) = self.post(next, region, address + offset as u64, range) {
                panic!("{}: posting a piece of a read of {len} bytes: {error}", self.name);
            }
            next += 1;
        }
        self.finish(first..next).await.into_iter().collect::<Result<Vec<()>, _>>()?;
        let name = &self.name;
        Ok(slab.into_buffer().unwrap_or_else(|_| panic!("{name}: the fabric kept the range of a completed read")))
    }

    /// Closes both ends and drives them until they are closed.
    pub async fn close(mut self) {
        self.borrower.close();
        self.lender.close();
        let closed = |sides: &mut [&mut Side]| sides.iter().all(|side| side.endpoint.is_closed());
        let in_time = drive(&mut [&mut self.lender, &mut self.borrower], closed).await;
        assert!(in_time, "{}: the teardown took longer than {DEADLINE:?}: {:?}", self.name, self);
    }
}
