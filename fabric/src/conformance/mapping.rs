//! Cases of mapped memory.

use arrow_buffer::Buffer;
use thallus_protocol::{RegionId, RemoteRange};

use super::bench::{Bench, Connection, pattern};
use crate::memory::{LeaseWords, TrustedPeer};
use crate::{FabricError, Maps};

const REGION: RegionId = RegionId(7);

/// Maps a range. The peer is trusted: both ends are in this process.
fn try_map(connection: &mut Connection, from: RemoteRange) -> Result<Buffer, FabricError> {
    TrustedPeer::assume().map(&mut *connection.borrower.endpoint, from)
}

fn map(bench: &Bench, connection: &mut Connection, address: u64, len: usize) -> Buffer {
    let mapped = try_map(connection, RemoteRange { region: REGION, address, len: len as u64 });
    mapped.unwrap_or_else(|error| panic!("{}: mapping {len} bytes: {error}", bench.name()))
}

fn maps(bench: &Bench) -> bool {
    bench.lender.capabilities().maps == Maps::Allocated
}

/// A fabric maps allocated memory, at any offset and length, exactly if its capabilities allow it. If not, the
/// capabilities give a reason.
pub fn mapped_bytes_are_those_of_the_lender(bench: &Bench) {
    bench.block_on(async {
        let content = pattern(21, (1 << 20) + 3);
        let lent = bench.lend(&content);
        let mut connection = bench.connect();
        connection.share(REGION, lent.memory());
        // The first read establishes the connection.
        let read = connection.read(bench, REGION, lent.address(), 64).await.expect("within its region");
        assert_eq!(read.as_slice(), &content[..64]);
        assert_eq!(connection.borrower.endpoint.mapping().is_some(), maps(bench), "{}", bench.name());
        if maps(bench) {
            for (offset, len) in
                [(0, content.len()), (0, 1), (4095, 2), (4096, 8192), (777, 1 << 19), (content.len() - 1, 1)]
            {
                let mapped = map(bench, &mut connection, lent.address() + offset as u64, len);
                assert!(mapped.as_slice() == &content[offset..offset + len], "{}: {len} at {offset}", bench.name());
            }
        } else {
            let refused = try_map(&mut connection, RemoteRange { region: REGION, address: lent.address(), len: 64 });
            assert!(matches!(refused, Err(FabricError::Map { .. })), "{}: {refused:?}", bench.name());
            let Maps::Nothing { reason } = bench.lender.capabilities().maps else { panic!("{}", bench.name()) };
            assert!(!reason.is_empty(), "{}: the capabilities give no reason for mapping nothing", bench.name());
        }
        connection.close().await;
    });
}

/// A mapping and its content stay valid after its region is forgotten and both ends are closed.
pub fn mapped_bytes_outlive_the_connection(bench: &Bench) {
    if !maps(bench) {
        return;
    }
    bench.block_on(async {
        let content = pattern(22, 300_000);
        let lent = bench.lend(&content);
        let mut connection = bench.connect();
        connection.share(REGION, lent.memory());
        let whole = map(bench, &mut connection, lent.address(), content.len());
        let part = map(bench, &mut connection, lent.address() + 1000, 5000);
        connection.borrower.endpoint.forget(REGION);
        assert!(whole.as_slice() == content, "{}: after the region was forgotten", bench.name());
        connection.close().await;
        let part = std::thread::spawn(move || {
            assert!(whole.as_slice() == content, "after the connection was closed, on another thread");
            drop(whole);
            assert!(part.as_slice() == &content[1000..6000]);
            part
        });
        drop(part.join().expect("the bytes are right"));
        drop(lent);
    });
}

/// A mapping cannot exceed its region, and a mapping without a region is refused.
pub fn maps_outside_their_region_are_refused(bench: &Bench) {
    if !maps(bench) {
        return;
    }
    bench.block_on(async {
        let lent = bench.lend(&pattern(23, 8192));
        let (base, len) = (lent.memory().address(), lent.memory().len() as u64);
        let mut connection = bench.connect();
        connection.share(REGION, lent.memory());
        for (address, len) in [(base - 1, 2), (base, len + 1), (base + len, 1), (u64::MAX, 2), (base, u64::MAX)] {
            let refused = try_map(&mut connection, RemoteRange { region: REGION, address, len });
            assert!(matches!(refused, Err(FabricError::OutsideRegion { .. })), "{}: {refused:?}", bench.name());
        }
        let unknown = RemoteRange { region: RegionId(8), address: base, len: 1 };
        let refused = try_map(&mut connection, unknown);
        assert!(matches!(refused, Err(FabricError::OutsideRegion { .. })), "{}: {refused:?}", bench.name());
        connection.borrower.close();
        let refused = try_map(&mut connection, RemoteRange { region: REGION, address: base, len: 1 });
        assert!(refused.is_err(), "{}: a closed endpoint maps", bench.name());
        connection.close().await;
    });
}

/// The lender keeps writing, as it does to its lease words: the next mapping shows the new bytes at the latest.
pub fn a_new_mapping_shows_what_stands_there_now(bench: &Bench) {
    if !maps(bench) {
        return;
    }
    bench.block_on(async {
        let words = LeaseWords::new(&*bench.lender, 2).expect("a page of words");
        let mut connection = bench.connect();
        connection.share(REGION, words.memory());
        let address = words.memory().address() + 8;
        for value in [17_u64, 18] {
            words.open(1, value).expect("a slot");
            // Dropped before the word changes again, since mapped bytes must not change while they are in use.
            let mapped = map(bench, &mut connection, address, 8);
            assert_eq!(mapped.as_slice(), value.to_le_bytes(), "{}", bench.name());
            drop(mapped);
            words.revoke(1).expect("a slot");
        }
        connection.close().await;
    });
}
