//! Cases of remote keys: the range that a key opens, the peer that can use the key, and the revocation of the key.

use std::convert::Infallible;
use std::ops::Range;
use std::sync::Arc;

use thallus_protocol::RegionId;

use super::bench::{Bench, Connection, pattern};
use crate::FabricError;
use crate::memory::{RegisteredMemory, Registration};

const REGION: RegionId = RegionId(7);
const LEN: usize = 64 << 10;
/// The lent part. Neither its start nor its end is on a page boundary.
const LENT: Range<usize> = 8200..24_001;

/// Imports `range` of `memory` with a key for another range or another peer, and reads it. Returns whether the read
/// brought the bytes. The fabric may refuse the import, the posted read, or the completion.
async fn reads_by(
    bench: &Bench,
    connection: &mut Connection,
    memory: &RegisteredMemory,
    range: Range<usize>,
    key: &[u8],
) -> bool {
    let (base, len) = (memory.address() + range.start as u64, range.len() as u64);
    match connection.borrower.endpoint.import(REGION, base, len, key) {
        Ok(()) => {}
        Err(FabricError::RemoteKey { .. }) => return false,
        Err(error) => panic!("{}: importing: {error}", bench.name()),
    }
    let slab = bench.slab(range.len());
    let into = slab.range(0, range.len()).expect("within its slab");
    match connection.post(1, REGION, base, into) {
        Ok(()) => connection.finish([1]).await.remove(0).is_ok(),
        Err(FabricError::OutsideRegion { .. } | FabricError::Post { .. }) => false,
        Err(error) => panic!("{}: posting: {error}", bench.name()),
    }
}

/// A key opens its whole range. Where the capabilities promise it, the key opens not one byte more.
pub fn an_exposed_range_opens_no_more_than_it_may(bench: &Bench) {
    bench.block_on(async {
        let content = pattern(31, LEN);
        let lent = bench.lend(&content);
        let start = (lent.address() - lent.memory().address()) as usize;
        let within = start + LENT.start..start + LENT.end;
        // Within the range, beyond its end, before its start, and around it. On some devices a refused read ends its
        // connection.
        for (range, is_lent) in [
            (within.clone(), true),
            (within.end - 8..within.end, true),
            (within.end - 7..within.end + 1, false),
            (within.start - 1..within.start + 7, false),
            (within.end + 4096..within.end + 4104, false),
            (start..start + LEN, false),
        ] {
            let mut connection = bench.connect();
            let key = connection.lender.endpoint.expose(lent.memory(), within.clone()).expect("it can be lent");
            let opened = reads_by(bench, &mut connection, lent.memory(), range.clone(), &key).await;
            // Where a key opens the whole memory, both outcomes are right.
            let is_right = opened == is_lent || (!is_lent && !bench.lender.capabilities().exposes_ranges);
            assert!(is_right, "{}: {range:?} of {within:?}: {opened}", bench.name());
            connection.close().await;
        }
        // The bytes are the content of the range.
        let mut connection = bench.connect();
        connection.share_range(REGION, lent.memory(), within);
        let address = lent.address() + LENT.start as u64;
        let bytes = connection.read(bench, REGION, address, LENT.len()).await;
        assert!(bytes.is_ok_and(|bytes| bytes.as_slice() == &content[LENT]), "{}", bench.name());
        connection.close().await;
    });
}

/// Empty ranges and ranges outside the memory get no key.
pub fn a_range_that_is_none_is_not_exposed(bench: &Bench) {
    bench.block_on(async {
        let content = pattern(32, 4096);
        let lent = bench.lend(&content);
        let len = lent.memory().len();
        let mut connection = bench.connect();
        for (start, end) in [(0, 0), (len, len), (0, len + 1), (len, len + 1), (usize::MAX - 1, usize::MAX), (9, 8)] {
            let refused = connection.lender.endpoint.expose(lent.memory(), Range { start, end });
            assert!(matches!(refused, Err(FabricError::Misuse(_))), "{}: {start}..{end}: {refused:?}", bench.name());
        }
        connection.share(REGION, lent.memory());
        let bytes = connection.read(bench, REGION, lent.address(), 4096).await;
        assert!(bytes.is_ok_and(|bytes| bytes.as_slice() == content), "{}", bench.name());
        connection.close().await;
    });
}

/// Where ranges are exposed, a revoked key reads nothing, and other keys of the same memory stay valid. On other
/// fabrics keys stay valid.
pub fn a_revoked_key_reads_nothing(bench: &Bench) {
    bench.block_on(async {
        let content = pattern(33, LEN);
        let lent = bench.lend(&content);
        let start = (lent.address() - lent.memory().address()) as usize;
        let mut connection = bench.connect();
        let other = RegionId(8);
        let exposes_ranges = bench.lender.capabilities().exposes_ranges;
        for round in 0..3 {
            let key = connection.share_range(REGION, lent.memory(), start..start + 4096);
            let kept = connection.share_range(other, lent.memory(), start + 4096..start + 8192);
            assert!(connection.read(bench, REGION, lent.address(), 4096).await.is_ok(), "{}: {round}", bench.name());
            connection.lender.endpoint.revoke(&key);
            connection.lender.endpoint.revoke(&key);
            connection.lender.endpoint.revoke(&bytes::Bytes::from_static(b"no key"));
            let bytes = connection.read(bench, other, lent.address() + 4096, 4096).await;
            assert!(bytes.is_ok_and(|bytes| bytes.as_slice() == &content[4096..8192]), "{}: {round}", bench.name());
            connection.lender.endpoint.revoke(&kept);
            connection.borrower.endpoint.forget(other);
            if round < 2 {
                connection.borrower.endpoint.forget(REGION);
            }
        }
        // This read is last, because a read that a device refuses may end the connection.
        let late = connection.read(bench, REGION, lent.address(), 4096).await;
        match late {
            Err(_) => assert!(exposes_ranges, "{}: a key was revoked without cause", bench.name()),
            Ok(bytes) => {
                assert!(!exposes_ranges, "{}: a read came through by a revoked key", bench.name());
                assert_eq!(bytes.as_slice(), &content[..4096], "{}", bench.name());
            }
        }
        connection.close().await;
    });
}

/// Where ranges are exposed, another connection of the same two hosts cannot use a key. No key opens other memory.
pub fn a_key_opens_its_memory_to_its_peer_only(bench: &Bench) {
    bench.block_on(async {
        let lent = bench.lend(&pattern(34, 4096));
        let (mut theirs, mut ours) = (bench.connect(), bench.connect());
        let start = (lent.address() - lent.memory().address()) as usize;
        let key = theirs.share_range(REGION, lent.memory(), start..start + 4096);
        let opened = reads_by(bench, &mut ours, lent.memory(), start..start + 4096, &key).await;
        let may_open = !bench.lender.capabilities().exposes_ranges;
        assert!(!opened || may_open, "{}: another connection could use the key", bench.name());
        assert!(theirs.read(bench, REGION, lent.address(), 4096).await.is_ok(), "{}: its own connection", bench.name());
        theirs.close().await;
        ours.close().await;
    });
}

#[derive(Debug)]
struct OfNobody;

/// Memory that this fabric has not registered gets no key.
pub fn memory_of_another_fabric_is_not_exposed(bench: &Bench) {
    bench.block_on(async {
        let register = |_, _| Ok::<Box<dyn Registration>, Infallible>(Box::new(OfNobody));
        let memory = RegisteredMemory::heap(4096, register).expect("there is memory");
        let memory = Arc::new(memory.unwrap_or_else(|never| match never {}));
        assert!(memory.registration::<OfNobody>().is_some());
        let mut connection = bench.connect();
        let refused = connection.lender.endpoint.expose(&memory, 0..4096);
        assert!(matches!(refused, Err(FabricError::Misuse(_))), "{}: {refused:?}", bench.name());
        connection.close().await;
    });
}
