//! A program whose heap lies in registered memory. There is one test, since a process has one heap.
#![allow(missing_docs, clippy::unwrap_used)]

use std::sync::Arc;
use std::sync::mpsc;
use std::thread;

use thallus_fabric::Fabric;
use thallus_fabric::memory::{HeapError, HeapMemory, RegisteredHeap, RegisteredSpace};
use thallus_fabric_sim::{SimNetwork, SimOptions};

#[global_allocator]
static HEAP: RegisteredHeap = RegisteredHeap::new();

const MIB: usize = 1 << 20;
const LIMIT: usize = 768 * MIB;

fn fabric() -> Arc<dyn Fabric> {
    SimNetwork::new(1, SimOptions::default()).host()
}

fn lies_in(memory: &HeapMemory, bytes: &[u8]) -> bool {
    memory.find(bytes).is_some_and(|(region, offset)| {
        assert_eq!(region.address() as usize + offset, bytes.as_ptr().addr());
        assert!(offset + bytes.len() <= region.len());
        true
    })
}

fn byte(at: usize, seed: usize) -> u8 {
    (at / 7 + seed).to_le_bytes()[0]
}

/// Distinguishable bytes in a vector that was moved as it grew.
fn grown(len: usize, seed: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    (0..len).for_each(|at| bytes.push(byte(at, seed)));
    bytes
}

fn is_intact(bytes: &[u8], seed: usize) -> bool {
    bytes.iter().enumerate().all(|(at, &found)| found == byte(at, seed))
}

#[test]
fn allocations_lie_in_regions_up_to_the_limit() {
    assert_eq!(RegisteredHeap::grow_in(fabric(), MIB).unwrap_err(), HeapError::TooSmall { limit: MIB });
    let memory = RegisteredHeap::grow_in(fabric(), LIMIT).unwrap();
    assert_eq!(RegisteredHeap::grow_in(fabric(), LIMIT).unwrap_err(), HeapError::Already);
    assert_eq!((memory.stats().regions, memory.stats().bytes), (1, 64 * MIB));

    // Allocations of every size of a batch's buffers, by each way of allocating, on each thread.
    for len in [64 << 10, 512 << 10, 600_000, 3 * MIB] {
        assert!(lies_in(&memory, &vec![1; len]), "{len} bytes");
        let zeroed = vec![0_u8; len];
        assert!(lies_in(&memory, &zeroed) && zeroed.iter().all(|&byte| byte == 0), "{len} zeroed bytes");
        assert!(lies_in(&memory, &grown(len, 3)), "{len} bytes that grew");
        let of_a_thread = thread::spawn(move || vec![2_u8; len]).join().unwrap();
        assert!(lies_in(&memory, &of_a_thread), "{len} bytes of another thread");
    }
    assert!(memory.find(&[]).is_none());
    assert!(!lies_in(&memory, b"a constant of the program"));

    // The heap grows while several threads allocate, and no written byte is lost.
    let (sender, receiver) = mpsc::channel();
    let threads: Vec<_> = (0..4)
        .map(|thread| {
            let sender = sender.clone();
            thread::spawn(move || {
                for at in 0..64 {
                    let seed = thread * 1000 + at;
                    // Some have a size that the allocator puts side by side.
                    let len = if at % 2 == 0 { MIB + at * 1000 } else { 128 << 10 };
                    sender.send((seed, grown(len, seed))).unwrap();
                }
            })
        })
        .collect();
    drop(sender);
    let blocks: Vec<(usize, Vec<u8>)> = receiver.iter().collect();
    threads.into_iter().for_each(|thread| thread.join().unwrap());
    for (seed, block) in &blocks {
        assert!(lies_in(&memory, block), "block {seed} of {} bytes; {memory:?}", block.len());
        assert!(is_intact(block, *seed), "block {seed}");
    }
    let stats = memory.stats();
    assert!(stats.regions > 1 && stats.bytes <= LIMIT && stats.full.is_none(), "{stats:?}");

    // An allocation that is too long comes from the system, and the heap can still grow for other allocations.
    let too_long = grown(LIMIT, 5);
    assert!(!lies_in(&memory, &too_long) && is_intact(&too_long, 5));
    drop(too_long);

    // Beyond the limit, memory comes from the system.
    let mut more = Vec::new();
    while memory.stats().full.is_none() {
        more.push(grown(MIB, 0));
        assert!(more.len() <= LIMIT / MIB, "{memory:?}");
    }
    let stats = memory.stats();
    assert!(stats.bytes <= LIMIT && LIMIT - stats.bytes < 64 * MIB, "{stats:?}");
    let outside = grown(40 * MIB, 9);
    assert!(is_intact(&outside, 9));

    // Freed memory is reused: nothing more is registered.
    drop((blocks, more, outside));
    for seed in 0..1000 {
        assert!(lies_in(&memory, &vec![byte(0, seed); MIB]), "{memory:?}");
    }
    assert_eq!(memory.stats(), stats);
}
