//! Cases of memory that a fabric allocates or registers.

use std::sync::Arc;

use arrow_buffer::Buffer;
use thallus_protocol::{FabricKind, RegionId};

use super::bench::{Bench, pattern};
use crate::memory::{FilePiece, PAGE, Pages, PoolLimits, RegisteredMemory, SlabPool};
use crate::{Capabilities, Endpoint, Fabric, FabricError, Touch};

const REGION: RegionId = RegionId(7);

/// With either [`Touch`], memory consists of whole pages that no other allocation shares, is writable, and is claimed
/// once.
pub fn allocated_memory_is_whole_pages_of_its_own(bench: &Bench) {
    let mut ranges = Vec::new();
    let mut kept = Vec::new();
    for fabric in [&bench.lender, &bench.borrower] {
        for (touch, len) in [Touch::Now, Touch::WhenUsed]
            .into_iter()
            .flat_map(|touch| [1, PAGE, PAGE + 1, 1 << 20].map(|len| (touch, len)))
        {
            let memory = fabric.allocate(len, touch);
            let memory = memory.unwrap_or_else(|error| panic!("{}: {touch:?} {len}: {error}", bench.name()));
            let (start, whole) = (memory.address() as usize, memory.len());
            assert!(start.is_multiple_of(PAGE), "{}: {touch:?} {len}: {start:#x}", bench.name());
            assert!(whole >= len && whole.is_multiple_of(PAGE), "{}: {touch:?} {len}: {whole}", bench.name());
            assert!(memory.is_writable(), "{}: {touch:?} {len}", bench.name());
            assert_eq!([memory.claim(), memory.claim()], [true, false], "{}: {touch:?} {len}", bench.name());
            let content = memory.copy_out(0, whole).expect("all of it");
            assert!(touch == Touch::WhenUsed || content.iter().all(|&byte| byte == 0), "{}: {len}", bench.name());
            ranges.push((start, start + whole));
            kept.push(memory);
        }
    }
    ranges.sort_unstable();
    assert!(ranges.is_sorted_by(|one, next| one.1 <= next.0), "{}: allocations overlap: {ranges:x?}", bench.name());
}

/// A fabric whose pools use memory that is touched when it is used.
#[derive(Debug)]
struct TouchedWhenUsed(Arc<dyn Fabric>);

#[deny(clippy::missing_trait_methods)]
impl Fabric for TouchedWhenUsed {
    fn kind(&self) -> FabricKind {
        self.0.kind()
    }

    fn capabilities(&self) -> Capabilities {
        self.0.capabilities()
    }

    fn allocate(&self, len: usize, _touch: Touch) -> Result<Arc<RegisteredMemory>, FabricError> {
        self.0.allocate(len, Touch::WhenUsed)
    }

    fn register(&self, buffer: Buffer) -> Result<Arc<RegisteredMemory>, FabricError> {
        self.0.register(buffer)
    }

    fn adopt(&self, piece: FilePiece) -> Result<Arc<RegisteredMemory>, FabricError> {
        self.0.adopt(piece)
    }

    fn endpoint(&self) -> Result<Box<dyn Endpoint>, FabricError> {
        self.0.endpoint()
    }
}

/// Pages that were not touched at registration can be read and read into.
pub fn memory_touched_when_used_is_lent_and_read_into(bench: &Bench) {
    let [lender, borrower] =
        [&bench.lender, &bench.borrower].map(|fabric| Arc::new(TouchedWhenUsed(Arc::clone(fabric))));
    let bench = Bench::new("memory_touched_when_used_is_lent_and_read_into", lender, borrower);
    bench.block_on(async {
        let content = pattern(41, (3 << 20) + 5);
        let lent = bench.lend(&content);
        let mut connection = bench.connect();
        connection.share(REGION, lent.memory());
        let bytes = connection.read(&bench, REGION, lent.address(), content.len()).await;
        assert!(bytes.is_ok_and(|bytes| bytes.as_slice() == content), "{}", bench.name());
        connection.close().await;
    });
}

/// A fabric whose [`Fabric::allocate`] returns memory of [`Fabric::register`]. It is wrong, and written in safe code.
#[derive(Debug)]
struct HandsOutForeignMemory(Arc<dyn Fabric>);

#[deny(clippy::missing_trait_methods)]
impl Fabric for HandsOutForeignMemory {
    fn kind(&self) -> FabricKind {
        self.0.kind()
    }

    fn capabilities(&self) -> Capabilities {
        self.0.capabilities()
    }

    fn allocate(&self, len: usize, _touch: Touch) -> Result<Arc<RegisteredMemory>, FabricError> {
        self.0.register(Pages::new(len).expect("memory").into_buffer())
    }

    fn register(&self, buffer: Buffer) -> Result<Arc<RegisteredMemory>, FabricError> {
        self.0.register(buffer)
    }

    fn adopt(&self, piece: FilePiece) -> Result<Arc<RegisteredMemory>, FabricError> {
        self.0.adopt(piece)
    }

    fn endpoint(&self) -> Result<Box<dyn Endpoint>, FabricError> {
        self.0.endpoint()
    }
}

/// An immutable buffer stays immutable: no read can target it, and no pool accepts it.
pub fn registered_memory_is_neither_writable_nor_claimable(bench: &Bench) {
    let Some(memory) = bench.register(Buffer::from_vec(pattern(42, 8192))) else { return };
    assert!(!memory.is_writable(), "{}", bench.name());
    assert!(!memory.claim(), "{}: an immutable buffer could be claimed for writing", bench.name());
    let limits = PoolLimits { max_bytes: 1 << 20, first_chunk_bytes: 1 << 16, ..PoolLimits::default() };
    let pool = SlabPool::new(Arc::new(HandsOutForeignMemory(Arc::clone(&bench.lender))), limits);
    let refused = pool.take(4096);
    assert!(matches!(refused, Err(FabricError::Registration { .. })), "{}: {refused:?}", bench.name());
    // An empty buffer has nothing to lend.
    let empty = bench.lender.register(Buffer::from(&[][..]));
    assert!(matches!(empty, Err(FabricError::Registration { .. })), "{}: {empty:?}", bench.name());
}
