//! Cases of a peer or a caller that breaks the contract.

use thallus_protocol::{RegionId, RemoteRange};

use super::bench::{Bench, Side, drive, pattern};
use crate::{FabricError, ReadToken};

const REGION: RegionId = RegionId(7);

/// Blobs that are malformed for every fabric: truncated, invented, empty.
fn malformed(blob: &[u8]) -> impl Iterator<Item = Vec<u8>> {
    let cut = (0..blob.len()).step_by((blob.len() / 40).max(1)).map(|len| blob[..len].to_vec()).collect::<Vec<_>>();
    let random = (0..40).map(|seed| pattern(seed, usize::from(seed) * 13)).collect::<Vec<_>>();
    [vec![0; blob.len()], vec![0xFF; blob.len()], vec![0xFF; 1 << 20]].into_iter().chain(cut).chain(random)
}

/// The same blob with one bit flipped, at 40 positions.
fn flipped(blob: &[u8]) -> impl Iterator<Item = Vec<u8>> {
    (0..blob.len()).step_by((blob.len() / 40).max(1)).map(|at| {
        let mut flipped = blob.to_vec();
        flipped[at] ^= 1 << (at % 8);
        flipped
    })
}

/// No read is possible before the endpoint is connected.
pub fn reads_before_connecting_are_refused(bench: &Bench) {
    bench.block_on(async {
        let mut side = Side::new(bench.borrower.endpoint().expect("an endpoint"));
        let slab = bench.slab(8);
        let from = RemoteRange { region: REGION, address: 4096, len: 8 };
        let into = slab.range(0, 8).expect("within its slab");
        let posted = side.endpoint.post_read(ReadToken(1), from, into);
        assert!(posted.is_err(), "{}", bench.name());
        assert!(slab.into_buffer().is_ok(), "{}: the range of a refused read was kept", bench.name());
        side.close();
        assert!(drive(&mut [&mut side], |sides| sides[0].endpoint.is_closed()).await, "{}", bench.name());
        assert!(side.done.is_empty(), "{}: {:?}", bench.name(), side.done);
    });
}

/// A read outside the imported regions never reaches the device.
pub fn reads_outside_their_region_are_refused(bench: &Bench) {
    bench.block_on(async {
        let lent = bench.lend(&pattern(1, 4096));
        let (base, end) = (lent.memory().address(), lent.memory().address() + lent.memory().len() as u64);
        let mut connection = bench.connect();
        connection.share(REGION, lent.memory());
        let slab = bench.slab(64);
        for (region, address) in [
            (REGION, base - 1),
            (REGION, base.wrapping_sub(64)),
            (REGION, end - 63),
            (REGION, end),
            (REGION, 0),
            (REGION, u64::MAX),
            (REGION, u64::MAX - 63),
            (RegionId(8), base),
        ] {
            let into = slab.range(0, 64).expect("the range of a refused read is dropped");
            let refused = connection.post(1, region, address, into);
            let expected = FabricError::OutsideRegion { region, address, len: 64 };
            assert_eq!(refused, Err(expected), "{}: {address:#x} of {base:#x}..{end:#x}", bench.name());
        }
        // A read up to the last byte is allowed.
        assert!(connection.read(bench, REGION, end - 64, 64).await.is_ok(), "{}", bench.name());
        assert_eq!(connection.borrower.done.len(), 1, "{}: a refused read completed", bench.name());
        connection.close().await;
    });
}

/// The two ranges of a read must have the same length.
pub fn mismatched_lengths_are_refused(bench: &Bench) {
    bench.block_on(async {
        let lent = bench.lend(&pattern(1, 4096));
        let mut connection = bench.connect();
        connection.share(REGION, lent.memory());
        let slab = bench.slab(64);
        for len in [63, 65, 4096] {
            let from = RemoteRange { region: REGION, address: lent.memory().address(), len };
            let into = slab.range(0, 64).expect("the range of a refused read is dropped");
            let refused = connection.borrower.endpoint.post_read(ReadToken(1), from, into);
            assert!(matches!(refused, Err(FabricError::Misuse(_))), "{}: 64 for {len}: {refused:?}", bench.name());
        }
        connection.close().await;
    });
}

/// A malformed address is an error, never a crash, and the endpoint can still be closed.
pub fn malformed_addresses_are_refused(bench: &Bench) {
    bench.block_on(async {
        let peer = Side::new(bench.lender.endpoint().expect("an endpoint"));
        let address = peer.endpoint.address();
        let mut sides = vec![peer];
        for blob in malformed(&address) {
            let mut side = Side::new(bench.borrower.endpoint().expect("an endpoint"));
            let result = side.endpoint.connect(&blob);
            let refused = matches!(result, Err(FabricError::Connect { .. }));
            assert!(refused, "{}: {} bytes: {result:?}", bench.name(), blob.len());
            sides.push(side);
        }
        for blob in flipped(&address) {
            // The blob may name another peer. The test only requires that nothing crashes.
            let mut side = Side::new(bench.borrower.endpoint().expect("an endpoint"));
            let _ = side.endpoint.connect(&blob);
            sides.push(side);
        }
        sides.iter_mut().for_each(Side::close);
        let mut sides: Vec<&mut Side> = sides.iter_mut().collect();
        let closed = drive(&mut sides, |sides| sides.iter().all(|side| side.endpoint.is_closed())).await;
        assert!(closed, "{}: {sides:?}", bench.name());
    });
}

/// A malformed key is an error, never a crash, and the endpoint stays usable.
pub fn malformed_keys_are_refused(bench: &Bench) {
    bench.block_on(async {
        let content = pattern(2, 4096);
        let lent = bench.lend(&content);
        let (base, len) = (lent.memory().address(), lent.memory().len() as u64);
        let mut connection = bench.connect();
        let key = connection.lender.endpoint.expose(lent.memory(), 0..lent.memory().len()).expect("it can be lent");
        for blob in malformed(&key) {
            let result = connection.borrower.endpoint.import(REGION, base, len, &blob);
            let refused = matches!(result, Err(FabricError::RemoteKey { .. }));
            assert!(refused, "{}: {} bytes: {result:?}", bench.name(), blob.len());
        }
        for blob in flipped(&key) {
            if connection.borrower.endpoint.import(REGION, base, len, &blob).is_ok() {
                connection.borrower.endpoint.forget(REGION);
            }
        }
        // After all these, the real key still works.
        connection.borrower.endpoint.import(REGION, base, len, &key).expect("the real key");
        let bytes = connection.read(bench, REGION, lent.address(), 4096).await;
        assert!(bytes.is_ok_and(|bytes| bytes.as_slice() == content), "{}", bench.name());
        connection.close().await;
    });
}

/// A peer that announces a false region gets failed reads or bytes that it chose itself. Each read ends once.
pub fn a_false_region_hurts_only_its_reader(bench: &Bench) {
    bench.block_on(async {
        let lent = bench.lend(&pattern(3, 4096));
        let mut connection = bench.connect();
        let key = connection.lender.endpoint.expose(lent.memory(), 0..lent.memory().len()).expect("it can be lent");
        // A region that ends beyond the address space can be refused at once.
        let wrapping = connection.borrower.endpoint.import(REGION, u64::MAX - 10, 100, &key);
        assert!(matches!(wrapping, Err(FabricError::RemoteKey { .. })), "{}: {wrapping:?}", bench.name());
        // Far from any mapped page.
        let base = 1 << 20;
        match connection.borrower.endpoint.import(REGION, base, 1 << 20, &key) {
            Ok(()) => {}
            // The key itself may contain the range that it opens.
            Err(FabricError::RemoteKey { .. }) => return connection.close().await,
            Err(error) => panic!("{}: {error}", bench.name()),
        }
        let slab = bench.slab(4096);
        let into = slab.range(0, 4096).expect("within its slab");
        match connection.post(1, REGION, base, into) {
            Ok(()) => {
                let results = connection.finish([1]).await;
                assert!(results[0].is_err(), "{}: a read of unmapped memory brought bytes", bench.name());
            }
            Err(FabricError::Post { .. } | FabricError::OutsideRegion { .. }) => {}
            Err(error) => panic!("{}: {error}", bench.name()),
        }
        connection.close().await;
    });
}
