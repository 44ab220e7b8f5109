//! A heap in memory files: it goes back to the system by itself, and what a peer has mapped stays as it was. There is
//! one test, since a process has one heap.
#![allow(missing_docs, clippy::unwrap_used)]

use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use thallus_fabric::memory::{HeapMemory, RegisteredHeap, RegisteredSpace, TrustedPeer};
use thallus_fabric::{Buffer, Endpoint, Fabric, RegionId, RemoteRange};
use thallus_fabric_shm::{ShmFabric, ShmOptions};

#[global_allocator]
static HEAP: RegisteredHeap = RegisteredHeap::new();

const MIB: usize = 1 << 20;
const SEGMENT: usize = 32 * MIB;

/// Bytes of this process that lie in memory.
fn resident() -> usize {
    let pages = std::fs::read_to_string("/proc/self/statm").unwrap();
    pages.split(' ').nth(1).unwrap().parse::<usize>().unwrap() * 4096
}

/// Memory files of this process.
fn files() -> usize {
    let files = std::fs::read_dir("/proc/self/fd").unwrap().flatten();
    files.filter(|file| std::fs::read_link(file.path()).is_ok_and(|to| to.starts_with("/memfd:thallus"))).count()
}

/// Trims until `done` or for some seconds. Returns whether it was done.
fn trimmed(memory: &HeapMemory, done: impl Fn() -> bool) -> bool {
    let began = Instant::now();
    while began.elapsed() < Duration::from_secs(20) {
        memory.trim(Duration::from_millis(100));
        if done() {
            return true;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    false
}

fn poll(endpoint: &mut dyn Endpoint) {
    let mut cx = Context::from_waker(Waker::noop());
    for _ in 0..8 {
        if let Poll::Ready(failed) = endpoint.poll(&mut cx, &mut Vec::new()) {
            failed.unwrap();
        }
    }
}

/// Vectors of several lengths that together have this many bytes, from several threads.
fn load(bytes: usize) -> Vec<Vec<u8>> {
    let threads: Vec<_> = (1..=4_u8)
        .map(|thread| {
            std::thread::spawn(move || {
                let mut left = bytes / 4;
                let lengths = [300_000, 70_000, 3 * MIB, 2000, MIB, 9 * MIB].into_iter().cycle();
                let all = lengths.map_while(|len| {
                    left = left.checked_sub(len)?;
                    Some(vec![thread; len])
                });
                all.collect::<Vec<_>>()
            })
        })
        .collect();
    threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
}

#[test]
fn a_heap_that_grew_gives_its_memory_back_and_a_peer_keeps_what_it_has_mapped() {
    let fabric: Arc<dyn Fabric> = Arc::new(ShmFabric::new(ShmOptions::default()).unwrap());
    let memory = RegisteredHeap::grow_in(Arc::clone(&fabric), 4096 * MIB).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let _within = runtime.enter();

    // No block of up to a segment lies in two.
    for len in [40_000, 5 * MIB, 31 * MIB, SEGMENT - MIB] {
        let block = vec![7_u8; len];
        let (region, offset) = memory.find(&block).unwrap();
        assert_eq!((region.address() as usize + offset, region.len()), (block.as_ptr().addr(), SEGMENT), "{len}");
    }
    // A longer one is copied before it is lent.
    assert!(memory.find(&vec![7_u8; SEGMENT + MIB]).is_none());

    // After each load, its memory goes back.
    drop(load(64 * MIB));
    assert!(trimmed(&memory, || memory.trim(Duration::ZERO).left == 0));
    let (before, files_before) = (resident(), files());
    for round in 0..3 {
        let blocks = load(700 * MIB);
        let grown = resident();
        assert!(grown > before + 600 * MIB && memory.stats().mapped > 600 * MIB, "round {round}: {memory:?}");
        for block in &blocks {
            assert!(block.len() < 64 << 10 || memory.find(block).is_some(), "round {round}");
        }
        memory.trim(Duration::ZERO);
        assert!(blocks.iter().all(|block| block.iter().all(|&byte| byte == block[0])), "a used segment went back");
        drop(blocks);
        let is_back = trimmed(&memory, || resident() < before + 64 * MIB);
        assert!(is_back, "round {round}: {before} bytes before, {} after; {memory:?}", resident());
        assert!(files() <= files_before + 3, "{} files before, {} after", files_before, files());
    }

    // Without room for more open files, the heap goes on in ordinary memory, until there is room again.
    let limit = getrlimit(Resource::Nofile);
    let open = std::fs::read_dir("/proc/self/fd").unwrap().count() as u64;
    setrlimit(Resource::Nofile, Rlimit { current: Some(open), ..limit }).unwrap();
    let (blocks, more) = (load(200 * MIB), vec![vec![5_u8; 31 * MIB]; 4]);
    assert!(blocks.iter().all(|block| block.iter().all(|&byte| byte == block[0])));
    assert!(more.iter().any(|block| memory.find(block).is_none()), "{memory:?}");
    setrlimit(Resource::Nofile, limit).unwrap();
    drop((blocks, more));
    assert_eq!(memory.stats().full, None);
    assert!(vec![vec![5_u8; 31 * MIB]; 4].iter().any(|block| memory.find(block).is_some()), "{memory:?}");

    // A peer maps a block, next to which there is no room for many others.
    let (mut lender, mut borrower) = (fabric.endpoint().unwrap(), fabric.endpoint().unwrap());
    lender.connect(&borrower.address()).unwrap();
    borrower.connect(&lender.address()).unwrap();
    let block: Vec<u8> = (0..31 * MIB).map(|at| (at / 3) as u8).collect();
    // The allocator writes to the beginning of a block that is freed: here the lender breaks its promise to the peer.
    let lent = &block[4096..4096 + MIB];
    let expected = Buffer::from_slice_ref(lent);
    let (region, offset) = memory.find(lent).unwrap();
    let key = lender.expose(&region, 0..region.len()).unwrap();
    let (id, base) = (RegionId(1), region.address());
    poll(&mut *lender);
    borrower.import(id, base, region.len() as u64, &key).unwrap();
    let from = RemoteRange { region: id, address: base + offset as u64, len: MIB as u64 };
    let mapped = TrustedPeer::assume().map(&mut *borrower, from).unwrap();
    assert!(mapped == expected);

    // The segment is wanted back once nothing lies in it, and stays while the lender's own tables have it.
    drop(block);
    assert!(trimmed(&memory, || region.is_wanted_back()));
    assert!(memory.trim(Duration::ZERO).held);
    assert!(region.copy_out(offset, MIB).unwrap() == expected.as_slice());
    lender.revoke(&key);
    drop(region);
    assert!(trimmed(&memory, || !memory.trim(Duration::ZERO).held));
    borrower.forget(id);
    poll(&mut *borrower);
    // Later blocks at the same place are other memory.
    let later = load(300 * MIB);
    assert!(mapped == expected, "what a peer has mapped stays as it was");
    drop((mapped, later));
    assert!(trimmed(&memory, || resident() < before + 64 * MIB), "{before} bytes before, {} after", resident());
}
