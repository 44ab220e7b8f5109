use std::cell::Cell;
use std::collections::VecDeque;
use std::sync::atomic::AtomicUsize;

use proptest::prelude::*;

use super::super::test_fabric::TestFabric;
use super::super::{PAGE, PoolLimits};
use super::*;

/// A cache over the given fabric.
fn over(fabric: TestFabric, policy: CachePolicy) -> RegistrationCache {
    let fabric: Arc<dyn Fabric> = Arc::new(fabric);
    RegistrationCache::new(Arc::clone(&fabric), StagingArena::new(fabric, PoolLimits::default()), policy)
}

/// A cache, and the number of bytes that its fabric has registered.
fn cache(policy: CachePolicy) -> (RegistrationCache, Arc<AtomicUsize>) {
    let fabric = TestFabric::default();
    let registered = Arc::clone(&fabric.registered);
    (over(fabric, policy), registered)
}

fn policy(pages: usize, max_entries: usize) -> CachePolicy {
    CachePolicy { max_bytes: pages * PAGE, max_entries, clock: None }
}

fn page() -> Buffer {
    Buffer::from(vec![7_u8; PAGE])
}

fn lend(cache: &RegistrationCache, buffer: &Buffer) -> Arc<RegisteredMemory> {
    cache.register(buffer).unwrap().unwrap()
}

#[test]
fn a_buffer_that_is_lent_again_is_registered_once() {
    let (cache, registered) = cache(policy(8, 8));
    let table = page();
    let first = lend(&cache, &table);
    assert_eq!((first.address(), first.len()), (table.as_ptr() as u64, PAGE));
    drop(first);
    for _ in 0..10 {
        drop(lend(&cache, &table));
    }
    // A part of the buffer has a registration of its own: no more is exposed than is lent.
    let part = table.slice_with_length(64, 1024);
    assert_eq!(lend(&cache, &part).len(), 1024);
    let stats = CacheStats { bytes: PAGE + 1024, idle_bytes: PAGE + 1024, entries: 2, hits: 10, misses: 2, copies: 0 };
    assert_eq!((cache.stats(), registered.load(Ordering::SeqCst)), (stats, PAGE + 1024));
    drop(cache);
    assert_eq!(registered.load(Ordering::SeqCst), 0);
}

/// Other buffers are lent again meanwhile, and loans are held until some later loans were made.
#[test]
fn entries_without_another_holder_are_dropped() {
    for hits in 0..4 {
        let (cache, registered) = cache(policy(10_000, 10_000));
        let tables: Vec<_> = (0..20).map(|_| page()).collect();
        drop(tables.iter().map(|table| lend(&cache, table)).collect::<Vec<_>>());
        let mut loans = VecDeque::new();
        for n in 0..1000 {
            // Computed, lent in two parts, and dropped.
            let result = page();
            let (one, other) = (result.slice_with_length(0, 2048), result.slice_with_length(2048, 2048));
            loans.push_back((lend(&cache, &one), lend(&cache, &other)));
            if loans.len() > 8 {
                loans.pop_front();
            }
            for hit in 0..hits {
                drop(lend(&cache, &tables[(n * hits + hit) % tables.len()]));
            }
            assert!(cache.stats().entries <= 100, "{hits} hits each, {n} results: {:?}", cache.stats());
        }
        drop(loans);
        cache.trim(Duration::from_secs(1000));
        assert_eq!((cache.stats().entries, registered.load(Ordering::SeqCst)), (20, 20 * PAGE), "the tables stay");
        drop(tables);
        assert_eq!(cache.trim(Duration::from_secs(1000)), 20 * PAGE);
        assert_eq!(registered.load(Ordering::SeqCst), 0);
    }
}

#[test]
fn the_longest_unused_entry_is_dropped_and_entries_on_loan_are_kept() {
    let (cache, registered) = cache(policy(3, 3));
    let tables: Vec<_> = (0..5).map(|_| page()).collect();
    let on_loan = lend(&cache, &tables[0]);
    for table in &tables[1..3] {
        drop(lend(&cache, table));
    }
    drop(lend(&cache, &tables[1]));
    drop(lend(&cache, &tables[3]));
    let misses = cache.stats().misses;
    for is_there in [0, 1, 3] {
        drop(lend(&cache, &tables[is_there]));
    }
    assert_eq!(cache.stats().misses, misses, "the third buffer was the longest unused");
    let all: Vec<_> = tables.iter().map(|table| lend(&cache, table)).collect();
    assert_eq!((cache.stats().entries, all.len()), (3, 5), "registrations above the limit last as long as their loans");
    assert_eq!(registered.load(Ordering::SeqCst), 5 * PAGE);
    assert_eq!(cache.stats().idle_bytes, 0);
    drop((all, on_loan));
    assert_eq!(cache.stats().idle_bytes, 3 * PAGE);
    assert_eq!(registered.load(Ordering::SeqCst), 3 * PAGE);
    let long = Buffer::from(vec![0_u8; 4 * PAGE]);
    drop(lend(&cache, &long));
    assert_eq!(cache.stats().entries, 3, "a buffer above the limit drops no entry");
    assert_eq!(registered.load(Ordering::SeqCst), 3 * PAGE);
}

#[test]
fn idle_registrations_are_dropped() {
    let (cache, registered) = cache(policy(8, 8));
    let tables = [page(), page(), page()];
    let on_loan = lend(&cache, &tables[0]);
    drop(tables[1..].iter().map(|table| lend(&cache, table)).collect::<Vec<_>>());
    assert_eq!(cache.trim(Duration::from_secs(1000)), 0);
    assert_eq!(cache.trim(Duration::ZERO), 2 * PAGE);
    assert_eq!(registered.load(Ordering::SeqCst), PAGE, "on loan");
    drop(on_loan);
    assert_eq!(cache.trim(Duration::ZERO), PAGE);
}

thread_local! {
    static CALLS: Cell<u32> = const { Cell::new(0) };
}

/// A clock by which a registration takes five times as long as a copy, independent of the length. It is read before and
/// after each of them in turn.
fn dear_registrations() -> Duration {
    let call = CALLS.replace(CALLS.get() + 1);
    let registrations = call.div_ceil(4);
    let copies = (call + 1) / 4;
    Duration::from_micros(50) * registrations + Duration::from_micros(10) * copies
}

#[test]
fn a_buffer_is_copied_until_copies_cost_as_much_as_a_registration() {
    let (cache, _) = cache(CachePolicy { clock: Some(dear_registrations), ..policy(8, 8) });
    let (table, other) = (page(), page());
    for copies in 1..5 {
        assert!(cache.register(&table).unwrap().is_none());
        assert_eq!(cache.stats().copies, copies);
    }
    assert!(cache.register(&other).unwrap().is_none());
    drop(lend(&cache, &table));
    drop(lend(&cache, &table));
    assert_eq!((cache.stats().misses, cache.stats().hits), (1, 1));
}

#[test]
fn copies_are_forgotten_after_two_trims() {
    let (cache, _) = cache(CachePolicy { clock: Some(dear_registrations), ..policy(8, 8) });
    let (seldom, often) = (page(), page());
    for _ in 0..20 {
        assert!(cache.register(&seldom).unwrap().is_none());
        cache.trim(Duration::ZERO);
        cache.trim(Duration::ZERO);
    }
    // Three copies between two trims are four copies within two intervals.
    let copies = (0..10).take_while(|n| {
        if n % 3 == 2 {
            cache.trim(Duration::ZERO);
        }
        cache.register(&often).unwrap().is_none()
    });
    assert_eq!(copies.count(), 4);
}

#[test]
fn a_fabric_that_registers_no_foreign_memory_is_called_once() {
    let fabric = TestFabric { own_only: true, ..TestFabric::default() };
    let asked = Arc::clone(&fabric.asked);
    let cache = over(fabric, policy(8, 8));
    for _ in 0..3 {
        assert!(cache.register(&page()).unwrap().is_none());
    }
    assert_eq!((cache.stats(), asked.load(Ordering::SeqCst)), (CacheStats::default(), 1));
}

#[test]
fn memory_that_is_registered_per_loan_is_not_kept() {
    let cache = over(TestFabric { registers_when_exposed: true, ..TestFabric::default() }, policy(8, 8));
    let table = page();
    for misses in 1..4 {
        drop(lend(&cache, &table));
        assert_eq!(cache.stats(), CacheStats { misses, ..CacheStats::default() });
    }
}

#[test]
fn kept_registrations_are_dropped_when_the_device_is_full() {
    let fabric = TestFabric { room: Some(4 * PAGE), ..TestFabric::default() };
    let registered = Arc::clone(&fabric.registered);
    let cache = over(fabric, policy(1000, 1000));
    let tables: Vec<_> = (0..6).map(|_| page()).collect();
    let on_loan = lend(&cache, &tables[0]);
    for table in &tables[1..] {
        drop(lend(&cache, table));
    }
    assert!(registered.load(Ordering::SeqCst) <= 4 * PAGE);
    drop(lend(&cache, &tables[0]));
    assert_eq!(cache.stats().hits, 1, "a registration on loan is kept");
    let all: Vec<_> = tables[1..4].iter().map(|table| lend(&cache, table)).collect();
    assert!(matches!(cache.register(&tables[4]), Err(FabricError::Registration { .. })));
    drop((all, on_loan));
    // The caller needs memory for another purpose.
    let pages = cache.making_room(|| match registered.load(Ordering::SeqCst) {
        0 => Ok(()),
        len => Err(FabricError::OutOfMemory { len, available: 0, limit: len }),
    });
    assert_eq!(pages, Ok(()));
}

#[test]
fn many_threads_lend_the_same_buffers() {
    let (cache, registered) = cache(policy(6, 6));
    let tables: Vec<_> = (0..8).map(|_| page()).collect();
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let (cache, tables) = (&cache, &tables);
            scope.spawn(move || {
                for n in 0..2000 {
                    let table = &tables[(n * (thread + 1) + thread) % 8];
                    assert_eq!(lend(cache, table).address(), table.as_ptr() as u64);
                    if n % 100 == 0 {
                        cache.trim(Duration::ZERO);
                    }
                }
            });
        }
    });
    assert!(cache.lock().entries.is_consistent());
    assert!(cache.stats().bytes <= 6 * PAGE);
    cache.clear();
    assert_eq!(registered.load(Ordering::SeqCst), 0);
}

proptest! {
    /// Any order of loans, holds and drops stays within the limits. Each loan has its own bytes, and nothing is left at
    /// the end.
    #[test]
    fn any_use_stays_within_bounds(
        steps in prop::collection::vec((0_usize..12, 0_usize..4, any::<bool>()), 1..200),
        (pages, entries) in (1_usize..8, 1_usize..8),
    ) {
        let (cache, registered) = cache(policy(pages, entries));
        let mut tables: Vec<Buffer> = (0..12).map(|_| page()).collect();
        let mut loans: Vec<(Arc<RegisteredMemory>, Buffer)> = Vec::new();
        for (index, act, part) in steps {
            let table = &tables[index];
            let buffer = if part { table.slice_with_length(0, PAGE / 2) } else { table.clone() };
            match act {
                0 => tables[index] = page(),
                1 => drop((!loans.is_empty()).then(|| loans.swap_remove(index % loans.len()))),
                _ => {
                    let memory = lend(&cache, &buffer);
                    prop_assert_eq!((memory.address(), memory.len()), (buffer.as_ptr() as u64, buffer.len()));
                    loans.push((memory, buffer));
                }
            }
            let stats = cache.stats();
            prop_assert!(stats.bytes <= pages * PAGE && stats.entries <= entries);
            prop_assert!(cache.lock().entries.is_consistent());
            let on_loan: usize = loans.iter().map(|(memory, _)| memory.len()).sum();
            prop_assert!(registered.load(Ordering::SeqCst) <= stats.bytes + on_loan);
        }
        drop((loans, tables));
        cache.trim(Duration::from_secs(1000));
        prop_assert_eq!((cache.stats().entries, cache.stats().bytes), (0, 0));
        prop_assert_eq!(registered.load(Ordering::SeqCst), 0);
    }
}
