//! Operations that must fail, on a device: the device refuses each read of memory that was not lent, and every fault
//! ends in typed errors. Needs an RDMA device, named by `THALLUS_VERBS_DEVICE`.

mod support;

use std::sync::Arc;

use bytes::Bytes;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use support::{Peers, REMOTE_ACCESS, RETRY_EXCEEDED, fabric, fabric_of_windows, runtime, status};
use thallus_fabric::memory::RegisteredMemory;
use thallus_fabric::{Endpoint, Fabric, FabricError, ReadFailure, Touch};
use thallus_fabric_verbs::{Exposure, VerbsFabric};
use thallus_protocol::RegionId;

const LENT: std::ops::Range<usize> = 8192..16384;

/// A key with changed fields, as a hostile reader would send to its device. The layout is that of `address.rs`.
fn forged(key: &Bytes, base: u64, len: u64) -> Vec<u8> {
    let mut blob = key[..8].to_vec();
    blob.extend(base.to_le_bytes());
    blob.extend(len.to_le_bytes());
    let checksum = blob
        .iter()
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, &byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3));
    blob.extend(checksum.to_le_bytes());
    blob
}

/// Runs a test with the device's own method and with memory windows. Windows are revoked in time even on a device that
/// does not enforce their bounds.
fn in_both_ways(test: impl AsyncFn(Arc<VerbsFabric>)) {
    for fabric in [fabric(Exposure::Auto), fabric_of_windows()] {
        println!("{}", fabric.describe());
        runtime().block_on(test(fabric));
    }
}

/// Posts reads of all of the memory, and polls so that the device gets them.
async fn start_reads(peers: &mut Peers, memory: &Arc<RegisteredMemory>) -> Vec<u64> {
    let pieces = (0..memory.len() as u64).step_by(1 << 20);
    let reads = pieces.map(|piece| peers.post(RegionId(1), memory.address() + piece, 1 << 20)).collect();
    let _ = peers.poll_once().await;
    reads
}

/// The lender still works: a new connection reads memory that is lent to it.
async fn lender_lives_on(fabric: &Arc<VerbsFabric>, memory: &Arc<RegisteredMemory>) {
    let mut peers = Peers::connect(fabric);
    let key = peers.lender.expose(memory, LENT).unwrap();
    let (base, len) = (memory.address() + LENT.start as u64, LENT.len() as u64);
    peers.borrower.import(RegionId(1), base, len, &key).unwrap();
    assert_eq!(peers.read(RegionId(1), base, 4096).await, Ok(()));
    peers.close().await;
}

/// Reads `len` bytes at `at` of memory of which [`LENT`] is lent, by a key that claims to open all of it.
async fn read_outside(exposure: Exposure, at: usize, len: usize) {
    let fabric = fabric(exposure);
    let memory = fabric.allocate(64 << 10, Touch::Now).unwrap();
    let mut peers = Peers::connect(&fabric);
    let key = peers.lender.expose(&memory, LENT).unwrap();
    let all = forged(&key, memory.address(), memory.len() as u64);
    peers.borrower.import(RegionId(1), memory.address(), memory.len() as u64, &all).unwrap();
    let lent = peers.read(RegionId(1), memory.address() + LENT.start as u64, LENT.len()).await;
    assert_eq!(lent, Ok(()), "the lent range");
    let refused = peers.read(RegionId(1), memory.address() + at as u64, len).await;
    assert_eq!(status(&refused), Some(REMOTE_ACCESS), "{len} bytes at {at}: {refused:?}");
    peers.close().await;
    lender_lives_on(&fabric, &memory).await;
}

#[test]
#[ignore = "needs an RDMA device, named by THALLUS_VERBS_DEVICE"]
fn a_read_outside_its_lease_is_refused_by_the_device() {
    runtime().block_on(async {
        for (at, len) in [(LENT.start - 1, 1), (LENT.end, 1), (LENT.end - 8, 16), (0, 4096), (LENT.start - 8, 16384)] {
            read_outside(Exposure::Auto, at, len).await;
        }
    });
}

#[test]
#[ignore = "needs an RDMA device, named by THALLUS_VERBS_DEVICE"]
fn a_read_after_the_release_is_refused_by_the_device() {
    in_both_ways(async |fabric| {
        let memory = fabric.allocate(64 << 10, Touch::Now).unwrap();
        let mut peers = Peers::connect(&fabric);
        let key = peers.lender.expose(&memory, LENT).unwrap();
        let base = memory.address() + LENT.start as u64;
        peers.borrower.import(RegionId(1), base, LENT.len() as u64, &key).unwrap();
        assert_eq!(peers.read(RegionId(1), base, LENT.len()).await, Ok(()));
        peers.lender.revoke(&key);
        let refused = peers.read(RegionId(1), base, 8).await;
        assert_eq!(status(&refused), Some(REMOTE_ACCESS), "{refused:?}");
        peers.close().await;
        lender_lives_on(&fabric, &memory).await;
    });
}

#[test]
#[ignore = "needs an RDMA device, named by THALLUS_VERBS_DEVICE"]
fn a_revoked_range_can_be_lent_again_under_another_key() {
    in_both_ways(async |fabric| {
        let memory = fabric.allocate(64 << 10, Touch::Now).unwrap();
        let mut peers = Peers::connect(&fabric);
        let base = memory.address() + LENT.start as u64;
        for round in 0..300 {
            let key = peers.lender.expose(&memory, LENT).unwrap();
            peers.borrower.import(RegionId(round), base, LENT.len() as u64, &key).unwrap();
            assert_eq!(peers.read(RegionId(round), base, 64).await, Ok(()), "round {round}");
            peers.borrower.forget(RegionId(round));
            peers.lender.revoke(&key);
        }
        peers.close().await;
    });
}

#[test]
#[ignore = "needs an RDMA device, named by THALLUS_VERBS_DEVICE"]
fn another_connections_key_is_refused_by_the_device() {
    in_both_ways(async |fabric| {
        let memory = fabric.allocate(64 << 10, Touch::Now).unwrap();
        let (mut theirs, mut ours) = (Peers::connect(&fabric), Peers::connect(&fabric));
        let key = theirs.lender.expose(&memory, LENT).unwrap();
        let base = memory.address() + LENT.start as u64;
        for peers in [&mut theirs, &mut ours] {
            peers.borrower.import(RegionId(1), base, LENT.len() as u64, &key).unwrap();
        }
        let refused = ours.read(RegionId(1), base, 8).await;
        assert_eq!(status(&refused), Some(REMOTE_ACCESS), "{refused:?}");
        assert_eq!(theirs.read(RegionId(1), base, 8).await, Ok(()), "a read by the key's own peer");
        theirs.close().await;
        ours.close().await;
    });
}

#[test]
#[ignore = "needs an RDMA device, named by THALLUS_VERBS_DEVICE"]
fn a_failed_queue_pair_in_mid_read_ends_every_read_once() {
    runtime().block_on(async {
        let fabric = fabric(Exposure::Auto);
        for of_the_lender in [false, true] {
            let memory = fabric.allocate(16 << 20, Touch::Now).unwrap();
            let mut peers = Peers::connect(&fabric);
            let key = peers.lender.expose(&memory, 0..memory.len()).unwrap();
            peers.borrower.import(RegionId(1), memory.address(), memory.len() as u64, &key).unwrap();
            let mut reads = start_reads(&mut peers, &memory).await;
            if of_the_lender { peers.lender.force_error() } else { peers.borrower.force_error() }.unwrap();
            // A fast device may complete the reads above. This read cannot complete.
            reads.push(peers.post(RegionId(1), memory.address(), 8));
            let results = peers.finish(&reads).await;
            let first = results.iter().find(|result| result.is_err()).expect("a read came through a failed queue pair");
            if of_the_lender {
                assert_eq!(status(first), Some(RETRY_EXCEEDED), "{first:?}");
            } else {
                assert_eq!(*first, Err(ReadFailure::Flushed));
            }
            let refused = peers.try_post(RegionId(1), memory.address(), 8);
            assert!(matches!(refused, Err(FabricError::EndpointDown { .. })), "{refused:?}");
            let reason = refused.unwrap_err().to_string();
            assert!(reason.contains("RDMA READ") && reason.contains("status"), "{reason}");
            peers.close().await;
            lender_lives_on(&fabric, &memory).await;
        }
    });
}

#[test]
#[ignore = "needs an RDMA device, named by THALLUS_VERBS_DEVICE"]
fn too_little_lockable_memory_is_reported() {
    let fabric = fabric(Exposure::Auto);
    let old = getrlimit(Resource::Memlock);
    // A limit of this process. It does not apply to root, unless the thread gives up the capability.
    setrlimit(Resource::Memlock, Rlimit { current: Some(1 << 20), ..old }).unwrap();
    let refused = std::thread::spawn(move || {
        support::give_up_ipc_lock();
        fabric.allocate(8 << 20, Touch::Now).map(|_| ())
    });
    let refused = refused.join().unwrap();
    setrlimit(Resource::Memlock, old).unwrap();
    let error = refused.expect_err("more was locked than is allowed");
    assert!(matches!(error, FabricError::Registration { .. }), "{error}");
    assert!(error.to_string().contains("1024 KiB (`ulimit -l`)"), "{error}");
}

/// Takes down the device's link during reads. `THALLUS_VERBS_LINK` names the network interface below the device.
#[test]
#[ignore = "needs an RDMA device, named by THALLUS_VERBS_DEVICE, and its network interface, by THALLUS_VERBS_LINK"]
fn a_link_that_goes_down_fails_reads_and_works_again_when_it_is_up() {
    let link = std::env::var("THALLUS_VERBS_LINK").expect("THALLUS_VERBS_LINK names no network interface");
    runtime().block_on(async {
        let fabric = fabric(Exposure::Auto);
        let memory = fabric.allocate(16 << 20, Touch::Now).unwrap();
        let mut peers = Peers::connect(&fabric);
        let key = peers.lender.expose(&memory, 0..memory.len()).unwrap();
        peers.borrower.import(RegionId(1), memory.address(), memory.len() as u64, &key).unwrap();
        let mut reads = start_reads(&mut peers, &memory).await;
        support::set_link(&link, "down");
        reads.push(peers.post(RegionId(1), memory.address(), 8));
        let results = peers.finish(&reads).await;
        support::set_link(&link, "up");
        let first = results.iter().find(|result| result.is_err()).expect("a read came through a link that is down");
        assert!(status(first).is_some(), "{first:?}");
        println!("link down: {first:?}");
        peers.close().await;
        support::until_active().await;
        // A new connection, on the same fabric.
        let again = support::fabric(Exposure::Auto);
        let memory = again.allocate(64 << 10, Touch::Now).unwrap();
        lender_lives_on(&again, &memory).await;
    });
}
