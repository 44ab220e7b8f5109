//! Tests of the pool, its slabs and the staging arena: by example, against a model, and from many threads.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use arrow_buffer::Buffer;
use proptest::prelude::*;

use super::test_fabric::TestFabric;
use super::{LocalRange, PAGE, PoolLimits, PoolStats, Slab, SlabPool, StagingArena, Trimmed};
use crate::{Fabric, FabricError};

const LIMITS: PoolLimits =
    PoolLimits { max_bytes: 64 * PAGE, first_chunk_bytes: 4 * PAGE, chunk_bytes: 16 * PAGE, keep_bytes: usize::MAX };

/// A pool, and the number of bytes that its fabric has registered.
fn pool(limits: PoolLimits) -> (SlabPool, Arc<AtomicUsize>) {
    let fabric = TestFabric::default();
    let registered = Arc::clone(&fabric.registered);
    (SlabPool::new(Arc::new(fabric), limits), registered)
}

/// Acts as a fabric: writes `byte` to the whole range.
fn read_into(range: &mut LocalRange, byte: u8) {
    let source = TestFabric::default().register(Buffer::from(vec![byte; range.len()])).unwrap();
    assert!(range.fill_from(&source, 0));
}

#[test]
fn a_slab_is_recycled_without_a_new_registration() {
    let (pool, registered) = pool(LIMITS);
    for _ in 0..100 {
        let slab = pool.take(3 * PAGE).unwrap();
        assert!(slab.memory().address().is_multiple_of(PAGE as u64));
        drop(slab);
    }
    let stats = pool.stats();
    let expected =
        PoolStats { bytes_total: 4 * PAGE, bytes_in_use: 0, high_water: 3 * PAGE, slabs_in_use: 0, registrations: 1 };
    assert_eq!(stats, expected);
    assert_eq!(registered.load(Ordering::SeqCst), 4 * PAGE);
}

#[test]
fn the_pool_grows_by_doubling() {
    let (pool, _) = pool(LIMITS);
    let slabs: Vec<_> = (0..32).map(|_| pool.take(PAGE).unwrap()).collect();
    // 4, then 4, 8, 16 pages: each chunk is as large as all before together.
    assert_eq!(pool.stats().bytes_total, 32 * PAGE);
    assert_eq!(pool.stats().registrations, 4);
    assert_eq!(slabs.len(), 32);
}

#[test]
fn unused_memory_is_kept_up_to_the_limit() {
    let (pool, registered) = pool(PoolLimits { keep_bytes: 8 * PAGE, ..LIMITS });
    let slabs: Vec<_> = (0..16).map(|_| pool.take(PAGE).unwrap()).collect();
    assert_eq!(pool.stats().bytes_total, 16 * PAGE, "4, 4 and 8 pages");
    drop(slabs);
    assert_eq!(registered.load(Ordering::SeqCst), 8 * PAGE, "the chunk that became idle last is freed");
    // The kept chunks serve the next slab, and a chunk with a single slab is freed when the slab returns.
    drop(pool.take(20 * PAGE).unwrap());
    assert_eq!((pool.stats().bytes_total, pool.stats().registrations), (8 * PAGE, 4));
    drop(pool.take(4 * PAGE).unwrap());
    assert_eq!((pool.stats().bytes_total, pool.stats().registrations), (8 * PAGE, 4));
}

#[test]
fn a_weak_handle_keeps_nothing() {
    let (pool, registered) = pool(LIMITS);
    let weak = pool.downgrade();
    let again = weak.upgrade().unwrap();
    drop((pool.take(PAGE).unwrap(), pool));
    assert_eq!(again.stats().registrations, 1, "it is the same pool");
    drop(again);
    assert!(weak.upgrade().is_none());
    assert_eq!(registered.load(Ordering::SeqCst), 0);
}

#[test]
fn bytes_are_hidden_while_a_range_is_alive() {
    let (pool, _) = pool(LIMITS);
    let mut slab = pool.take(100).unwrap();
    let mut range = slab.range(10, 20).unwrap();
    assert!(matches!(slab.copy_in(50, b"x"), Err(FabricError::Misuse(_))));
    let slab = slab.into_buffer().unwrap_err();
    read_into(&mut range, 7);
    drop(range);
    let buffer = slab.into_buffer().unwrap();
    assert_eq!(buffer.len(), 100);
    assert_eq!(&buffer[10..30], [7; 20]);
}

#[test]
fn read_bytes_are_edited_in_place() {
    let (pool, _) = pool(LIMITS);
    let mut slab = pool.take(3 * PAGE).unwrap();
    let mut range = slab.range(64, 3 * PAGE - 100).unwrap();
    read_into(&mut range, 7);
    assert!(matches!(slab.edit(64, 16, |_| panic!("it is being written")), Err(FabricError::Misuse(_))));
    drop(range);
    for (offset, len) in [(0, 3 * PAGE + 1), (3 * PAGE, 1), (usize::MAX, 1), (1, usize::MAX)] {
        let edited = slab.edit(offset, len, |_| panic!("it is outside the slab"));
        assert!(matches!(edited, Err(FabricError::Misuse(_))), "{offset}+{len}");
    }
    // Across pieces, and of a length that is no multiple of theirs.
    let (offset, len) = (128, 2 * PAGE + 80);
    let mut seen = 0;
    let edit = |piece: &mut [u8]| {
        assert!(piece.iter().all(|byte| *byte == 7));
        assert!(piece.len().is_multiple_of(16));
        seen += piece.len();
        piece.fill(9);
    };
    slab.edit(offset, len, edit).unwrap();
    assert_eq!(seen, len);
    let buffer = slab.into_buffer().unwrap();
    let (before, rest) = buffer[64..3 * PAGE - 36].split_at(offset - 64);
    let (edited, after) = rest.split_at(len);
    assert!(before.iter().chain(after).all(|byte| *byte == 7));
    assert!(edited.iter().all(|byte| *byte == 9));
}

#[test]
fn ranges_of_a_slab_do_not_overlap() {
    let (pool, _) = pool(LIMITS);
    let slab = pool.take(100).unwrap();
    let _first = slab.range(10, 20).unwrap();
    for (offset, len) in [(10, 20), (0, 11), (29, 1), (0, 100), (15, 2)] {
        assert!(matches!(slab.range(offset, len), Err(FabricError::Misuse(_))), "{offset}+{len}");
    }
    for (offset, len) in [(0, 101), (100, 1), (usize::MAX, 1), (1, usize::MAX)] {
        assert!(matches!(slab.range(offset, len), Err(FabricError::Misuse(_))), "{offset}+{len}");
    }
    let _touching = [slab.range(0, 10).unwrap(), slab.range(30, 70).unwrap()];
    let _empty = [slab.range(15, 0).unwrap(), slab.range(15, 0).unwrap(), slab.range(100, 0).unwrap()];
}

#[test]
fn a_dropped_slab_returns_only_with_its_last_range() {
    let (pool, _) = pool(LIMITS);
    let slab = pool.take(100).unwrap();
    let ranges = [slab.range(0, 50).unwrap(), slab.range(50, 50).unwrap(), slab.range(0, 0).unwrap()];
    drop(slab);
    for range in ranges {
        assert_eq!(pool.stats().slabs_in_use, 1);
        drop(range);
    }
    assert_eq!(pool.stats().slabs_in_use, 0);
}

#[test]
fn a_held_range_is_alive() {
    let (pool, _) = pool(LIMITS);
    let slab = pool.take(100).unwrap();
    let mut range = slab.range(0, 50).unwrap();
    let holds = [range.hold(), range.hold()];
    drop(range);
    let mut slab = Some(slab);
    for hold in holds {
        assert!(matches!(slab.as_ref().unwrap().range(0, 1), Err(FabricError::Misuse(_))));
        slab = slab.unwrap().into_buffer().err();
        drop(hold);
    }
    assert_eq!(slab.unwrap().into_buffer().unwrap().len(), 100);
}

#[test]
fn a_buffer_outlives_pool_and_fabric() {
    let (pool, registered) = pool(LIMITS);
    let mut slab = pool.take(PAGE).unwrap();
    let other = pool.take(16 * PAGE).unwrap();
    slab.copy_in(0, b"hello").unwrap();
    let buffer = slab.into_buffer().unwrap();
    drop(pool);
    drop(other);
    assert_eq!(registered.load(Ordering::SeqCst), 4 * PAGE, "only the chunk in use is left");
    let slice = buffer.slice_with_length(1, 3);
    drop(buffer);
    assert_eq!(&*slice, b"ell");
    drop(slice);
    assert_eq!(registered.load(Ordering::SeqCst), 0);
}

#[test]
fn the_limit_is_a_typed_error_and_holds() {
    let (pool, registered) = pool(LIMITS);
    let slabs: Vec<_> = std::iter::from_fn(|| pool.take(16 * PAGE).ok()).collect();
    assert_eq!(slabs.len(), 4);
    assert_eq!(pool.take(1).unwrap_err(), FabricError::OutOfMemory { len: 1, available: 0, limit: LIMITS.max_bytes });
    assert!(matches!(pool.take(usize::MAX), Err(FabricError::OutOfMemory { len: usize::MAX, .. })));
    assert_eq!(registered.load(Ordering::SeqCst), LIMITS.max_bytes);
    drop(slabs);
    pool.take(1).unwrap();
}

#[test]
fn idle_chunks_are_freed_for_a_large_slab() {
    let (pool, registered) = pool(LIMITS);
    let slabs: Vec<_> = (0..4).map(|_| pool.take(16 * PAGE).unwrap()).collect();
    let mut slabs = slabs.into_iter();
    let kept = slabs.next();
    drop(slabs);
    assert_eq!(
        pool.take(64 * PAGE).unwrap_err(),
        FabricError::OutOfMemory { len: 64 * PAGE, available: 48 * PAGE, limit: LIMITS.max_bytes }
    );
    let large = pool.take(48 * PAGE).unwrap();
    assert_eq!(pool.stats().bytes_total, 64 * PAGE);
    assert_eq!(registered.load(Ordering::SeqCst), 64 * PAGE);
    drop((large, kept));
    // The chunk is recycled, also for a slab that is slightly shorter.
    let before = pool.stats().registrations;
    drop(pool.take(40 * PAGE).unwrap());
    assert_eq!(pool.stats().registrations, before);
}

#[test]
fn the_rest_of_a_large_slabs_chunk_does_not_count_as_available() {
    let (pool, _) = pool(LIMITS);
    drop(pool.take(24 * PAGE).unwrap());
    // Recycles the chunk of 24 pages, of which 4 stay unused.
    let large = pool.take(20 * PAGE).unwrap();
    let small = [16, 16, 8].map(|pages| pool.take(pages * PAGE).unwrap());
    assert_eq!(pool.take(1).unwrap_err(), FabricError::OutOfMemory { len: 1, available: 0, limit: LIMITS.max_bytes });
    drop((large, small));
}

#[test]
fn trim_frees_idle_chunks() {
    let (pool, registered) = pool(LIMITS);
    let kept = pool.take(PAGE).unwrap();
    let other = pool.take(16 * PAGE).unwrap();
    let held_elsewhere = Arc::clone(pool.take(24 * PAGE).unwrap().memory());
    drop(other);
    assert_eq!(pool.trim(Duration::from_secs(3600)).freed, 0);
    assert_eq!(pool.trim(Duration::ZERO).freed, 16 * PAGE);
    assert_eq!(pool.stats().bytes_total, 28 * PAGE);
    drop(kept);
    // A chunk that others hold is wanted back, unless it is used again.
    let first = Trimmed { freed: 4 * PAGE, left: 24 * PAGE, held: true };
    assert_eq!((pool.trim(Duration::ZERO), held_elsewhere.is_wanted_back()), (first, true));
    drop(pool.take(24 * PAGE).unwrap());
    assert!(!held_elsewhere.is_wanted_back());
    drop(held_elsewhere);
    assert_eq!(pool.trim(Duration::ZERO).freed, 24 * PAGE);
    assert_eq!(registered.load(Ordering::SeqCst), 0);
    assert_eq!(pool.stats().registrations, 3);
}

#[test]
fn a_failing_fabric_leaves_the_pool_as_it_was() {
    let pool = SlabPool::new(Arc::new(TestFabric { fail: true, ..TestFabric::default() }), LIMITS);
    for _ in 0..100 {
        assert!(matches!(pool.take(16 * PAGE), Err(FabricError::Registration { .. })));
    }
    assert_eq!(pool.stats(), PoolStats::default());
}

#[test]
fn memory_with_other_users_is_refused() {
    let fabric = Arc::new(TestFabric { share_allocations: true, ..TestFabric::default() });
    let pool = SlabPool::new(fabric.clone(), LIMITS);
    let _slab = pool.take(4 * PAGE).unwrap();
    let before = pool.stats();
    assert!(matches!(pool.take(PAGE), Err(FabricError::Registration { .. })));
    assert_eq!(pool.stats(), before);
    assert!(matches!(SlabPool::new(fabric, LIMITS).take(PAGE), Err(FabricError::Registration { .. })));
}

#[test]
fn staged_pieces_share_a_slab_until_the_last_is_dropped() {
    let arena = StagingArena::new(Arc::new(TestFabric::default()), LIMITS);
    let pieces: [&[u8]; 4] = [b"abc", b"", &[9; 100], b"z"];
    let ranges = arena.stage(&pieces).unwrap();
    let target = SlabPool::new(Arc::new(TestFabric::default()), LIMITS);
    for (range, piece) in ranges.iter().zip(pieces) {
        assert!(range.address().is_multiple_of(64));
        let slab = target.take(range.len()).unwrap();
        assert!(slab.range(0, range.len()).unwrap().fill_from(range.memory(), range.offset()));
        assert_eq!(&*slab.into_buffer().unwrap(), piece);
    }
    assert_eq!(arena.stats().bytes_copied, 104);
    assert_eq!(arena.stats().pool.slabs_in_use, 1);
    for range in ranges {
        assert_eq!(arena.stats().pool.slabs_in_use, 1);
        drop(range);
    }
    assert_eq!(arena.stats().pool.slabs_in_use, 0);
    assert!(arena.stage(&[]).unwrap().is_empty());
    assert!(matches!(arena.stage(&[&[0; 65 * PAGE]]), Err(FabricError::OutOfMemory { .. })));
}

#[test]
fn bytes_of_an_earlier_loan_are_cleared_between_staged_pieces() {
    let arena = StagingArena::new(Arc::new(TestFabric::default()), LIMITS);
    drop(arena.stage(&[&[0xFF; 256]]).unwrap());
    let ranges = arena.stage(&[b"abc", b"z"]).unwrap();
    assert_eq!(ranges[1].offset() - ranges[0].offset(), 64);
    let slab = SlabPool::new(Arc::new(TestFabric::default()), LIMITS).take(128).unwrap();
    assert!(slab.range(0, 128).unwrap().fill_from(ranges[0].memory(), ranges[0].offset()));
    let bytes = slab.into_buffer().unwrap();
    assert_eq!((&bytes[..3], &bytes[64..65]), (&b"abc"[..], &b"z"[..]));
    assert!(bytes[3..64].iter().chain(&bytes[65..]).all(|&byte| byte == 0), "{bytes:?}");
}

#[test]
fn many_threads_never_share_a_byte() {
    const ROUNDS: usize = if cfg!(miri) { 10 } else { 300 };
    let (pool, registered) = pool(PoolLimits { max_bytes: 256 * PAGE, ..LIMITS });
    std::thread::scope(|scope| {
        for thread in 0..4_u8 {
            let pool = pool.clone();
            scope.spawn(move || {
                let mut held = std::collections::VecDeque::new();
                for round in 0..ROUNDS {
                    let len = 1 + (round * 977 + usize::from(thread) * 131) % (6 * PAGE);
                    let slab = pool.take(len).unwrap();
                    let mut range = slab.range(0, len).unwrap();
                    // As in a driver: the read completes on another thread than the one that posted it.
                    std::thread::scope(|inner| {
                        inner.spawn(move || read_into(&mut range, thread));
                    });
                    let Ok(buffer) = slab.into_buffer() else { panic!("the range was dropped") };
                    held.push_back(buffer);
                    if held.len() > 5 {
                        let oldest: Buffer = held.pop_front().unwrap();
                        assert!(oldest.iter().all(|&byte| byte == thread), "a slab was shared");
                    }
                }
            });
        }
    });
    assert_eq!(pool.stats().slabs_in_use, 0);
    drop(pool);
    assert_eq!(registered.load(Ordering::SeqCst), 0);
}

/// A step of the model test. Numbers choose an element, modulo the number of elements.
#[derive(Clone, Debug)]
enum Step {
    Take(usize),
    Range(usize, usize, usize),
    DropRange(usize),
    DropSlab(usize),
    IntoBuffer(usize),
    Slice(usize, usize),
    DropBuffer(usize),
    Trim,
}

fn step() -> impl Strategy<Value = Step> {
    let any = 0..1000_usize;
    prop_oneof![
        4 => (0..24 * PAGE).prop_map(Step::Take),
        4 => (any.clone(), 0..4 * PAGE, 0..2 * PAGE).prop_map(|(slab, offset, len)| Step::Range(slab, offset, len)),
        3 => any.clone().prop_map(Step::DropRange),
        1 => any.clone().prop_map(Step::DropSlab),
        3 => any.clone().prop_map(Step::IntoBuffer),
        2 => (any.clone(), any.clone()).prop_map(|(buffer, offset)| Step::Slice(buffer, offset)),
        3 => any.prop_map(Step::DropBuffer),
        1 => Just(Step::Trim),
    ]
}

/// The model's record of a slab: its id, and the ranges that were read into it.
struct Live {
    slab: Slab,
    id: usize,
    written: Vec<(usize, usize, u8)>,
}

#[derive(Default)]
struct Model {
    slabs: Vec<Live>,
    /// With the id of their slab.
    ranges: Vec<(usize, usize, LocalRange)>,
    /// With the bytes that they must contain.
    buffers: Vec<(Buffer, Vec<u8>)>,
    next_id: usize,
}

impl Model {
    fn step(&mut self, pool: &SlabPool, step: Step) {
        match step {
            Step::Take(len) => match pool.take(len) {
                Ok(slab) => {
                    assert_eq!(slab.len(), len);
                    self.slabs.push(Live { slab, id: self.next_id, written: Vec::new() });
                    self.next_id += 1;
                }
                Err(FabricError::OutOfMemory { len: asked, available, limit }) => {
                    assert_eq!((asked, limit), (len, LIMITS.max_bytes));
                    assert!(available < len.next_multiple_of(PAGE) + len / 4, "{len} refused with {available} left");
                }
                Err(error) => panic!("{error}"),
            },
            Step::Range(..) | Step::DropSlab(_) | Step::IntoBuffer(_) if self.slabs.is_empty() => {}
            Step::Range(slab, offset, len) => {
                let count = self.slabs.len();
                let live = &mut self.slabs[slab % count];
                let end = offset + len;
                let clashes = |range: &(usize, usize, LocalRange)| {
                    let (start, other_end) = (range.1, range.1 + range.2.len());
                    range.0 == live.id && start < end && offset < other_end && len > 0 && !range.2.is_empty()
                };
                let expected = end <= live.slab.len() && !self.ranges.iter().any(clashes);
                match live.slab.range(offset, len) {
                    Ok(mut range) => {
                        assert!(expected, "{offset}+{len} was granted");
                        let byte = (self.next_id + offset) as u8;
                        read_into(&mut range, byte);
                        live.written.push((offset, end, byte));
                        self.ranges.push((live.id, offset, range));
                    }
                    Err(error) => assert!(!expected, "{offset}+{len}: {error}"),
                }
            }
            Step::DropSlab(slab) => drop(self.slabs.swap_remove(slab % self.slabs.len())),
            Step::IntoBuffer(slab) => {
                let live = self.slabs.swap_remove(slab % self.slabs.len());
                let outstanding = self.ranges.iter().any(|(id, ..)| *id == live.id);
                match live.slab.into_buffer() {
                    Ok(buffer) => {
                        assert!(!outstanding, "a buffer was made under a read");
                        let mut expected = buffer.to_vec();
                        for (start, end, byte) in live.written {
                            expected[start..end].fill(byte);
                        }
                        self.buffers.push((buffer, expected));
                    }
                    Err(slab) => {
                        assert!(outstanding, "no buffer was made though no read was outstanding");
                        self.slabs.push(Live { slab, ..live });
                    }
                }
            }
            Step::DropRange(_) if self.ranges.is_empty() => {}
            Step::DropRange(range) => drop(self.ranges.swap_remove(range % self.ranges.len())),
            Step::Slice(..) | Step::DropBuffer(_) if self.buffers.is_empty() => {}
            Step::Slice(buffer, offset) => {
                let (buffer, expected) = &self.buffers[buffer % self.buffers.len()];
                let offset = offset.min(buffer.len());
                self.buffers.push((buffer.slice(offset), expected[offset..].to_vec()));
            }
            Step::DropBuffer(buffer) => drop(self.buffers.swap_remove(buffer % self.buffers.len())),
            Step::Trim => _ = pool.trim(Duration::ZERO),
        }
    }

    fn check(&self, pool: &SlabPool, registered: &AtomicUsize) {
        let stats = pool.stats();
        assert!(stats.bytes_in_use <= stats.bytes_total && stats.bytes_total <= LIMITS.max_bytes, "{stats:?}");
        assert_eq!(stats.bytes_total, registered.load(Ordering::SeqCst));
        let mut extents: Vec<_> = self
            .slabs
            .iter()
            .map(|live| (live.slab.memory().address() as usize + live.slab.offset(), live.slab.len()))
            .collect();
        extents.sort_unstable();
        assert!(extents.windows(2).all(|pair| pair[0].0 + pair[0].1 <= pair[1].0), "slabs overlap: {extents:x?}");
        // If it had been recycled under a live buffer, the bytes of the buffer would have changed.
        for (buffer, expected) in &self.buffers {
            assert_eq!(buffer.as_slice(), expected);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: if cfg!(miri) { 3 } else { 200 },
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn the_pool_agrees_with_its_model(steps in prop::collection::vec(step(), 1..60), pool_first: bool) {
        let (pool, registered) = pool(LIMITS);
        let mut model = Model::default();
        for step in steps {
            model.step(&pool, step);
            model.check(&pool, &registered);
        }
        if pool_first {
            drop(pool);
            drop(model);
        } else {
            drop(model);
            prop_assert_eq!(pool.stats().bytes_in_use, 0);
            prop_assert_eq!(pool.stats().slabs_in_use, 0);
            drop(pool);
        }
        prop_assert_eq!(registered.load(Ordering::SeqCst), 0);
    }
}
